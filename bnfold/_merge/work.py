"""What linear operators cost, as far as their shapes tell, and whether a merge pays."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold._merge.kernels import Kernel
from bnfold._merge.steps import LinearStep, Mapped, Pool, Weighted


@dataclass(frozen=True)
class Work:
    """What operators do for one position that comes out in the end.

    ``products`` are multiply-adds, a step of an elementwise operator counted like one, ``numbers``
    what they read and write of tensors. ``weights`` are read once, for any number of positions.
    """

    products: int = 0
    numbers: int = 0
    weights: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.numbers + other.numbers,
            self.weights + other.weights,
        )

    def at(self, positions: int) -> Work:
        """The same of operators that compute so many positions for one that comes out."""
        return Work(self.products * positions, self.numbers * positions, self.weights)

    def pays(self, instead: Work, positions: int | None) -> bool:
        """Whether this may be done instead of what takes more operators: neither multiply-adds nor
        numbers moved may grow, and weights by no more than multiply-adds fall. Where the
        ``positions`` are not known, weights may not grow at all.
        """
        if self.weights * self.products > instead.weights * instead.products:
            return False
        moved, moved_before = self.weights, instead.weights
        if positions is not None:
            moved += self.numbers * positions
            moved_before += instead.numbers * positions
        return self.products <= instead.products and moved <= moved_before

    def growth(self, instead: Work) -> str:
        """By how much the work would grow, in words."""
        if self.products > instead.products:
            times = self.products / max(instead.products, 1)
            return (
                f"one operator would take {self.products} multiply-adds per position instead of "
                f"{instead.products}, {times:.3g} times as many"
            )
        times = self.weights / max(instead.weights, 1)
        return (
            f"one operator would read {self.weights} weights instead of {instead.weights}, "
            f"{times:.3g} times as many"
        )


def cost(kernel: Kernel, taken: LinearStep) -> Work:
    """What one step costs for one of its own output positions."""
    moved = kernel.inputs * kernel.strides + kernel.outputs
    if isinstance(taken, Weighted):
        return Work(kernel.size, moved, kernel.size)
    if isinstance(taken, Pool):
        return Work(kernel.size, moved)
    return Work(kernel.outputs * taken.operations, moved) if isinstance(taken, Mapped) else Work()
