"""What a plan says: reasons, where they point, and that plans are plain frozen data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from onnx import helper

import bnfold

from .graphs import affine_nodes, bn, codes, const, conv, fold, model, op, rand, stays

CONV = ("conv", "x", "c", (4, 3, 3, 3))
CODES = {
    "shared-output",
    "graph-output",
    "overridable-weight",
    "dynamic-weight",
    "training-mode",
    "non-finite",
    "non-positive-variance",
    "not-per-channel",
    "axis-mismatch",
    "unknown-shape",
    "overflow",
    "underflow",
    "no-linear-operator",
    "unsupported-dtype",
    "quantized-weight",
    "function-parameter",
    "unsupported-opset",
    "no-gain",
}


def test_a_fold_says_what_went_where():
    m = model(conv(*CONV), bn("bn", "c", "b", 4), const("Mul", "b", "y", rand(4, 1, 1), name="mul"))
    plan = bnfold.plan(m)
    assert plan.kept == ()
    assert [n for f in plan.folds for n in f.nodes] == ["bn", "mul"]
    assert {f.into for f in plan.folds} == {"conv"}
    for f in plan.folds:
        assert f.graph == ""
        assert f.laws
        assert all(isinstance(law, str) for law in f.laws)


def test_what_another_fold_of_the_result_takes_in_is_said():
    """γ of two axes takes a map along one of them; the other one only once that is written."""
    norm = (op("LayerNormalization", "x g", "n", name="norm", axis=1), {"g": rand(3, 4)})
    maps = const("Mul", "n", "m", rand(3, 1)), const("Mul", "m", "y", rand(4), name="along")
    m = model(norm, *maps, x=(2, 3, 4), opset=17)
    for axes in (2, 1):
        (kept,) = bnfold.plan(m).kept if axes == 2 else (None,)
        assert kept is None or "the result, folded once more, may take it in" in kept.message
        m = bnfold.fold(m)
        assert len(affine_nodes(m)) == axes - 1
    m = model(
        norm, maps[0], const("Mul", "m", "y", rand(2, 1, 1), name="along"), x=(2, 3, 4), opset=17
    )
    (kept,) = bnfold.plan(m).kept
    assert kept.node == "along"
    assert "once more" not in kept.message


def test_a_reason_points_at_what_stopped_it():
    m = model(conv(*CONV), bn("bn", "c", "y", 4), op("Relu", "c", "z", name="reader"), y="y z")
    (kept,) = bnfold.plan(m).kept
    assert (kept.node, kept.op, kept.code, kept.graph) == (
        "bn",
        "BatchNormalization",
        "shared-output",
        "",
    )
    assert kept.at in ("c", "conv", "reader")
    assert "reader" in kept.message or "c" in kept.message
    assert kept.advice


def test_plans_are_frozen():
    m = model(conv(*CONV), bn("bn", "c", "b", 4), bn("bn2", "x", "z", 3), y="b z")
    plan = bnfold.plan(m)
    for thing in (plan, plan.folds[0], plan.kept[0]):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
            thing.graph = "changed"
    assert isinstance(plan.folds, tuple)
    assert isinstance(plan.kept, tuple)
    assert plan == bnfold.plan(m)


def test_planning_changes_nothing():
    m = model(conv(*CONV), bn("bn", "c", "y", 4))
    before = m.SerializeToString()
    bnfold.plan(m)
    assert m.SerializeToString() == before


@pytest.mark.parametrize("between", ["Sigmoid", "Tanh", "Softmax", "Custom"])
def test_behind_an_operator_that_no_map_passes(between):
    attrs = {"Custom": {"domain": "my"}}
    m = model(
        conv(*CONV),
        op(between, "c", "t", **attrs.get(between, {})),
        bn("bn", "t", "y", 4),
        domains={"my": 1} if between == "Custom" else None,
    )
    runs = between not in ("Custom", "Softmax")
    if not runs:
        assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
        assert codes(m)["bn"] == "no-linear-operator"
    else:
        stays(m, {"bn": "no-linear-operator"})


def test_on_a_graph_input():
    stays(model(bn("bn", "x", "y", 3)), {"bn": "no-linear-operator"})


def test_two_dynamic_operands_are_no_affine_node():
    m = model(
        conv("a", "x", "ca", (4, 3, 3, 3)),
        conv("b", "x", "cb", (4, 3, 3, 3)),
        op("Mul", "ca cb", "y", name="gate"),
    )
    plan = bnfold.plan(m)
    assert plan.folds == ()
    assert affine_nodes(m) == []


def test_square_of_a_value_is_no_affine_node():
    m = model(conv(*CONV), op("Mul", "c c", "y", name="square"))
    assert bnfold.plan(m).folds == ()
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_difference_with_itself_is_no_affine_node():
    m = model(conv(*CONV), op("Sub", "c c", "y", name="zero"))
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_unknown_rank_behind_something_opaque():
    """[4, 1, 1] on a tensor of unknown rank behind a custom operator."""
    m = model(
        op("Opaque", "x", "t", domain="my"),
        const("Mul", "t", "d", rand(4, 1, 1), name="mul"),
        const("Add", "d", "y", rand(4, 1, 1), name="add"),
        domains={"my": 1},
    )
    kept = codes(m)
    for label in affine_nodes(bnfold.fold(m)):
        if label in ("mul", "add"):
            assert kept[label] in ("unknown-shape", "no-linear-operator")


def test_channel_count_that_only_the_weight_tells():
    m = model(conv(*CONV), const("Mul", "c", "y", rand(1, 4, 1, 1)), x=("n", "c", "h", "w"))
    data = {"x": np.random.default_rng(0).normal(size=(2, 3, 5, 5)).astype(np.float32)}
    assert codes(m) == {}
    fold(m, data)


def test_wrongly_declared_shapes_are_not_trusted_over_the_weights():
    """value_info that lies about the channel axis must not turn W into channels."""
    m = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        const("Mul", "c", "y", rand(4), name="mul"),
        x=(2, 4, 4, 4),
    )
    m.graph.value_info.append(helper.make_tensor_value_info("c", 1, [2, 4]))
    after = bnfold.fold(m)
    assert after.SerializeToString() == m.SerializeToString()


def test_every_code_is_one_of_the_known():
    samples = [
        model(bn("bn", "x", "y", 3)),
        model(conv(*CONV), bn("bn", "c", "y", 4), y="y c"),
        model(conv(*CONV), const("Mul", "c", "y", rand(6))),
        model(conv(*CONV), bn("bn", "c", "y", 4, training_mode=1)),
    ]
    for m in samples:
        kept = bnfold.plan(m).kept
        assert kept
        assert {k.code for k in kept} <= CODES


def test_a_node_is_kept_once():
    m = model(bn("bn", "x", "b", 3), op("Relu", "b", "r"), const("Mul", "r", "y", rand(3)))
    labels = [k.node for k in bnfold.plan(m).kept]
    assert len(labels) == len(set(labels)) == 2
