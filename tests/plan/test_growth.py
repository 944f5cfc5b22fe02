"""How far trips go in all, what they remember of each other, and when they forget it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bnfold
from bnfold._core.affine import AffineMap
from bnfold._core.bounded import Clipped
from bnfold._core.joins import Aligned, Summed
from bnfold._core.laws import Mixed
from bnfold._core.limits import Limits
from bnfold._core.parts import Concatenated, Picked
from bnfold._core.pointwise import Homogeneous
from bnfold._core.reasons import Reason
from bnfold._core.view import OPAQUE, Absorber, Affine, Crossing, InputSide
from bnfold._plan import fit, relocation
from bnfold._plan.dead_ends import kind_of
from bnfold._plan.gathering import gather
from bnfold._plan.planner import plan
from bnfold._plan.relocation import Relocator

from ..graphs import const, conv, counts, model, run
from .test_relocate import result
from .test_relocate import view as unranked

CONV = Absorber({1: 2}, ahead=InputSide(0, {1: 2}))
RELU = Crossing(Homogeneous())
POOL = Crossing(Mixed({0: 0, 1: 1}, 1.0, positive=True))
SHAPE = (1, 2, 4, 4)
SUM = Crossing(Summed((1, 1), Aligned((SHAPE, SHAPE), SHAPE)), (0, 1))
FLOAT = np.dtype(np.float32)
# No larger bounds can be stored.
FULL = Crossing(Clipped(-3.4e38, 3.4e38), dtype=FLOAT)


def view(*rows):
    """Nodes as `unranked` has them, each tensor with four axes of sizes that are not known."""
    made = unranked(*rows)
    return replace(made, values=tuple(replace(v, shape=(None,) * 4) for v in made.values))


def mul(*scale):
    return Affine(AffineMap.of(scale, 0.0, 1), dtype=FLOAT)


def norm(*scale):
    """A BatchNorm of a tensor whose rank is not known: only as such it can be written."""
    map_ = AffineMap.of(scale, 0.0, 1)
    return Affine(map_, operations=2, absorber=Absorber({1: 2}), composable=False, dtype=FLOAT)


def chain(first, *roles):
    def rows(count):
        yield "first", first, "v0", "v1"
        for n in range(1, count):
            role = roles[n % len(roles)]
            yield f"n{n}", role, f"v{n}", f"v{n + 1}"

    return rows


def diamonds(count):
    yield "first", OPAQUE, "x", "v0"
    for n in range(count // 4):
        yield f"a{n}", RELU, f"v{n}", f"a{n}"
        yield f"b{n}", RELU, f"v{n}", f"b{n}"
        yield f"s{n}", SUM, f"a{n} b{n}", f"s{n}"
        yield f"m{n}", mul(1.01, 1.02), f"s{n}", f"v{n + 1}"


def shared(count):
    yield "first", RELU, "x", "v0"
    yield "other", OPAQUE, "v0", "o"
    for n in range(count):
        yield f"n{n}", RELU if n % 2 else mul(1.01, 1.02), f"v{n}", f"v{n + 1}"


KINDS = {
    "behind an input": chain(RELU, mul(1.01, 1.01), RELU),
    "a scale for each channel": chain(RELU, mul(1.01, 0.99), RELU),
    "behind an opaque operator": chain(OPAQUE, mul(1.01, 1.02), POOL),
    "bounds that move along": chain(OPAQUE, mul(1.0001, 1.0001), Crossing(Clipped(-1.0, 1.0))),
    "bounds that leave their range": chain(FULL, mul(1.01, 1.01), RELU),
    "no gain far away": chain(mul(-1.0, 2.0), RELU, RELU, mul(1.01, 1.02)),
    "into a Conv, one after the other": chain(CONV, mul(1.01, 1.02), RELU),
    "norms into a Conv": chain(CONV, norm(1.01, 1.02), RELU),
    "norms that nobody takes in": chain(OPAQUE, norm(1.01, 1.02), RELU, RELU),
    "two ways that meet again": diamonds,
    "behind a tensor that others read": shared,
}


def steps(rows, made_of=view):
    made = made_of(*rows)
    places, _ = gather(made, {})
    relocator = Relocator(made, places)
    relocator.run()
    return relocator._terrain.spent


@pytest.mark.parametrize("ranks", [view, unranked], ids=["ranks known", "no rank known"])
@pytest.mark.parametrize("kind", KINDS)
def test_ten_times_the_nodes_take_thirteen_times_the_steps_at_most(kind, ranks):
    few, many = (steps(KINDS[kind](count), ranks) for count in (50, 500))
    assert few > 0
    assert many <= 13 * few


def fan_in(count, *behind):
    """A map in each input of one Concat, operators behind it, and a Conv."""
    yield "first", OPAQUE, "x", "v"
    for n in range(count):
        yield f"m{n}", mul(2.0, 3.0), "v", f"m{n}"
    law = Crossing(Concatenated(1, (2,) * count), tuple(range(count)))
    yield "concat", law, " ".join(f"m{n}" for n in range(count)), "c0"
    for n, role in enumerate(behind):
        yield f"b{n}", role, f"c{n}", f"c{n + 1}"
    wide = Absorber({1: 2}, ahead=InputSide(0, {1: 2 * count}))
    yield "conv", wide, f"c{len(behind)}", "y"


def test_all_maps_ahead_of_a_wide_operator_go_behind_it():
    moves = plan(view(*fan_in(300, RELU)), {})
    assert not moves.kept and len(moves.moves) == 300


def test_maps_behind_a_wide_operator_have_so_many_parts_in_all(monkeypatch):
    """Each has a part for each of its inputs: without a bound 10,000 of them take 10,000² steps."""
    monkeypatch.setattr(relocation, "_PARTS", 100_000)
    made = view(*fan_in(600, RELU))
    moves = plan(made, {})
    assert len(moves.moves) + len(moves.kept) == 600 and moves.moves and moves.kept
    assert all("search for such maps ends" in reason.message for reason in moves.kept.values())
    places, _ = gather(made, {})
    relocator = Relocator(made, places)
    relocator.run()
    assert -601 * (600 - len(moves.moves) + 1) <= relocator._terrain.left < 0


def test_a_dead_end_is_forgotten_when_what_lies_behind_it_changes():
    """``a``'s scale passes the sum only with ``b``, which gets the same scale from ``c`` later."""
    made = view(
        ("op", OPAQUE, "x", "o"),
        ("p", OPAQUE, "x", "q"),
        ("a", mul(2.0, 3.0), "o", "a1"),
        ("relu1", RELU, "a1", "a2"),
        ("c", mul(4.0, 3.0), "q", "c1"),
        ("relu2", RELU, "c1", "c2"),
        ("b", mul(0.5, 1.0), "c2", "b1"),
        ("sum", SUM, "a2 b1", "s"),
        ("conv", CONV, "s", "y"),
    )
    assert result(made) == ({"a": [], "b": [], "c": []}, set(), {"conv"}, {})


