"""Maps go into onnxruntime's fused operators: ahead of them always, behind them as far as the law
of the activation inside allows.

What no cheaper test catches: an activation that a map does not pass, the sum inside a FusedConv,
and how FusedMatMul takes its axes. The oracle is onnxruntime without optimizations.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

import bnfold
from bnfold._proof.certificate import certify

from .graphs import (
    FLOAT,
    bn,
    certified,
    codes,
    const,
    conv,
    counts,
    done,
    feeds,
    model,
    op,
    positive,
    rand,
    reseed,
    run,
)

MICROSOFT = {"com.microsoft": 1}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "": {},
    "Relu": {"activation": "Relu"},
    "LeakyRelu": {"activation": "LeakyRelu", "activation_params": [0.1]},
    "Clip": {"activation": "Clip", "activation_params": [-0.5, 0.75]},
    "HardSigmoid": {"activation": "HardSigmoid", "activation_params": [0.2, 0.5]},
    "Tanh": {"activation": "Tanh"},
    "Sigmoid": {"activation": "Sigmoid"},
}
activations = pytest.mark.parametrize("kind", ACTIVATIONS)


def fused(kind: str, x: str, y: str, name: str = "f", w=(3, 3, 3, 3), z: str = "", **attrs: Any):
    """A FusedConv of 3 channels; sizes agree by accident wherever they can."""
    inputs = f"{x} {name}.w {name}.b {z}"
    stored = {f"{name}.w": rand(*w) / 3, f"{name}.b": rand(w[0])}
    given = {**ACTIVATIONS[kind], **attrs}
    return op("FusedConv", inputs, y, name=name, domain="com.microsoft", **given), stored


def made(*pieces: Any, x: Any = (2, 3, 5, 5), domains: Any = MICROSOFT, **options: Any) -> Any:
    return model(*pieces, x=x, domains=domains, **options)


def left(m: ModelProto, tolerance: float = 2e-5) -> dict[str, int]:
    """Fold; onnxruntime puts out the same, every certificate holds; the operators left."""
    before = m.SerializeToString()
    result = bnfold.fold(m)
    assert m.SerializeToString() == before
    data = feeds(m)
    for wanted, found in zip(run(m, data), run(result, data), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    certified(m)
    return counts(result)


@activations
@pytest.mark.parametrize("z", ["", "z"])
def test_a_map_ahead_goes_in_whatever_the_activation(kind, z):
    m = made(
        bn("bn", "x", "n", 3),
        fused(kind, "n", "y", z=z),
        x={"x": (2, 3, 5, 5), **({"z": (2, 3, 3, 3)} if z else {})},
    )
    assert left(m) == {"FusedConv": 1}
    padded = made(bn("bn", "x", "n", 3), fused(kind, "n", "y", pads=[1] * 4))
    assert left(padded) == {"BatchNormalization": 1, "FusedConv": 1} or "Add" in left(padded)
    assert codes(padded)["bn"] == "zero-padding"


SCALES = {"positive": positive(3, 1, 1), "negative": -positive(3, 1, 1), "uniform": np.float32(1.5)}


@activations
@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_behind_has_to_pass_the_activation(kind, scale):
    m = made(fused(kind, "x", "f"), const("Mul", "f", "y", SCALES[scale], name="mul"))
    passes = {
        "": True,
        "Relu": scale != "negative",
        "LeakyRelu": scale != "negative",
        "Clip": scale == "uniform",
    }.get(kind, False)
    assert left(m) == ({"FusedConv": 1} if passes else {"FusedConv": 1, "Mul": 1})
    assert codes(m) == ({} if passes else {"mul": "not-carried"})


def test_a_negative_number_turns_the_bounds_of_a_clip_round():
    m = made(fused("Clip", "x", "f"), const("Mul", "f", "y", np.float32(-2), name="mul"))
    assert left(m) == {"FusedConv": 1}
    (node,) = bnfold.fold(m).graph.node
    bounds = next(list(a.floats) for a in node.attribute if a.name == "activation_params")
    assert bounds == [-1.5, 1.0]


@activations
def test_a_shift_behind_passes_none_but_a_clip(kind):
    """That of a Clip moves its bounds, if it is the same for all channels."""
    uniform = made(fused(kind, "x", "f"), const("Add", "f", "y", np.float32(0.5), name="add"))
    assert left(uniform).get("Add", 0) == (0 if kind in ("", "Clip") else 1)
    each = made(fused(kind, "x", "f"), const("Add", "f", "y", rand(3, 1, 1), name="add"))
    assert left(each).get("Add", 0) == (0 if kind == "" else 1)


def test_a_map_between_two_goes_into_the_second():
    m = made(fused("Relu", "x", "f"), bn("bn", "f", "n", 3), fused("Tanh", "n", "y", "g"))
    assert left(m) == {"FusedConv": 2}


@pytest.mark.parametrize("kind", ["", "Relu"])
def test_a_scale_behind_a_sum_inside_goes_to_both_terms(kind):
    scale = const("Mul", "f", "y", positive(3, 1, 1), name="mul")
    m = made(conv("c", "x", "z", (3, 3, 3, 3)), fused(kind, "x", "f", z="z"), scale)
    assert left(m) == {"Conv": 1, "FusedConv": 1}
    data = {"x": (2, 3, 5, 5), "z": (2, 3, 3, 3)}
    given = made(fused(kind, "x", "f", z="z"), scale, x=data)
    assert left(given) == {"FusedConv": 1, "Mul": 1}
    seen = made(conv("c", "x", "z", (3, 3, 3, 3)), fused(kind, "x", "f", z="z"), scale, y="y z")
    assert left(seen) == {"Conv": 1, "FusedConv": 1, "Mul": 1}
    itself = fused(kind, "c", "f", w=(3, 3, 1, 1), z="c")
    assert left(made(itself, scale, x={"c": (2, 3, 5, 5)})) == {"FusedConv": 1, "Mul": 1}
    if not kind:
        shift = const("Add", "f", "y", rand(3, 1, 1))
        assert left(made(itself, shift, x={"c": (2, 3, 5, 5)})) == {"FusedConv": 1}


def test_a_fused_operator_is_no_part_of_a_merge():
    """Even without an activation: what is merged would be written as another operator."""
    one, other = conv("p", "x", "c", (3, 3, 1, 1)), fused("", "c", "y", w=(3, 3, 1, 1))
    assert left(made(one, other)) == {"Conv": 1, "FusedConv": 1}
    beside = fused("", "x", "d", w=(3, 3, 1, 1))
    assert left(made(one, beside, op("Add", "c d", "y"))) == {"Conv": 1, "FusedConv": 1, "Add": 1}


@pytest.mark.parametrize("kind", ["", "Relu", "Tanh"])
def test_a_shift_of_what_is_added_inside_goes_into_the_bias(kind):
    data = {"x": (2, 3, 5, 5), "r": (2, 3, 3, 3)}
    m = made(const("Add", "r", "z", rand(3, 1, 1)), fused(kind, "x", "y", z="z"), x=data)
    assert left(m) == {"FusedConv": 1}
    along_rows = made(const("Add", "r", "z", rand(3, 1)), fused(kind, "x", "y", z="z"), x=data)
    assert left(along_rows) == {"FusedConv": 1, "Add": 1}
    scaled = made(const("Mul", "r", "z", rand(3, 1, 1)), fused(kind, "x", "y", z="z"), x=data)
    assert left(scaled) == {"FusedConv": 1, "Mul": 1}


def gemm(y: str, **attrs: Any):
    weight = {"w": rand(4, 4), "b": rand(4)}
    return op("FusedGemm", "x w b", y, name="g", domain="com.microsoft", **attrs), weight


@pytest.mark.parametrize("turned", [{}, {"transB": 1}, {"transA": 1, "alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize(
    "kind, numbers, per_channel, uniform",
    [
        ("Relu", {}, True, True),
        ("LeakyRelu", {"activation_alpha": 0.1}, True, True),
        ("ThresholdedRelu", {"activation_alpha": 0.25}, False, True),
        ("Elu", {"activation_alpha": 1.0}, False, False),
    ],
)
def test_a_fused_gemm_is_a_gemm_with_an_activation(kind, numbers, turned, per_channel, uniform):
    given = {**numbers, **turned, "activation": kind}
    ahead = made(bn("bn", "x", "n", 4), renamed(gemm("y", **given), "x", "n"), x=(4, 4))
    goes = not turned.get("transA")
    assert left(ahead) == {"FusedGemm": 1} | ({} if goes else {"BatchNormalization": 1})
    for scale, passes in ((positive(4), per_channel), (np.float32(1.5), uniform)):
        m = made(gemm("f", **given), const("Mul", "f", "y", scale), x=(4, 4))
        assert left(m) == ({"FusedGemm": 1} if passes else {"FusedGemm": 1, "Mul": 1})


def renamed(piece: Any, old: str, new: str) -> Any:
    node, params = piece
    node.input[:] = [new if name == old else name for name in node.input]
    return node, params


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [0, 1])
@pytest.mark.parametrize("right", [True, False])
def test_a_fused_matmul_sums_over_the_axis_that_it_says(batch, a, b, right):
    """Every axis of either operand has three places: only the attributes tell them apart."""
    given = {"transA": a, "transB": b, "transBatchA": batch, "transBatchB": batch, "alpha": 0.5}
    inputs = "x w" if right else "w x"

    def product(x: str, y: str, w=(3, 3, 3)):
        names = inputs.replace("x", x)
        return op("FusedMatMul", names, y, name="m", domain="com.microsoft", **given), {
            "w": rand(*w)
        }

    shape = (3, 3, 3)
    own = 2 if right else 1
    for axis in range(3):
        vector = rand(*(3 if k == axis else 1 for k in range(3)))
        behind = made(product("x", "f"), const("Mul", "f", "y", vector, name="mul"), x=shape)
        assert left(behind).get("Mul", 0) == (0 if axis in (0, own) else 1), axis
        # The axis of the data that is summed over.
        last, turned = ("A", a) if right else ("B", b)
        order = [1, 0, 2] if batch else [0, 1, 2]
        order = [order[0], order[2], order[1]] if turned else order
        summed = order[2] if last == "A" else order[1]
        ahead = made(const("Mul", "x", "n", vector, name="mul"), product("n", "y"), x=shape)
        assert left(ahead).get("Mul", 0) == (0 if axis == summed else 1), axis


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("vector", ["x", "w"])
@pytest.mark.parametrize("flag", ["transA", "transB"])
def test_a_matrix_ahead_of_a_vector_is_not_transposed(right, vector, flag):
    """Whatever transA says: onnxruntime leaves it as it is. So nothing is folded into it."""
    names = "{} w" if right else "w {}"
    weight = {"w": rand(*((4,) if vector == "w" else (4, 4)))}
    shape = (4,) if vector == "x" else (4, 4)
    node = op("FusedMatMul", names.format("n"), "f", name="m", domain="com.microsoft", **{flag: 1})
    m = made(
        const("Mul", "x", "n", rand(4)), (node, weight), const("Mul", "f", "y", rand(4)), x=shape
    )
    found = left(m).get("Mul", 0)
    if (vector == "w") == right and flag == "transA":
        assert found == 2


def test_a_shift_goes_ahead_of_a_fused_matmul_with_its_factor():
    node = op("FusedMatMul", "n w", "m", name="m", domain="com.microsoft", alpha=0.25, transB=1)
    m = made(
        const("Add", "x", "n", rand(4)),
        (node, {"w": rand(3, 4)}),
        const("Add", "m", "y", rand(3)),
        x=(2, 4),
    )
    assert left(m) == {"FusedMatMul": 1, "Add": 1}


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("along", [None, 1, 2])
def test_a_product_of_two_that_are_computed_lets_a_uniform_scale_pass(a, along):
    """It goes on to the Conv; the certificate runs the operator of onnxruntime's domain alone."""
    node = op("FusedMatMul", "c d", "m", name="m", domain="com.microsoft", alpha=0.5, transA=a)
    scale = rand(*(3 if k == along else 1 for k in range(3))) if along else np.float32(1.5)
    m = made(
        conv("p", "x", "c", (3, 3, 1)),
        conv("q", "x", "d", (3, 3, 1)),
        node,
        const("Mul", "m", "y", scale),
        x=(1, 3, 3),
    )
    # Columns of [M, K]·[K, N] are columns of the second factor, and no channels of the Conv.
    passes = along is None or (along == 1 and not a)
    assert left(m).get("Mul", 0) == (0 if passes else 1)


