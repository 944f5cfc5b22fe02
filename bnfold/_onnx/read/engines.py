"""What other engines make of constants.

Engines add up in different orders and have different exponentials, so an operator that rounds more
than once may put out other numbers elsewhere. Beside the numbers of one engine a constant has eight
sets of numbers that other engines may have. All operators behind it are applied to these, too. So a
step that engines take differently shows: a Floor of what is 3 in one engine and less in another,
or a sum that leaves nothing but what was rounded.

The sets are pairs on both sides of what is known. A number that lies on a border lies on the other
side of it in one of each pair. Of types narrower than float32 one of each pair is float32: some
engines, onnxruntime on a CPU for one, do not round between operators, and what a narrow type does
not hold they do not lose.
"""

from __future__ import annotations

import copy
import math
import operator
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx import tensors

Array = NDArray[Any]
Double = NDArray[np.float64]
Others = tuple[Array, ...]
Evaluate = Callable[[NodeProto, Sequence[Array | None]], Array]

_COUNT = 8
"""All numbers up, and all down; three times each number at random, and the other way."""
_LARGE = 1 << 18
"""Of more numbers there is one pair, to spare time."""
_SUMS = frozenset(("CumSum", "Einsum", "Gemm", "MatMul", "Mean", "ReduceMean", "ReduceSum", "Sum"))
"""Operators whose terms may cancel."""
_EXACT = _SUMS.difference(("Gemm", "Mean", "ReduceMean")).union(
    ("ReduceL1", "ReduceProd", "ReduceSumSquare")
)
"""Operators that make of whole numbers whole numbers, without an error while these are small."""
_NEAR_ONE = frozenset(
    (
        "Cos",
        "Elu",
        "HardSigmoid",
        "LogSoftmax",
        "ReduceLogSumExp",
        "Selu",
        "Sigmoid",
        "Sin",
        "Softplus",
    )
)
"""Operators that may compute a number near 0 as the difference of larger ones."""
_ADDING = _SUMS.union(("Add", "Sub"))
_NORM = "Normalization"
_LOST_BITS = 8
"""Terms that lose so many of their bits to the largest one are rounded on purpose, such as by
1.5·2²³."""
_SINGLE = 2.0**-24
"""What one rounding of a float32 costs."""
_DIGITS = 2.0**-4
"""So far a number may be apart, of itself. Engines are as a rule ten times nearer to each other."""
_OF_LARGEST = 2.0**-14
"""So far a number may be apart, of the largest one of its tensor."""


def others(
    node: NodeProto,
    inputs: Sequence[Array | None],
    given: Sequence[Others | None],
    made: Array,
    is_free: bool,
    evaluate: Evaluate,
) -> Others | None:
    """What other engines may have as the output of an operator; None where all have the same.

    Args:
        node: the operator; it rounds more than once if it ``is_free``.
        inputs: what it reads.
        given: what other engines may have there; None where all have the same.
        made: what it makes of the inputs.
        evaluate: applies an operator.

    Raises whatever the operator raises on these, and `ValueError` if they have another shape.
    """
    noise = _noise(node, inputs, made, evaluate) if is_free else None
    longer = [_longer(one) for one in inputs]
    is_same, is_wide = all(one is None for one in given), all(map(operator.is_, inputs, longer))
    if noise is None and is_same and is_wide:
        return None
    if node.op_type == "Cast" and inputs[0] is not None and inputs[0].dtype == made.dtype:
        return given[0]
    found = []
    known = [len(one) for one in given if one is not None]
    for number in range(min(_COUNT if made.size <= _LARGE else 2, *known, _COUNT)):
        own = inputs if is_wide or number % 2 else longer
        read = [one if more is None else more[number] for one, more in zip(own, given, strict=True)]
        values = made if is_same and own is inputs else evaluate(node, read)
        if values.shape != made.shape:
            raise ValueError("its shape depends on how an engine rounds")
        found.append(values if noise is None else _moved(values, noise, number, node.output[0]))
    return None if all(_alike(one, made).all() for one in found) else tuple(found)


