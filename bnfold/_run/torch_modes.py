"""Ways to run a module's code with other rounding than it asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold._torch.tensors import NARROW

_LARGEST = float(np.finfo(np.float32).max)


class Narrowed(TorchDispatchMode):  # type: ignore[no-untyped-call]  # It has no types.
    """Rounds the numbers that operators are given to float32, as the attributes of ONNX are."""

    def __init__(self) -> None:
        """Begin nothing yet: it is a context."""
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*pytree.tree_map(_narrowed, args), **pytree.tree_map(_narrowed, kwargs or {}))


def _narrowed(value: Any) -> Any:
    return float(np.float32(value)) if type(value) is float and abs(value) < _LARGEST else value


class Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]  # It has no types.
    """Computes in float64 whatever narrower type the code asks for.

    Conversions to such a type convert to float64, and what is made in one is widened at once. What
    asserts the type of a tensor is left out. Code that reinterprets bits raises an error.
    """

    def __init__(self) -> None:
        """Begin nothing yet: it is a context."""
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "_assert_tensor_metadata":
            return None
        if func is torch.ops.aten.view.dtype:
            raise NotImplementedError("bits are read as another type")
        given = args, kwargs or {}
        if any(isinstance(each, Tensor) for each in pytree.tree_leaves(given)):
            given = pytree.tree_map(_widened, given)
        return pytree.tree_map_only(Tensor, _widened, func(*given[0], **given[1]))


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in NARROW else value
    narrow = isinstance(value, Tensor) and value.dtype in NARROW
    return value.to(torch.float64) if narrow else value
