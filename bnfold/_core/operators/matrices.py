"""Gemm and MatMul with a constant factor, by the axes of their operands, each as a `Product`; and
`Contraction`, which is any product of such a factor that axes with names tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bnfold._core import channels
from bnfold._core.affine import LAST
from bnfold._core.broadcast import Shape
from bnfold._core.operators.linear import Product
from bnfold._core.operators.record import Operand, Operator, unusual
from bnfold._core.parameters import Entrance, Site
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import Absorber, InputSide
from bnfold._system.records import record


def gemm(
    label: str,
    weight: Operand,
    bias: Operand,
    turned: tuple[bool, bool],
    alpha: float,
    beta: float,
) -> Product:
    """``α·A'·B' + β·C`` of two matrices, of which the weight is B, or A where its position is 0;
    ``turned`` says whether A and B are transposed first. α multiplies the product either way.

    Raises `Refusal` where the weight is no matrix.
    """
    _check_matrix(weight)
    axis = weight.position
    stored = (1 - axis) if turned[axis] else axis
    # Of the data [M, K] (of [K, N] where A is constant) K is summed over, wherever it is stored.
    along = axis ^ turned[1 - axis]
    return Product(
        label=label,
        data=(1 - weight.position,),
        weight=weight,
        columns={axis: stored},
        summed=1 - stored,
        along=along,
        rank=2,
        read=2,
        bias=bias,
        alpha=alpha,
        beta=beta,
    )


def _check_matrix(weight: Operand) -> None:
    """Raise a `Refusal` where a weight is no matrix."""
    if weight.missing is not None:
        raise Refusal(weight.missing)
    assert weight.value is not None
    if len(weight.value.shape) != 2:
        raise Refusal(unusual(weight.value))


Turn = Callable[[int], tuple[int, ...]]
"""Gives for each axis of an operand as it is multiplied the axis as it is stored, for its rank."""


def as_stored(rank: int) -> tuple[int, ...]:
    """No axis moves."""
    return tuple(range(rank))


def matmul(
    label: str,
    weight: Operand,
    other: Shape | None,
    add_blocked: Reason | None = None,
    writable: bool = True,
    turned: tuple[Turn, Turn] = (as_stored, as_stored),
    alpha: float = 1.0,
) -> Product:
    """``α`` times a product by NumPy's rules with a constant on the right, or on the left where the
    weight's position is 0; ``other`` is the shape of the data. ``turned`` says how the axes of
    either operand are taken: a transposed matrix [N, K] as (1, 0).

    The constant's last axis (on the right) is the output's last, its second-last (on the left) the
    output's second-last, and its batch axes, aligned from the right, are the output's. An axis that
    the constant lacks, or holds with size 1 against a larger output, has no entries of its own. Of
    data of unknown rank a matrix on the right makes the last axis, and others are not known; what
    is on the right sums over the last axis of data that are taken as they are stored.
    """
    assert weight.value is not None
    right = weight.position == 1
    stored = turned[weight.position](len(weight.value.shape))
    fixed = tuple(weight.value.shape[axis] for axis in stored)
    columns: dict[int, int] = {}
    along, rank = None, None
    if other is not None:
        order = turned[1 - weight.position](len(other))
        other = tuple(other[axis] for axis in order)
        along = order[len(other) - 1 if right else max(len(other) - 2, 0)]
    if other is not None and len(fixed) >= 2:
        columns = {out: stored[own] for out, own in _columns(fixed, right, other).items()}
        rank = max(len(fixed), len(other)) - (len(other) == 1)
    elif other is None and right:
        columns = {LAST: stored[1]} if len(fixed) == 2 else {}
        data = turned[0]
        along = LAST if fixed and (data(2), data(3)) == (as_stored(2), as_stored(3)) else None
    return Product(
        label=label,
        data=(1 - weight.position,),
        weight=weight,
        columns=columns,
        summed=stored[max(len(fixed) - 2, 0) if right else len(fixed) - 1],
        along=along,
        rank=rank,
        read=None if other is None else len(other),
        alpha=alpha,
        add_blocked=add_blocked,
        writable=writable,
    )


def turning(matrix: bool, batch: bool) -> Turn:
    """How FusedMatMul takes the axes of an operand: ``batch`` takes the first axis behind the batch
    axes, and then ``matrix`` exchanges the last two. A vector stays.
    """

    def turn(rank: int) -> tuple[int, ...]:
        order = list(range(rank))
        if batch and rank > 2:
            order[:-1] = [*order[1:-1], 0]
        if matrix and rank > 1:
            order[-2:] = [order[-1], order[-2]]
        return tuple(order)

    return turn


def _columns(fixed: tuple[int, ...], right: bool, other: Shape) -> dict[int, int]:
    """Output axes of a MatMul that have entries of their own, with the constant's axis."""
    batch = len(fixed) - 2
    kept = len(fixed) - 1 if right else len(fixed) - 2
    if len(other) == 1:
        axes = {batch: kept}
        first = batch
    else:
        rank = max(len(fixed), len(other))
        axes = {rank - 1 if right else rank - 2: kept}
        first = rank - 2
    axes.update({first - batch + k: k for k in range(batch) if fixed[k] != 1})
    return axes


