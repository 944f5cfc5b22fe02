"""Bodies of If, Loop and Scan, and values they capture from outside."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from .graphs import (
    bn,
    codes,
    const,
    constants,
    conv,
    counts,
    fold,
    folds,
    model,
    op,
    rand,
    stays,
    subgraph,
)

CONV = ("conv", "x", "c", (4, 3, 3, 3))


def branch(cond="cond", y="y", **graphs):
    return op("If", cond, y, name="if", then_branch=graphs["then"], else_branch=graphs["other"])


def with_cond(*pieces, runtime=True, **options):
    m = model(*pieces, **options)
    info = helper.make_tensor_value_info("cond", TensorProto.BOOL, ())
    m.graph.input.append(info)
    return m


def both(m, **left):
    """Both branches are run."""
    after = None
    for value in (True, False):
        data = {"x": rand(2, 3, 8, 8), "cond": np.array(value)}
        after = fold(m, data)
    if left:
        assert counts(after) == left
    return after


def test_conv_and_batchnorm_inside_branches():
    then = subgraph(conv("conv1", "x", "c1", (4, 3, 3, 3)), bn("bn1", "c1", "t", 4), y="t")
    other = subgraph(conv("conv2", "x", "c2", (4, 3, 3, 3)), bn("bn2", "c2", "e", 4), y="e")
    both(with_cond(branch(then=then, other=other)), If=1, Conv=2)


def test_weights_captured_from_outside():
    names = "conv.w conv.b"
    (cnode, cw), (bnode, bw) = conv(*CONV), bn("bn", "c", "t", 4)
    then = subgraph(cnode, bnode, y="t")
    other = subgraph(op("Conv", f"x {names}", "e"), y="e")
    m = with_cond(branch(then=then, other=other), weights=cw | bw)
    both(m, If=1, Conv=2)


def test_weights_captured_by_both_branches_with_other_batchnorms():
    cw = conv(*CONV)[1]
    then = subgraph(
        op("Conv", "x conv.w conv.b", "c1", name="conv1"), bn("bn1", "c1", "t", 4), y="t"
    )
    other = subgraph(
        op("Conv", "x conv.w conv.b", "c1", name="conv1"), bn("bn2", "c1", "e", 4), y="e"
    )
    both(with_cond(branch(then=then, other=other), weights=cw), If=1, Conv=2)


def test_conv_output_captured_by_a_branch_stays():
    then = subgraph(op("Relu", "c", "t"), y="t")
    other = subgraph(op("Tanh", "c", "e"), y="e")
    m = with_cond(conv(*CONV), bn("bn", "c", "z", 4), branch(then=then, other=other), y="y z")
    both(m)
    assert codes(m)["bn"] == "shared-output"


def test_conv_output_captured_two_levels_down_stays():
    inner = branch(
        y="t",
        then=subgraph(op("Relu", "c", "tt"), y="tt"),
        other=subgraph(op("Tanh", "c", "te"), y="te"),
    )
    m = with_cond(
        conv(*CONV),
        bn("bn", "c", "z", 4),
        branch(then=subgraph(inner, y="t"), other=subgraph(op("Neg", "x", "e"), y="e")),
        y="y z",
    )
    both(m)
    assert codes(m)["bn"] == "shared-output"


def test_captured_value_is_a_branch_output():
    """A branch may hand an outer value on without any node that reads it."""
    then = subgraph(op("Identity", "c", "t"), y="t")
    other = subgraph(op("Relu", "x", "e"), y="e")
    m = with_cond(
        conv("conv", "x", "c", (3, 3, 1, 1)),
        bn("bn", "c", "z", 3),
        branch(then=then, other=other),
        y="y z",
    )
    both(m)
    assert codes(m)["bn"] == "shared-output"


def test_batchnorm_output_captured_by_a_branch_is_gone():
    then = subgraph(op("Relu", "b", "t"), y="t")
    other = subgraph(op("Tanh", "b", "e"), y="e")
    m = with_cond(conv(*CONV), bn("bn", "c", "b", 4), branch(then=then, other=other))
    both(m, Conv=1, If=1, Relu=1, Tanh=1)


def test_batchnorm_inside_a_branch_of_a_conv_outside_stays():
    """Folding it would change what the other branch sees."""
    then = subgraph(bn("bn", "c", "t", 4), y="t")
    other = subgraph(op("Relu", "c", "e"), y="e")
    m = with_cond(conv(*CONV), branch(then=then, other=other))
    both(m)
    assert "bn" in codes(m)


def test_batchnorm_in_a_loop_body_of_a_conv_outside_stays():
    body = subgraph(
        bn("bn", "c", "b", 4),
        op("Identity", "cond_in", "cond_out"),
        x={"i": (7, ()), "cond_in": (9, ())},
        y="cond_out b",
    )
    m = model(
        conv(*CONV),
        op("Loop", "trips _", "y", name="loop", body=body),
        weights={"trips": np.array(3, np.int64)},
    )
    fold(m)
    assert "bn" in codes(m)


def test_names_reused_in_both_branches():
    """Values of one name in two branches are two values."""
    then = subgraph(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "t", 4), y="t")
    other = subgraph(conv("conv", "x", "c", (4, 3, 3, 3)), op("Relu", "c", "t"), y="t")
    both(with_cond(branch(then=then, other=other)), If=1, Conv=2, Relu=1)


def test_folds_say_in_which_graph():
    import bnfold

    then = subgraph(conv("conv1", "x", "c1", (4, 3, 3, 3)), bn("bn1", "c1", "t", 4), y="t")
    other = subgraph(bn("bn2", "x", "e0", 3), op("Relu", "e0", "e"), y="e")
    m = with_cond(
        conv("outer", "x", "oc", (4, 3, 3, 3)),
        bn("obn", "oc", "z", 4),
        branch(then=then, other=other),
        y="y z",
    )
    plan = bnfold.plan(m)
    where = {f.nodes[0]: f.graph for f in plan.folds} | {k.node: k.graph for k in plan.kept}
    assert where["obn"] == ""
    assert where["bn1"] and where["bn2"] and where["bn1"] != where["bn2"]


def test_loop_with_conv_and_batchnorm():
    body = subgraph(
        conv("conv", "state", "c", (3, 3, 3, 3), pads=[1] * 4),
        bn("bn", "c", "next", 3),
        op("Relu", "next", "row"),
        op("Identity", "cond_in", "cond_out"),
        x={"i": (7, ()), "cond_in": (9, ()), "state": (2, 3, 8, 8)},
        y="cond_out next row",
    )
    m = model(
        op("Loop", "trips _ x", "y rows", name="loop", body=body),
        y="y rows",
        weights={"trips": np.array(2, np.int64)},
    )
    folds(m, Loop=1, Conv=1, Relu=1, Identity=1)


def test_loop_state_that_is_a_batchnorm_parameter_is_dynamic():
    """The mean comes in as loop state: constant outside, not inside."""
    body = subgraph(
        op("Conv", "x w", "c", name="conv"),
        op("BatchNormalization", "c g b m v", "row", name="bn", epsilon=0.01),
        op("Add", "m one", "m_next"),
        op("Identity", "cond_in", "cond_out"),
        x={"i": (7, ()), "cond_in": (9, ()), "m": (4,)},
        y="cond_out m_next row",
    )
    m = model(
        op("Loop", "trips _ m0", "mz y", name="loop", body=body),
        weights={
            "trips": np.array(3, np.int64),
            "w": rand(4, 3, 3, 3),
            "g": rand(4),
            "b": rand(4),
            "v": np.abs(rand(4)),
            "m0": rand(4),
            "one": rand(4),
        },
    )
    stays(m, {"bn": "dynamic-weight"})


def test_body_input_shadows_nothing_constant():
    """A body's input of the same name as an unrelated outer constant is the input."""
    body = subgraph(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        op("Mul", "c k", "row", name="mul"),
        op("Identity", "k", "k_next"),
        op("Identity", "cond_in", "cond_out"),
        x={"i": (7, ()), "cond_in": (9, ()), "k": (1,)},
        y="cond_out k_next row",
    )
    m = model(
        op("Loop", "trips _ k0", "kz y", name="loop", body=body),
        weights={"trips": np.array(2, np.int64), "k0": rand(1)},
    )
    assert fold(m).SerializeToString() == m.SerializeToString()


