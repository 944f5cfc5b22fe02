"""Rows of affine maps along any axes, with as few maps as exactness allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bnfold._core import absorbing
from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.reasons import Refusal
from bnfold._core.view import Absorber, Node
from bnfold._system.records import record

Row = tuple[AffineMap, ...]
# Maps along alternating axes may not commute, so a row can grow. It is planned in runs of so many.
LONGEST = 8
Take = Callable[[AffineMap, AffineMap], AffineMap | None]


@record(frozen=True)
class State:
    """Maps after planning: ``absorbed`` is in the operator ahead, ``row`` stands behind it."""

    absorbed: AffineMap = IDENTITY
    row: Row = ()


NOTHING = State()


def extended(row: Row, map_: AffineMap) -> Row:
    """A row with one more map behind it. Maps that compose exactly are composed.

    A map passes the maps with which it commutes, and joins the nearest one of its own axis. If the
    whole map cannot, its scale may, and its shift stays behind. Identities are dropped.
    """
    stages, settled = [*row, map_], None
    while stages != settled:  # Each pass moves parts towards the front only, so it ends.
        settled = list(stages)
        for place in range(len(stages) - 1, 0, -1):
            stages[:place], stages[place] = _placed(stages[:place], stages[place])
        stages = [stage for stage in stages if not stage.is_identity]
    return tuple(stages)


def normal(row: Row) -> Row:
    """The same row with all maps composed that compose exactly."""
    made: Row = ()
    for stage in row:
        made = extended(made, stage)
    return made


def drained(row: Row, absorbed: AffineMap, take: Take, bias_free: bool) -> tuple[AffineMap, Row]:
    """Let an absorber ahead of a row take in every map that can act first of all.

    ``take(absorbed, part)`` gives the whole map that the absorber then holds, or None. If the
    absorber cannot take a whole map, or if the shift would cost an operator, it may take the scale
    alone. Gives what the absorber holds in the end, and the row that is left.
    """
    left: list[AffineMap] = []
    for stage in row:
        rest = stage
        scale, shift = absorbing.split(stage)
        whole = [(stage, IDENTITY)] if bias_free or stage.keeps_origin else []
        for part, remainder in [*whole, (scale, shift)]:
            if part.is_identity or not all(absorbing.commute(before, part) for before in left):
                continue
            total = take(absorbed, part)
            if total is not None:
                absorbed, rest = total, remainder
                break
        if not rest.is_identity:
            left.append(rest)
    return absorbed, extended(tuple(left), IDENTITY)


def taking(node: Node, absorber: Absorber) -> Take:
    """The function by which an operator takes maps in, from `absorbing.absorb_behind`."""

    def take(absorbed: AffineMap, part: AffineMap) -> AffineMap | None:
        try:
            return absorbing.absorb_behind(node, absorber, absorbed, part)
        except Refusal:
            return None

    return take


def splits(row: Row, backward: bool) -> Iterator[tuple[Row, AffineMap | None, AffineMap | None]]:
    """The ways to take a row apart: what stays, what goes backward, and what goes forward.

    Backward goes a map that can act first of all, or its part that can. Forward goes a map that can
    act last of all, or its part that can. First come whole maps, then both parts of one map in two
    directions, then one part. Nothing goes ``backward`` if there is an absorber directly ahead: it
    has taken in all it can.
    """
    firsts = [n for n in range(len(row)) if _all_commute(row[:n], row[n])] if backward else []
    lasts = [n for n in reversed(range(len(row))) if _all_commute(row[n + 1 :], row[n])]
    for n in firsts:
        yield (*row[:n], *row[n + 1 :]), row[n], None
    for n in lasts:
        yield (*row[:n], *row[n + 1 :]), None, row[n]
    parts = {n: _parts(row[n]) for n in {*firsts, *lasts}}
    for n in firsts:
        for first, second in parts[n] if n in lasts else ():
            yield (*row[:n], *row[n + 1 :]), first, second
    for n in firsts:
        for part, rest in parts[n]:
            yield (*row[:n], rest, *row[n + 1 :]), part, None
    for n in lasts:
        for rest, part in parts[n]:
            yield (*row[:n], rest, *row[n + 1 :]), None, part


def _placed(stages: list[AffineMap], map_: AffineMap) -> tuple[list[AffineMap], AffineMap]:
    """Join a map, or its scale, to one of the stages ahead. Gives the stages, and what is left."""
    scale, shift = absorbing.split(map_)
    for part, left in ((map_, IDENTITY), (scale, shift)):
        if part.is_identity:
            continue
        for place in range(len(stages) - 1, -1, -1):
            joined = stages[place].then(part)
            if joined is not None and joined.is_finite:
                return [*stages[:place], joined, *stages[place + 1 :]], left
            if not absorbing.commute(stages[place], part):
                break
    return stages, map_


def _parts(map_: AffineMap) -> list[tuple[AffineMap, AffineMap]]:
    """A map in two parts, each time the part first that acts first.

    The pairs are scale and shift, and, where it exists, shift and scale; none for a single part.
    """
    if map_.keeps_scale or map_.keeps_origin:
        return []
    turned = absorbing.split_shift_first(map_)
    return [absorbing.split(map_), *([turned] if turned is not None else [])]


def _all_commute(others: Row, map_: AffineMap) -> bool:
    return all(absorbing.commute(other, map_) for other in others)