# Of a Picked that reads channel 0 twice: the first map has two numbers for it, both have one.
TWICE = [2.0, 3.0, 4.0], [2.0, 1.0, 1.0]


def pair(value, axis):
    return Affine(AffineMap.of(value, 0.0, axis), dtype=FLOAT)


@pytest.mark.parametrize(
    ("rows", "first", "second", "axis"),
    [
        ([("a", Crossing(Clipped(-10.0, 10.0), dtype=FLOAT), "c", "t")], 1e38, 1e-30, None),
        (
            [
                ("a", RELU, "c", "a1"),
                ("b", RELU, "c", "b1"),
                ("cat", Crossing(Concatenated(1, (2, 2)), (0, 1)), "a1 b1", "t"),
            ],
            [2.0, 3.0, 4.0, 3.0],
            [2.0, 2.0, 1.0, 2.0],
            1,
        ),
        ([("a", Crossing(Picked(1, 2, (np.array([0, 1, 0]),))), "c", "t")], *TWICE, 1),
    ],
    ids=["a range", "two readers that agree", "a channel that is picked twice"],
)
def test_what_numbers_have_stopped_may_go_where_others_come_to_them(rows, first, second, axis):
    """The second map moves to the first, which could not go back; together they can. Before, the
    refusal held for all maps like the first.
    """
    made = view(
        ("conv", CONV, "x", "c"),
        *rows,
        ("m1", pair(first, axis), "t", "u"),
        ("relu", RELU, "u", "v"),
        ("m2", pair(second, axis), "v", "w"),
        ("op", OPAQUE, "w", "y"),
    )
    assert result(made) == ({"m1": [], "m2": []}, {"conv"}, set(), {})