def test_channels_last():
    """The kernel of NhwcFusedConv is that of a Conv; its data have the channels at the end."""
    weight = {"w": rand(5, 5, 1, 1), "b": rand(5)}
    for kind in ("", "Relu"):
        given = {"domain": "com.microsoft", "name": "f", **ACTIVATIONS[kind]}
        conv_ = op("NhwcFusedConv", "n w b", "f", **given), weight
        for axis in (1, 2, 3):
            vector = positive(*(5 if k == axis else 1 for k in range(4)))
            ahead, behind = (const("Mul", a, b, vector) for a, b in (("x", "n"), ("f", "y")))
            m = made(ahead, conv_, behind, x=(1, 5, 5, 5))
            result = bnfold.fold(m)
            assert counts(result).get("Mul", 0) == (0 if axis == 3 else 2)
            certified(m)


def test_the_rank_behind_a_fused_operator_is_known():
    m = made(
        fused("Relu", "x", "f"),
        op("Flatten", "f", "r"),
        const("Mul", "r", "s", rand(27), name="mul"),
        (op("Gemm", "s w", "y"), {"w": rand(27, 2)}),
    )
    assert left(m) == {"FusedConv": 1, "Flatten": 1, "Gemm": 1}


def test_a_local_function_of_that_name_is_another():
    body = [op("Mul", "a w", "t"), op("Add", "t b", "r")]
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "com.microsoft", "FusedConv", ["a", "w", "b"], ["r"], body, imports
    )
    call = (
        op("FusedConv", "x w b", "f", domain="com.microsoft"),
        {"w": rand(3, 1, 1), "b": rand(3, 1, 1)},
    )
    m = made(call, const("Mul", "f", "y", positive(3, 1, 1), name="mul"), functions=[function])
    assert not any("FusedConv" in law for fold in bnfold.plan(m).folds for law in fold.laws)


