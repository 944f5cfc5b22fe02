"""Moves weights a little: by their own rounding, or by an error that a check must notice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

_BITS = {np.dtype(f): np.dtype(i) for f, i in (("f2", "i2"), ("f4", "i4"), ("f8", "i8"))}
_MISTAKES = {np.dtype("f2"): 0.1, np.dtype("f4"): 0.01, np.dtype("f8"): 0.01}
_POOL_BITS = 18
_POOL = 1 << _POOL_BITS
_BLOCK = 1 << 16


def can_move(array: Array) -> bool:
    """Tell whether an array holds floats of a width that is known here."""
    return array.dtype in _BITS


class Noise:
    """Draws noisy copies of a set of weights, into buffers that the next draw reuses.

    Random steps come from a pool: drawing 25 million of them anew would take longer than running
    the model. In every other draw equal weights move alike, as a fold rounds equal products alike:
    where a model holds the same number millions of times, their errors add up instead of
    cancelling. There a weight's bits say, through a salted hash, where in the pool its step lies;
    in the other draws the pool is read at random places.
    """

    def __init__(self, weights: Mapping[str, Array], rng: np.random.Generator) -> None:
        """Take weights for which `can_move` holds. They are never written to."""
        self._rng = rng
        self._weights = {name: np.asarray(array, order="C") for name, array in weights.items()}
        self._buffers = {name: np.empty_like(array) for name, array in self._weights.items()}
        self._fixed = {name: _fixed(array) for name, array in self._weights.items()}
        steps = rng.integers(-1, 2, _POOL, dtype=np.int8)
        self._steps = steps
        self._alike = False

    def rounding(self) -> dict[str, Array]:
        """Return the weights, each element moved by -1, 0 or +1 unit in the last place.

        Zeros, non-finite values and the largest finite ones stay.
        """
        self._alike = not self._alike
        salt = np.uint32(self._rng.integers(1 << 32))
        for name, array in self._weights.items():
            bits = _BITS[array.dtype]
            source = array.view(bits).reshape(-1)
            target = self._buffers[name].view(bits).reshape(-1)
            for start in range(0, source.size, _BLOCK):
                part = source[start : start + _BLOCK]
                if self._alike:
                    steps = self._steps[_places(part, salt)]
                else:
                    offset = int(self._rng.integers(_POOL - part.size))
                    steps = self._steps[offset : offset + part.size]
                np.add(part, steps, out=target[start : start + _BLOCK])
            fixed = self._fixed[name]
            target[fixed] = source[fixed]
        return dict(self._buffers)

    def mistake(self, axes: Mapping[str, int], half: bool = False) -> dict[str, Array]:
        """Return the weights, some 1 % too large or small in one slice along the axis given, or in
        half of the slices.

        A slice that is all zero is not taken. Where all is zero, 1 % of one is added instead. In
        float16, whose own rounding comes close to 1 % after a few layers, the mistake is 10 %.
        """
        wrong = dict(self._weights)
        for name, axis in sorted(axes.items()):
            array, buffer = self._weights[name], self._buffers[name]
            np.copyto(buffer, array)
            size = array.dtype.type(_MISTAKES[array.dtype] * self._rng.choice([-1, 1]))
            slices = np.moveaxis(np.atleast_1d(buffer), axis, 0)
            alive = np.flatnonzero(slices.any(axis=tuple(range(1, slices.ndim))))
            if alive.size:
                count = -(-alive.size // 2) if half else 1
                slices[self._rng.choice(alive, count, replace=False)] *= 1 + size
            else:
                buffer += size
            wrong[name] = buffer
        return wrong


def _places(bits: Array, salt: np.uint32) -> Array:
    """Return for each bit pattern a place in the pool: the top bits of a salted product."""
    mixed: Array = (bits ^ (bits >> 29)).astype(np.uint32)
    mixed += salt
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x9E3779B1)
    mixed >>= np.uint32(32 - _POOL_BITS)
    return mixed


def _fixed(array: Array) -> Array:
    """Return the flat positions of the elements that have no step on both sides."""
    flat = array.reshape(-1)
    magnitude = np.abs(flat)
    moves = (magnitude > 0) & (magnitude < np.finfo(array.dtype).max)
    return np.flatnonzero(~moves)
