"""Moves weights a little: by their own rounding, or by an error that a check must notice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

_BITS = {np.dtype(f): np.dtype(i) for f, i in (("f2", "i2"), ("f4", "i4"), ("f8", "i8"))}
_MISTAKES = {np.dtype("f2"): 0.1, np.dtype("f4"): 0.01, np.dtype("f8"): 0.01}
_POOL = 1 << 18


def can_move(array: Array) -> bool:
    """Tell whether an array holds floats of a width that is known here."""
    return array.dtype in _BITS


class Noise:
    """Draws noisy copies of a set of weights, into buffers that the next draw reuses.

    Random steps come from a pool that is read at random places: drawing 25 million of them anew
    would take longer than running the model.
    """

    def __init__(self, weights: Mapping[str, Array], rng: np.random.Generator) -> None:
        """Take weights for which `can_move` holds. They are never written to."""
        self._rng = rng
        self._weights = {name: np.asarray(array, order="C") for name, array in weights.items()}
        self._buffers = {name: np.empty_like(array) for name, array in self._weights.items()}
        self._fixed = {name: _fixed(array) for name, array in self._weights.items()}
        steps = rng.integers(-1, 2, _POOL, dtype=np.int8)
        self._pools = {bits: steps.astype(bits) for bits in _BITS.values()}

    def rounding(self) -> dict[str, Array]:
        """Return the weights, each element moved by -1, 0 or +1 unit in the last place.

        Zeros, non-finite values and the largest finite ones stay.
        """
        for name, array in self._weights.items():
            bits = _BITS[array.dtype]
            pool = self._pools[bits]
            source, target = (
                array.view(bits).reshape(-1),
                self._buffers[name].view(bits).reshape(-1),
            )
            start = 0
            while start < source.size:
                offset = int(self._rng.integers(_POOL // 2))
                stop = min(source.size, start + _POOL - offset)
                np.add(
                    source[start:stop],
                    pool[offset : offset + stop - start],
                    out=target[start:stop],
                )
                start = stop
            fixed = self._fixed[name]
            target[fixed] = source[fixed]
        return dict(self._buffers)

    def mistake(self, touched: Collection[str]) -> dict[str, Array]:
        """Return the weights, the touched ones 1 % too large or small in half of their slices.

        The slices are those along an array's longest axis, which is mostly one of channels. Where
        all is zero, 1 % of one is added instead. In float16, whose own rounding comes close to 1 %
        after a few layers, the mistake is 10 %.
        """
        wrong = dict(self._weights)
        for name in touched:
            array, factors = self._weights[name], self._factors(self._weights[name])
            if array.any():
                wrong[name] = np.multiply(array, factors, out=self._buffers[name])
            else:
                wrong[name] = np.add(array, factors - 1, out=self._buffers[name])
        return wrong

    def _factors(self, array: Array) -> Array:
        axis = int(np.argmax(array.shape)) if array.ndim else 0
        count = array.shape[axis] if array.ndim else 1
        factors = np.ones(count, dtype=array.dtype)
        chosen = self._rng.choice(count, size=-(-count // 2), replace=False)
        signs = self._rng.choice([-1, 1], size=chosen.size)
        factors[chosen] += (_MISTAKES[array.dtype] * signs).astype(array.dtype)
        return factors.reshape([count if k == axis else 1 for k in range(array.ndim)])


def _fixed(array: Array) -> Array:
    """Return the flat positions of the elements that have no step on both sides."""
    flat = array.reshape(-1)
    magnitude = np.abs(flat)
    moves = (magnitude > 0) & (magnitude < np.finfo(array.dtype).max)
    return np.flatnonzero(~moves)
