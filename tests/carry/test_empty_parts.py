"""Parts of size 0 that a Split makes, which exporters leave where a number of channels is 0."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

import bnfold

from ..graphs import (
    bn,
    codes,
    const,
    constants,
    conv,
    counts,
    folds,
    model,
    op,
    positive,
    rand,
    run,
)


def split(x, sizes, names, axis=1, **attrs):
    return op("Split", f"{x} sizes", names, axis=axis, **attrs), {"sizes": np.array(sizes)}


def parts(sizes, *maps, opset=13):
    """A Conv, a Split of its channels, and behind each part a map or, for None, a Relu."""
    names = "abc"[: len(sizes)]
    pieces = [conv("conv", "x", "t", (5, 3, 1, 1))]
    if opset < 13:
        pieces.append(op("Split", "t", " ".join(names), axis=1, split=sizes))
    else:
        pieces.append(split("t", sizes, " ".join(names)))
    for name, map_ in zip(names, maps, strict=True):
        if map_ is None:
            pieces.append(op("Relu", name, f"y{name}"))
        else:
            pieces.append(const("Mul", name, f"y{name}", map_, name=f"m{name}"))
    return model(*pieces, opset=opset, y=" ".join(f"y{name}" for name in names))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(
    "sizes, maps",
    [
        ((5, 0), (rand(5, 1, 1), None)),
        ((0, 5), (None, rand(5, 1, 1))),
        ((3, 0, 2), (rand(3, 1, 1), None, rand(2, 1, 1))),
        ((3, 0, 2), (rand(3, 1, 1), np.float32(2), rand(2, 1, 1))),
        ((3, 0, 2), (None, np.float32(2), None)),
        ((3, 0, 2), (np.float32(2), np.float32(3), np.float32(4))),
        ((0, 0, 5), (np.float32(2), rand(1, 1, 1), rand(5, 1, 1))),
    ],
)
def test_maps_go_back(sizes, maps, opset):
    """Each to the channels of its part; one of an empty part is nowhere any more."""
    left = {"Relu": n} if (n := sum(one is None for one in maps)) else {}
    m = parts(list(sizes), *maps, opset=opset)
    after = folds(m, Conv=1, Split=1, **left)
    if opset != 13:
        return
    assert bnfold.verify(m, after).status == "pass"
    for stored in after.graph.initializer:
        if stored.name == "conv.b":
            values = numpy_helper.to_array(stored) * np.float32(1.01)
            stored.CopyFrom(numpy_helper.from_array(values, stored.name))
    assert bnfold.verify(m, after).status == "fail"


def test_an_output_that_is_empty_by_its_data_tells_nothing():
    """Of other data it may hold something."""
    m = model(
        conv("conv", "x", "t", (4, 3, 1, 1)),
        bn("bn", "t", "y", 4),
        (op("Greater", "y most", "g"), {"most": np.float32(1e30)}),
        op("Reshape", "y flat", "f"),
        (op("Reshape", "g flat", "h"), {"flat": np.array([-1])}),
        op("Compress", "f h", "z", axis=0),
        y="y z",
        opset=13,
    )
    after = bnfold.fold(m)
    assert counts(after)["Conv"] == 1 and "BatchNormalization" not in counts(after)
    notes = {one.note for one in bnfold.verify(m, after).checks if one.output == "z"}
    assert notes == {"compared at y, from where on both models are the same"}


def test_a_norm_goes_forward_around_an_empty_part():
    m = model(
        bn("bn", "x", "n", 5),
        split("n", (3, 0, 2), "a b c"),
        conv("one", "a", "y", (4, 3, 1, 1)),
        op("Relu", "b", "z"),
        conv("other", "c", "w", (4, 2, 1, 1)),
        x=(2, 5, 4, 4),
        y="y z w",
        opset=13,
    )
    folds(m, Split=1, Conv=2, Relu=1)


@pytest.mark.parametrize("back", [True, False])
def test_put_together_again(back):
    """A Concat knows that a part has no channels, and where the others are."""
    ahead = conv("ahead", "x", "t", (5, 3, 1, 1)) if back else bn("norm", "x", "t", 5)
    behind = bn("norm", "k", "y", 5) if back else conv("behind", "k", "y", (4, 5, 1, 1))
    m = model(
        ahead,
        split("t", (3, 0, 2), "a b c"),
        op("Concat", "c b a", "k", axis=1),
        behind,
        x=(2, 3 if back else 5, 4, 4),
        opset=13,
    )
    folds(m, Split=1, Concat=1, Conv=1)
    assert bnfold.verify(m, bnfold.fold(m)).status == "pass"


def test_along_other_axes():
    """The map of a whole axis is that of its one part that is not empty; H = W = C."""
    m = model(
        conv("conv", "x", "t", (8, 3, 1, 1)),
        split("t", (8, 0), "a b", axis=2),
        bn("bn", "a", "y", 8),
        bn("nothing", "b", "z", 8),
        y="y z",
        opset=13,
    )
    folds(m, Conv=1, Split=1)
    m = model(
        conv("conv", "x", "t", (8, 3, 1, 1)),
        split("t", (4, 0, 4), "a b c", axis=2),
        bn("bn", "a", "y", 8),
        op("Relu", "b", "z"),
        op("Relu", "c", "w"),
        y="y z w",
        opset=13,
    )
    assert codes(m) == {"bn": "not-carried"}
    assert counts(bnfold.fold(m)) == counts(m)


def test_a_size_of_0_that_is_only_declared_is_not_known():
    """Exporters write it where they do not know a size."""
    m = model(
        conv("conv", "x", "t", (4, 3, 1, 1)),
        op("Split", "t", "a b", axis=2),
        const("Mul", "a", "y", positive(4, 1, 1), name="scale"),
        op("Relu", "b", "z"),
        y="y z",
        opset=13,
    )
    m.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0
    for out in m.graph.output:
        out.type.tensor_type.ClearField("shape")
    assert codes(m) == {"scale": "unknown-shape"}
    assert counts(bnfold.fold(m)) == counts(m)


def test_a_constant_that_is_empty_says_so():
    m = parts([5, 0], None, np.zeros((0, 1, 1), np.float32))
    (kept,) = bnfold.plan(m).kept
    assert (kept.node, kept.code) == ("mb", "not-per-channel") and "is empty" in kept.message


@pytest.mark.parametrize("axes", [[0], [2, 3]], ids=str)
@pytest.mark.parametrize("is_made", [False, True])
def test_no_shift_crosses_a_mean_of_nothing(axes, is_made):
    """onnxruntime makes 0 of it, whatever was to be added; a declared size of 0 may be one."""
    mean, shape = op("ReduceMean", "b", "r", axes=axes), [2, 4, 3, 3]
    cut = op("Slice", "x zero zero at", "c"), {"zero": np.array([0]), "at": np.array(axes[:1])}
    if not is_made:
        cut, shape[axes[0]] = op("Identity", "x", "c"), 0
    shift = rand(4, 1, 1)
    m = model(
        cut,
        const("Add", "c", "b", shift, name="shift"),
        mean,
        conv("conv", "r", "y", (4, 4, 1, 1)),
        x=shape,
        opset=13,
    )
    given = {"x": rand(*shape)}
    np.testing.assert_array_equal(run(bnfold.fold(m), given)[0], run(m, given)[0])
    assert codes(m) == ({} if is_made else {"shift": "no-linear-operator"})
    swapped = model(
        cut,
        op("ReduceMean", "c", "s", axes=axes),
        const("Add", "s", "r", shift, name="shift"),
        conv("conv", "r", "y", (4, 4, 1, 1)),
        x=shape,
        weights={n: constants(m)[n] for n in ("conv.w", "conv.b") if n in constants(m)},
        opset=13,
    )
    assert bnfold.prove(m, swapped).status != "proved"


@pytest.mark.parametrize("start", [3, -2, -9])
@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1, -9])
def test_channels_that_are_taken_backwards(start, end):
    """ONNX takes nothing up to such an end, and onnxruntime all that is ahead: it was a wrong fold.
    Only what all channels have in common crosses.
    """
    bounds = {k: np.array([v]) for k, v in {"s": start, "e": end, "at": 1, "by": -1}.items()}
    taken = {3: 4, -2: 3, -9: 1}[start]
    for scale in (rand(4, 1, 1), np.float32(2)):
        m = model(
            const("Mul", "x", "m", scale, name="scale"),
            (op("Slice", "m s e at by", "c"), bounds),
            conv("conv", "c", "y", (4, taken, 1, 1)),
            x=(2, 4, 3, 3),
        )
        given = {"x": rand(2, 4, 3, 3)}
        folded = bnfold.fold(m)
        np.testing.assert_allclose(run(folded, given)[0], run(m, given)[0], 1e-5, 1e-5)
        crosses = end < 0 or scale.ndim == 0
        assert counts(folded) == ({} if crosses else {"Mul": 1}) | {"Slice": 1, "Conv": 1}
