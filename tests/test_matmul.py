"""Affine maps absorbed behind MatMul with a constant operand, with or without an Add behind it."""

from __future__ import annotations

import numpy as np
import pytest

from .graphs import bn, codes, const, counts, fold, folds, model, op, rand, stays


def right(w, x="x", y="m", name="mm"):
    return op("MatMul", f"{x} {name}.w", y, name=name), {f"{name}.w": rand(*w)}


def left(w, x="x", y="m", name="mm"):
    return op("MatMul", f"{name}.w {x}", y, name=name), {f"{name}.w": rand(*w)}


def test_add_and_batchnorm_on_2d_are_one_add():
    m = model(right((3, 4)), const("Add", "m", "a", rand(4)), bn("bn", "a", "y", 4), x=(5, 3))
    folds(m, MatMul=1, Add=1)


def test_add_on_the_left_and_batchnorm():
    m = model(
        right((3, 4)), const("Add", "m", "a", rand(4), left=True), bn("bn", "a", "y", 4), x=(5, 3)
    )
    folds(m, MatMul=1, Add=1)


def test_batchnorm_alone_becomes_an_add_at_most():
    m = model(right((3, 4)), bn("bn", "m", "y", 4), x=(5, 3))
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


def test_bias_add_has_no_gain():
    m = model(right((3, 4)), const("Add", "m", "y", rand(4), name="bias"), x=(5, 3))
    stays(m, {"bias": "no-gain"})


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
        x=(5, 3),
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
    folds(m, MatMul=1, Add=1)
