"""The work of linear operators, as their shapes tell it, and whether a merge pays."""

from __future__ import annotations

from bnfold._merge.kernels import Kernel
from bnfold._merge.steps import LinearStep, Mapped, Pool, Weighted
from bnfold._system.records import record


@record(frozen=True)
class Work:
    """What operators do for one output position.

    ``products`` counts multiply-adds; an elementwise operation counts as one. ``numbers`` counts
    the numbers of tensors that are read and written. ``weights`` counts the weights. They are read
    once for all positions.
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
        """The work of operators that compute ``positions`` positions for each output position."""
        return Work(self.products * positions, self.numbers * positions, self.weights)

    def pays(self, instead: Work, positions: int | None) -> bool:
        """Whether one operator with this work may replace operators with the work ``instead``.

        Neither multiply-adds nor the numbers moved may grow. Weights may grow by at most the factor
        by which multiply-adds fall. If the number of ``positions`` is not known, weights may not
        grow at all.
        """
        if self.weights * self.products > instead.weights * instead.products:
            return False
        moved, moved_before = self.weights, instead.weights
        if positions is not None:
            moved += self.numbers * positions
            moved_before += instead.numbers * positions
        return self.products <= instead.products and moved <= moved_before

    def growth(self, instead: Work) -> str:
        """The growth of the work, as a text for the user."""
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
    """The work of one step for one of its own output positions."""
    moved = kernel.inputs * kernel.strides + kernel.outputs
    if isinstance(taken, Weighted):
        return Work(kernel.size, moved, kernel.size)
    if isinstance(taken, Pool):
        return Work(kernel.size, moved)
    return Work(kernel.outputs * taken.operations, moved) if isinstance(taken, Mapped) else Work()
