"""Drawn affine maps, and what they do to an array."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from bnfold._core.affine import AffineMap

RANK, SIZE = 4, 2  # Every axis of the same size: only ranks can tell them apart.


def act(map_: AffineMap, x: Any) -> Any:
    """``scale · x + shift`` along the map's axis."""
    if map_.axis is None:
        return map_.scale[0] * x + map_.shift[0]
    along = [1] * x.ndim
    along[map_.axis] = map_.scale.size
    return map_.scale.reshape(along) * x + map_.shift.reshape(along)


_numbers = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 3.0])


@st.composite
def maps(draw: Any) -> AffineMap:
    """A map along one axis or none; often a pure scale, a pure shift, or no change at all."""
    axis = draw(st.sampled_from([None, *range(RANK)]))
    size = 1 if axis is None else SIZE
    vectors = [draw(st.lists(_numbers, min_size=size, max_size=size)) for _ in range(2)]
    kind = draw(st.sampled_from(["both", "scale", "shift"]))
    scale = 1.0 if kind == "shift" else vectors[0]
    shift = 0.0 if kind == "scale" else vectors[1]
    return AffineMap.of(scale, shift, axis)


def tensors() -> Any:
    """Arrays with all sizes equal."""
    return st.integers(0, 99).map(
        lambda seed: np.random.default_rng(seed).normal(size=(SIZE,) * RANK)
    )
