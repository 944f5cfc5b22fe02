"""Places: affine operators in a row that are planned together, and the operators left there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, replace
from typing import Any

import numpy as np

from bnfold._core import absorbing
from bnfold._core.affine import AffineMap
from bnfold._core.limits import overflows, underflows
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber, Affine, Node, View
from bnfold._plan.row import NOTHING, Row, State
from bnfold._plan.trips import End
from bnfold._system.records import record

OPERATIONS = {"Mul": 1, "Add": 1, "Sub": 1, "BatchNormalization": 2}


@record(frozen=True)
class Standing:
    """An operator that is left at a place, and its map.

    It is a Mul for A(s, 0), an Add for A(1, t), a Sub of −t for A(1, t), or a BatchNormalization
    for A(s, t) on axis 1. It is a Conv with the kernel 1 and as many groups as ``channels`` for
    such a map, where the user wants no BatchNormalization; in a module also a ScaleShift.
    """

    op: str
    map: AffineMap
    channels: int = 0


@record(frozen=True)
class Style:
    """How the operators left at a place are written. It depends on the operators that were there.

    ``dtype`` is the type of the constants. ``norm`` says that there was a BatchNormalization,
    ``subs`` that there was a Sub of a constant, and ``adds`` that there was an Add. ``fixed`` says
    that the rank or type is not known that a Mul or an Add would need.
    """

    dtype: np.dtype[Any] | None = None
    norm: bool = False
    subs: bool = False
    adds: bool = False
    fixed: bool = False

    def joined(self, node: Node) -> Style:
        """The style with one more affine operator."""
        role = affine(node)
        return Style(
            self.dtype or role.dtype,
            self.norm or role.absorber is not None,
            self.subs or (node.op == "Sub" and role.data == 0),
            self.adds or (node.op == "Add" and role.data in (0, 1)),
            self.fixed or not role.composable,
        )

    def stands(self, row: Row) -> tuple[Standing, ...]:
        """The operators that a row needs, as rounded: none for a scale of 1 or a shift of 0.

        The first map with both a scale and a shift on axis 1 becomes a BatchNormalization if there
        was one, and so does any map where nothing else can be written. The first shift becomes a
        Sub if there was a Sub and no Add.
        """
        found: list[Standing] = []
        norm, add = self.norm, "Sub" if self.subs and not self.adds else "Add"
        for stage in row:
            rounded = stage if self.dtype is None else stage.rounded(self.dtype)
            both = not (rounded.keeps_scale or rounded.keeps_origin)
            whole = both or (self.fixed and not rounded.is_identity)
            if whole and norm and stage.axis in (None, 1):
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

    def refuses(self, row: Row, where: str) -> Reason | None:
        """Why the constants of a row could not be stored; None if they can, or if it is not told.

        γ and β of a BatchNormalization depend on its variance: they are looked at later.
        """
        dtype = self.dtype
        for standing in self.stands(row) if dtype is not None else ():
            assert dtype is not None
            if standing.op == "BatchNormalization":
                continue
            numbers = standing.map.scale if standing.op == "Mul" else standing.map.shift
            if overflows(np.abs(numbers), dtype):
                return Reason("overflow", where, f"the composed constants would overflow {dtype}")
            if standing.op == "Mul" and underflows(np.ones(1), numbers, dtype).any():
                message = f"the composed scale would fall below {dtype}'s range"
                return Reason("underflow", where, message)
        return None


PLAIN = Style()


@record
class Place:
    """Affine operators in a row.

    ``maps`` are the operators. ``chain`` has the carriers between them, too. ``into`` is the
    operator directly ahead; it takes in what it can as an ``absorber``. Both are None if there is
    no such operator. ``stopped`` says why the first map goes no further. If ``into`` is an affine
    operator itself, it says why ``into`` goes no further. ``reasons`` says for each map that is not
    wholly absorbed why it is not.

    ``state`` is the composition of all maps. The first ``paid`` maps are written anew, as the state
    ``written``: that is cheaper. The later maps stay as they are. ``price`` is the number of
    operators and of operations of all of them. ``restated`` says whether the maps may be written as
    other operators. ``carried`` says that something was carried from here or to here. Then all that
    is left is written anew. Maps carried away from here were taken in at ``ends``, and the
    operators they ``crossed`` are listed.
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
        """Whether some maps stay as the model has them."""
        return not self.carried and self.paid < len(self.maps)

    def join(self, index: int, node: Node, chain: Iterable[int], state: State) -> None:
        """Put a map behind the others. If it pays, write all maps up to here anew.

        It pays if the composition of all maps so far costs less than ``price``.
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
        """The numbers of operators and operations of a state; None if it cannot be written here."""
        if state is self.state and self.as_written:
            return self.price
        needed = self.stands(state)
        if (needed and not self.restated) or len(needed) > len(self.maps):
            return None
        if self.style.fixed and any(each.op != "BatchNormalization" for each in needed):
            return None
        return _cost(needed)

    def first(self, view: View, count: int) -> Place:
        """A place with only the first ``count`` maps, those that paid, in the state ``written``."""
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
