"""The kinds of random numbers that inputs are drawn from."""

from __future__ import annotations

from typing import Literal

import numpy as np

from bnfold._run.noise import Array

Flavour = Literal["signed", "unsigned", "structured", "large"]
FLAVOURS: tuple[Flavour, ...] = ("signed", "unsigned", "structured", "large")
IMAGE_RANK = 4
"""The rank of a batch of images."""
_BLOCK = 8
_STROKE = 3
_INK = 0.3
_LARGE = 100.0


def draw_floats(rng: np.random.Generator, flavour: Flavour, shape: tuple[int, ...]) -> Array:
    """Draw numbers of a kind, see `WantedInputs`, in float64."""
    if flavour == "unsigned":
        return rng.random(shape)
    if flavour != "structured":
        values = rng.standard_normal(shape)
        return values * _LARGE if flavour == "large" else values
    return _draw_page(rng, shape)


def _draw_page(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw marks on a flat ground with a margin, like a page: -2 and 2. All channels are alike.

    A tensor of two axes or fewer is no image: it has flat blocks of -2, 0 and 2. Noise looks the
    same everywhere, so channels that look for edges or flat parts would be dead.
    """
    if len(shape) < IMAGE_RANK - 1:
        blocks: Array = rng.integers(-1, 2, tuple(-(-size // _BLOCK) for size in shape))
        for axis, size in enumerate(shape):
            blocks = np.take(blocks.repeat(_BLOCK, axis), range(size), axis)
        doubled: Array = blocks * 2.0
        return doubled
    spatial = shape[2:] if len(shape) >= IMAGE_RANK else shape[1:]
    marks: Array = rng.random([-(-size // _STROKE) for size in spatial]) < _INK
    for axis, size in enumerate(spatial):
        marks = np.take(marks.repeat(_STROKE, axis), range(size), axis)
        inside = np.arange(size) >= size // 4
        others = [other for other in range(len(spatial)) if other != axis]
        marks = marks & np.expand_dims(inside & inside[::-1], others)
    page: Array = np.broadcast_to(np.where(marks, -2.0, 2.0), shape).copy()
    return page


def into_range(values: Array, flavour: Flavour, low: float, high: float) -> Array:
    """Drawn numbers, moved into a range.

    Normal numbers get the middle of the range as mean, and a quarter of its width as deviation.
    """
    if flavour == "unsigned":
        return low + values * (high - low)
    return np.clip((low + high) / 2 + values * (high - low) / 4, low, high)
