"""Stored types: half, double, bfloat16; what overflows or vanishes in them stays."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold._core import parameters
from bnfold._proof.certificate import certify

from .graphs import (
    BF16,
    DOUBLE,
    FLOAT,
    HALF,
    bn,
    certified,
    codes,
    const,
    constants,
    conv,
    counts,
    done,
    feeds,
    fold,
    folds,
    model,
    op,
    positive,
    rand,
    run,
    stays,
    within_ulps,
)

CONV = ("conv", "x", "c", (4, 3, 3, 3))
TYPES = pytest.mark.parametrize(
    "elem", [HALF, FLOAT, DOUBLE, BF16], ids=["fp16", "fp32", "fp64", "bf16"]
)


def halves(m):
    return {k: v.astype(np.float64) for k, v in constants(m).items()}


@TYPES
def test_conv_batchnorm(elem):
    m = model(conv(*CONV), bn("bn", "c", "y", 4), elem=elem)
    after = folds(m, runtime=elem in (HALF, FLOAT), Conv=1)
    assert {t.data_type for t in after.graph.initializer} == {elem}


@TYPES
def test_gemm_batchnorm(elem):
    m = model(
        (op("Gemm", "x w b", "g", name="fc", transB=1), {"w": rand(4, 3), "b": rand(4)}),
        bn("bn", "g", "y", 4),
        x=(5, 3),
        elem=elem,
    )
    folds(m, runtime=elem != BF16, Gemm=1)


@TYPES
def test_standing_chain(elem):
    m = model(
        const("Mul", "x", "a", rand(3, 1, 1)),
        const("Add", "a", "b", rand(3, 1, 1)),
        const("Mul", "b", "y", rand(3, 1, 1)),
        elem=elem,
    )
    fold(m, runtime=elem != BF16)


@pytest.mark.parametrize("elem", [HALF, BF16], ids=["fp16", "bf16"])
def test_small_types_are_rounded_once_from_float64(elem):
    m = model(
        conv(*CONV),
        bn("bn", "c", "y", 4, epsilon=1e-5),
        elem=elem,
        weights={"bn.var": np.float32([1e-5, 2e-5, 1e-4, 3.0])},
    )
    p = halves(m)
    s = p["bn.scale"] / np.sqrt(p["bn.var"] + np.float64(np.float32(1e-5)))
    after = folds(m, runtime=False, Conv=1)
    node, stored = after.graph.node[0], constants(after)
    if elem == HALF:
        within_ulps(stored[node.input[1]], p["conv.w"] * s[:, None, None, None], 0.51)
        within_ulps(stored[node.input[2]], (p["conv.b"] - p["bn.mean"]) * s + p["bn.bias"], 0.51)


def test_batchnorm_with_float_statistics_on_half_data():
    """From opset 15 the statistics may be of another type than the data."""
    m = model(
        conv(*CONV),
        op("BatchNormalization", "c s t m v", "y", name="bn", epsilon=1e-5),
        elem=HALF,
        opset=15,
        weights={
            "s": rand(4).astype(np.float16),
            "t": rand(4).astype(np.float16),
        },
    )
    from onnx import numpy_helper

    m.graph.initializer.append(numpy_helper.from_array(rand(4), "m"))
    m.graph.initializer.append(numpy_helper.from_array(np.float32([1e-7, 1.0, 3e-6, 70000.0]), "v"))
    after = folds(m, runtime=False, Conv=1)
    assert {t.data_type for t in after.graph.initializer} == {HALF}


def test_half_weight_that_would_overflow_stays():
    m = model(
        conv(*CONV, False),
        const("Mul", "c", "y", np.float32(60000), name="mul"),
        elem=HALF,
        weights={"conv.w": rand(4, 3, 3, 3) * np.float32(3)},
    )
    assert codes(m)["mul"] == "overflow"
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_half_bias_that_would_overflow_stays():
    m = model(
        conv(*CONV),
        bn("bn", "c", "y", 4, epsilon=0.0),
        elem=HALF,
        weights={
            "bn.mean": np.float32([30000, 0, 0, 0]),
            "bn.scale": np.float32([6, 1, 1, 1]),
            "bn.var": np.float32([1, 1, 1, 1]),
        },
    )
    assert codes(m)["bn"] == "overflow"
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_half_overflow_in_between_only_is_folded():
    """60000 · 4 does not fit in half, 60000 · 4 / 8 does: composed before rounding."""
    m = model(
        conv(*CONV),
        const("Mul", "c", "a", np.float32(60000)),
        const("Mul", "a", "y", np.float32(1e-4)),
        elem=HALF,
        weights={"conv.w": rand(4, 3, 3, 3) * np.float32(0.01)},
    )
    from .graphs import counts

    assert counts(bnfold.fold(m)) == {"Conv": 1}


def test_float_overflow_stays():
    m = model(
        conv(*CONV, False),
        const("Mul", "c", "y", np.float32(3e38), name="mul"),
        weights={"conv.w": rand(4, 3, 3, 3) * np.float32(5)},
    )
    assert codes(m)["mul"] == "overflow"
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_half_weight_that_would_vanish_stays():
    m = model(
        conv(*CONV, False),
        const("Mul", "c", "y", np.float32(1e-6), name="mul"),
        elem=HALF,
        weights={"conv.w": rand(4, 3, 3, 3) * np.float32(0.01)},
        x=(2, 3, 8, 8),
    )
    assert codes(m)["mul"] == "underflow"
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_half_weight_that_would_turn_coarse_stays():
    """Below the normal range digits are lost although nothing turns to zero."""
    m = model(
        conv(*CONV, False),
        const("Mul", "c", "y", np.float32(1e-5), name="mul"),
        elem=HALF,
        weights={"conv.w": rand(4, 3, 3, 3) * np.float32(0.1)},
        x=(2, 3, 8, 8),
    )
    assert codes(m)["mul"] == "underflow"


def test_zero_weights_are_no_underflow():
    w = rand(4, 3, 3, 3)
    w[:, 1] = 0
    w[2] = 0
    m = model(conv(*CONV, False), bn("bn", "c", "y", 4), elem=HALF, weights={"conv.w": w})
    folds(m, Conv=1)


def test_float_weight_that_would_vanish_stays():
    m = model(
        conv(*CONV, False),
        const("Mul", "c", "y", np.float32(1e-30), name="mul"),
        weights={"conv.w": rand(4, 3, 3, 3) * np.float32(1e-20)},
    )
    assert codes(m)["mul"] == "underflow"


def test_cast_between_stops():
    m = model(
        conv(*CONV),
        op("Cast", "c", "h", to=HALF),
        op("Cast", "h", "f", to=FLOAT),
        bn("bn", "f", "y", 4),
    )
    stays(m, {"bn": "not-carried"}, runtime=False)


def test_double_by_matmul():
    m = model(
        (op("MatMul", "x w", "m", name="mm"), {"w": rand(3, 4)}),
        const("Mul", "m", "y", rand(4)),
        x=(5, 3),
        elem=DOUBLE,
    )
    folds(m, MatMul=1)


def test_integer_matmul_is_left_alone():
    from onnx import TensorProto

    m = model(
        op("Cast", "x", "i", to=TensorProto.INT32),
        op("MatMul", "i w", "m", name="mm"),
        op("Mul", "m k", "n", name="mul"),
        op("Cast", "n", "y", to=1),
        x=(5, 3),
        weights={"w": np.ones((3, 4), np.int32), "k": np.array([1, 2, 3, 4], np.int32)},
    )
    assert fold(m).SerializeToString() == m.SerializeToString()


def test_subnormal_variance_and_tiny_gamma():
    m = model(
        conv(*CONV),
        bn("bn", "c", "y", 4, epsilon=1e-12),
        weights={
            "bn.var": np.float32([1e-40, 1e-12, 1, 1e10]),
            "bn.scale": np.float32([1e-6, 1e-6, 1, 1e5]),
        },
    )
    folds(m, Conv=1)


SUBNORMAL = np.float32(1e-40)


@pytest.mark.parametrize("elem", [FLOAT, DOUBLE, BF16], ids=["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("what", ["weights", "scale", "both"])
def test_a_dead_channel_folds(elem, what):
    """Its weights, or its scale, lie below the smallest normal number: there is nothing to lose.

    A trained detector (PP-OCRv3) has such channels: weight decay has taken them there.
    """
    kind = np.float64 if elem == DOUBLE else np.float32
    denormal = kind(5e-309 if elem == DOUBLE else 4e-40)
    w, k = rand(4, 3, 3, 3).astype(kind), np.ones((4, 1, 1), kind)
    if what != "scale":
        w[1], k[1] = w[1] * denormal, 0.01
    if what != "weights":
        k[1] = denormal
    scale = const("Mul", "c", "y", k, name="mul")
    m = model(conv(*CONV, False), scale, weights={"conv.w": w}, elem=elem)
    result = bnfold.fold(m)
    assert counts(result) == {"Conv": 1}
    certified(m)
    if elem == FLOAT:
        data = feeds(m)
        for wanted, found in zip(run(m, data), run(result, data), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-36)


@pytest.mark.parametrize("how", ["float16", "normal weights", "normal weights and scale"])
def test_a_channel_with_something_in_it_stays(how):
    """One step outside: float16, where a denormal number shows, or normal weights that get lost."""
    elem, weight, scale = {
        "float16": (HALF, 3e-5, 1e-3),
        "normal weights": (FLOAT, 2e-38, 1e-3),
        "normal weights and scale": (FLOAT, 1e-20, 1e-25),
    }[how]
    w, k = rand(4, 3, 3, 3), np.ones((4, 1, 1), np.float32)
    w[1], k[1] = w[1] * np.float32(weight), scale
    m = model(
        conv(*CONV, False),
        const("Mul", "c", "y", k, name="mul"),
        weights={"conv.w": w},
        x=(2, 3, 8, 8),
        elem=elem,
    )
    assert codes(m)["mul"] == "underflow"
    with pytest.MonkeyPatch.context() as patch:  # a planner that loses them
        patch.setattr(parameters, "dead", lambda top, *_: top >= 0)
        once = done(m)
    result, applied = once.folded, once.applied
    assert applied and not all(c.holds for c in certify(m, result, applied))


def test_the_bias_of_a_dead_channel_is_kept():
    w, s = rand(4, 3, 3, 3), np.ones((4, 1, 1), np.float32)
    w[1], s[1] = 0, SUBNORMAL
    m = model(
        conv(*CONV),
        const("Mul", "c", "m", s),
        const("Add", "m", "y", rand(4, 1, 1)),
        weights={"conv.w": w},
        x=(2, 3, 8, 8),
    )
    folds(m, Conv=1)


@pytest.mark.parametrize("large", [4.0, 1.0])
def test_half_weights_that_two_maps_together_make_coarse_stay(large):
    """Ahead a scale that the largest scale behind makes up for, in its own channel alone."""
    m = model(
        const("Mul", "x", "m", np.full((4, 1, 1), 1e-5, np.float32), name="ahead"),
        op("Identity", "m", "i"),
        (op("Conv", "i w", "c", name="conv"), {"w": np.ones((4, 4, 1, 1), np.float32)}),
        const("Mul", "c", "y", np.float32([large, 1, 1, 1]).reshape(4, 1, 1), name="behind"),
        x=(2, 4, 5, 5),
        elem=HALF,
    )
    assert "underflow" in codes(m).values()
    fold(m, runtime=False)


TINY = np.float32(1e-30)
BATCHES = np.stack([np.ones((4, 4)), np.full((4, 4), TINY)]).astype(np.float32)
GAMMA = np.where(np.arange(4) == 2, TINY, 1).astype(np.float32)
IN_ONE_PART = {
    "a batch of a MatMul": ((op("MatMul", "x w", "c", name="l"), {"w": BATCHES}), (2, 4, 4), (4,)),
    "a batch of a MatMul, the constant ahead": (
        (op("MatMul", "w x", "c", name="l"), {"w": BATCHES}),
        (2, 4, 4),
        (4, 1),
    ),
    "a batch of a MatMul, a map of batches": (
        (op("MatMul", "x w", "c", name="l"), {"w": np.tile(GAMMA, (4, 2, 1))}),
        (4, 2, 2),
        (4, 1, 1),
    ),
    "a column of a MatMul of unknown rank": (
        (op("MatMul", "x w", "c", name="l"), {"w": np.tile(GAMMA, (4, 1))}),
        None,
        (),
    ),
    "a number of a norm's gamma, of fewer axes": (
        (op("LayerNormalization", "x w", "c", name="l"), {"w": GAMMA}),
        (2, 3, 4, 4),
        (),
    ),
    "a number of a norm's gamma": (
        (op("LayerNormalization", "x w", "c", name="l", axis=1), {"w": np.tile(GAMMA, (4, 1))}),
        (2, 4, 4),
        (4, 1),
    ),
}


@pytest.mark.parametrize("name", IN_ONE_PART)
def test_what_is_lost_in_one_part_of_a_channel_stays(name, monkeypatch):
    """A channel of the map has several of the weight's. The largest of them does not hide what
    another loses, neither from the planner nor from the certificate.
    """
    linear, x, k = IN_ONE_PART[name]
    scale = const("Mul", "c", "y", np.full(k, 1e-10, np.float32), name="mul")
    m = model(linear, scale, x=x or (2, 4, 4))
    if x is None:
        m.graph.input[0].type.tensor_type.ClearField("shape")
        m.graph.output[0].type.tensor_type.ClearField("shape")
    assert codes(m) == {"mul": "underflow"}
    with pytest.MonkeyPatch.context() as patch:  # a planner that loses them
        patch.setattr(parameters, "underflows", lambda top, *_: top < 0)
        once = done(m)
    loses, applied = once.folded, once.applied
    assert applied and not any(c.holds for c in certify(m, loses, applied))
    if x is not None:
        given = {"x": np.full(x, 1e10, np.float32)}
        off = run(m, given)[0] != run(loses, given)[0]
        assert off.any() or "norm" in name


@pytest.mark.parametrize("bias", [(4, 1), (4,), (1, 4), (4, 4)])
def test_a_bias_of_another_axis_does_not_drown_what_is_lost(bias):
    """Rows = columns. One row has no bias, or the column of the small weights has none."""
    c = np.ones(bias, np.float32)
    c[(0, 0) if bias == (4, 1) else (..., 2)] = 0
    m = model(
        (
            op("Gemm", "x w c", "g", name="gemm"),
            {"w": np.tile(GAMMA, (4, 1)), "c": c},
        ),
        const("Mul", "g", "y", np.float32(1e-10), name="mul"),
        x=(4, 4),
    )
    assert codes(m) == {"mul": "underflow"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters, "underflows", lambda top, *_: top < 0)
        once = done(m)
    loses, applied = once.folded, once.applied
    assert applied and not any(c.holds for c in certify(m, loses, applied))


@pytest.mark.parametrize("bad", ["ahead", "behind", "none"])
def test_a_map_is_not_refused_for_what_another_one_is_too_much_for(bad):
    """Both are carried to the Conv, whichever is too much: together they are more than it can
    take, but for "none". The one that is too much by itself stays, the other one folds.
    """
    ahead, behind = (1e-34 if bad == side else 2.0 for side in ("ahead", "behind"))
    m = model(
        const("Mul", "x", "m", rand(4, 1, 1) ** 2 * ahead + np.float32(ahead), name="ahead"),
        op("MaxPool", "m", "p", kernel_shape=[2, 2]),
        conv("conv", "p", "c", (4, 4, 1, 1)),
        op("Relu", "c", "r"),
        const("Mul", "r", "y", rand(4, 1, 1) ** 2 * behind + np.float32(behind), name="behind"),
        weights={"conv.w": np.full((4, 4, 1, 1), 1e-6, np.float32)},
        x=(1, 4, 8, 8),
    )
    assert codes(m) == ({} if bad == "none" else {bad: "underflow"})
    certified(m)


def test_maps_that_are_too_much_each_by_itself_both_stay():
    m = model(
        const("Mul", "x", "m", positive(4, 1, 1) * np.float32(1e30), name="ahead"),
        op("MaxPool", "m", "p", kernel_shape=[2, 2]),
        conv("conv", "p", "c", (4, 4, 1, 1)),
        op("Relu", "c", "r"),
        const("Mul", "r", "y", positive(4, 1, 1) * np.float32(1e30), name="behind"),
        weights={"conv.w": np.full((4, 4, 1, 1), 1e20, np.float32)},
        x=(1, 4, 8, 8),
    )
    assert codes(m) == {"ahead": "overflow", "behind": "overflow"}