def spread(values: Array, found: Others) -> Double:
    """How far what other engines may have is from some floats, at most."""
    own, furthest = values.astype(np.float64), np.zeros(values.shape)
    for one in found:
        with np.errstate(invalid="ignore"):
            apart = np.abs(one.astype(np.float64) - own)
        if not np.isfinite(apart).all():
            apart = np.where(_alike(one, values), 0.0, apart)
        np.maximum(furthest, apart, out=furthest)
    return furthest


def is_in_doubt(values: Array, found: Others | None) -> bool:
    """Whether engines have numbers so different that nobody knows what a network has.

    Engines may differ by `_DIGITS` of a number, or by `_OF_LARGEST` of the largest one, or by a
    unit in the last place of that. Of what is not a number some make a number, a Sign or a Relu for
    one.
    """
    if not _is_float(values):
        return False
    if np.isnan(values).any():
        return True
    if found is None:
        return False
    unit = _unit(values.dtype)
    sizes = np.abs(values.astype(np.float64))
    largest = np.max(sizes, initial=0.0, where=np.isfinite(sizes))
    allowed = np.maximum(_DIGITS * sizes, max(_OF_LARGEST, 2 * unit) * largest)
    allowed = np.where(np.isfinite(sizes), allowed, 0.0)
    return not bool((spread(values, found) <= allowed).all())


def _noise(
    node: NodeProto, inputs: Sequence[Array | None], made: Array, evaluate: Evaluate
) -> Double | None:
    """How far the numbers of a free operator may be from those of another engine.

    Twice what one rounding costs of the number itself, and once of the terms that it is the sum of;
    more of long sums. Four times that of other functions, which engines approximate. None where
    each engine computes without an error.

    Engines may take numbers below the normal ones of float32 and float64 for 0.
    """
    if not _is_float(made):
        return None
    unit, sizes = _unit(made.dtype), np.abs(made.astype(np.float64))
    reach, longest = sizes, 1
    if node.op_type in _SUMS:
        reach = _summed(node, inputs, evaluate, 1)
        axes = [max(one.shape, default=1) for one in inputs if one is not None]
        longest = max(*axes, _terms(inputs, made), 1)
    elif node.op_type == "ScatterND":
        given = [one.astype(np.float64) for one in (inputs[0], inputs[2]) if one is not None]
        reach = sizes + max(np.max(np.abs(one), initial=0.0) for one in given)
    elif node.op_type in _NEAR_ONE:
        reach = sizes + 1
    elif node.op_type.endswith(_NORM):
        reach = sizes + _centred(inputs) * np.max(sizes, initial=0.0, where=np.isfinite(sizes))
    wide = min(unit, _SINGLE)
    if node.op_type in _EXACT and all(map(_is_whole, inputs)) and bool((reach < 1 / wide).all()):
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        noise = 2 * unit * sizes + (1 + math.sqrt(longest) / 16) * wide * reach
        if node.op_type not in _SUMS:
            noise = 4 * noise
        if unit <= _SINGLE:
            noise = np.where(sizes < _tiny(made.dtype), np.maximum(noise, sizes), noise)
        noise = noise + np.where(sizes > 0, _least(made.dtype), 0.0)
        noise = np.where(dominated(node, inputs, made, evaluate), 16 * noise, noise)
    return np.where(np.isfinite(noise), noise, 0.0)


