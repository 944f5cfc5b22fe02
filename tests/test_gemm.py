"""Affine maps absorbed behind Gemm in all its forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bnfold._proof.certificate import certify

from . import graphs
from .graphs import assert_same, bn, codes, const, counts, fold, folds, model, op, overridable, rand

FORMS = list(itertools.product([0, 1], [0, 1], [1.0, 0.5], [1.0, -2.0, 0.0]))


def gemm(c, trans_a=0, trans_b=0, alpha=1.0, beta=1.0, shape=(5, 3, 4), name="fc"):
    """Gemm of [M, K]·[K, N] with C: None (absent), "" (empty), a shape, or "dynamic"."""
    _, k, n = shape
    params = {f"{name}.w": rand(*((n, k) if trans_b else (k, n)))}
    inputs = f"x {name}.w"
    if c == "dynamic":
        inputs += " c"
    elif c == "":
        inputs += " _"
    elif c is not None:
        params[f"{name}.c"] = rand(*c)
        inputs += f" {name}.c"
    attrs = {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta}
    return op("Gemm", inputs, "g", name=name, **attrs), params


def shape_of_x(trans_a, m=5, k=3):
    return (k, m) if trans_a else (m, k)


C_FORMS = [None, "", (), (1,), (4,), (1, 4), (5, 1), (5, 4), (1, 1)]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "tA{}-tB{}-alpha{}-beta{}".format(*f))
@pytest.mark.parametrize("c", C_FORMS, ids=lambda c: f"C={c!r}".replace(" ", ""))
def test_batchnorm_behind_gemm_is_gone(form, c):
    m = model(gemm(c, *form), bn("bn", "g", "y", 4), x=shape_of_x(form[0]))
    folds(m, Gemm=1)


@pytest.mark.parametrize("c", C_FORMS, ids=lambda c: f"C={c!r}".replace(" ", ""))
@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
def test_mul_then_sub_behind_gemm_are_gone(c, beta):
    m = model(
        gemm(c, 0, 1, 0.5, beta),
        const("Mul", "g", "d", rand(4)),
        const("Sub", "d", "y", rand(1, 4), left=True),
        x=(5, 3),
    )
    folds(m, Gemm=1)


@pytest.mark.parametrize("c", [(4,), (1, 4), (4, 1), (4, 4), ()], ids=str)
@pytest.mark.parametrize("trans", [0, 1])
def test_square_gemm(c, trans):
    m = model(gemm(c, trans, trans, 1.0, 0.5, (4, 4, 4)), bn("bn", "g", "y", 4), x=(4, 4))
    folds(m, Gemm=1)


def test_scalar_behind_gemm_is_gone():
    m = model(
        gemm((5, 1), beta=0.5),
        const("Div", "g", "d", rand(1)),
        const("Add", "d", "y", rand()),
        x=(5, 3),
    )
    folds(m, Gemm=1)


def test_constant_per_row_stays():
    m = model(gemm((4,), shape=(4, 3, 4)), const("Mul", "g", "y", rand(4, 1), name="mul"), x=(4, 3))
    assert fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["mul"] in ("axis-mismatch", "not-per-channel")


def test_dynamic_c_is_never_rescaled_silently():
    m = model(gemm("dynamic", beta=0.5), bn("bn", "g", "y", 4), x={"x": (5, 3), "c": (4,)})
    after = fold(m)
    if counts(after) == {"Gemm": 1, "BatchNormalization": 1}:
        assert codes(m)["bn"] == "dynamic-weight"


def test_dynamic_c_multiplied_by_a_scalar():
    m = model(
        gemm("dynamic", beta=0.5),
        const("Mul", "g", "y", np.float32(3.0), name="mul"),
        x={"x": (5, 3), "c": (4,)},
    )
    fold(m)


def test_dynamic_c_with_beta_zero():
    m = model(gemm("dynamic", beta=0.0), bn("bn", "g", "y", 4), x={"x": (5, 3), "c": (4,)})
    fold(m)


def test_a_c_that_was_not_read_may_not_be_read_now():
    """With a β of 1 the C of the caller would be added."""
    scale = const("Mul", "g", "y", rand(4))
    m = model(gemm("dynamic", beta=0.0), scale, x={"x": (5, 3), "c": (4,)})
    once = graphs.done(m)
    assert all(found.holds for found in certify(m, once.folded, once.applied))
    (node,) = once.folded.graph.node
    (beta,) = (a for a in node.attribute if a.name == "beta")
    beta.f = 1.0
    assert node.input[2] == "c"
    assert not any(found.holds for found in certify(m, once.folded, once.applied))


def test_c_of_zero_beta_may_hold_anything():
    m = model(
        gemm((4,), beta=0.0),
        bn("bn", "g", "y", 4),
        x=(5, 3),
        weights={"fc.c": np.array([1e30, -1e30, 3e38, 0], np.float32)},
    )
    folds(m, Gemm=1)


def test_overridable_c_of_zero_beta_stays_an_input():
    """It means nothing to the result, but a caller may still give it."""
    m = overridable(model(gemm((4,), beta=0.0), bn("bn", "g", "y", 4), x=(5, 3)), "fc.c")
    after = fold(m)
    assert [i.name for i in after.graph.input] == ["x", "fc.c"]
    assert_same(m, after, {"x": rand(5, 3), "fc.c": rand(4)})


def test_constant_a_with_dynamic_b_is_right():
    """The channels of the output come from the input; only rows could be absorbed."""
    m = model(
        op("Gemm", "w x b", "g", name="fc"),
        bn("bn", "g", "y", 4),
        x=(4, 4),
        weights={"w": rand(4, 4), "b": rand(4)},
    )
    fold(m)


def test_gemm_with_free_batch():
    m = model(gemm((4,), 0, 1), bn("bn", "g", "y", 4), x=("n", 3))
    folds(m, Gemm=1)


def test_row_c_keeps_its_batch_free():
    """C of [1, N] or [N] must not become [M, N]: the batch may change."""
    m = model(gemm((), 0, 1), bn("bn", "g", "y", 4), x=("n", 3))
    after = folds(m, Gemm=1)
    data = {"x": rand(7, 3)}
    assert_same(m, after, data)
