"""What an operator keeps: a constant tensor, as the records of operators see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Parameter(Protocol):
    """A constant tensor that an operator reads; its values are loaded when they are asked for."""

    @property
    def name(self) -> str:
        """What the user knows it by."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its values as they are stored."""
        ...

    @property
    def load(self) -> Callable[[], Array]:
        """Read the values."""
        ...
