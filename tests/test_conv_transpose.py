"""Affine maps absorbed behind ConvTranspose, whose output channels lie on axis 1 of the weight."""

from __future__ import annotations

import numpy as np
import pytest

from .graphs import bn, const, constants, conv_transpose, folds, model, rand, within_ulps

KINDS = {
    "plain": ((2, 3, 5, 5), (3, 4, 3, 3), {}),
    "strided": ((2, 3, 5, 4), (3, 4, 2, 3), {"strides": [2, 3]}),
    "padded": ((2, 3, 5, 5), (3, 4, 3, 3), {"pads": [1, 0, 1, 2]}),
    "output-padding": (
        (2, 3, 5, 5),
        (3, 4, 3, 3),
        {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
    ),
    "output-padding-unpadded": (
        (2, 3, 4, 4),
        (3, 4, 2, 2),
        {"strides": [3, 3], "output_padding": [2, 1]},
    ),
    "dilated": ((2, 3, 5, 5), (3, 4, 3, 2), {"dilations": [2, 3]}),
    "square": ((2, 4, 5, 5), (4, 4, 3, 3), {}),
    "all-sizes-equal": ((4, 4, 4, 4), (4, 4, 4, 4), {}),
    "groups-2": ((2, 4, 5, 5), (4, 3, 3, 3), {"group": 2}),
    "groups-2-square": ((2, 4, 5, 5), (4, 2, 3, 3), {"group": 2}),
    "groups-2-in-per-group-is-out": ((2, 6, 5, 5), (6, 3, 2, 2), {"group": 2}),
    "groups-3": ((2, 6, 5, 5), (6, 2, 2, 2), {"group": 3}),
    "depthwise": ((2, 4, 5, 5), (4, 1, 3, 3), {"group": 4}),
    "depthwise-multiplier": ((2, 4, 5, 5), (4, 4, 3, 3), {"group": 4}),
    "1-d": ((2, 3, 5), (3, 4, 3), {"strides": [2]}),
    "3-d": ((2, 4, 3, 4, 3), (4, 3, 2, 2, 2), {"group": 2, "strides": [2, 1, 2]}),
    "same-upper": ((2, 3, 5, 5), (3, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "output-shape": ((2, 3, 5, 5), (3, 4, 3, 3), {"output_shape": [10, 10], "strides": [2, 2]}),
    "output-channels-are-width": ((2, 3, 5, 4), (3, 4, 1, 1), {}),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_batchnorm_behind_conv_transpose_is_gone(kind, bias):
    shape, w, attrs = KINDS[kind]
    out = w[1] * attrs.get("group", 1)
    m = model(conv_transpose("up", "x", "c", w, bias, **attrs), bn("bn", "c", "y", out), x=shape)
    folds(m, ConvTranspose=1)


@pytest.mark.parametrize("kind", KINDS)
def test_mul_and_add_behind_conv_transpose_are_gone(kind):
    shape, w, attrs = KINDS[kind]
    out = (w[1] * attrs.get("group", 1),) + (1,) * (len(shape) - 2)
    m = model(
        conv_transpose("up", "x", "c", w, False, **attrs),
        const("Mul", "c", "d", rand(*out)),
        const("Sub", "d", "y", rand(*out), left=True),
        x=shape,
    )
    folds(m, ConvTranspose=1)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_weight_is_rounded_once(group):
    m = model(
        conv_transpose("up", "x", "c", (4, 4 // group, 2, 2), group=group),
        bn("bn", "c", "y", 4),
        x=(1, 4, 3, 3),
    )
    p = {k: v.astype(np.float64) for k, v in constants(m).items()}
    s = p["bn.scale"] / np.sqrt(p["bn.var"] + np.float64(np.float32(0.01)))
    per_input = np.repeat(s.reshape(group, -1), 4 // group, axis=0)
    after = folds(m, ConvTranspose=1)
    node, stored = after.graph.node[0], constants(after)
    within_ulps(stored[node.input[1]], p["up.w"] * per_input[:, :, None, None])
    within_ulps(stored[node.input[2]], (p["up.b"] - p["bn.mean"]) * s + p["bn.bias"])