@record(frozen=True, kw_only=True)
class Contraction(Operator):
    """A sum of products of data and a constant, ``Σ W·x`` by the names of their axes: Einsum.

    ``names`` has a letter for each axis of the weight, of the data and of what is put out, no
    letter twice in one of them. None where that is not told: then a map has to be uniform.

    Law: ``s·Σ W·x = Σ (s·W)·x``, behind and ahead, as it is linear in W. Always exact for one
    number, and for a scale along an axis whose letter W has: there every product has the place of W
    for it. W of size 1 there has one number for several places, and is left out. No shift: there is
    no bias, and ahead of it a shift comes out along other axes.
    """

    weight: Operand
    names: tuple[str, str, str] | None

    @property
    def role(self) -> Absorber:
        """It takes in scales of what it puts out, and of what it reads."""
        message = f"{self.label} has no place for what becomes of a shift"
        blocked = Reason("not-carried", self.label, message)
        own, told = self._own(1), self._summed
        inside = {axis: n for axis, n in own.items() if self._letter(1, axis) == told}
        read = len(self.names[1]) if self.names is not None else None
        ahead = InputSide(self.data[0], inside, None, blocked, rank=read)
        return Absorber(self._own(2), None, None, False, ahead)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The weight."""
        shape, value = self._shape, self.weight.value
        assert value is not None
        within = self.names[0].index(self._summed) if self.names and self._summed else 0
        return (
            Site(
                self.label,
                self.weight.position,
                None,
                self._own(2),
                lambda axis: channels.along_axis(shape, self._place(axis)),
                lambda axis: (),
                value,
                dtype=value.dtype,
                entrance=Entrance(channels.along_axis(shape, within)),
                parts=channels.off_axis(shape, None),
            ),
        )

    @property
    def output(self) -> Shape | None:
        """The axes that the names tell."""
        if self.names is None:
            return None
        return tuple(self._own(2).get(axis) for axis in range(len(self.names[2])))

    @property
    def _shape(self) -> tuple[int, ...]:
        assert self.weight.value is not None
        return self.weight.value.shape

    @property
    def _summed(self) -> str | None:
        """The letter of weight and data that a map ahead may lie along: one that is summed over."""
        if self.names is None:
            return None
        own = {self._letter(1, axis) for axis in self._own(1)}
        return min(own - set(self.names[2]), default="")

    def _letter(self, which: int, axis: int) -> str:
        assert self.names is not None
        return self.names[which][axis]

    def _place(self, axis: int) -> int:
        """The axis of the weight along which a map of what is put out lies; a number fits any."""
        if self.names is None or axis not in self._own(2):
            return 0
        return self.names[0].index(self.names[2][axis])

    def _own(self, which: int) -> Mapping[int, int]:
        """The sizes of axes of the data (1), or of what is put out (2), that the weight has too."""
        if self.names is None:
            return {}
        sizes = dict(zip(self.names[0], self._shape, strict=True))
        found = ((axis, sizes.get(name, 1)) for axis, name in enumerate(self.names[which]))
        return {axis: size for axis, size in found if size > 1}