def test_scan_with_matmul_and_affine():
    body = subgraph(
        op("MatMul", "row w", "m", name="mm"),
        op("Mul", "m k", "d", name="mul"),
        op("Add", "state d", "next"),
        op("Relu", "next", "out"),
        x={"state": (5, 4), "row": (5, 3)},
        y="next out",
    )
    m = model(
        op("Scan", "s0 x", "last y", name="scan", body=body, num_scan_inputs=1),
        x={"s0": (5, 4), "x": (6, 5, 3)},
        y="last y",
        weights={"w": rand(3, 4), "k": rand(4)},
    )
    folds(m, Scan=1, MatMul=1, Add=1, Relu=1)


def test_scan_input_is_not_per_channel():
    """Inside a body the axes are those of a slice."""
    body = subgraph(
        conv("conv", "row", "c", (4, 3, 3), pads=[1, 1]),
        const("Mul", "c", "out", rand(4, 1), name="mul"),
        x={"row": (4, 3, 4)},
        y="out",
    )
    m = model(op("Scan", "x", "y", name="scan", body=body, num_scan_inputs=1), x=(4, 4, 3, 4))
    folds(m, Scan=1, Conv=1)


def test_if_inside_a_loop():
    inner = branch(
        cond="cond_in",
        y="row",
        then=subgraph(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "t", 4), y="t"),
        other=subgraph(op("Conv", "x ow", "e"), y="e"),
    )
    body = subgraph(
        inner,
        op("Identity", "cond_in", "cond_out"),
        x={"i": (7, ()), "cond_in": (9, ())},
        y="cond_out row",
    )
    m = model(
        op("Loop", "trips go", "y", name="loop", body=body),
        weights={
            "trips": np.array(2, np.int64),
            "go": np.array(True),
            "ow": rand(4, 3, 3, 3),
        },
    )
    folds(m, Loop=1, If=1, Identity=1, Conv=2)