def dominated(
    node: NodeProto, inputs: Sequence[Array | None], made: Array, evaluate: Evaluate
) -> NDArray[np.bool_]:
    """Where a sum has one term so large that it rounds the others.

    ``(Σ|t|)² − Σt²`` is what products of two different terms add up to. Next to ``(Σ|t|)²`` it is
    about twice what the other terms are next to the largest one.
    """
    if node.op_type.endswith(_NORM) and len(inputs) > 2 and inputs[2] is not None:
        plain = list(inputs)
        plain[2] = np.zeros_like(inputs[2])
        rest = np.abs(evaluate(node, plain).astype(np.float64))
        return np.asarray((rest > 0) & (rest * 2.0**_LOST_BITS < np.abs(made.astype(np.float64))))
    if node.op_type not in _ADDING:
        return np.zeros(made.shape, np.bool_)
    with np.errstate(all="ignore"):
        first, second = (_summed(node, inputs, evaluate, power) for power in (1, 2))
        if node.op_type in ("Mean", "ReduceMean"):
            second = second / _terms(inputs, made)
        mixed = first**2 - second
        return np.asarray((mixed > 2.0**-40 * first**2) & (mixed * 2.0**_LOST_BITS < 2 * first**2))


def _terms(inputs: Sequence[Array | None], made: Array) -> int:
    """How many numbers are read for each that is made."""
    read = sum(one.size for one in inputs if one is not None and _is_float(one))
    return max(read // max(made.size, 1), 1)


def _summed(
    node: NodeProto, inputs: Sequence[Array | None], evaluate: Evaluate, power: int
) -> Double:
    """The sum of the sizes of the terms that an operator adds up, or of their squares."""
    plain = copy.deepcopy(node)
    plain.op_type = "Add" if node.op_type == "Sub" else node.op_type
    for attribute in plain.attribute:
        if attribute.name in ("alpha", "beta"):
            attribute.f = abs(attribute.f) ** power
    return evaluate(plain, [_size(one, power) for one in inputs]).astype(np.float64)


def _size(values: Array | None, power: int) -> Array | None:
    if values is None or not _is_float(values):
        return values
    sizes = np.abs(values.astype(np.float64))
    return np.asarray(sizes if power == 1 else sizes * sizes)


def _longer(values: Array | None) -> Array | None:
    narrow = values is not None and _is_float(values) and _unit(values.dtype) > _SINGLE
    return values.astype(np.float32) if values is not None and narrow else values


def _is_float(values: Array) -> bool:
    return tensors.data_type(values.dtype) in tensors.FLOATS


def _centred(inputs: Sequence[Array | None]) -> float:
    """How many times larger the data of a norm are than they are apart."""
    values = np.zeros(1) if inputs[0] is None else inputs[0].astype(np.float64)
    if not values.size:
        return 1.0
    return 1 + float(np.abs(values).max() / max(np.ptp(values), np.finfo(np.float64).tiny))


def _is_whole(values: Array | None) -> bool:
    return values is None or bool((np.rint(one := values.astype(np.float64)) == one).all())


def _moved(values: Array, noise: Double, number: int, name: str) -> Array:
    """The numbers of a tensor moved by some noise, in the way that the set of this number has.

    At random, so that the noise of one tensor does not go with that of another one.
    """
    signs: Any = 1.0
    if number > 1:
        draw = np.random.default_rng((zlib.crc32(name.encode()), number // 2))
        signs = draw.choice((-1.0, 1.0), noise.shape)
    with np.errstate(all="ignore"):
        moved = values.astype(np.float64) + (1 - 2 * (number % 2)) * signs * noise
        return np.asarray(moved.astype(values.dtype))


def _alike(one: Array, other: Array) -> NDArray[np.bool_]:
    return np.asarray((one == other) | ((one != one) & (other != other)))


def _unit(dtype: np.dtype[Any]) -> float:
    """What one rounding costs, of a number of this type."""
    return float(_limits(dtype).eps) / 2


def _least(dtype: np.dtype[Any]) -> float:
    """The least positive number of a type."""
    return float(_limits(dtype).smallest_subnormal)


def _tiny(dtype: np.dtype[Any]) -> float:
    return float(_limits(dtype).smallest_normal)


def _limits(dtype: np.dtype[Any]) -> Any:
    info: Any = ml_dtypes.finfo
    return info(dtype)
