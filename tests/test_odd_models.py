"""Models that contradict themselves, where neither onnx nor a file's reader says so.

The fuzzer found them. Planning and folding end, and what cannot be understood stays.
"""

from __future__ import annotations

import pytest
from onnx import ModelProto

import bnfold
from bnfold._proof.certificate import certify

from .graphs import bn, conv, done, model, op, rand


def split(axis):
    parts = op("Split", "c", "s t", axis=axis, num_outputs=2)
    return model(conv("conv", "x", "c", (4, 3, 1, 1)), parts, bn("bn", "s", "y", 2), opset=18)


def concat(axis):
    parts = conv("one", "x", "a", (4, 3, 1, 1)), conv("two", "x", "b", (4, 3, 1, 1))
    return model(*parts, op("Concat", "a b", "c", axis=axis), bn("bn", "c", "y", 8))


def added(axis):
    """A constant along an axis, as opset 6 has it."""
    add = op("Add", "c t", "y", broadcast=1, axis=axis)
    shift = {"t": rand(4)}
    return model(conv("conv", "x", "c", (4, 3, 1, 1)), add, opset=6, weights=shift)


def channels(one, other):
    """Two convolutions on one input that read another number of channels by their weights."""
    made = model(
        op("Conv", "x v", "a", group=one),
        op("Conv", "x w", "b", group=other),
        op("Add", "a b", "y"),
        x=(4, 4, 4, 4),
        weights={"v": rand(4, 1, 1, 1), "w": rand(4, 1, 1, 1)},
    )
    del made.graph.input[0].type.tensor_type.shape.dim[:]
    made.graph.input[0].type.tensor_type.ClearField("shape")
    return made


@pytest.mark.parametrize(
    "made",
    [
        *(pytest.param(split(axis), id=f"split {axis}") for axis in (4, 7, -5, 2**40)),
        *(pytest.param(concat(axis), id=f"concat {axis}") for axis in (4, 7, -5, -(2**40))),
        *(pytest.param(added(axis), id=f"opset 6 {axis}") for axis in (4, 9, -5, -(2**40))),
        *(pytest.param(channels(*groups), id=f"groups {groups}") for groups in ((1, 4), (4, 1))),
    ],
)
def test_what_contradicts_itself_stays(made):
    assert not bnfold.plan(made).folds
    folded = bnfold.fold(made)
    assert [n.op_type for n in folded.graph.node] == [n.op_type for n in made.graph.node]


@pytest.mark.parametrize("axis", [9, 4, -5, -(2**40)])
def test_an_axis_of_opset_6_that_there_is_not(axis):
    """It runs nowhere, and no certificate takes another axis for it, which a fold may have."""
    assert bnfold.verify(added(axis), added(axis)).status == "inconclusive"
    right = added(1)
    found = done(right)
    assert all(c.holds for c in certify(right, found.folded, found.applied))
    wrong = added(axis)
    for ours, theirs in zip(wrong.graph.initializer, right.graph.initializer, strict=True):
        ours.CopyFrom(theirs)
    (told,) = certify(wrong, found.folded, found.applied)
    assert not told.holds and "has no such axis" in told.problem


@pytest.mark.parametrize("name", [b"conv", b"c", b"y"])
def test_a_name_that_is_no_text(name):
    """Protobuf gives bytes for it, also in a model that no file was read for."""
    length = bytes([len(name)])
    data = split(1).SerializeToString().replace(length + name, length + name[:-1] + b"\xff")
    with pytest.raises(bnfold.UsageError, match="is not UTF-8"):
        bnfold.plan(ModelProto.FromString(data))


def test_channels_that_agree_merge():
    """The same convolutions, where the weights agree; and axes that there are."""
    for made in (split(1), split(-3), concat(1), concat(-3), added(1), added(-3)):
        assert bnfold.plan(made).folds, made.graph.node
    folded = bnfold.fold(channels(4, 4))
    assert [n.op_type for n in folded.graph.node] == ["Conv"]
