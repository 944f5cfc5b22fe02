"""Affine maps absorbed behind MatMul with a constant operand, with or without an Add behind it."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold

from .graphs import (
    BF16,
    DOUBLE,
    HALF,
    bn,
    codes,
    const,
    counts,
    fold,
    folds,
    model,
    op,
    rand,
    stays,
    subgraph,
)


def right(w, x="x", y="m", name="mm"):
    return op("MatMul", f"{x} {name}.w", y, name=name), {f"{name}.w": rand(*w)}


def left(w, x="x", y="m", name="mm"):
    return op("MatMul", f"{name}.w {x}", y, name=name), {f"{name}.w": rand(*w)}


@pytest.mark.parametrize("bias_first", [False, True])
def test_a_product_of_matrices_takes_its_bias_as_a_gemm(bias_first):
    bias = const("Add", "m", "a", rand(4), left=bias_first)
    folds(model(right((3, 4)), bias, bn("bn", "a", "y", 4), x=(5, 3)), Gemm=1)
    folds(model(right((3, 4)), bias, op("Relu", "a", "y"), x=("n", 3)), Gemm=1, Relu=1)
    made = model(right((3, 4)), bn("bn", "m", "y", 4), x=(5, 3))
    folds(made, Gemm=1)
    told = bnfold.plan(made)
    assert told.after == {"Gemm": 1}
    assert told.folds[0].laws == ("turn MatMul into Gemm", "absorb behind MatMul")


@pytest.mark.parametrize("k", [(4,), (1, 4), (1,), (1, 1), ()], ids=str)
@pytest.mark.parametrize("kind", ["Add", "Sub"])
def test_biases_that_a_gemm_takes(kind, k):
    folds(model(right((3, 4)), const(kind, "m", "y", rand(*k)), x=(5, 3)), Gemm=1)


def test_constant_on_the_left_takes_a_bias_for_each_row():
    folds(model(left((4, 5)), const("Add", "m", "y", rand(4, 1)), x=(5, 6)), Gemm=1)
    made = model(left((4, 5)), const("Add", "m", "y", rand(4), name="bias"), x=(5, 4))
    stays(made, {"bias": "axis-mismatch"})


@pytest.mark.parametrize("elem", [HALF, DOUBLE, BF16])
def test_a_gemm_in_other_types(elem):
    pieces = right((3, 4)), const("Add", "m", "y", rand(4), name="bias")
    runs = elem != BF16
    folds(model(*pieces, x=(5, 3), elem=elem), Gemm=1, runtime=runs)


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_a_gemm_in_every_opset(opset):
    folds(model(right((3, 4)), const("Add", "m", "y", rand(4)), x=(5, 3), opset=opset), Gemm=1)


@pytest.mark.parametrize("x", [(2, 5, 3), (3,), None], ids=str)
def test_a_product_of_other_ranks_is_no_gemm(x):
    """One axis of size 1 more is a rank more: no Gemm takes it."""
    m = model(right((3, 4)), const("Add", "m", "y", rand(4), name="bias"), x={"x": x})
    data = {"x": rand(*(x or (2, 5, 3)))}
    reason = {"bias": "no-gain"}
    assert {k: v for k, v in codes(m).items() if k == "bias"} == reason
    assert fold(m, data).SerializeToString() == m.SerializeToString()


def test_a_rank_that_follows_from_operators():
    m = model(
        op("Flatten", "x", "f"),
        right((12, 4), "f"),
        const("Add", "m", "a", rand(4)),
        op("Relu", "a", "r"),
        right((4, 3), "r", "q", "last"),
        const("Add", "q", "y", rand(3)),
        x=("n", 3, 2, 2),
    )
    folds(m, Flatten=1, Gemm=2, Relu=1)


def test_a_product_that_others_read_stays_a_product():
    pieces = right((3, 4)), const("Add", "m", "a", rand(4), name="bias")
    stays(model(*pieces, op("Tanh", "m", "y"), x=(5, 3), y="a y"), {"bias": "shared-output"})
    stays(model(*pieces, x=(5, 3), y="a m"), {"bias": "graph-output"})


def test_a_bias_that_two_products_share_is_stored_once():
    m = model(
        right((3, 4)),
        (op("Add", "m bias", "a"), {"bias": rand(4)}),
        right((4, 4), "a", "n", "other"),
        op("Add", "n bias", "y"),
        op("Tanh", "y", "z"),
        op("Tanh", "a", "w"),
        x=(5, 3),
        y="z w",
    )
    folded = folds(m, Gemm=2, Tanh=2)
    assert [t.dims for t in folded.graph.initializer if len(t.dims) == 1] == [[4]]


def test_inside_a_body_and_a_function():
    inside = subgraph(right((3, 4)), const("Add", "m", "z", rand(4)), y="z")
    other = subgraph(right((3, 4), name="no"), y="m")
    node = op("If", "cond", "y", then_branch=inside, else_branch=other)
    folds(model(node, x=(5, 3), weights={"cond": np.array(True)}), If=1, Gemm=1, MatMul=1)


def test_batchnorm_alone_becomes_an_add_at_most():
    m = model(left((4, 5)), bn("bn", "m", "y", 4), x=(2, 5, 6))
    after = counts(fold(m))
    assert after in ({"MatMul": 1, "Add": 1}, {"MatMul": 1, "BatchNormalization": 1})


def test_mul_alone_is_gone():
    folds(model(right((3, 4)), const("Mul", "m", "y", rand(4)), x=(5, 3)), MatMul=1)


def test_mul_then_add_leaves_the_add():
    m = model(
        right((3, 4)), const("Mul", "m", "d", rand(4)), const("Add", "d", "y", rand(4)), x=(2, 5, 3)
    )
    folds(m, MatMul=1, Add=1)


def test_add_mul_sub_mul_leave_one_add():
    m = model(
        right((3, 4)),
        const("Add", "m", "a", rand(4)),
        const("Mul", "a", "b", rand(4)),
        const("Sub", "b", "c", rand(4), left=True),
        const("Mul", "c", "y", rand(1)),
        x=(2, 5, 3),
    )
    folds(m, MatMul=1, Add=1)


@pytest.mark.parametrize("k", [(5, 1), (2, 1, 1)], ids=["per-row", "per-batch"])
def test_constant_on_an_axis_the_weight_does_not_write_stays(k):
    m = model(right((3, 4)), const("Mul", "m", "y", rand(*k), name="mul"), x=(2, 5, 3))
    assert fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["mul"] == "axis-mismatch"


@pytest.mark.parametrize("k", [(4, 1), (4, 1, 1)], ids=["per-row", "per-batch"])
def test_sizes_that_agree_by_accident(k):
    m = model(right((4, 4)), const("Mul", "m", "y", rand(*k), name="mul"), x=(4, 4, 4))
    assert fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["mul"] == "axis-mismatch"


def test_batchnorm_on_axis_1_of_a_3d_product_stays():
    """Linear writes its channels on the last axis, BatchNormalization scales axis 1."""
    m = model(right((4, 4)), bn("bn", "m", "y", 4), x=(2, 4, 4))
    stays(m, {"bn": "axis-mismatch"})


def test_add_and_batchnorm_on_axis_1_of_a_3d_product_stay():
    m = model(right((4, 4)), const("Add", "m", "a", rand(4)), bn("bn", "a", "y", 4), x=(2, 4, 4))
    after = fold(m)
    assert counts(after).get("BatchNormalization", 0) == 1 or "MatMul" in counts(after)


def test_constant_left_operand_takes_axis_1_of_3d():
    m = model(left((4, 5)), bn("bn", "m", "y", 4), x=(2, 5, 6))
    assert counts(fold(m))["MatMul"] == 1
    m = model(left((4, 5)), const("Mul", "m", "y", rand(4, 1)), x=(2, 5, 6))
    folds(m, MatMul=1)


@pytest.mark.parametrize("k", [(4,), (1, 4), (4, 1), (4, 1, 1)], ids=str)
def test_constant_left_operand_square(k):
    m = model(left((4, 4)), const("Mul", "m", "y", rand(*k), name="mul"), x=(4, 4, 4))
    after = fold(m)
    assert (counts(after) == {"MatMul": 1}) == (k == (4, 1))


def test_constant_left_operand_2d_with_batchnorm():
    """[4, 5]·[5, 4]: BatchNormalization's axis 1 is the input's, not the weight's."""
    m = model(left((4, 5)), bn("bn", "m", "y", 4), x=(5, 4))
    assert fold(m).SerializeToString() == m.SerializeToString()