def changed(result: ModelProto, what: str) -> None:
    node = next(n for n in result.graph.node if n.op_type == "FusedConv")
    if what == "activation":
        next(a for a in node.attribute if a.name == "activation_params").floats[1] *= 1.001
        return
    name = node.input[{"weight": 1, "bias": 2}[what]] if what != "sum" else "c.w"
    for stored in result.graph.initializer:
        if stored.name == name:
            values = numpy_helper.to_array(stored) * np.float32(1.001)
            stored.CopyFrom(numpy_helper.from_array(values, stored.name))


@pytest.mark.parametrize("what", ["weight", "bias", "activation", "sum"])
def test_the_certificate_sees_a_number_that_is_wrong(what):
    """A part in a thousand, also of what is added inside, and of a bound of the Clip."""
    m = made(
        conv("c", "x", "z", (3, 3, 3, 3)),
        fused("Clip", "x", "f", z="z"),
        const("Mul", "f", "y", np.float32(1.5)),
    )
    once = done(m)
    result, applied = once.folded, once.applied
    assert len(applied) > 1 and all(c.holds for c in certify(m, result, applied))
    changed(result, what)
    assert not all(c.holds for c in certify(m, result, applied))


def test_the_certificate_does_not_let_a_map_past_an_activation():
    """What a planner would write that forgot the activation: the folded weights of a plain Conv."""
    for kind in ("Relu", "Tanh", "Clip", "HardSigmoid"):
        for scale, shift in ((-2.0, 0.0), (1.0, 0.5), (2.0, 0.0)):
            plain = made(
                fused("", "x", "f"),
                const("Mul", "f", "s", np.full((3, 1, 1), scale, np.float32)),
                const("Add", "s", "y", np.full((3, 1, 1), shift, np.float32)),
            )
            once = done(plain)
            result, applied = once.folded, once.applied
            assert all(c.holds for c in certify(plain, result, applied))
            for each in (plain, result):
                for name, value in ACTIVATIONS[kind].items():
                    each.graph.node[0].attribute.append(helper.make_attribute(name, value))
            right = kind == "Relu" and scale > 0 and not shift
            assert all(c.holds for c in certify(plain, result, applied)) == right, (kind, scale)