@pytest.mark.parametrize("between", [10, 100, 3000])
def test_a_map_goes_as_far_as_it_has_to(between):
    relus = [(f"r{n}", RELU, f"v{n}", f"v{n + 1}") for n in range(between)]
    made = view(("conv", CONV, "x", "v0"), *relus, ("mul", mul(2.0, 3.0), f"v{between}", "y"))
    assert result(made) == ({"mul": []}, {"conv"}, set(), {})


def test_a_product_that_leaves_its_type_parts_where_it_does():
    """0.9 to the power of 2,000 is below float32; three Muls can store it."""
    rows = [(f"n{n}", mul(0.9, 0.95), f"v{n}", f"v{n + 1}") for n in range(2000)]
    made = view(("op", OPAQUE, "x", "v0"), *rows)
    stands = [s for move in plan(made, {}).moves for s in move.stands]
    assert [s.op for s in stands] == ["Mul"] * 3
    assert all(s.map.scale.min() >= Limits.of(FLOAT).tiny / 4 for s in stands)
    total = sum(np.log(s.map.scale) for s in stands)
    np.testing.assert_allclose(total, 2000 * np.log([0.9, 0.95]))


def test_numbers_that_leave_a_type_and_come_back_still_cancel():
    rows = [(f"n{n}", mul(s, s), f"v{n}", f"v{n + 1}") for n, s in enumerate([1e-30] * 2)]
    back = [(f"m{n}", mul(s, s), f"v{n + 2}", f"v{n + 3}") for n, s in enumerate([1e30] * 2)]
    made = view(("op", OPAQUE, "x", "v0"), *rows, *back, ("end", OPAQUE, "v4", "y"))
    assert not [s for move in plan(made, {}).moves for s in move.stands]


def test_a_conv_takes_in_what_it_can_store_and_the_rest_becomes_one():
    """Before, each map that did not fit stayed alone."""
    scale = np.full((4, 1, 1), 2.0, np.float32)
    muls = [const("Mul", f"v{n}", f"v{n + 1}", scale) for n in range(200)]
    made = model(conv("conv", "x", "v0", (4, 3, 1, 1), bias=False), *muls, y="v200")
    folded = bnfold.fold(made)
    assert 0 < counts(folded)["Mul"] <= 2
    x = np.full((2, 3, 8, 8), 1e-30, np.float32)
    old, new = (run(m, {"x": x})[0] for m in (made, folded))
    assert 1e28 < np.abs(old).max() < np.inf
    np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e25)


@pytest.mark.parametrize("channels", [2, 64, 65, 10_000])
def test_what_is_noted_of_a_kind_is_short_and_tells_every_channel(channels):
    """Of n parts of a Concat each may be noted with all channels that there are."""
    scale, shift = np.linspace(2.0, 3.0, channels), np.zeros(channels)
    kinds = {kind_of(AffineMap.of(scale, shift, 1)), kind_of(AffineMap.of(scale * 1.1, shift, 1))}
    assert len(kinds) == 1
    for place in {0, channels // 2, channels - 1}:
        for number in (-2.0, 0.0, 0.5, 1.0, -1.0):
            other = scale.copy()
            other[place] = number
            kinds.add(kind_of(AffineMap.of(other, shift, 1)))
        other = shift.copy()
        other[place] = 1.0
        kinds.add(kind_of(AffineMap.of(scale, other, 1)))
    assert len(kinds) == 1 + 6 * len({0, channels // 2, channels - 1})
    assert all(len(told) <= 320 for _, told in kinds)


def test_a_map_that_two_operators_refused_takes_one_chance(monkeypatch):
    """Two operators were too full with it. Each of the maps that may have a chance gets one."""
    maps = range(fit._CHANCES)
    reason = Reason("overflow", "conv", "it would overflow")
    refused = dict.fromkeys(maps, reason)
    tried = []

    class Never:
        def of(self, moves):
            return iter(["it is still too much"])

    monkeypatch.setattr(fit, "plan", lambda view, fewer: tried.append(refused.keys() - fewer))
    guessed = [(0, 99), (*maps, 99)]
    assert fit._with_innocent(None, "as before", refused, guessed, Never()) == "as before"
    assert tried == [{index} for index in maps]