def test_vector_weight_writes_no_axis():
    m = model(right((3,)), const("Mul", "m", "y", rand(5), name="mul"), x=(5, 3))
    assert fold(m).SerializeToString() == m.SerializeToString()
    m = model(right((3,)), const("Mul", "m", "y", rand(1)), x=(5, 3))
    folds(m, MatMul=1)


def test_vector_weight_on_the_left():
    m = model(left((5,)), const("Mul", "m", "y", rand(4), name="mul"), x=(5, 4))
    assert fold(m).SerializeToString() == m.SerializeToString()


def test_vector_input():
    folds(model(right((3, 4)), const("Mul", "m", "y", rand(4)), x=(3,)), MatMul=1)
    fold(model(left((4, 3)), const("Mul", "m", "y", rand(4)), x=(3,)))


@pytest.mark.parametrize("k", [(4,), (1, 4), (2, 1, 1), (5, 1), (2, 1, 4), (2, 5, 4)], ids=str)
def test_batched_constant(k):
    m = model(right((2, 3, 4)), const("Mul", "m", "y", rand(*k), name="mul"), x=(2, 5, 3))
    after = fold(m)
    if k in ((4,), (1, 4)):
        assert counts(after) == {"MatMul": 1}


@pytest.mark.parametrize("k", [(4, 1, 1), (4,), (1, 4, 1)], ids=str)
def test_batched_constant_of_equal_sizes(k):
    m = model(right((4, 4, 4)), const("Mul", "m", "y", rand(*k), name="mul"), x=(4, 4, 4))
    fold(m)


