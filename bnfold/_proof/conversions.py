"""The check of a Cast that maps were carried across, or that is gone."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bnfold._core.limits import Limits
from bnfold._onnx.read.scopes import label, type_of
from bnfold._onnx.tensors import FLOATS
from bnfold._onnx.write.applied import Applied, Related
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.evidence import Mismatch, Obstacle, Unchecked
from bnfold._proof.narrowing import require_exact, require_rounded_anyway
from bnfold._proof.steps import Steps

_SAME = Related((), ())


def check_conversion(
    before: CheckedModel,
    after: CheckedModel,
    node: NodeProto,
    fold: Applied,
    steps: Steps,
) -> float | Unchecked:
    """Check that a Cast hands on what it did, up to rounding; 0 where it does.

    The numbers that it reads and those that it puts out have passed the same maps. It still casts
    to the same type, or it is gone: then the tensor is of the narrower of the two types, whose
    numbers a cast to the wider one and back does not change. What a map now has rounded to the
    narrower type was rounded to it anyway (`narrowing`). ``steps`` has all steps of the
    fold. Returns `Unchecked` where a type is not known. Raises `Mismatch` where something else is
    found.
    """
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    types = [before.shapes.type(old, name) for name in (node.input[0], node.output[0])]
    if 0 in types:
        return Unchecked(Obstacle.TYPE_UNKNOWN, node.input[0] if not types[0] else node.output[0])
    narrow = _narrower(types[0], types[1])
    if narrow is None:
        raise Mismatch(f"{label(node)} does not cast from one floating-point type to a wider one")
    read, written = (fold.related.get(name, _SAME) for name in (node.input[0], node.output[0]))
    if not _alike(read, written):
        raise Mismatch(f"other maps were carried to {node.input[0]} than to {node.output[0]}")
    if types[0] == narrow and read.new:
        require_rounded_anyway(before, after, node, narrow, steps.of(fold.path))
    if types[1] == narrow and written.old and not written.new:
        require_exact(before, old, node)
    if fold.source == fold.output:
        kind = after.shapes.type(new, fold.output)
        if not kind:
            return Unchecked(Obstacle.TYPE_UNKNOWN, fold.output)
        if kind != narrow:
            wanted = TensorProto.DataType.Name(narrow)
            raise Mismatch(f"{label(node)} is gone, but {fold.output} is not of type {wanted}")
        return 0.0
    twin = new.writer(fold.output)
    if (type_of(twin), list(twin.input)) != ("Cast", [fold.source]):
        raise Mismatch(f"no Cast of {fold.source} writes {fold.output}")
    if list(twin.attribute) != list(node.attribute):
        raise Mismatch(f"attributes of {label(twin)} changed")
    return 0.0


def _narrower(one: int, other: int) -> int | None:
    """The one of two element types all numbers of which the other has; None if neither."""
    if one not in FLOATS or other not in FLOATS:
        return None
    first, second = (
        Limits.of(np.dtype(helper.tensor_dtype_to_np_dtype(kind))) for kind in (one, other)
    )
    if second.hold(first):
        return one
    return other if first.hold(second) else None


def _alike(one: Related, other: Related) -> bool:
    """Whether two tensors have passed the same maps. Old values alone may be unknown: NaN."""
    pairs = ((one.old, other.old, True), (one.new, other.new, False))
    return all(
        len(left) == len(right)
        and all(
            a.axis == b.axis
            and np.array_equal(a.scale, b.scale, equal_nan=unknown)
            and np.array_equal(a.shift, b.shift)
            for a, b in zip(left, right, strict=True)
        )
        for left, right, unknown in pairs
    )
