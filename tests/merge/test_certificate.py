"""Wrong merges are noticed: by the certificate, and by running both models.

Bugs are planted where merging computes, so that what is recorded of a merge and what is written
agree; then where the file is written; and then in the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, numpy_helper

import bnfold
from bnfold._merge import chains, kernels, merging, steps
from bnfold._onnx.fold import prepare
from bnfold._proof.certificate import certify
from bnfold._proof.evidence import Certificate

from ..graphs import bn, const, conv, model, op, rand

SAME = {"pads": [1, 1, 1, 1]}
X = (2, 4, 6, 7)
Patch = pytest.MonkeyPatch


def block() -> ModelProto:
    """All kinds of branches on one tensor."""
    return model(
        conv("a", "x", "a0", (4, 2, 3, 3), False, group=2, **SAME),
        bn("an", "a0", "a1", 4),
        conv("b", "x", "b0", (4, 1, 1, 1), group=4),
        bn("sn", "x", "s1", 4),
        op("AveragePool", "x", "p", kernel_shape=[3, 3], count_include_pad=1, **SAME),
        op("Add", "a1 b0", "t"),
        op("Sum", "t s1 p", "u"),
        op("Sub", "u x", "v"),
        op("Relu", "v", "y"),
        x=X,
    )


def series() -> ModelProto:
    return model(
        conv("a", "x", "a0", (8, 4, 1, 1), False),
        bn("an", "a0", "a1", 8),
        conv("b", "a1", "b0", (4, 8, 3, 3)),
        op("Relu", "b0", "y"),
        x=X,
    )


def padded() -> ModelProto:
    return model(
        conv("a", "x", "a0", (8, 4, 1, 1)), conv("b", "a0", "y", (4, 8, 3, 3), **SAME), x=X
    )


def products() -> ModelProto:
    return model(
        (op("MatMul", "x w", "a"), {"w": rand(4, 4)}),
        (op("MatMul", "x down", "b"), {"down": rand(4, 2)}),
        const("Add", "b", "c", rand(2)),
        (op("MatMul", "c up", "d"), {"up": rand(2, 4)}),
        op("Add", "a d", "e"),
        op("Relu", "e", "y"),
        x=(3, 5, 4),
    )


MODELS = {"block": block, "series": series, "padded": padded, "products": products}


def folded(made: ModelProto) -> tuple[ModelProto, list[Any]]:
    copy = ModelProto()
    copy.CopyFrom(made)
    return copy, prepare(copy, None).apply().applied


def certificates(made: ModelProto, after: ModelProto, applied: list[Any]) -> list[Certificate]:
    return list(certify(made, after, applied))


@pytest.mark.parametrize("name", [n for n in MODELS if n != "padded"])
def test_right_merges_hold(name):
    made = MODELS[name]()
    after, applied = folded(made)
    found = certificates(made, after, applied)
    assert [c.law for c in found if not c.holds] == []
    assert "merge" in {c.law for c in found}
    # The record starts from weights that are not rounded: what is stored has a check of its own.
    assert {c.law for c in found} >= {"merge", "absorb"}


def test_a_kernel_without_a_place_is_no_wrong_merge():
    """No runtime runs the operators that were merged, so nothing could be equal to them."""
    pool = op("AveragePool", "c", "y", kernel_shape=[1], strides=[1])
    linear = conv("conv", "x", "c", (6, 1, 3), False, group=2, auto_pad="VALID")
    made = model(linear, pool, x=(3, 2, 1), opset=10)
    after, applied = folded(made)
    (merge,) = (c for c in certificates(made, after, applied) if c.law == "merge")
    assert not merge.fails and not merge.holds and "does not fit into" in str(merge.unchecked)


# --- bugs of merging ---------------------------------------------------------------------------


def weights_through(patch: Patch, change: Callable[[Any], Any]) -> None:
    right = kernels.added

    def wrong(terms: Any) -> Any:
        made = right(terms)
        return replace(made, weight=lambda: change(made.weight())) if len(terms) > 1 else made

    patch.setattr(merging, "added", wrong)


def off_centre(patch: Patch) -> None:
    weights_through(patch, lambda weight: np.roll(weight, 1, axis=-1))


def lose_a_bias(patch: Patch) -> None:
    right = kernels.added

    def wrong(terms: Any) -> Any:
        bias = terms[0][1].bias
        return replace(right(terms), bias=lambda: terms[0][0] * bias())

    patch.setattr(merging, "added", wrong)


def forget_signs(patch: Patch) -> None:
    right = kernels.added
    patch.setattr(merging, "added", lambda terms: right([(1, kernel) for _, kernel in terms]))


def forget_the_identity(patch: Patch) -> None:
    right = kernels.mapped

    def wrong(channels: int, map_: Any, space: int) -> Any:
        made = right(channels, map_, space)
        return replace(made, weight=lambda: 0 * made.weight()) if map_.is_identity else made

    patch.setattr(chains, "mapped", wrong)


def swap_groups(patch: Patch) -> None:
    right = kernels._widened

    def wrong(weight: Any, groups: int, wanted: int) -> Any:
        made = right(weight, groups, wanted)
        return made if groups == wanted else np.roll(made, 1, axis=1)

    patch.setattr(kernels, "_widened", wrong)


def miss_one_percent(patch: Patch) -> None:
    def change(weight: Any) -> Any:
        changed = weight.copy()
        changed[1] *= 1.01
        return changed

    weights_through(patch, change)


def drop_epsilon(patch: Patch) -> None:
    from bnfold._core.affine import AffineMap

    right = AffineMap.batch_norm
    patch.setattr(
        AffineMap,
        "batch_norm",
        staticmethod(lambda g, b, m, v, e, axis: right(g, b, m, v, 0, axis)),
    )


def count_wrongly(patch: Patch) -> None:
    """An average over 8 of 9 inputs."""
    right = kernels.averaging

    def wrong(channels: int, windows: Any) -> Any:
        made = right(channels, windows)
        return replace(made, weight=lambda: made.weight() * 9 / 8)

    patch.setattr(chains, "averaging", wrong)


def ignore_borders(patch: Patch) -> None:
    patch.setattr(chains, "between", lambda first, second, exact=True: None)


def turn_taps(patch: Patch) -> None:
    """Convolution in the mathematical sense."""
    right = steps._convolution

    def wrong(operator: Any) -> Any:
        step = right(operator)
        kernel = replace(step.kernel, weight=lambda: step.kernel.weight()[:, :, ::-1, ::-1])
        return replace(step, kernel=kernel)

    patch.setattr(steps, "_convolution", wrong)


def lose_the_image(patch: Patch) -> None:
    """The bias between two operators in series does not reach the output."""
    right = kernels.composed
    patch.setattr(chains, "composed", lambda one, two: replace(right(one, two), bias=two.bias))


def lose_the_middle(patch: Patch) -> None:
    """Channels between two operators in the wrong order."""
    right = kernels._through

    def wrong(first: Any, second: Any, inner: Any, outer: Any, groups: int) -> Any:
        return right(first, second, np.roll(inner, 1, axis=0), outer, groups)

    patch.setattr(kernels, "_through", wrong)


BUGS = [
    (off_centre, "block"),
    (lose_a_bias, "block"),
    (lose_a_bias, "products"),
    (forget_signs, "block"),
    (forget_the_identity, "block"),
    (swap_groups, "block"),
    (miss_one_percent, "block"),
    (miss_one_percent, "products"),
    (drop_epsilon, "block"),
    (count_wrongly, "block"),
    (ignore_borders, "padded"),
    (turn_taps, "block"),
    (turn_taps, "series"),
    (lose_the_image, "series"),
    (lose_the_image, "products"),
    (lose_the_middle, "series"),
    (lose_the_middle, "products"),
]


@pytest.mark.parametrize("plant, name", BUGS, ids=[f"{p.__name__}-{n}" for p, n in BUGS])
def test_a_wrong_merge_is_noticed_twice(plant, name, monkeypatch):
    made = MODELS[name]()
    with monkeypatch.context() as patch:
        plant(patch)
        after, applied = folded(made)
    assert any(step.law == "merge" for step in applied), "nothing was merged"
    found = certificates(made, after, applied)
    assert [c for c in found if c.law == "merge" and not c.holds], found
    assert bnfold.verify(made, after).status != "pass"


# --- bugs of writing ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["block", "series", "products"])
@pytest.mark.parametrize("which", [0, 1], ids=["weight", "bias"])
def test_a_weight_that_is_stored_wrong_is_noticed(name, which):
    made = MODELS[name]()
    after, applied = folded(made)
    stored = [
        t for t in after.graph.initializer if t.name not in {n.name for n in made.graph.initializer}
    ]
    values = numpy_helper.to_array(stored[which]).copy()
    values.reshape(-1)[1] *= np.float32(1 + 4e-7)  # three units in the last place
    stored[which].CopyFrom(numpy_helper.from_array(values, stored[which].name))
    found = certificates(made, after, applied)
    assert [c.law for c in found if not c.holds] in (["absorb"], ["compose"])


def test_pads_that_are_written_wrong_are_noticed():
    made = block()
    after, applied = folded(made)
    (node,) = (n for n in after.graph.node if n.op_type == "Conv")
    (pads,) = (a for a in node.attribute if a.name == "pads")
    pads.ints[:] = [0, 1, 2, 1]
    assert not all(c.holds for c in certificates(made, after, applied))


# --- wrong records -----------------------------------------------------------------------------


def patched(applied: list[Any], **changes: Any) -> list[Any]:
    first = next(step for step in applied if step.law == "merge")
    changed = replace(first, patch=replace(first.patch, **changes))
    return [changed if step is first else step for step in applied]


def problems(made: ModelProto, after: ModelProto, applied: list[Any]) -> list[str]:
    return [c.problem for c in certificates(made, after, applied) if not c.holds]


def test_a_tensor_that_is_still_read_must_not_vanish():
    made = block()
    after, applied = folded(made)
    made.graph.node.append(op("Relu", "b0", "z"))
    made.graph.output.add().CopyFrom(made.graph.output[0])
    made.graph.output[1].name = "z"
    assert "nothing writes b0" in problems(made, after, applied)


def test_a_new_tensor_must_not_take_a_name():
    made = products()
    after, applied = folded(made)
    patch = applied[0].patch
    nodes = {}
    for position, node in patch.nodes.items():
        nodes[position] = None if node is None else NodeProto.FromString(node.SerializeToString())
        if node is not None:
            for names in (nodes[position].input, nodes[position].output):
                names[:] = ["y" if name.endswith("_product") else name for name in names]
    assert "y is the name of another tensor" in problems(made, after, patched(applied, nodes=nodes))


def test_an_operator_that_is_not_there():
    made = block()
    after, applied = folded(made)
    nodes = dict.fromkeys(applied[0].patch.nodes)
    assert problems(made, after, patched(applied, nodes=nodes))
