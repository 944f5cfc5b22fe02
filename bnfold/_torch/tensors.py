"""Tensors of PyTorch as NumPy arrays and back, bit for bit, and copies of what holds them."""

from __future__ import annotations

import copy
import warnings
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Kept = TypeVar("Kept")

DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}

NARROW = tuple(dtype for dtype in DTYPES if dtype != torch.float64)
"""The types of fewer digits than float64."""


def to_numpy(tensor: Tensor) -> Array:
    """The values of a tensor on any device. NumPy lacks bfloat16: its bits are read instead."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(plain.numpy())


def from_numpy(values: Array) -> Tensor:
    """A tensor on the CPU that holds the values."""
    whole = np.ascontiguousarray(values).reshape(values.shape)
    if whole.dtype == DTYPES[torch.bfloat16]:
        return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(whole)


def deep_copy(value: Kept, memo: dict[int, Any] | None = None) -> Kept:
    """A deep copy of a module, a graph or a part of a program.

    Where one holds the structure of inputs, torch's own code asks for a class that it has
    deprecated, and warns its caller of that.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        return copy.deepcopy(value, memo)
