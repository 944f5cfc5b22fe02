"""Data for an operator that maps were carried across, as the old one reads them and the new one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper

from bnfold._core.affine import LAST
from bnfold._onnx.read.scopes import Scope
from bnfold._onnx.tensors import FLOATS
from bnfold._onnx.write.applied import Related
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.evidence import Obstacle, Unchecked
from bnfold._proof.full_rank_maps import FullRankMap, composed, values_around

# As many numbers at the least go into an operator that is flat beyond bounds.
_AROUND = 64
# Bounds beyond this are none to draw numbers around: exporters write the largest number for none.
_BOUNDLESS = 1e18
_LARGEST = 1 << 22
_FLOAT = AttributeProto.FLOAT
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class KnownShapes:
    """The shapes and types that the folded graph knows of an operator's inputs.

    An operator may work element by element, with maps that are single numbers or lie along the last
    axis (``by_element``). These say the same of every shape. So a row of float32 will do where no
    shape is known.
    """

    model: CheckedModel
    scope: Scope
    node: NodeProto
    by_element: bool = False

    def of(self, number: int) -> tuple[tuple[int | None, ...] | None, int]:
        """The shape of an input by its number, None if it is not known, and its element type."""
        name = self.node.input[number] if number < len(self.node.input) else ""
        shapes = self.model.shapes
        shape, kind = shapes.shape(self.scope, name), shapes.type(self.scope, name)
        if shape is None and self.by_element:
            return (None,), kind or TensorProto.FLOAT
        return shape, kind


def draw(
    model: CheckedModel,
    scope: Scope,
    node: NodeProto,
    related: Mapping[str, Related],
    size: int,
    twin: KnownShapes,
    numbers: Sequence[float],
    near: bool,
) -> tuple[Feeds, Feeds] | Unchecked:
    """Data for the old and for the new operator, by input number.

    With ``near`` the old operator reads numbers near those that it holds (``numbers``), else any
    numbers but those. Returns `Unchecked` where no data can be made up for an input.
    """
    generator = np.random.default_rng(0)
    ends = _ends(model, scope, node)
    first: Feeds = {}
    second: Feeds = {}
    for number, name in enumerate(node.input):
        if not name or model.values(scope, name) is not None:
            continue
        shape, element = model.shapes.shape(scope, name), model.shapes.type(scope, name)
        if shape is None:  # a merge has made it; maps change no shapes
            shape, element = twin.of(number)
        if shape is None:
            return Unchecked(Obstacle.SHAPE_UNKNOWN, name)
        relation = related.get(name)
        own = _own_sizes(relation, len(shape)) if relation is not None else (1,) * len(shape)
        sizes = tuple(
            n if n is not None else (m if m > 1 else size) for n, m in zip(shape, own, strict=True)
        )
        free = [k for k, n in enumerate(shape) if n is None and own[k] == 1]
        if node.op_type == "Concat":  # Its inputs are as long as the maps of all of them tell.
            empty = [model.shapes.is_empty(scope, name, k) for k in range(len(shape))]
            sizes = tuple(0 if none else n for n, none in zip(sizes, empty, strict=True))
        if node.op_type == "Reshape" and number == 0 and len(node.input) > 1:
            sizes = _that_reshape(sizes, free, model.values(scope, node.input[1]))
        if node.op_type == "Resize" and number == 0 and len(node.input) > 3 and node.input[3]:
            sizes = _that_resize(sizes, free, model.values(scope, node.input[3]))
        if ends is not None:
            sizes = _widened(sizes, own, ends[0].shape)
        if math.prod(sizes) > _LARGEST:
            return Unchecked(Obstacle.TOO_LARGE, name)
        if node.op_type == "Reshape" and number == 1 and are_single_numbers(related):
            # Such maps are the same in every shape: any target that the data fit will do.
            first["1"] = second["1"] = np.array([1] * ((shape[0] or 1) - 1) + [-1], np.int64)
            continue
        if element not in FLOATS:
            # The index 0 is always right. No number is right for a size that is read at run time.
            if element not in (TensorProto.INT32, TensorProto.INT64) or node.op_type != "Gather":
                return Unchecked(Obstacle.NOT_DRAWABLE, name)
            zeros = np.zeros(sizes, helper.tensor_dtype_to_np_dtype(element))
            first[str(number)] = second[str(number)] = zeros
            continue
        values = generator.normal(size=sizes)
        if ends is not None:
            low, high = ends
            if low.ndim > len(sizes) or np.broadcast_shapes(low.shape, sizes) != sizes:
                low, high = low.min(), high.max()
            around = generator.uniform(low, high, size=sizes)
            values = _back_through(
                composed(relation.old if relation else (), len(sizes)), around, values
            )
        first[str(number)] = second[str(number)] = values.astype(np.float32)
        if relation is not None:
            old, new = composed(relation.old, len(sizes)), composed(relation.new, len(sizes))
            values = values_around(old, values, numbers, near, generator)
            drawn = np.where(old.unknown, generator.normal(size=sizes), old.of(values))
            first[str(number)] = drawn.astype(np.float32)
            second[str(number)] = new.of(values).astype(np.float32)
    return first, second


def _widened(
    sizes: tuple[int, ...], own: tuple[int, ...], bounds: tuple[int, ...]
) -> tuple[int, ...]:
    """Sizes with more places along an axis on which neither maps nor bounds vary, if there is one
    and the tensor is small.
    """
    full = (1,) * (len(sizes) - len(bounds)) + bounds
    free = [k for k, (n, m) in enumerate(zip(own, full, strict=False)) if n == m == 1]
    if math.prod(sizes) >= _AROUND or not free or len(full) > len(sizes):
        return sizes
    return tuple(_AROUND if k == free[0] else n for k, n in enumerate(sizes))


def _that_reshape(
    sizes: tuple[int, ...], free: Sequence[int], target: NDArray[Any] | None
) -> tuple[int, ...]:
    """Sizes that a Reshape takes to its target: the first free one makes the count of elements fit.

    A law holds for all sizes that are not known, so any that fit will do. A 0 in the target copies
    a size, a -1 is what is left. The sizes stay where no size of the free axes makes them fit.
    """
    if target is None:
        return sizes
    asked = [int(n) for n in target.reshape(-1)]
    free = [k for k in free if k >= len(asked) or asked[k] != 0]
    copied = [sizes[k] for k, n in enumerate(asked) if n == 0 and k < len(sizes)]
    wanted = math.prod([*copied, *(n for n in asked if n > 0)])
    fixed = math.prod(n for k, n in enumerate(sizes) if k not in free)
    if not free or not fixed or (min(asked) < 0 and math.prod(sizes) % wanted == 0):
        return sizes
    if min(asked) < 0:
        first = wanted // math.gcd(wanted, fixed)
    elif wanted % fixed == 0:
        first = wanted // fixed
    else:
        return sizes
    return tuple(first if k == free[0] else 1 if k in free else n for k, n in enumerate(sizes))


def _that_resize(
    sizes: tuple[int, ...], free: Sequence[int], target: NDArray[Any] | None
) -> tuple[int, ...]:
    """Sizes whose batch and channels a Resize leaves as they are, where they are free.

    Interpolation runs along space alone in a runtime. A target that names some axes only, or that
    is not known, says nothing of the batch.
    """
    if target is None or target.size != len(sizes):
        return sizes
    kept = [k for k in free if k < 2]
    return tuple(int(target.reshape(-1)[k]) if k in kept else n for k, n in enumerate(sizes))


def are_single_numbers(related: Mapping[str, Related]) -> bool:
    """Whether all maps that tensors have passed are a scale and a shift of all elements."""
    factors = (factor for one in related.values() for factor in (*one.old, *one.new))
    return all(factor.scale.size == factor.shift.size == 1 for factor in factors)


def fit_any_rank(related: Mapping[str, Related]) -> bool:
    """Whether all maps that tensors have passed are single numbers, or lie along the last axis."""
    factors = (factor for one in related.values() for factor in (*one.old, *one.new))
    return all(f.axis == LAST or f.scale.size == f.shift.size == 1 for f in factors)


def _ends(
    side: CheckedModel, scope: Scope, node: NodeProto
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """An interval in which an operator that is flat beyond bounds shows them; None for any other.

    Of Clip it is that between its bounds, of HardSigmoid that between ``−β/α`` and ``(1 − β)/α``, a
    quarter wider on either side. Of Max and Min it is that around their bound, for each element.
    """
    given = {a.name: np.asarray(a.f, np.float64) for a in node.attribute if a.type == _FLOAT}
    if node.op_type == "HardSigmoid":
        alpha, beta = float(given.get("alpha", 0.2)), float(given.get("beta", 0.5))
        ends = sorted((-beta / alpha, (1 - beta) / alpha)) if alpha else [0.0, 0.0]
        given = {"min": np.asarray(ends[0]), "max": np.asarray(ends[1])}
    elif node.op_type in ("Max", "Min"):
        bounds = [side.values(scope, name) for name in node.input if name]
        held = [bound for bound in bounds if bound is not None and bound.size]
        given = {"min": held[0].astype(np.float64)} if len(held) == 1 else {}
    elif node.op_type != "Clip":
        return None
    else:
        for name, number in (("min", 1), ("max", 2)):
            known = side.values(scope, node.input[number]) if number < len(node.input) else None
            if known is not None and known.size == 1:
                given[name] = known.reshape(()).astype(np.float64)
    given = {name: n for name, n in given.items() if np.all(np.abs(n) < _BOUNDLESS)}
    if not given:
        return None
    low, high = given.get("min"), given.get("max")
    low = low if low is not None else given["max"] - 1.0
    high = high if high is not None else low + 1.0
    margin = np.maximum(high - low, 0.0) / 4
    return low - margin, np.maximum(low, high) + margin


def _back_through(
    map_: FullRankMap, wanted: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The numbers that a map takes to the wanted ones; ``others`` where it is constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(map_.scale == 0, others, (wanted - map_.shift) / map_.scale)


def _own_sizes(relation: Related, rank: int) -> tuple[int, ...]:
    """The sizes of a tensor as its maps tell them; 1 along each axis where they do not vary."""
    lines = composed(relation.old, rank), composed(relation.new, rank)
    return np.broadcast_shapes(*(np.broadcast(map_.scale, map_.shift).shape for map_ in lines))
