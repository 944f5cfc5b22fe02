"""What a camera gives, and what the network would get of it: NumPy, written without bnfold."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graphs import run

Array = Any
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def picture(*shape: int, dtype: str = "uint8", seed: int = 0) -> Array:
    """Numbers from 0 to 255: at the border, too, far from every mean."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def seen(
    picture: Array,
    *,
    mean: Any = 0.0,
    std: Any = 1.0,
    scale: float = 1.0,
    channels: str = "",
    layout: str = "",
    axis: int = 1,
    dtype: Any = np.float32,
) -> Array:
    """What the network gets, in float64 until the end; ``axis`` is that of its channels."""
    data = picture.astype(np.float64)
    if layout:
        given, own = layout.split(":")
        data = np.einsum(f"{given}->{own}", data)
    if channels:
        given, own = channels.split(":")
        planes = np.moveaxis(data, axis, 0)
        data = np.moveaxis(np.stack([planes[given.find(letter)] for letter in own]), 0, axis)
    shape = [1] * data.ndim
    shape[axis] = -1

    def along(numbers: Any) -> Array:
        values = np.asarray(numbers, np.float64)
        return values.reshape(shape) if values.ndim else values

    return ((data * scale - along(mean)) / along(std)).astype(dtype)


def same(model: Any, folded: Any, given: Array, name: str = "x", bound: float = 3e-6, **how: Any):
    """The folded model gives on a picture what the model gives on what it would have seen."""
    wanted = run(model, {name: seen(given, **how)})
    found = run(folded, {name: given})
    assert len(wanted) == len(found)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= bound * (np.abs(other).max() + 1)
