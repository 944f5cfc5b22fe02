"""Plan again until every folded weight fits its dtype; the constants of operators left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from bnfold._core.affine import IDENTITY, Vector
from bnfold._core.index_maps import equal
from bnfold._core.limits import overflows, underflows
from bnfold._core.parameters import Reading, Site
from bnfold._core.quantized import Sharing
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber, Affine, View
from bnfold._plan.places import Standing, affine
from bnfold._plan.planner import Move, Moves, Sides, plan
from bnfold._system.records import record

# So often the maps of an operator are refused one by one; then two, four, eight at a time.
_ONE_BY_ONE = 8
# Of so many maps it is tried in the end whether they were refused in vain.
_CHANCES = 8
Readings = Sequence[Reading]
# Tells why some of a set of moves may not be made: the reasons, by the number of the move.
Objections = Callable[[Sequence[Move]], Mapping[int, Reason]]


def no_objection(moves: Sequence[Move]) -> Mapping[int, Reason]:
    """No reasons: every move can be written."""
    return {}


def settle(view: View, readings: Readings, objections: Objections = no_objection) -> Moves:
    """The moves of one graph, planned again until all folded weights fit.

    If a move would overflow or underflow, or if ``objections`` names it, its last map is refused,
    or the one with which an operator leaves its range. Then planning begins again: the other maps
    may still fold. Where maps from several places are more than an operator can take in, the last
    of them is refused at first; if that was not enough, it may fold in the end after all.
    ``readings`` has an entry for each node of the view.

    Where operators that share a weight would not all take the same into it, bit by bit, and copies
    of it do not pay, they take nothing into it, and planning begins again.
    """
    apart: set[str] = set()
    while True:
        moves = _settle(_without(view, readings, apart), readings, objections)
        copied, uneven = list[str](), set[str]()
        for sharing, taken in _taken(readings, moves.sides).items():
            copies = _copies(sharing, taken, moves)
            copied += [sharing.copied] * (copies or 0)
            if copies is None:
                uneven.add(sharing.name)
        if not uneven:
            return replace(moves, copied=tuple(copied))
        apart |= uneven


def _settle(view: View, readings: Readings, objections: Objections) -> Moves:
    """See `settle`; but for weights that are shared."""
    refused: dict[int, Reason] = {}
    guessed: dict[int, list[int]] = {}
    tries: Counter[int] = Counter()
    problems = _Problems(view, readings, objections)
    while True:
        moves = plan(view, refused)
        found: dict[int, Reason] = {}
        for problem in problems.of(moves):
            where = problem.where
            tries[where] += 1
            last = problem.maps[-1 << max(0, tries[where] - _ONE_BY_ONE) :]
            found.update(dict.fromkeys(last, problem.reason))
            if problem.guessed:
                guessed.setdefault(where, []).extend(last)
        if not found:
            return _with_innocent(view, moves, refused, guessed.values(), problems)
        refused.update(found)


def _shared(readings: Readings) -> Iterator[tuple[int, Site, Sharing]]:
    """The operators that read a weight with others, each with where it does."""
    for node, reading in enumerate(readings):
        for site in reading.sites:
            if site.quantized is not None and site.quantized.sharing is not None:
                yield node, site, site.quantized.sharing


def _taken(
    readings: Readings, sides: Mapping[int, Sides]
) -> dict[Sharing, dict[int, tuple[tuple[int, ...], bytes]]]:
    """What is taken into each shared weight, by the operators that take something in."""
    taken: dict[Sharing, dict[int, tuple[tuple[int, ...], bytes]]] = {}
    for node, site, sharing in _shared(readings):
        one = sides.get(node, Sides())
        if not (one.behind.keeps_scale and one.ahead.keeps_scale):
            factor = site.factor(one.behind, one.ahead)
            taken.setdefault(sharing, {})[node] = (factor.shape, factor.tobytes())
    return taken


def _copies(sharing: Sharing, taken: Mapping[int, object], moves: Moves) -> int | None:
    """How many copies a shared weight needs for what is taken into it; None if that is not to be.

    None are needed where all that read it take one factor in: the one new weight is then that of
    each of them. For several factors it is copied if the operators that make the copies are fewer
    than the maps that go: each that reads the weight takes in all of the maps behind it, and
    no scale from elsewhere.
    """
    if len(taken) < len(sharing.readers):
        return None
    copies = len(set(taken.values())) - 1
    if not copies:
        return 0
    alone = {
        move.into
        for move in moves.moves
        if move.law == "absorb" and not move.stands and not move.ends
    }
    own = all(one in alone and moves.sides[one].ahead.keeps_scale for one in taken)
    return copies if own and sharing.copied else None


def _without(view: View, readings: Readings, apart: Collection[str]) -> View:
    """A view in which operators take no scale into the shared weights that are named."""
    if not apart:
        return view
    nodes = list(view.nodes)
    for index, _, sharing in _shared(readings):
        node = nodes[index]
        if sharing.name not in apart or not isinstance(node.role, Absorber):
            continue
        others = list(sharing.readers)
        others.remove(node.label)
        message = f"{sharing.name} is also read by {others[0]}, which does not take the same map in"
        reason = Reason("quantized-weight", node.label, message)
        ahead = node.role.ahead
        if ahead is not None:
            ahead = replace(ahead, scale_blocked=ahead.scale_blocked or reason)
        blocked = node.role.scale_blocked or reason
        nodes[index] = replace(node, role=replace(node.role, scale_blocked=blocked, ahead=ahead))
    return replace(view, nodes=tuple(nodes))


@record(frozen=True)
class _Problem:
    """Why an operator cannot hold what it would: one of these ``maps``, the last one first, may not
    fold. ``guessed``: it may be another one of them that is too much.
    """

    where: int
    maps: Sequence[int]
    reason: Reason
    guessed: bool = False


class _Problems:
    """Tells what keeps moves from being made."""

    def __init__(self, view: View, readings: Readings, objections: Objections) -> None:
        self._view = view
        self._readings = readings
        self._objections = objections
        self._remembered: dict[tuple[int, int, int], Vector] = {}

    def of(self, moves: Moves) -> Iterator[_Problem]:
        """The problems of some moves."""
        for number, reason in self._objections(moves.moves).items():
            move = moves.moves[number]
            yield _Problem(move.into, move.maps, reason)
        for move in moves.moves:
            lost = _standing_refusal(self._view, self._readings, move) if move.stands else None
            if lost is not None:
                yield _Problem(move.into, move.maps, lost)
        absorbed = {move.into: move.maps for move in moves.moves if move.law == "absorb"}
        for node, sides in moves.sides.items():
            lost = self._lost(node, sides)
            if lost is not None:
                own = absorbed.get(node, ())
                breaks = _breaking(self._view, own, sides, partial(self._fits, node))
                blamed = (*own[:-1], *moves.blame[node]) if breaks is None else (breaks,)
                yield _Problem(node, blamed, lost, breaks is None)

    def _fits(self, node: int, sides: Sides) -> bool:
        return self._lost(node, sides) is None

    def _lost(self, node: int, sides: Sides) -> Reason | None:
        return _refusal(self._readings[node].sites, node, sides, self._remembered)


def _with_innocent(
    view: View,
    moves: Moves,
    refused: Mapping[int, Reason],
    guessed: Iterable[Sequence[int]],
    problems: _Problems,
) -> Moves:
    """The moves with which those maps fold, too, that were refused in vain: another map was too
    much for the operator. ``guessed`` has the maps refused for each operator, in that order.
    """
    in_vain = dict.fromkeys(one for maps in guessed for one in maps[:-1])
    for index in list(in_vain)[:_CHANCES]:
        fewer = {one: reason for one, reason in refused.items() if one != index}
        tried = plan(view, fewer)
        if next(problems.of(tried), None) is None:
            moves, refused = tried, fewer
    return moves


def _breaking(
    view: View, maps: Sequence[int], sides: Sides, fits: Callable[[Sides], bool]
) -> int | None:
    """The map at which an operator that takes in all of some maps can take in no more.

    With those ahead of it the operator fits, and the maps behind it may become one. None if the
    operator has taken in other maps than these.
    """
    total = IDENTITY
    heads = [IDENTITY]
    for index in maps:
        joined = total.then(affine(view.nodes[index]).map)
        if joined is None:
            return None
        total = joined
        heads.append(total)
    if not maps or not equal(heads[-1], sides.behind):
        return None
    for count in reversed(range(len(maps))):
        if fits(replace(sides, behind=heads[count])):
            return maps[count]
    return None


def _refusal(
    sites: Sequence[Site],
    node: int,
    sides: Sides,
    remembered: dict[tuple[int, int, int], Vector],
) -> Reason | None:
    """Why the maps that an operator takes in do not fit the dtype of a site; None if they do."""

    def peaks(number: int, axis: int) -> Vector:
        key = (node, number, axis)
        if key not in remembered:
            remembered[key] = sites[number].peaks(axis)
        return remembered[key]

    reasons = (
        site.refuses(sides.behind, sides.ahead, partial(peaks, number))
        for number, site in enumerate(sites)
    )
    return next((reason for reason in reasons if reason is not None), None)


def _standing_refusal(view: View, readings: Readings, move: Move) -> Reason | None:
    """Why the constants of operators that are left do not fit their dtype; None if they do."""
    where = view.nodes[move.into].label
    dtype = standing_dtype(view, readings, move)
    for standing in move.stands:
        vectors = standing_constants(readings, move, standing)
        if any(overflows(np.abs(vector), dtype) for vector in vectors):
            return Reason("overflow", where, f"the composed constants would overflow {dtype}")
        lost = standing.op not in ("Add", "Sub") and underflows(np.ones(1), vectors[0], dtype).any()
        if lost:
            message = f"the composed scale would fall below {dtype}'s range"
            return Reason("underflow", where, message)
    return None


def standing_constants(readings: Readings, move: Move, standing: Standing) -> list[Vector]:
    """The constants of an operator that is left by a move, in float64.

    A Mul, an Add or a Sub has one constant, a Conv or ScaleShift two. A BatchNormalization is
    the last one of the move, with new γ, β and mean and its own variance: ``γ = S·√(var + ε)``,
    ``β = T``, mean 0. This is exactly ``A(S, T)``.
    """
    map_ = standing.map
    if standing.channels:
        vectors = np.broadcast_arrays(map_.scale, map_.shift, np.empty(standing.channels))
        return list(vectors[:2])
    if standing.op != "BatchNormalization":
        return [{"Mul": map_.scale, "Add": map_.shift, "Sub": -map_.shift}[standing.op]]
    deviation = readings[standing_batch_norm(readings, move)].deviation
    assert deviation is not None
    gamma, beta = map_.scale * deviation, np.broadcast_to(map_.shift, deviation.shape)
    return [gamma, beta, np.zeros(deviation.shape)]


def standing_batch_norm(readings: Readings, move: Move) -> int:
    """The last BatchNormalization of a move that has a γ. It stays, and holds the composed map."""
    norms = (i for i in reversed(move.maps) if readings[i].deviation is not None)
    return next(i for i in norms if readings[i].dtype is not None)


def standing_dtype(view: View, readings: Readings, move: Move) -> np.dtype[np.generic]:
    """The element type of the constants of operators that a move leaves."""
    dtype = readings[move.into].dtype if move.law == "absorb" else None
    if dtype is None and any(standing.op == "BatchNormalization" for standing in move.stands):
        dtype = readings[standing_batch_norm(readings, move)].dtype
        assert dtype is not None
    if dtype is not None:
        return dtype
    roles = [view.nodes[index].role for index in move.maps]
    dtypes = [role.dtype for role in roles if isinstance(role, Affine)]
    return next((dtype for dtype in dtypes if dtype is not None), np.dtype(np.float32))
