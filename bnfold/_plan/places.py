"""Places: affine operators in a row that are planned as one, and what stands there in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold._core import absorbing
from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.reasons import Reason
from bnfold._plan.row import Row
from bnfold._plan.trips import End

STEPS = {"Mul": 1, "Add": 1, "Sub": 1, "BatchNormalization": 2}


@dataclass(frozen=True)
class Standing:
    """An operator that has to stand: a Mul for A(s, 0), an Add for A(1, t) or a Sub of −t, a
    BatchNormalization for A(s, t) on axis 1.
    """

    op: str
    map: AffineMap


@dataclass(frozen=True)
class State:
    """What has become of a place: ``row`` stands, ``absorbed`` went into the operator ahead."""

    absorbed: AffineMap = IDENTITY
    row: Row = ()


@dataclass
class Place:
    """Affine operators in a row: ``maps``, in a ``chain`` with carriers between them.

    ``into`` is the absorber directly ahead of them, if what stands may still go into it. ``state``
    composes all of them. As long as they are ``as_written`` that is not how they stand: the first
    ``paid`` of them are ``written`` in the state that paid, the others as the model has them, and
    all cost ``price`` operators and steps.
    ``dtype`` is that of the constants of what stands, ``norm`` whether one of them is a
    BatchNormalization, ``minus`` whether a Sub is there to hold a shift and no Add. ``restated``
    says whether they may be written as other operators, ``fixed`` why they may not be touched at
    all. ``reasons`` say why each stays, where it does.
    """

    maps: tuple[int, ...]
    chain: tuple[int, ...]
    into: int | None
    state: State
    price: tuple[int, int]
    as_written: bool
    paid: int = 0
    written: State = State()
    restated: bool = True
    dtype: np.dtype[Any] | None = None
    norm: bool = False
    minus: bool = False
    fixed: Reason | None = None
    reasons: dict[int, Reason] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    crossed: list[int] = field(default_factory=list)
    carried: bool = False

    def stands(self, state: State) -> tuple[Standing, ...]:
        """The operators that a state needs."""
        found = stands(state.row, self.dtype, self.norm)
        first = next((n for n, standing in enumerate(found) if standing.op == "Add"), None)
        if not self.minus or first is None:
            return found
        return (*found[:first], Standing("Sub", found[first].map), *found[first + 1 :])

    def cost(self, state: State) -> tuple[int, int] | None:
        """Operators and steps of a state, None where it cannot be written here."""
        if state is self.state and self.as_written:
            return self.price
        needed = self.stands(state)
        if (needed and not self.restated) or len(needed) > len(self.maps):
            return None
        return len(needed), sum(STEPS[standing.op] for standing in needed)


def stands(row: Row, dtype: np.dtype[Any] | None, norm: bool) -> tuple[Standing, ...]:
    """The operators that a row needs, once rounded to its dtype.

    One map of both scale and shift on axis 1 can be a BatchNormalization, if there was one.
    """
    found: list[Standing] = []
    for stage in row:
        rounded = stage if dtype is None else stage.rounded(dtype)
        both = not (rounded.keeps_scale or rounded.keeps_origin)
        if both and norm and stage.axis in (None, 1):
            found.append(Standing("BatchNormalization", stage))
            norm = False
            continue
        scale, shift = absorbing.split(stage)
        if not rounded.keeps_scale:
            found.append(Standing("Mul", scale))
        if not rounded.keeps_origin:
            found.append(Standing("Add", shift))
    return tuple(found)
