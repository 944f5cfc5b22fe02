"""The planner on views made by hand: no framework takes part."""

import subprocess
import sys

import pytest

from bnfold._core.affine import AffineMap
from bnfold._core.reasons import CODES, Reason
from bnfold._core.view import OPAQUE, Absorber, Affine, Barrier, Carrier, Node, Value, View
from bnfold._plan.planner import plan

SCALE = AffineMap.of([2.0, 3.0], 0.0, 1)
SHIFT = AffineMap.of(1.0, [4.0, 5.0], 1)
BOTH = AffineMap.of([2.0, 3.0], [4.0, 5.0], 1)
WIDTH = AffineMap.of([2.0, 3.0], 0.0, 3)
CONV = Absorber({1: 2})
MATMUL = Absorber({3: 2}, bias_free=False)


def chain(*roles, pinned=(), extra=None):
    """Nodes in a row, node i reading value i and writing value i + 1."""
    nodes = [
        Node(f"n{i}", type(role).__name__, role, (i,), (i + 1,)) for i, role in enumerate(roles)
    ]
    readers = {i: [i] for i in range(len(roles))}
    if extra is not None:
        nodes.append(Node("extra", "Relu", OPAQUE, (extra,), (len(roles) + 1,)))
        readers.setdefault(extra, []).append(len(roles))
    count = len(roles) + 1 + (extra is not None)
    producers = {node.outputs[0]: i for i, node in enumerate(nodes)}
    values = tuple(
        Value(
            f"v{i}",
            producers.get(i),
            tuple(readers.get(i, ())),
            Reason("graph-output", f"v{i}", "an output") if i in pinned else None,
        )
        for i in range(count)
    )
    return View(tuple(nodes), values)


def settled(view):
    moves = plan(view, {})
    return [(m.law, m.into, m.maps, [s.op for s in m.stands]) for m in moves.moves], {
        index: reason.code for index, reason in moves.kept.items()
    }


def bn(map_=BOTH):
    return Affine(map_, operations=2, absorber=Absorber({1: 2}))


def test_a_run_of_maps_goes_into_the_operator_before_it():
    view = chain(CONV, bn(), Carrier(), Affine(SCALE), Affine(SHIFT))
    assert settled(view) == ([("absorb", 0, (1, 3, 4), [])], {})


@pytest.mark.parametrize("pin", [1, 2])
def test_a_pinned_tensor_on_the_way_stops_it(pin):
    view = chain(CONV, Carrier(), bn(), pinned=(pin,))
    assert settled(view) == ([], {2: "graph-output"})


def test_the_end_of_the_run_may_be_pinned():
    assert settled(chain(CONV, bn(), pinned=(2,))) == ([("absorb", 0, (1,), [])], {})


def test_a_second_reader_on_the_way_stops_it_and_one_at_the_end_does_not():
    assert settled(chain(CONV, bn(), extra=1)) == ([], {1: "shared-output"})
    assert settled(chain(CONV, bn(), extra=2)) == ([("absorb", 0, (1,), [])], {})


def test_another_axis_of_the_same_size_stays_and_lets_channels_pass():
    view = chain(CONV, Affine(WIDTH), Affine(SCALE))
    assert settled(view) == ([("absorb", 0, (1, 2), ["Mul"])], {1: "axis-mismatch"})


def test_a_shift_that_would_cost_an_operator_is_left():
    last = AffineMap.of([2.0, 3.0], [4.0, 5.0], 3)
    moves, kept = settled(chain(MATMUL, Affine(last, operations=2)))
    assert moves == [("absorb", 0, (1,), ["Add"])]
    assert kept == {1: "no-gain"}
    assert settled(chain(MATMUL, Affine(AffineMap.of(1.0, [4.0, 5.0], 3))))[0] == []


def test_maps_with_nothing_to_go_into_become_one():
    view = chain(OPAQUE, Affine(SHIFT), bn(), Affine(SCALE))
    moves = [("compose", 1, (1, 2, 3), ["BatchNormalization"])]
    assert settled(view) == (moves, {1: "no-linear-operator"})


def test_a_batch_norm_that_stays_takes_in_what_follows():
    view = chain(OPAQUE, bn(), Affine(SCALE))
    assert settled(view) == ([("absorb", 1, (2,), [])], {1: "no-linear-operator"})


def test_a_batch_norm_without_a_shift_becomes_a_mul():
    moves, kept = settled(chain(OPAQUE, bn(SCALE)))
    assert moves == [("compose", 1, (1,), ["Mul"])]
    assert kept == {1: "no-linear-operator"}


def test_maps_that_cancel_go_and_need_no_reason():
    back = AffineMap.of([0.5, 1 / 3], 0.0, 1)
    assert settled(chain(OPAQUE, Affine(SCALE), Affine(back))) == ([("compose", 1, (1, 2), [])], {})


def test_a_barrier_reports_its_reason_and_nothing_passes():
    barrier = Barrier(Reason("training-mode", "n1", "in training"))
    moves, kept = settled(chain(CONV, barrier, Affine(SCALE)))
    assert moves == []
    assert kept == {1: "training-mode", 2: "no-linear-operator"}


def test_a_refused_map_stays_and_the_rest_folds():
    view = chain(CONV, Affine(SCALE), Affine(SHIFT))
    moves = plan(view, {2: Reason("overflow", "n2", "too large")})
    assert [m.maps for m in moves.moves] == [(1,)]
    assert moves.kept[2].code == "overflow"


def test_blocked_parameters():
    reason = Reason("overridable-weight", "w", "may be overridden")
    both = Absorber({1: 2}, scale_blocked=reason, shift_blocked=reason)
    assert settled(chain(both, bn())) == ([], {1: "overridable-weight"})
    shift = Absorber({1: 2}, shift_blocked=reason)
    moves, kept = settled(chain(shift, bn()))
    assert moves == [("absorb", 0, (1,), ["Add"])]
    assert kept == {1: "overridable-weight"}


def test_a_map_that_would_enlarge_the_output_stays():
    assert settled(chain(Absorber({1: 1}), Affine(SCALE)))[1] == {1: "not-per-channel"}


def test_the_plan_does_not_grow_with_rows_that_never_settle():
    width = AffineMap.of(1.0, [2.0, 3.0], 3)
    view = chain(CONV, *[Affine(SCALE if i % 2 else width) for i in range(200)])
    moves, kept = settled(view)
    assert all(code in CODES for code in kept.values())
    assert max(len(reason.message) for reason in plan(view, {}).kept.values()) < 300
    assert len(moves) + len(kept) > 0


def test_the_planner_knows_no_framework():
    code = (
        "import bnfold._plan.planner, sys; "
        "print([m for m in ('onnx', 'torch', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
