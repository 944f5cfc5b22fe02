"""Maps carried away in views made by hand: what moves, what stays and why."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bnfold._core.affine import AffineMap
from bnfold._core.bounded import Clipped
from bnfold._core.joins import Aligned, Summed
from bnfold._core.laws import Edit, Form, Law, Mixed, Way
from bnfold._core.parts import Concatenated, Picked
from bnfold._core.pointwise import Homogeneous
from bnfold._core.products import Gated
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.view import OPAQUE, Absorber, Affine, Crossing, InputSide, Node, Value, View
from bnfold._plan.planner import plan
from bnfold._system.records import record

SCALE = AffineMap.of([2.0, 3.0], 0.0, 1)
BOTH = AffineMap.of([2.0, 3.0], [4.0, 5.0], 1)
NEGATIVE = AffineMap.of([-2.0, 3.0], [4.0, 5.0], 1)
PADDED = Reason("zero-padding", "conv", "zero padding would see the shift")
CONV = Absorber({1: 2}, ahead=InputSide(0, {1: 2}))
BORDERED = Absorber({1: 2}, ahead=InputSide(0, {1: 2}, None, PADDED))
RELU = Crossing(Homogeneous())
POOL = Crossing(Mixed({0: 0, 1: 1}, 1.0, positive=True))
SHAPE = (1, 2, 4, 4)
SUM = Crossing(Summed((1, 1), Aligned((SHAPE, SHAPE), SHAPE)), (0, 1))
GATE = Crossing(Gated(Aligned((SHAPE, SHAPE), SHAPE)), (0, 1))


def bn(map_=BOTH):
    return Affine(map_, operations=2, absorber=Absorber({1: 2}))


def view(*rows, outputs=None):
    """Nodes given as (name, role, what it reads, what it writes); the last writes the output."""
    numbers = {}
    nodes = tuple(
        Node(
            name,
            name.rstrip("0123456789"),
            role,
            tuple(numbers.setdefault(v, len(numbers)) for v in reads.split()),
            tuple(numbers.setdefault(v, len(numbers)) for v in writes.split()),
        )
        for name, role, reads, writes in rows
    )
    pinned = set((outputs or rows[-1][3]).split())
    producers = {v: i for i, node in enumerate(nodes) for v in node.outputs}
    readers = {v: [] for v in numbers.values()}
    for i, node in enumerate(nodes):
        for v in node.inputs:
            readers[v].append(i)
    return View(
        nodes,
        tuple(
            Value(
                name,
                producers.get(v),
                tuple(readers[v]),
                Reason("graph-output", name, "an output") if name in pinned else None,
            )
            for name, v in numbers.items()
        ),
    )


def result(made):
    """What stands for each place that changed, what operators take in, and the codes that stay."""
    moves = plan(made, {})
    names = [node.label for node in made.nodes]
    stands = {names[m.maps[0]]: [s.op for s in m.stands] for m in moves.moves}
    taken = {names[n] for n, s in moves.sides.items() if not s.behind.is_identity}
    ahead = {names[n] for n, s in moves.sides.items() if not s.ahead.is_identity}
    return stands, taken, ahead, {names[i]: r.code for i, r in moves.kept.items()}


def test_scale_back_through_relu_and_pool():
    made = view(
        ("conv", CONV, "x", "a"),
        ("relu", RELU, "a", "b"),
        ("pool", POOL, "b", "c"),
        ("mul", Affine(SCALE), "c", "y"),
    )
    assert result(made) == ({"mul": []}, {"conv"}, set(), {})
    relations = plan(made, {}).relations
    assert sorted(made.values[v].name for v in relations) == ["a", "b", "c"]
    assert all(not r.old and r.new[0].scale.tolist() == [2, 3] for r in relations.values())


def test_scale_forward_and_shift_left_at_padding():
    made = view(("op", OPAQUE, "x", "a"), ("bn", bn(), "a", "b"), ("conv", BORDERED, "b", "y"))
    assert result(made) == ({"bn": ["Add"]}, set(), {"conv"}, {"bn": "zero-padding"})
    (move,) = plan(made, {}).moves
    np.testing.assert_allclose(move.stands[0].map.shift, [2, 5 / 3])


def test_scale_one_way_and_shift_the_other():
    made = view(
        ("conv1", CONV, "x", "a"),
        ("relu", RELU, "a", "b"),
        ("bn", bn(), "b", "c"),
        ("conv2", CONV, "c", "y"),
    )
    assert result(made) == ({"bn": []}, set(), {"conv2"}, {})
    made = view(
        ("conv1", CONV, "x", "a"),
        ("relu", RELU, "a", "b"),
        ("bn", bn(), "b", "c"),
        ("conv2", CONV, "c", "d"),
        ("op", OPAQUE, "c", "e"),
        ("end", OPAQUE, "d e", "y"),
    )
    assert result(made)[0] == {"bn": ["Add"]}
    assert result(made)[1] == {"conv1"}


@pytest.mark.parametrize(
    ("ahead", "own", "stands"),
    [
        (SCALE, SCALE, {"mul": [], "bn": ["BatchNormalization"]}),
        (AffineMap.of(2.0, 0.0, None), SCALE, {"mul": [], "bn": ["BatchNormalization"]}),
        (AffineMap.of([2.0, 3.0], 0.0, 2), SCALE, {}),
        (
            AffineMap.of([2.0, 3.0], 0.0, 2),
            AffineMap.of(2.0, 0.0, None),
            {"mul": ["Mul"], "bn": []},
        ),
    ],
    ids=["its channels", "one number", "another axis", "another axis, and one number"],
)
def test_a_norm_of_a_tensor_of_unknown_rank_is_written_as_that_norm_or_stays(ahead, own, stands):
    """It cannot become a Mul, whose constant would need the rank."""
    fixed = Affine(own, operations=2, absorber=Absorber({1: 2}), composable=False)
    made = view(
        ("op", OPAQUE, "x", "a"),
        ("mul", Affine(ahead), "a", "b"),
        ("relu", RELU, "b", "c"),
        ("bn", fixed, "c", "y"),
    )
    assert result(made)[0] == stands


@pytest.mark.parametrize("sign", [1, -1])
def test_a_maximum_needs_scales_that_are_not_negative(sign):
    map_ = AffineMap.of([2.0, 3.0 * sign], [4.0, 5.0], 1)
    made = view(("conv", CONV, "x", "a"), ("pool", POOL, "a", "b"), ("bn", bn(map_), "b", "y"))
    stands, taken, _, kept = result(made)
    assert taken == {"conv"}
    assert (stands, kept) == (
        ({"bn": []}, {}) if sign > 0 else ({"bn": ["Mul"]}, {"bn": "not-carried"})
    )


def test_a_tensor_that_all_readers_want_changed_alike():
    """``relu(a) + pool(a)``: both branches ask a for the same scale."""
    made = view(
        ("conv", CONV, "x", "a"),
        ("relu", RELU, "a", "b"),
        ("pool", POOL, "a", "c"),
        ("sum", SUM, "b c", "d"),
        ("mul", Affine(SCALE), "d", "y"),
    )
    assert result(made) == ({"mul": []}, {"conv"}, set(), {})


def test_a_tensor_that_one_reader_wants_as_it_is():
    made = view(
        ("conv", CONV, "x", "a"),
        ("relu", RELU, "a", "b"),
        ("op", OPAQUE, "a", "c"),
        ("mul", Affine(SCALE), "b", "d"),
        ("end", OPAQUE, "c d", "y"),
    )
    stands, taken, _, kept = result(made)
    assert (stands, taken, kept) == ({}, set(), {"mul": "shared-output"})
    assert plan(made, {}).kept[3].message == (
        "carried back through relu, stopped at op: a is also read by op; "
        "forward, end (end) reads it, and no map passes"
    )


def test_forward_to_all_readers_or_none():
    for last, folds in ((CONV, True), (OPAQUE, False)):
        made = view(
            ("op", OPAQUE, "x", "a"),
            ("bn", bn(), "a", "b"),
            ("conv1", CONV, "b", "c"),
            ("conv2", last, "b", "d"),
            ("end", OPAQUE, "c d", "y"),
        )
        stands, _, ahead, _ = result(made)
        assert stands == ({"bn": []} if folds else {})
        assert ahead == ({"conv1", "conv2"} if folds else set())


def test_a_shift_goes_into_the_summand_that_can_take_it():
    for first, second in ((CONV, OPAQUE), (OPAQUE, CONV)):
        made = view(
            ("one", first, "x", "a"),
            ("two", second, "x", "b"),
            ("sum", SUM, "a b", "c"),
            ("add", Affine(AffineMap.of(1.0, [4.0, 5.0], 1)), "c", "y"),
        )
        stands, taken, _, kept = result(made)
        assert (stands, len(taken), kept) == ({"add": []}, 1, {})


def test_equal_scales_ahead_of_a_sum_go_on_together():
    made = view(
        ("op1", OPAQUE, "x", "a"),
        ("op2", OPAQUE, "x", "b"),
        ("mul1", Affine(SCALE), "a", "c"),
        ("mul2", Affine(SCALE), "b", "d"),
        ("sum", SUM, "c d", "e"),
        ("conv", CONV, "e", "y"),
    )
    assert result(made) == ({"mul1": [], "mul2": []}, set(), {"conv"}, {})


def test_a_gate_lets_a_scale_through_either_factor():
    for first, second in ((CONV, OPAQUE), (OPAQUE, CONV)):
        made = view(
            ("one", first, "x", "a"),
            ("two", second, "x", "b"),
            ("gate", GATE, "a b", "c"),
            ("mul", Affine(SCALE), "c", "y"),
        )
        assert result(made)[0] == {"mul": []}


def test_a_concat_splits_and_a_part_without_a_map_may_be_anything():
    map_ = AffineMap.of([2.0, 3.0, 1.0, 1.0], [4.0, 5.0, 0.0, 0.0], 1)
    join = Crossing(Concatenated(1, (2, 2)), (0, 1))
    made = view(
        ("conv", CONV, "x", "a"),
        ("op", OPAQUE, "x", "b"),
        ("join", join, "a b", "c"),
        ("bn", Affine(map_, operations=2), "c", "y"),
    )
    assert result(made) == ({"bn": []}, {"conv"}, set(), {})


def test_both_parts_of_a_split():
    parts = Crossing(Picked(1, 4, (np.arange(2), np.arange(2, 4))))
    wide = Absorber({1: 4})
    made = view(
        ("conv", wide, "x", "a"),
        ("split", parts, "a", "b c"),
        ("bn1", bn(), "b", "d"),
        ("bn2", bn(NEGATIVE), "c", "e"),
        ("end", OPAQUE, "d e", "y"),
    )
    assert result(made) == ({"bn1": [], "bn2": []}, {"conv"}, set(), {})
    assert plan(made, {}).sides[0].behind.scale.tolist() == [2, 3, -2, 3]


def test_the_bounds_of_a_clip_move_twice():
    clip = Crossing(Clipped(0.0, 6.0))
    made = view(
        ("conv", CONV, "x", "a"),
        ("clip", clip, "a", "b"),
        ("mul", Affine(AffineMap.of(2.0, 1.0, None)), "b", "c"),
        ("op", OPAQUE, "c", "y"),
    )
    moves = plan(made, {})
    assert moves.edits[1].values == {"min": 1.0, "max": 13.0}


def test_one_output_does_not_get_two_names():
    """Without the maps both outputs would be the tensor that the graph reads."""
    made = view(
        ("mul1", Affine(AffineMap.of(2.0, 0.0, None)), "x", "a"),
        ("mul2", Affine(AffineMap.of(0.5, 0.0, None)), "a", "y"),
        ("mul3", Affine(AffineMap.of(0.5, 0.0, None)), "a", "z"),
        outputs="y z",
    )
    assert len(result(made)[0]) < 3


def test_nobody_reads_it():
    made = view(("op", OPAQUE, "x", "y"), ("bn", bn(), "x", "unread"), outputs="y")
    assert result(made)[0] == {}


def shuffled(made, seed):
    """The same graph with its nodes in another order that the view allows."""
    order, waiting = [], set(range(len(made.nodes)))
    pick = random.Random(seed)
    while waiting:
        ready = [
            i
            for i in sorted(waiting)
            if not any(made.values[v].producer in waiting - {i} for v in made.nodes[i].inputs)
        ]
        order.append(pick.choice(ready))
        waiting.remove(order[-1])
    place = {old: new for new, old in enumerate(order)}
    values = tuple(
        Value(
            v.name,
            None if v.producer is None else place[v.producer],
            tuple(sorted(place[r] for r in v.readers)),
            v.pinned,
        )
        for v in made.values
    )
    return View(tuple(made.nodes[i] for i in order), values)


def branches():
    """Two towers that meet twice, with maps on all sides."""
    rows = [("op", OPAQUE, "x", "a0"), ("stem", CONV, "a0", "b0")]
    for k in (0, 1):
        rows += [
            (f"bn{k}", bn(NEGATIVE if k else BOTH), f"a{k}", f"c{k}"),
            (f"conv{k}", CONV, f"c{k}", f"d{k}"),
            (f"relu{k}", RELU, f"d{k}", f"e{k}"),
            (f"mul{k}", Affine(SCALE), f"e{k}", f"f{k}"),
            (f"sum{k}", SUM, f"f{k} b{k}", f"g{k}"),
            (f"out{k}", bn(), f"g{k}", f"a{k + 1}"),
            (f"side{k}", BORDERED, f"a{k + 1}", f"b{k + 1}"),
        ]
    return view(*rows, ("end", OPAQUE, "a2 b2", "y"))


def test_the_order_of_nodes_does_not_matter():
    wanted = result(branches())
    assert wanted[0]
    for seed in range(40):
        assert result(shuffled(branches(), seed)) == wanted


@record(frozen=True)
class Thresholded(Law):
    """``x`` where ``x > least``, else 0: a law with a number of its own, and known to no module."""

    least: float

    def backward(self, output, map_):
        return [Way({0: map_}, Edit({"least": self._scale(map_) * self.least}))]

    def forward(self, maps):
        return [Way(maps, Edit({"least": self.least / self._scale(maps[0])}))]

    def _scale(self, map_):
        if map_.axis is not None or map_.scale[0] <= 0 or not map_.keeps_origin:
            raise Refusal(Reason("zero-padding", "", "not this one"))
        return float(map_.scale[0])


def test_a_new_law_with_a_number_needs_nothing_but_its_class():
    """Two maps cross it one after the other: the second finds the number that the first gave it."""
    made = view(
        ("op", OPAQUE, "x", "z"),
        ("mul1", Affine(AffineMap.of(3.0, 0.0, None)), "z", "a"),
        ("limit", Crossing(Thresholded(1.5)), "a", "b"),
        ("conv", CONV, "b", "y"),
    )
    assert result(made) == ({"mul1": []}, set(), {"conv"}, {})
    assert plan(made, {}).edits[2].values == {"least": 0.5}
    made = view(
        ("conv1", CONV, "x", "a"),
        ("limit", Crossing(Thresholded(1.5)), "a", "b"),
        ("mul1", Affine(AffineMap.of(3.0, 0.0, None)), "b", "c"),
        ("relu", RELU, "c", "d"),
        ("mul2", Affine(AffineMap.of(5.0, 0.0, None)), "d", "e"),
        ("op", OPAQUE, "e", "y"),
    )
    assert result(made) == ({"mul1": [], "mul2": []}, {"conv1"}, set(), {})
    assert plan(made, {}).edits[1].values == {"least": 22.5}


def test_a_law_says_with_which_code_it_refuses():
    """The code is the law's own, whatever the words; the place is the operator's."""
    made = view(
        ("conv", CONV, "x", "a"),
        ("limit", Crossing(Thresholded(1.5)), "a", "b"),
        ("mul", Affine(SCALE), "b", "y"),
    )
    (reason,) = plan(made, {}).kept.values()
    assert (reason.code, reason.at) == ("zero-padding", "limit")
    assert reason.message.startswith("limit (limit): not this one; forward, ")


@pytest.mark.parametrize("even", [False, True])
def test_a_sign_that_vanishes_in_abs_is_not_stopped_by_what_stopped_another_map(even):
    """``|a·b·x|`` with a of −1 and 1 along the width: b is stopped behind the Abs, a is not."""
    signs = AffineMap.of([-1.0, 1.0], 0.0, 3)
    made = view(
        ("op", OPAQUE, "x", "a"),
        ("mul1", Affine(signs), "a", "b"),
        ("mul2", Affine(SCALE), "b", "c"),
        ("abs", Crossing(Homogeneous(even)), "c", "d"),
        ("end", OPAQUE, "d", "y"),
    )
    assert result(made)[0] == ({"mul1": ["Mul"]} if even else {})


@record(frozen=True)
class Sloped(Law):
    """``slope·x``: takes in any scale, and puts out what it did."""

    slope: float

    def backward(self, output, map_):
        raise Refusal(Reason("zero-padding", "", "not this one"))

    def forward(self, maps):
        return [Way({0: AffineMap.of(1.0, 0.0, None)}, self.taken(maps[0]))]

    def taken(self, map_, form=None):
        return Edit({"slope": self.slope * float(map_.scale[0])}, form)


@record(frozen=True)
class Either(Sloped):
    """Passes a scale on; where that does not help, it becomes a `Sloped` that is multiplied."""

    factor: float = 5.0

    def forward(self, maps):
        taken = self.taken(maps[0], Form("sloped", Sloped(0.0)))
        return [Way(maps), Way({0: AffineMap.of(self.factor, 0.0, None)}, taken)]


@pytest.mark.parametrize("form", ["tried first", "tried second"])
def test_the_second_way_forward_is_taken_only_where_the_first_fails(form):
    """The Relu lets 3 pass and −3 not, but the 5 that is put out instead."""
    scale = AffineMap.of(3.0 if form == "tried first" else -3.0, 0.0, None)
    made = view(
        ("op", OPAQUE, "x", "z"),
        ("mul", Affine(scale), "z", "a"),
        ("either", Crossing(Either(2.0)), "a", "b"),
        ("relu", RELU, "b", "c"),
        ("conv", CONV, "c", "y"),
    )
    assert result(made) == ({"mul": []}, set(), {"conv"}, {})
    moves = plan(made, {})
    if form == "tried first":
        assert not moves.edits
        assert moves.sides[4].ahead.scale.tolist() == [3.0]
    else:
        assert moves.edits[2].values == {"slope": -6.0}
        assert moves.turned == {2: "sloped"}
        assert moves.sides[4].ahead.scale.tolist() == [5.0]


def test_the_second_way_forward_is_taken_where_the_first_saves_nothing():
    """Ahead of an Add of 1 a Mul stands, whichever side of the operator it is on."""
    made = view(
        ("op", OPAQUE, "x", "z"),
        ("mul", Affine(AffineMap.of(3.0, 0.0, None)), "z", "a"),
        ("either", Crossing(Either(2.0, 1.0)), "a", "b"),
        ("add", Affine(AffineMap.of(1.0, 1.0, None), composable=False), "b", "c"),
        ("end", OPAQUE, "c", "y"),
    )
    assert result(made)[0] == {"mul": []}
    assert plan(made, {}).edits[2].values == {"slope": 6.0}


def test_an_operator_that_has_become_another_stays_so_when_it_is_crossed_again():
    made = view(
        ("op", OPAQUE, "x", "z"),
        ("mul1", Affine(AffineMap.of(3.0, 0.0, None)), "z", "a"),
        ("relu", RELU, "a", "b"),
        ("mul2", Affine(AffineMap.of(-7.0, 0.0, None)), "b", "c"),
        ("either", Crossing(Either(2.0)), "c", "d"),
        ("relu2", RELU, "d", "e"),
        ("conv", CONV, "e", "y"),
    )
    moves = plan(made, {})
    assert moves.edits[4].values == {"slope": -42.0}
    assert moves.turned == {4: "sloped"}
