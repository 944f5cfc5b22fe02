"""Tensors that are rounded to a narrower type anyway, and conversions that nothing needs any more.

A converter may keep a norm in float32 within a network of float16: a Cast to float32 stands ahead
of it and one back behind it. A map may go from between the two into the weights ahead if all that
is computed from it is stored in float16. The law and its error are those of `pointwise.Converted`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.bounded import Clipped
from bnfold._core.laws import Law, Mixed, Rearranged
from bnfold._core.pointwise import Converted, Homogeneous
from bnfold._core.reasons import Reason
from bnfold._core.view import Affine, Carrier, Crossing, Node, View
from bnfold._plan.places import Place, affine
from bnfold._plan.row import Row
from bnfold._plan.trips import Trip
from bnfold._system.records import record


@record(frozen=True)
class Unneeded:
    """A conversion to a wider type, and back, with nothing left in between that needs it.

    ``up`` is the node that converts to the wider type, ``down`` are all that convert back. The
    operators ``between`` compute the same in either type.
    """

    up: int
    down: tuple[int, ...]
    between: tuple[int, ...]


def why_unfit(
    view: View,
    trip: Trip,
    source: Place,
    places: Sequence[Place],
    row_at: Callable[[int], Row],
) -> Reason | None:
    """Why a map may not go from a wider type to a narrower one; None if it may, or does not.

    The condition of `pointwise.Converted`: what it makes is rounded to the narrower type anyway,
    nothing but changes of sign stays where it was, and no operator that stands takes it up. A map
    of a tensor of the narrower type has been rounded there. ``row_at`` tells what stands at the
    place of an affine operator.
    """
    types = {affine(view.nodes[index]).dtype for index in source.maps}
    if not trip.narrow or types == set(trip.narrow):
        return None
    (first, *others), label = trip.narrow, view.nodes[source.maps[0]].label
    for number, state in trip.states.items():
        place = places[number]
        left = state.row if place is not source else [m for m in state.row if not turns_signs(m)]
        if left and state.row != place.state.row:
            message = f"it would leave an operator of {label} in {first}"
            return Reason("not-carried", label, message)
    if any(other != first for other in others):
        return Reason("not-carried", label, f"{label} would go through several types")
    node = mixing(view, trip.crossed)
    if node is not None:
        message = f"{node.label} ({node.op}) puts together numbers that would be rounded first"
        return Reason("not-carried", node.label, message)
    output = view.nodes[source.maps[-1]].outputs[0]
    return not_rounded(view, output, first, row_at)


def not_rounded(
    view: View, value: int, dtype: np.dtype[Any], row_at: Callable[[int], Row]
) -> Reason | None:
    """Why rounding a tensor to a type may show; None if all of it is rounded to that type anyway.

    So it is where every way on ends in a conversion to that type, and where what is on the way
    enlarges no error, relative or absolute, and takes a number that is too large for the type to
    another one or to a bound: a Relu, a Clip, a maximum, a move of elements, a change of sign. A
    shift does not: what it leaves may be far smaller than what was rounded. Nor does a scale: one
    above 1 enlarges the error of a number that is not normal in the type. ``row_at`` tells what
    stands at the place of an affine operator.
    """
    waiting, seen = [value], {value}
    while waiting:
        tensor = view.values[waiting.pop()]
        if tensor.pinned is not None:
            message = f"{tensor.name} is kept in a wider type than {dtype}"
            return Reason("not-carried", tensor.name, message)
        for reader in dict.fromkeys(tensor.readers):
            node = view.nodes[reader]
            role, law = node.role, _law(node)
            if isinstance(law, Converted) and not law.widens and law.narrow == dtype:
                continue
            stays = isinstance(role, Affine) and all(map(turns_signs, row_at(reader)))
            if not (stays or isinstance(role, Carrier) or keeps_relative_errors(law)):
                message = f"{node.label} ({node.op}) reads it before it is rounded to {dtype}"
                return Reason("not-carried", node.label, message)
            waiting += [number for number in node.outputs if number >= 0 and number not in seen]
            seen.update(node.outputs)
    return None


def mixing(view: View, crossed: Sequence[int]) -> Node | None:
    """The first operator crossed in a wider type, backward, whose terms may be larger than itself.

    What is crossed after the last conversion is in the narrow type.
    """
    laws = [_law(view.nodes[index]) for index in crossed]
    ups = [n for n, law in enumerate(laws) if isinstance(law, Converted) and law.widens]
    for index, law in zip(crossed, laws[: ups[-1]] if ups else (), strict=False):
        plain = law is None or isinstance(law, Converted | Homogeneous)
        if not (plain or keeps_relative_errors(law)):
            return view.nodes[index]
    return None


def unneeded(view: View, crossed: Sequence[int], gone: set[int]) -> tuple[Unneeded, ...]:
    """The conversions that nothing needs once the maps ``gone`` have left.

    They are among those ``crossed``: what a model converts for itself stays. ``Cast(f(Cast(x)))``
    is ``f(x)`` where f is none, a Relu or an Abs.
    """
    typed = {node.inputs[k] for node in view.nodes for k in node.unread if k < len(node.inputs)}
    found = []
    for up in dict.fromkeys(crossed):
        law = _law(view.nodes[up])
        if isinstance(law, Converted) and law.widens:
            one = _traced(view, up, law, gone, typed)
            if one is not None:
                found.append(one)
    return tuple(found)


def _traced(
    view: View, up: int, law: Converted, gone: set[int], typed: set[int]
) -> Unneeded | None:
    """The way from a conversion to all those that undo it; None if something else reads it."""
    down: list[int] = []
    between: list[int] = []
    waiting = [view.nodes[up].outputs[0]]
    while waiting:
        number = waiting.pop()
        if view.values[number].pinned is not None or number in typed:
            return None
        for reader in dict.fromkeys(view.values[number].readers):
            node = view.nodes[reader]
            other = _law(node)
            if isinstance(other, Converted) and not other.widens and other.narrow == law.narrow:
                down.append(reader)
                continue
            if reader not in gone:
                plain = isinstance(other, Homogeneous) and not other.sloped
                if not plain or law.narrow != np.float16:
                    return None
                between.append(reader)
            waiting.append(node.outputs[0])
    named = [n for n in down if view.values[view.nodes[n].outputs[0]].pinned is not None]
    return Unneeded(up, tuple(down), tuple(between)) if down and len(named) < 2 else None


def _law(node: Node) -> Law | None:
    return node.role.law if isinstance(node.role, Crossing) else None


def turns_signs(map_: AffineMap) -> bool:
    """Whether a map changes nothing but signs.

    A scale above 1 would also enlarge the error of numbers below the normal ones of the type.
    """
    return map_.keeps_origin and bool((np.abs(map_.scale) == 1).all())


def keeps_relative_errors(law: Law | None) -> bool:
    """Whether an operator puts out numbers that it reads, their absolute values, 0 or a bound."""
    maximum = isinstance(law, Mixed) and law.positive
    plain = isinstance(law, Homogeneous) and not law.sloped
    return maximum or plain or isinstance(law, Clipped | Rearranged)
