"""Affine maps absorbed behind Conv."""

from __future__ import annotations

import numpy as np
import pytest

from .graphs import (
    bn,
    const,
    constants,
    conv,
    fold,
    folds,
    model,
    op,
    positive,
    rand,
    stays,
    within_ulps,
)

KINDS = {
    "plain-2d": ((2, 3, 8, 8), (4, 3, 3, 3), {}),
    "padded-2d": ((2, 3, 8, 8), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "uneven-pads": ((2, 3, 8, 8), (4, 3, 3, 3), {"pads": [0, 1, 2, 0]}),
    "strided": ((2, 3, 9, 8), (4, 3, 3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilated": ((2, 3, 9, 9), (4, 3, 3, 3), {"dilations": [2, 1]}),
    "1x1": ((2, 3, 5, 5), (4, 3, 1, 1), {}),
    "1-d": ((2, 3, 8), (4, 3, 3), {"pads": [1, 1]}),
    "3-d": ((2, 3, 4, 5, 4), (4, 3, 2, 3, 2), {}),
    "depthwise": ((2, 4, 6, 6), (4, 1, 3, 3), {"group": 4}),
    "depthwise-multiplier": ((2, 4, 6, 6), (8, 1, 3, 3), {"group": 4}),
    "grouped": ((2, 4, 6, 6), (6, 2, 3, 3), {"group": 2}),
    "same-upper": ((2, 3, 7, 8), (4, 3, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same-lower": ((2, 3, 7, 8), (4, 3, 3, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": ((2, 3, 7, 8), (4, 3, 3, 2), {"auto_pad": "VALID"}),
    "kernel-shape-given": ((2, 3, 8, 8), (4, 3, 3, 3), {"kernel_shape": [3, 3]}),
    "all-sizes-equal": ((3, 3, 3, 3), (3, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "cin-is-cout": ((2, 4, 6, 6), (4, 4, 3, 3), {}),
    "channels-are-width": ((2, 3, 5, 4), (4, 3, 1, 1), {}),
    "channels-are-height": ((2, 3, 4, 5), (4, 3, 1, 1), {}),
    "channels-are-batch": ((4, 3, 5, 6), (4, 3, 1, 1), {}),
    "channels-are-length-1-d": ((4, 4, 4), (4, 4, 3), {"pads": [1, 1]}),
    "one-channel-out": ((2, 3, 5, 5), (1, 3, 3, 3), {}),
    "one-channel-in": ((2, 1, 5, 5), (4, 1, 3, 3), {}),
}


@pytest.mark.parametrize("bias", [True, False, ""], ids=["bias", "no-bias", "empty-bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_batchnorm_behind_conv_is_gone(kind, bias):
    shape, w, attrs = KINDS[kind]
    m = model(conv("conv", "x", "c", w, bias, **attrs), bn("bn", "c", "y", w[0]), x=shape)
    folds(m, Conv=1)


@pytest.mark.parametrize("kind", KINDS)
def test_mul_and_add_behind_conv_are_gone(kind):
    shape, w, attrs = KINDS[kind]
    per_channel = (w[0],) + (1,) * (len(shape) - 2)
    m = model(
        conv("conv", "x", "c", w, **attrs),
        const("Mul", "c", "d", rand(*per_channel)),
        const("Add", "d", "y", rand(1, *per_channel), left=True),
        x=shape,
    )
    folds(m, Conv=1)


def test_weight_and_bias_are_rounded_once():
    m = model(conv("conv", "x", "c", (8, 3, 3, 3)), bn("bn", "c", "y", 8))
    p = {k: v.astype(np.float64) for k, v in constants(m).items()}
    s = p["bn.scale"] / np.sqrt(p["bn.var"] + np.float64(np.float32(0.01)))
    after = folds(m, Conv=1)
    node, stored = after.graph.node[0], constants(after)
    within_ulps(stored[node.input[1]], p["conv.w"] * s[:, None, None, None])
    within_ulps(stored[node.input[2]], (p["conv.b"] - p["bn.mean"]) * s + p["bn.bias"])


def test_long_chain_is_rounded_once():
    values = [rand(4, 1, 1) for _ in range(9)]
    kinds = ["Mul", "Add", "Sub", "Mul", "Div", "Add", "Mul", "Sub", "Div"]
    names = ["c", *(f"t{i}" for i in range(8)), "y"]
    chain = [const(k, a, b, v) for k, a, b, v in zip(kinds, names, names[1:], values)]
    m = model(conv("conv", "x", "c", (4, 3, 1, 1)), *chain)
    s, t = np.ones((4, 1, 1)), np.zeros((4, 1, 1))
    for kind, v in zip(kinds, values):
        k = v.astype(np.float64)
        s, t = {
            "Mul": (s * k, t * k),
            "Div": (s / k, t / k),
            "Add": (s, t + k),
            "Sub": (s, t - k),
        }[kind]
    p = {k: v.astype(np.float64) for k, v in constants(m).items()}
    after = folds(m, Conv=1)
    stored = constants(after)
    within_ulps(stored[after.graph.node[0].input[1]], p["conv.w"] * s[..., None])
    within_ulps(stored[after.graph.node[0].input[2]], p["conv.b"] * s[:, 0, 0] + t[:, 0, 0])


@pytest.mark.parametrize(
    "chain",
    [
        [("Sub", False), ("Mul", False), ("Add", False)],
        [("Div", False)],
        [("Sub", True)],
        [("Sub", True), ("Mul", True), ("Sub", True)],
        [("Add", True), ("Div", False), ("Sub", False)],
        [("Mul", True)],
    ],
    ids=lambda c: "-".join(("k" + k if left else k + "k").lower() for k, left in c),
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_chain_behind_conv_is_gone(chain, bias):
    names = ["c", *(f"t{i}" for i in range(len(chain) - 1)), "y"]
    nodes = [
        const(kind, a, b, rand(1, 4, 1, 1), left=left)
        for (kind, left), a, b in zip(chain, names, names[1:])
    ]
    folds(model(conv("conv", "x", "c", (4, 3, 3, 3), bias), *nodes), Conv=1)


def test_neg_behind_conv_is_gone():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)), op("Neg", "c", "n"), const("Add", "n", "y", rand(1))
    )
    folds(m, Conv=1)


def test_constant_over_conv_stays():
    m = model(
        conv("conv", "x", "c", (4, 3, 1, 1)), const("Div", "c", "y", rand(4, 1, 1), left=True)
    )
    assert fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["Mul", "Add", "Sub", "Div"])
def test_scalar_behind_conv_is_gone(kind, shape):
    m = model(conv("conv", "x", "c", (4, 3, 3, 3)), const(kind, "c", "y", rand(*shape)))
    folds(m, Conv=1)


def test_scalar_mul_leaves_no_bias_behind_where_there_was_none():
    m = model(conv("conv", "x", "c", (4, 3, 3, 3), False), const("Mul", "c", "y", rand(4, 1, 1)))
    after = folds(m, Conv=1)
    assert len([n for n in after.graph.node[0].input if n]) == 2


def test_negative_and_zero_gamma():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "y", 4),
        weights={"bn.scale": np.array([-1.5, 0.0, 0.7, -0.0], np.float32)},
    )
    folds(m, Conv=1)


def test_division_by_zero_is_not_folded():
    k = np.array([1, 0, 2, 3], np.float32).reshape(4, 1, 1)
    stays(
        model(conv("conv", "x", "c", (4, 3, 3, 3)), const("Div", "c", "y", k, name="div")),
        {"div": "non-finite"},
    )


def test_multiplication_by_zero_folds():
    k = np.array([1, 0, 2, 0], np.float32).reshape(4, 1, 1)
    folds(model(conv("conv", "x", "c", (4, 3, 3, 3)), const("Mul", "c", "y", k)), Conv=1)


@pytest.mark.parametrize("between", ["Identity", "Dropout", "Identity Dropout Identity"])
def test_identity_and_dropout_do_not_stand_between(between):
    kinds = between.split()
    names = ["c", *(f"i{i}" for i in range(len(kinds)))]
    nodes = [op(k, a, b) for k, a, b in zip(kinds, names, names[1:])]
    m = model(conv("conv", "x", "c", (4, 3, 3, 3)), *nodes, bn("bn", names[-1], "y", 4))
    after = fold(m)
    assert not any(n.op_type == "BatchNormalization" for n in after.graph.node)


def test_identity_between_whose_value_another_reads_stays():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        op("Identity", "c", "i"),
        bn("bn", "i", "y", 4),
        op("Relu", "i", "z"),
        y="y z",
    )
    stays(m, {"bn": "shared-output"})


def test_conv_behind_identity_whose_value_another_reads_stays():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        op("Identity", "c", "i"),
        bn("bn", "i", "y", 4),
        op("Relu", "c", "z"),
        y="y z",
    )
    stays(m, {"bn": "shared-output"})


def test_dropout_with_a_mask_that_is_read():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        op("Dropout", "c", "d mask"),
        bn("bn", "d", "y", 4),
        op("Cast", "mask", "z", to=1),
        y="y z",
    )
    fold(m)


def test_dropout_in_training_stops_the_fold():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        op("Dropout", "c ratio on", "d"),
        bn("bn", "d", "y", 4),
        weights={"ratio": np.float32(0.5), "on": np.array(True)},
    )
    import bnfold

    plan = bnfold.plan(m)
    assert not plan.folds
    assert {k.node for k in plan.kept} >= {"bn"}


