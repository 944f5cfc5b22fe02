"""Moves weights a little: by their own rounding, or by an error that a check must notice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

from bnfold._core.limits import Limits
from bnfold._onnx.tensors import let_go

Array: TypeAlias = np.ndarray[Any, Any]

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_BITS: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype("f2"): np.dtype("i2"),
    np.dtype("f4"): np.dtype("i4"),
    np.dtype("f8"): np.dtype("i8"),
    _BFLOAT16: np.dtype("i2"),
}
_MISTAKES = {
    np.dtype("f2"): 0.1,
    np.dtype("f4"): 0.01,
    np.dtype("f8"): 0.01,
    _BFLOAT16: 0.1,
}
_POOL = 1 << 18
_BLOCK = 1 << 16
_SMALL = 1 << 12


def has_steps(array: Array) -> bool:
    """Tell whether an array holds floats of a type whose rounding steps are known."""
    return array.dtype in _BITS


def mistake_in(array: Array) -> float:
    """How large the error is that is planted in a weight, as a part of its numbers."""
    return _MISTAKES[array.dtype]


def can_move(array: Array) -> bool:
    """Tell whether an ONNX engine takes the array's float type as an input: not bfloat16."""
    return has_steps(array) and array.dtype != _BFLOAT16


class Noise:
    """Draws noisy copies of a set of weights, into buffers that the next draw of noise reuses.

    In the first draw and every second one after it, or in the others, equal weights move alike, for
    a fold rounds equal products alike. If a model holds the same number millions of times, the
    errors add up and do not cancel. The step of a weight is a salted hash of its bits there.

    In the other draws steps come from a pool that is read at random places. To draw 25 million new
    steps would take longer than to run the model.
    """

    def __init__(
        self, weights: Mapping[str, Array], rng: np.random.Generator, alike: bool = True
    ) -> None:
        """Take weights for which `has_steps` holds. They are never written to.

        ``alike`` says in which draws equal weights move alike: in the first, or in the second.
        """
        self._rng = rng
        self._weights = {name: np.asarray(array, order="C") for name, array in weights.items()}
        self._buffers = dict[str, Array]()
        self._runs = list[_Run]()
        self._alike = not alike

    def release(self) -> None:
        """Give the buffers' memory back; they are made again for the next draw."""
        self._buffers, self._runs = {}, []

    def rounding(self) -> dict[str, Array]:
        """Return the weights, each element moved by -1, 0 or +1 unit in the last place.

        Zeros, non-finite values and the largest finite ones stay.
        """
        self._prepare()
        self._alike = not self._alike
        salt = np.uint32(self._rng.integers(1 << 32))
        for run in self._runs:
            source, target = run.source, run.target
            for start in range(0, source.size, _BLOCK):
                part = source[start : start + _BLOCK]
                if self._alike:
                    steps = _hashed(part, salt)
                else:
                    offset = int(self._rng.integers(_POOL - part.size))
                    steps = self._pool[offset : offset + part.size]
                np.add(part, steps, out=target[start : start + _BLOCK])
            target[run.fixed] = source[run.fixed]
            let_go([source])
        return dict(self._buffers)

    def mistake(self, axes: Mapping[str, int], half: bool = False) -> dict[str, Array]:
        """Return some weights with an error of 1 % in one slice, or in half of the slices.

        ``axes`` gives the axis of the slices for each weight. A slice of zeros is not taken; if the
        whole weight is zero, 1 % of one is added instead. In float16 and bfloat16 the error is
        10 %, for their rounding comes close to 1 % after a few layers.
        """
        self.release()
        wrong = {}
        for name, axis in sorted(axes.items()):
            array = self._weights[name]
            buffer = wrong[name] = array.copy()
            let_go([array])
            sign = 1 if self._rng.integers(2) else -1
            size = array.dtype.type(sign * mistake_in(array))
            slices = np.moveaxis(buffer, axis, 0) if buffer.ndim else buffer.reshape(1)
            order = self._rng.permutation(len(slices))
            where: Any = next((at for at in order if slices[at].any()), None)
            if half and where is not None:
                alive = order[slices[order].any(axis=tuple(range(1, slices.ndim)))]
                where = alive[: -(-alive.size // 2)]
            if where is not None:
                slices[where] *= 1 + size
            else:
                buffer += size
        return wrong

    def _prepare(self) -> None:
        if not self._runs:
            self._runs = [*self._single(), *self._packed()]

    @cached_property
    def _pool(self) -> Array:
        return self._rng.integers(-1, 2, _POOL, dtype=np.int8)

    def _single(self) -> Iterator[_Run]:
        """Yield the large weights, one by one; those that are one array in memory move as one."""
        made = dict[int, Array]()
        for name, array in self._weights.items():
            if array.size > _SMALL:
                known = made.get(id(array))
                self._buffers[name] = np.empty_like(array) if known is None else known
                if known is None:
                    made[id(array)] = self._buffers[name]
                    yield _Run.of(array.reshape(-1), self._buffers[name].reshape(-1))

    def _packed(self) -> Iterator[_Run]:
        """Yield the many small weights, end to end for each dtype."""
        for dtype in _BITS:
            small = {
                name: array
                for name, array in self._weights.items()
                if array.dtype == dtype and array.size <= _SMALL
            }
            if not small:
                continue
            source = np.concatenate([array.reshape(-1) for array in small.values()])
            target, start = np.empty_like(source), 0
            for name, array in small.items():
                self._buffers[name] = target[start : start + array.size].reshape(array.shape)
                start += array.size
            yield _Run.of(source, target)


class _Run(NamedTuple):
    """Weights end to end as integers, the buffer for their noisy copy, and which never move."""

    source: Array
    target: Array
    fixed: Array

    @classmethod
    def of(cls, source: Array, target: Array) -> _Run:
        bits = _BITS[source.dtype]
        return cls(source.view(bits), target.view(bits), _fixed(source))


def _hashed(bits: Array, salt: np.uint32) -> Array:
    """Return -1, 0 or 1 for each bit pattern, each in a third of all cases.

    The upper half of a salted product decides.
    """
    if bits.itemsize == 8:
        bits = bits ^ (bits >> 32)
    mixed = bits.astype(np.uint32) + salt
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x9E3779B1)
    mixed >>= np.uint32(16)
    mixed *= np.uint32(3)
    mixed >>= np.uint32(16)
    steps: Array = mixed.view(np.int32)
    steps -= 1
    return steps if bits.itemsize > 2 else steps.astype(np.int8)


def _fixed(array: Array) -> Array:
    """Return the positions of the elements that have no step on both sides."""
    largest, found = Limits.of(array.dtype).largest, []
    for start in range(0, array.size, _BLOCK):  # one at a time, as it fits in the cache
        magnitude = np.abs(array[start : start + _BLOCK])
        found.append(np.flatnonzero(~((magnitude > 0) & (magnitude < largest))) + start)
    let_go([array])
    return np.concatenate(found) if found else np.zeros(0, np.intp)
