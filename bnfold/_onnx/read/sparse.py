"""Sparse tensors: constants stored as their numbers that are not 0, and where these lie."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import SparseTensorProto

from bnfold._onnx import tensors
from bnfold._onnx.read.growth import LARGEST

Array = NDArray[Any]


def places(sparse: SparseTensorProto, base_dir: Path | None) -> NDArray[np.int64]:
    """Where the stored numbers lie in the tensor as one row.

    Raises ``ValueError`` where the tensor would be too large to be made, or where they are not one
    place each inside of it.
    """
    dims = tuple(sparse.dims)
    count, stored = math.prod(dims), math.prod(sparse.values.dims)
    if count > max(LARGEST, stored):
        raise ValueError(f"it would have {count} elements")
    found = tensors.read(sparse.indices, base_dir).astype(np.int64)
    inside = found.ndim == 1 or found.shape[1:] == (len(dims),)
    if inside and found.ndim == 2:
        inside = bool(((found >= 0) & (found < np.asarray(dims, np.int64))).all())
        found = np.ravel_multi_index(tuple(found.T), dims) if inside and dims else found
    inside = inside and found.shape == tuple(sparse.values.dims)
    if not inside or bool(((found < 0) | (found >= count)).any()):
        raise ValueError("its indices are not one place of it for each of its values")
    if np.unique(found).size < found.size:
        raise ValueError("two of its values are for one place")
    return found


def dense(sparse: SparseTensorProto, base_dir: Path | None) -> Array:
    """The whole tensor. Raises ``ValueError`` as `places` does."""
    where = places(sparse, base_dir)
    numbers = tensors.read(sparse.values, base_dir)
    whole = np.zeros(math.prod(sparse.dims), numbers.dtype)
    whole[where] = numbers
    return whole.reshape(tuple(sparse.dims))


def kept(sparse: SparseTensorProto, values: Array, base_dir: Path | None) -> Array | None:
    """The numbers with which a sparse tensor holds these values, where they are 0 elsewhere."""
    numbers = values.reshape(-1)[places(sparse, base_dir)]
    return numbers if np.count_nonzero(values) == np.count_nonzero(numbers) else None
