"""Places: affine operators in a row that are planned as one, and what stands there in the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bnfold._core import absorbing
from bnfold._core.affine import AffineMap
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber, Affine, Node, View
from bnfold._plan.row import NOTHING, Row, State
from bnfold._plan.trips import End

OPERATIONS = {"Mul": 1, "Add": 1, "Sub": 1, "BatchNormalization": 2}


@dataclass(frozen=True)
class Standing:
    """An operator that has to stand: a Mul for A(s, 0), an Add for A(1, t) or a Sub of −t, a
    BatchNormalization for A(s, t) on axis 1.
    """

    op: str
    map: AffineMap


@dataclass(frozen=True)
class Style:
    """How what stands at a place is written, which depends on the operators that were there.

    ``dtype`` is that of the constants, ``norm`` says that there was a BatchNormalization, ``subs``
    and ``adds`` that a Sub of a constant was, and an Add.
    """

    dtype: np.dtype[Any] | None = None
    norm: bool = False
    subs: bool = False
    adds: bool = False

    def joined(self, node: Node) -> Style:
        """The style with one more affine operator."""
        role = affine(node)
        return Style(
            self.dtype or role.dtype,
            self.norm or role.absorber is not None,
            self.subs or (node.op == "Sub" and role.data == 0),
            self.adds or (node.op == "Add" and role.data in (0, 1)),
        )

    def stands(self, row: Row) -> tuple[Standing, ...]:
        """The operators that a row needs, once rounded to its dtype.

        One map of both scale and shift on axis 1 can be a BatchNormalization, if there was one; the
        first shift can be a Sub, if there was one and no Add.
        """
        found: list[Standing] = []
        norm, add = self.norm, "Sub" if self.subs and not self.adds else "Add"
        for stage in row:
            rounded = stage if self.dtype is None else stage.rounded(self.dtype)
            both = not (rounded.keeps_scale or rounded.keeps_origin)
            if both and norm and stage.axis in (None, 1):
                found.append(Standing("BatchNormalization", stage))
                norm = False
                continue
            scale, shift = absorbing.split(stage)
            if not rounded.keeps_scale:
                found.append(Standing("Mul", scale))
            if not rounded.keeps_origin:
                found.append(Standing(add, shift))
                add = "Add"
        return tuple(found)


PLAIN = Style()


@dataclass
class Place:
    """Affine operators in a row: ``maps``, in a ``chain`` with carriers between them.

    ``into`` is the operator directly ahead of them that takes in what it can, as an ``absorber``;
    None where there is none. ``stopped`` says why the first of them goes no further, or why
    ``into`` does, where that is an affine operator itself. ``reasons`` say why each map is not
    wholly absorbed, where that is so.

    ``state`` composes all maps. The first ``paid`` of them are cheaper in the state ``written``
    than as the model has them; the others stand as they are, and all cost ``price`` operators and
    steps. ``restated`` says whether they may be written as other operators. Once something was
    ``carried`` from here or to here, all that stands is written anew: what was carried away came to
    ``ends`` and ``crossed`` operators on its way.
    """

    into: int | None = None
    absorber: Absorber | None = None
    stopped: Reason | None = None
    maps: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    reasons: dict[int, Reason] = field(default_factory=dict)
    style: Style = PLAIN
    state: State = NOTHING
    paid: int = 0
    written: State = NOTHING
    price: tuple[int, int] = (0, 0)
    restated: bool = True
    carried: bool = False
    ends: tuple[End, ...] = ()
    crossed: tuple[int, ...] = ()

    @property
    def as_written(self) -> bool:
        """Whether maps stand as the model has them."""
        return not self.carried and self.paid < len(self.maps)

    def join(self, index: int, node: Node, chain: Iterable[int], state: State) -> None:
        """Put a map behind the others; they are written anew up to here where that pays.

        It pays where all maps so far cost less composed than those that paid, with all later ones.
        """
        role = affine(node)
        self.maps.append(index)
        self.chain.extend(chain)
        self.style = self.style.joined(node)
        self.state = state
        self.restated = self.restated and role.composable
        self.price = self.price[0] + 1, self.price[1] + role.operations
        composed = _cost(self.stands(state))
        if absorbing.pays(*self.price, *composed):
            self.paid, self.written, self.price = len(self.maps), state, composed

    def stands(self, state: State) -> tuple[Standing, ...]:
        """The operators that a state needs."""
        return self.style.stands(state.row)

    def cost(self, state: State) -> tuple[int, int] | None:
        """Operators and steps of a state, None where it cannot be written here."""
        if state is self.state and self.as_written:
            return self.price
        needed = self.stands(state)
        if (needed and not self.restated) or len(needed) > len(self.maps):
            return None
        return _cost(needed)

    def first(self, view: View, count: int) -> Place:
        """The place of the first maps alone, those that paid."""
        maps = self.maps[:count]
        style = PLAIN
        for index in maps:
            style = style.joined(view.nodes[index])
        return replace(
            self,
            maps=maps,
            chain=self.chain[: self.chain.index(maps[-1]) + 1],
            style=replace(style, dtype=self.style.dtype),
            state=self.written,
            restated=all(affine(view.nodes[index]).composable for index in maps),
            reasons={index: self.reasons[index] for index in maps if index in self.reasons},
        )


def affine(node: Node) -> Affine:
    """The role of an affine operator."""
    assert isinstance(node.role, Affine)
    return node.role


def _cost(standing: tuple[Standing, ...]) -> tuple[int, int]:
    return len(standing), sum(OPERATIONS[each.op] for each in standing)