def test_batched_constant_against_a_flat_input():
    """[5, 3]·[2, 3, 4] → [2, 5, 4]: the constant brings the rank."""
    m = model(right((2, 3, 4)), const("Mul", "m", "y", rand(4)), x=(5, 3))
    folds(m, MatMul=1)
    m = model(right((2, 3, 4)), const("Mul", "m", "y", rand(2, 1, 1)), x=(5, 3))
    fold(m)


def test_constant_that_expands_the_product_stays():
    m = model(right((3, 1)), const("Mul", "m", "y", rand(4), name="mul"), x=(5, 3))
    stays(m, {"mul": "not-per-channel"})


def test_input_of_unknown_rank():
    """The last axis is the weight's whatever the rank; [4, 1] may be a batch axis."""
    data = {"x": rand(2, 4, 3)}
    m = model(right((3, 4)), const("Mul", "m", "y", rand(4)), x={"x": None})
    fold(m, data)
    m = model(right((3, 4)), const("Mul", "m", "y", rand(4, 1), name="mul"), x={"x": None})
    assert fold(m, data).SerializeToString() == m.SerializeToString()


def test_two_dynamic_operands_stay():
    m = model(
        op("MatMul", "x z", "m", name="mm"),
        const("Mul", "m", "y", rand(4), name="mul"),
        x={"x": (5, 3), "z": (3, 4)},
    )
    assert fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["mul"] in ("dynamic-weight", "no-linear-operator")


def test_add_of_a_full_matrix_stays():
    m = model(
        right((3, 4)),
        const("Add", "m", "a", rand(5, 4), name="add"),
        const("Mul", "a", "y", rand(4)),
        x=(5, 3),
    )
    fold(m)


def test_add_per_row_then_mul_per_column():
    m = model(
        right((4, 4)),
        const("Add", "m", "a", rand(4, 1), name="add"),
        const("Mul", "a", "y", rand(4)),
        x=(4, 4),
    )
    fold(m)


def test_add_read_by_another_stays():
    m = model(
        right((3, 4)),
        const("Add", "m", "a", rand(4)),
        const("Mul", "a", "y", rand(4), name="mul"),
        op("Relu", "a", "z"),
        x=(2, 5, 3),
        y="y z",
    )
    stays(m, {"mul": "shared-output"})


def test_layer_scale():
    m = model(
        right((4, 4)),
        const("Add", "m", "a", rand(4)),
        const("Mul", "a", "s", rand(4)),
        op("Relu", "x", "r"),
        op("Add", "r s", "y"),
        x=(2, 5, 4),
    )
    folds(m, MatMul=1, Relu=1, Add=2)


def test_scalar_add_of_two_sizes():
    m = model(right((3, 4)), const("Add", "m", "a", np.float32(2)), bn("bn", "a", "y", 4), x=(5, 3))
    folds(m, Gemm=1)
