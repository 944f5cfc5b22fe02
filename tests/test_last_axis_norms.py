"""RMSNormalization and onnxruntime's own norms take a map behind them into γ, and β if they have
one.

`test_batchnorm` has norms that are compared in float64; these are compared in onnxruntime. What is
new: a γ that broadcasts, a norm with no place for β, outputs next to the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

import bnfold
from bnfold._proof.certificate import certify

from . import runtimes
from .graphs import (
    FLOAT,
    Piece,
    bn,
    certified,
    codes,
    const,
    counts,
    done,
    feeds,
    model,
    op,
    overridable,
    rand,
    run,
)

MICROSOFT = {"com.microsoft": 1}
DATA = {"x": (2, 4, 4), "s": (2, 4, 4)}
# By type: what stands ahead of γ, what follows it, the domain, and whether there is a β.
NORMS: Mapping[str, tuple[str, str, str, bool]] = {
    "RMSNormalization": ("x", "", "", False),
    "SimplifiedLayerNormalization": ("x", "", "", False),
    "SkipLayerNormalization": ("x s", "b c", "com.microsoft", True),
    "SkipSimplifiedLayerNormalization": ("x s", "c", "com.microsoft", False),
}
every_norm = pytest.mark.parametrize("kind", NORMS)
rms_norms = pytest.mark.parametrize("kind", [k for k in NORMS if not k.startswith("Skip")])


def norm(kind: str, g: Any = (4,), y: str = "n", inputs: str = "", **attrs: Any) -> Piece:
    ahead, behind, domain, _ = NORMS[kind]
    stored = {"g": rand(*g), "b": rand(4), "c": rand(4)}
    inputs = inputs or f"{ahead} g {behind}"
    node = op(kind, inputs, y, name="norm", domain=domain, **attrs)
    node.output[:] = ["" if name == "_" else name for name in node.output]
    return node, {name: value for name, value in stored.items() if name in inputs.split()}


def made(*pieces: Piece, x: Any = None, y: str = "y", **options: Any) -> Any:
    """A model that reads the second tensor of a sum only where there is one."""
    kind = next(p[0].op_type for p in pieces if isinstance(p, tuple) and p[0].name == "norm")
    data = x or DATA
    data = data if kind.startswith("Skip") else {"x": data["x"]}
    opset = 23 if kind == "RMSNormalization" else 17
    domains = {**MICROSOFT, **options.pop("domains", {})}
    found = model(*pieces, x=data, y=y, opset=opset, domains=domains, **options)
    for out in found.graph.output:  # ONNX knows no shapes behind an operator that is not its own.
        shape = (2, 4, 1) if out.name in ("mean", "inv") else (2, 4, 4)
        out.CopyFrom(helper.make_tensor_value_info(out.name, FLOAT, shape))
    return found


def holds(m: Any) -> Any:
    """Fold; onnxruntime puts out the same, and every certificate holds."""
    before = m.SerializeToString()
    once = done(m)
    assert m.SerializeToString() == before
    data = feeds(m)
    for wanted, found in zip(run(m, data), run(once.folded, data), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    certified(m, once)
    return once.folded


def left(m: Any) -> int:
    return sum(n for kind, n in counts(holds(m)).items() if "Norm" not in kind)


@every_norm
def test_a_scale_goes_into_gamma_and_a_shift_where_there_is_a_beta(kind):
    has_beta = NORMS[kind][3]
    scale, shift = const("Mul", "n", "d", rand(4)), const("Add", "d", "y", rand(4), name="add")
    assert left(made(norm(kind), const("Mul", "n", "y", rand(4)))) == 0
    assert left(made(norm(kind), const("Div", "n", "y", np.float32(-3)))) == 0
    m = made(norm(kind), scale, shift)
    assert left(m) == (0 if has_beta else 1)
    assert codes(m) == ({} if has_beta else {"add": "no-gain"})


def test_a_missing_beta_is_made():
    for inputs in ("x s g", "x s g _ c"):
        m = made(norm("SkipLayerNormalization", inputs=inputs), const("Add", "n", "y", rand(4)))
        assert left(m) == 0


@every_norm
@pytest.mark.parametrize("k", [(4, 1), (2, 1, 1), (4, 4)], ids=str)
def test_a_map_along_an_axis_that_gamma_does_not_span_stays(kind, k):
    m = made(norm(kind), const("Mul", "n", "y", rand(*k), name="mul"))
    assert left(m) == 1
    assert codes(m)["mul"] in ("axis-mismatch", "not-per-channel")


@every_norm
def test_a_batchnorm_behind_three_axes_is_along_another(kind):
    assert codes(made(norm(kind), bn("bn", "n", "y", 4)))["bn"] == "axis-mismatch"
    assert counts(holds(made(norm(kind), bn("bn", "n", "y", 4))))["BatchNormalization"] == 1


@rms_norms
@pytest.mark.parametrize("g", [(), (1,), (1, 4), (4, 1), (4, 4), (1, 1, 4)], ids=str)
@pytest.mark.parametrize("k", [(), (4,), (4, 1)], ids=str)
@pytest.mark.parametrize("axis", [-1, 1])
def test_gamma_is_aligned_from_the_right_and_keeps_its_shape(kind, g, k, axis):
    """Of [2, 4, 4] either last axis has four places: only the ranks tell them apart."""
    if g != (4, 4)[axis % 3 - 1 :] and not runtimes.broadcasts_gamma():
        pytest.skip("this onnxruntime takes no γ that broadcasts")
    m = made(norm(kind, g, axis=axis), const("Mul", "n", "y", rand(*k), name="mul"))
    full = (1, 1, 1, *g)[-3:]
    along = {(): None, (4,): 2, (4, 1): 1}[k]
    goes = along is None or full[along] == 4
    assert left(m) == (0 if goes else 1)
    stored = {t.name: tuple(t.dims) for t in bnfold.fold(m).graph.initializer}
    assert [s for name, s in stored.items() if name.startswith("g")] == [g]


@pytest.mark.parametrize("kind", [k for k in NORMS if k.startswith("Skip")])
def test_the_sum_is_put_out_as_it_was(kind):
    m = made(norm(kind, y="n _ _ z"), const("Mul", "n", "y", rand(4)), y="y z")
    assert left(m) == 0
    of_the_sum = const("Mul", "z", "y", np.float32(3), name="mul")
    for outputs, y in (("n _ _ z", "n y"), ("_ _ _ z", "y")):
        other = made(norm(kind, y=outputs), of_the_sum, y=y)
        assert counts(bnfold.fold(other)) == counts(other)
        assert codes(other) == {"mul": "no-linear-operator"}
    assert left(made(norm(kind, y="n _ _ z"), of_the_sum, y="n y")) == 1


def test_the_statistics_are_put_out_as_they_were():
    if not runtimes.puts_out_statistics_of_a_skip_norm():
        pytest.skip("this onnxruntime puts out no statistics")
    m = made(
        norm("SkipLayerNormalization", y="n mean inv z"),
        const("Mul", "n", "y", rand(4)),
        y="y mean inv z",
    )
    assert left(m) == 0


@every_norm
def test_a_gamma_that_may_change_takes_nothing(kind):
    m = made(norm(kind), const("Mul", "n", "y", np.float32(3), name="mul"))
    assert codes(overridable(m, "g"))["mul"] == "overridable-weight"


@every_norm
def test_an_operator_of_that_name_in_another_domain_is_another(kind):
    m = made(norm(kind), const("Mul", "n", "y", np.float32(3), name="mul"), domains={"mine": 1})
    for domain in {"", "com.microsoft", "mine"} - {NORMS[kind][2]}:
        m.graph.node[0].domain = domain
        assert codes(m) == {"mul": "no-linear-operator"}


def test_a_local_function_of_that_name_is_another():
    body = [op("Add", "a b", "t"), op("Add", "t g", "r")]
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "com.microsoft", "SkipLayerNormalization", ["a", "b", "g"], ["r"], body, imports
    )
    piece = norm("SkipLayerNormalization", inputs="x s g")
    m = made(piece, const("Mul", "n", "y", np.float32(3), name="mul"), functions=[function])
    assert counts(bnfold.fold(m)) == counts(m)


PLACES = {
    "RMSNormalization": {"γ": 1},
    "SimplifiedLayerNormalization": {"γ": 1},
    "SkipLayerNormalization": {"skip": 1, "γ": 2, "β": 3, "bias": 4},
    "SkipSimplifiedLayerNormalization": {"skip": 1, "γ": 2, "bias": 3},
}


@pytest.mark.parametrize(
    "kind, what",
    [(kind, what) for kind, places in PLACES.items() for what in (*places, "an input more")],
)
def test_the_certificate_sees_a_number_that_is_wrong(kind, what):
    """A part in a thousand of γ or β, or of what is normalized, which no map changes."""
    m = made(norm(kind), const("Mul", "n", "y", rand(4)))
    place = PLACES[kind].get(what)
    if what == "skip":
        m.graph.initializer.append(numpy_helper.from_array(rand(*DATA["s"]), "s"))
        del m.graph.input[1]
    once = done(m)
    result, applied = once.folded, once.applied
    assert applied and all(c.holds for c in certify(m, result, applied))
    (node,) = result.graph.node
    if place is None:
        node.input.append(node.input[1])
    else:
        for stored in result.graph.initializer:
            if stored.name == node.input[place]:
                values = numpy_helper.to_array(stored) * np.float32(1.001)
                stored.CopyFrom(numpy_helper.from_array(values, stored.name))
    assert not all(c.holds for c in certify(m, result, applied))


@every_norm
def test_the_whole_verdict_passes(kind):
    """The tolerance counts γ, which a wrong part in a hundred of has to show in."""
    m = made(norm(kind), const("Mul", "n", "y", rand(4)))
    result = holds(m)
    found = bnfold.verify(m, result, prove=False)
    assert found.status == "pass"
    assert found.power and all(planted.noticed for planted in found.power)