@pytest.mark.parametrize("dims", [("n", 3, "h", "w"), ("n", "c", "h", "w"), (None, 3, None, None)])
def test_free_dimensions_do_not_matter(dims):
    m = model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4), x=dims)
    data = {"x": np.random.default_rng(0).normal(size=(2, 3, 7, 6)).astype(np.float32)}
    folds(m, data, Conv=1)


def test_input_of_unknown_rank():
    """The weight's rank gives the output's; a per-channel constant is judged by it."""
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "b", 4),
        const("Mul", "b", "y", rand(4, 1, 1)),
        x={"x": None},
    )
    data = {"x": np.random.default_rng(0).normal(size=(2, 3, 7, 6)).astype(np.float32)}
    folds(m, data, Conv=1)


def test_chain_of_blocks():
    pieces, c, at = [], 3, "x"
    for i in range(6):
        pieces += [conv(f"conv{i}", at, f"c{i}", (4, c, 3, 3), i % 2 == 0, pads=[1] * 4)]
        pieces += [bn(f"bn{i}", f"c{i}", f"b{i}", 4), op("Relu", f"b{i}", f"r{i}")]
        c, at = 4, f"r{i}"
    folds(model(*pieces, y="r5"), Conv=6, Relu=6)


def test_small_variance_and_large_mean():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "y", 4, epsilon=1e-5),
        weights={
            "bn.var": np.array([1e-7, 1e-4, 1.0, 0.0], np.float32),
            "bn.mean": np.array([300, -200, 5, 1], np.float32),
            "bn.bias": np.float32(positive(4) * 100),
        },
    )
    folds(m, Conv=1)


@pytest.mark.parametrize("last", ["Div", "Mul", "Neg", "Sub"])
def test_scale_goes_into_the_conv_past_a_shift_along_width(last):
    """What one fold leaves, a second must not find; whether it folds is a matter of profit."""
    tail = (
        op("Neg", "t", "y") if last == "Neg" else const(last, "t", "y", rand(1), left=last == "Sub")
    )
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        const("Add", "c", "a", rand(6)),
        const("Sub", "a", "t", rand(1)),
        tail,
    )
    fold(m)