def test_the_whole_verdict_passes():
    m = made(
        bn("bn", "x", "n", 3), fused("Relu", "n", "f"), const("Mul", "f", "y", positive(3, 1, 1))
    )
    m.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, (2, 3, 3, 3)))
    found = bnfold.verify(m, bnfold.fold(m), prove=False)
    assert found.status == "pass"
    assert found.power and all(planted.noticed for planted in found.power)


def test_the_beta_of_an_embedding_takes_a_map_in():
    ids = helper.make_tensor_value_info("i", 6, (1, 3))
    stored = {"e": rand(7, 4), "p": rand(7, 4), "g": rand(4), "b": rand(4)}
    node = op("EmbedLayerNormalization", "i _ e p _ g b", "n _", domain="com.microsoft")
    node.output[1] = "mask"
    m = made((node, stored), const("Mul", "n", "t", rand(4)), const("Add", "t", "y", rand(4)), x={})
    m.graph.input.append(ids)
    result = bnfold.fold(m)
    data = {"i": np.array([[1, 5, 2]], np.int32)}
    for wanted, found in zip(run(m, data), run(result, data), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    certified(m)
    assert counts(result) == {"EmbedLayerNormalization": 1}


def drawn(seed: int) -> ModelProto:
    """A chain of fused operators and maps, with sums of any earlier tensors inside and outside."""
    draw, pieces, names = random.Random(seed), [], ["x"]
    maps = [positive(3, 1, 1), -positive(3, 1, 1), np.float32(1.5), np.float32(-2)]
    for number in range(draw.randint(2, 7)):
        x, y, part = names[-1], f"t{number}", draw.random()
        if part < 0.45:
            padded, beside = draw.random() < 0.5, draw.choice(names)
            kind = draw.choice(list(ACTIVATIONS))
            w, pads = ((3, 3, 3, 3), [1] * 4) if padded else ((3, 3, 1, 1), [0] * 4)
            z = beside if draw.random() < 0.5 else ""
            pieces.append(fused(kind, x, y, y, w, z, pads=pads))
        elif part < 0.65:
            pieces.append(const("Mul", x, y, draw.choice(maps)))
        elif part < 0.8:
            pieces.append(const("Add", x, y, draw.choice([rand(3, 1, 1), np.float32(0.5)])))
        elif part < 0.9:
            pieces.append(bn(y, x, y, 3))
        else:
            pieces.append(op("Add", f"{x} {draw.choice(names)}", y))
        names.append(y)
    also = draw.choice(names[1:]) if draw.random() < 0.2 else names[-1]
    return made(*pieces, x=(1, 3, 3, 3), y=" ".join(dict.fromkeys([names[-1], also])))


@pytest.mark.parametrize("seed", range(60))
def test_drawn_chains(seed):
    """Catches what single operators do not: one tensor at two inputs, maps from both sides."""
    reseed(seed)
    left(drawn(seed), 1e-4)