@pytest.mark.parametrize("taken", ["conv.w_folded", "conv.w_bn", "conv.w_0", "conv.w_1"])
def test_new_names_do_not_meet_names_of_the_other_scope(taken):
    """A name that is fresh in a branch may be taken outside, and the other way round."""
    cw = conv(*CONV)[1]
    then = subgraph(
        op("Conv", "x conv.w conv.b", "c1", name="conv1"),
        bn("bn1", "c1", "t0", 4),
        (op("Add", f"t0 {taken}", "t"), {}),
        y="t",
    )
    other = subgraph(op("Conv", "x conv.w conv.b", "e"), y="e")
    m = with_cond(branch(then=then, other=other), weights=cw | {taken: rand(1, 1, 6, 6)})
    both(m)


def test_outer_weight_used_only_by_a_folded_branch_is_dropped_or_changed_once():
    cw = conv(*CONV)[1]
    then = subgraph(
        op("Conv", "x conv.w conv.b", "c1", name="conv1"), bn("bn1", "c1", "t", 4), y="t"
    )
    other = subgraph(op("Relu", "big", "e"), y="e")
    m = with_cond(branch(then=then, other=other), weights=cw | {"big": rand(2, 4, 6, 6)})
    after = both(m)
    assert "big" in constants(after)


def test_constant_nodes_captured_from_outside():
    then = subgraph(conv(*CONV), op("Mul", "c k", "t"), y="t")
    other = subgraph(op("Conv", "x ow", "e"), y="e")
    m = with_cond(
        op("Constant", "", "k", value_float=2.5),
        branch(then=then, other=other),
        weights={"ow": rand(4, 3, 3, 3)},
    )
    both(m, If=1, Conv=2)


def test_parameter_read_by_a_branch_survives_the_fold():
    then = subgraph(op("Mul", "x bn.k", "t"), y="t")
    other = subgraph(op("Add", "x bn.k", "e"), y="e")
    (bnode, bw), scalar = bn("bn", "c", "z", 1), rand(1)
    bnode.input[2] = "bn.k"
    m = with_cond(
        conv("conv", "x", "c", (1, 3, 1, 1)),
        (bnode, bw | {"bn.k": scalar}),
        branch(then=then, other=other),
        y="y z",
    )
    after = both(m, Conv=1, If=1, Mul=1, Add=1)
    np.testing.assert_array_equal(constants(after)["bn.k"], scalar)


def test_weight_of_a_folded_conv_that_a_branch_reads_is_not_changed():
    then = subgraph(op("Conv", "x conv.w conv.b", "t"), y="t")
    other = subgraph(op("Conv", "x conv.w", "e"), y="e")
    m = with_cond(conv(*CONV), bn("bn", "c", "z", 4), branch(then=then, other=other), y="y z")
    after = both(m, Conv=3, If=1)
    for name in ("conv.w", "conv.b"):
        np.testing.assert_array_equal(constants(after)[name], constants(m)[name])


def test_weight_that_is_a_branch_output_is_not_changed():
    then = subgraph(op("Identity", "w", "t"), y="t")
    other = subgraph(op("Neg", "w", "e"), y="e")
    m = with_cond(
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "z", 4),
        branch(then=then, other=other),
        y="y z",
        weights={"w": rand(4, 3, 3, 3)},
    )
    after = both(m)
    np.testing.assert_array_equal(constants(after)["w"], constants(m)["w"])


def test_constant_chain_outside_that_only_a_branch_reads_on():
    then = subgraph(op("Mul", "x1 k", "t"), y="t")
    other = subgraph(op("Add", "x1 k", "e"), y="e")
    m = with_cond(
        conv(*CONV),
        op("Reshape", "raw s", "k", name="chain"),
        op("Mul", "c k", "z", name="mul"),
        op("Identity", "z", "x1", name="pass"),
        branch(then=then, other=other),
        weights={"raw": rand(4), "s": np.array([4, 1, 1])},
    )
    after = both(m)
    assert "chain" in {n.name for n in after.graph.node}


@pytest.mark.parametrize("where", ["outer", "inner"])
def test_name_of_a_branch_value_that_shadows_a_vanished_one(where):
    """The conv's own output name goes; a branch may use the same name for its own value."""
    then = subgraph(
        op("Relu", "b", "c" if where == "inner" else "t0"), y="c" if where == "inner" else "t0"
    )
    other = subgraph(op("Tanh", "b", "e"), y="e")
    m = with_cond(
        conv("conv", "x", "c0" if where == "inner" else "c", (4, 3, 3, 3)),
        bn("bn", "c0" if where == "inner" else "c", "b", 4),
        branch(then=then, other=other),
    )
    both(m, Conv=1, If=1, Relu=1, Tanh=1)
