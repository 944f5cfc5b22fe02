"""Maps ahead of linear operators go into their weights, channel by channel of what they read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ..graphs import bn, const, constants, conv, conv_transpose, model, op, overridable, rand
from .nets import EVERY, MAPS, SCALES, goes, stays, weights

Array = Any
KINDS = sorted(EVERY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group, cout", [(1, 4), (1, 3), (2, 4), (2, 6), (4, 4), (4, 8)])
@pytest.mark.parametrize("bias", [True, False, ""])
def test_conv_of_every_group(kind, group, cout, bias):
    made = model(
        MAPS[kind]("x", "a", 4),
        conv("conv", "a", "y", (cout, 4 // group, 2, 3), bias, group=group),
        x=(4, 4, 4, 4),
    )
    goes(made)


PADDED: dict[str, dict[str, Any]] = {
    "pads": {"pads": [1, 1, 1, 1]},
    "pads on one side": {"pads": [0, 0, 0, 1]},
    "same": {"auto_pad": "SAME_UPPER"},
    "same, lower, with strides": {"auto_pad": "SAME_LOWER", "strides": [3, 3]},
}
BARE: dict[str, dict[str, Any]] = {
    "valid": {"auto_pad": "VALID"},
    "strides": {"strides": [2, 3]},
    "dilations": {"dilations": [2, 1]},
    "same that pads nothing": {"auto_pad": "SAME_UPPER", "strides": [3, 3], "x": (4, 4, 6, 3)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PADDED)
def test_padding_stops_shifts_alone(kind, name):
    attrs = PADDED[name]
    made = model(
        MAPS[kind]("x", "a", 4), conv("conv", "a", "y", (4, 4, 3, 3), **attrs), x=(2, 4, 5, 5)
    )
    if kind in SCALES:
        goes(made)
    else:
        stays(made, "zero-padding", "no-linear-operator", says="zero padding would see the shift")


@pytest.mark.parametrize("name", BARE)
def test_convolutions_that_see_no_padding_take_shifts(name):
    attrs = dict(BARE[name])
    x = attrs.pop("x", (2, 4, 5, 5))
    goes(model(bn("map", "x", "a", 4), conv("conv", "a", "y", (4, 4, 3, 3), **attrs), x=x))


@pytest.mark.parametrize("x", [("n", 4, "h", "w"), (2, 4, "h", 6)])
def test_same_padding_of_unknown_sizes_may_pad(x):
    data = {"x": rand(2, 4, 6, 6)}
    same = conv("conv", "a", "y", (4, 4, 3, 3), auto_pad="SAME_UPPER", strides=[3, 3])
    stays(model(bn("map", "x", "a", 4), same, x=x), data=data)
    single = conv("conv", "a", "y", (4, 4, 1, 1), auto_pad="SAME_UPPER", strides=[3, 3])
    goes(model(bn("map", "x", "a", 4), single, x=x), data)


@pytest.mark.parametrize("x, kernel", [((4, 4, 4), (3,)), ((2, 4, 3, 3, 3), (2, 1, 2))])
def test_convolutions_of_other_ranks(x, kernel):
    goes(model(bn("map", "x", "a", 4), conv("conv", "a", "y", (4, 4, *kernel)), x=x))


def test_an_explicit_pad_moves_its_value():
    """Pad with 0 and then a Conv that pads nothing: one number passes, and so does the value."""
    pad = op("Pad", "a pads", "b"), {"pads": np.array([0, 0, 1, 1] * 2, np.int64)}
    last = conv("conv", "b", "y", (3, 4, 3, 3))
    made = model(const("Add", "x", "a", np.float32(0.5), name="map"), pad, last, x=(4, 4, 4, 4))
    goes(made)
    stays(model(bn("map", "x", "a", 4), pad, last, x=(4, 4, 4, 4)))
    none = op("Pad", "a pads", "b"), {"pads": np.zeros(8, np.int64)}
    goes(model(bn("map", "x", "a", 4), none, last, x=(4, 4, 4, 4)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group, per_group", [(1, 4), (2, 2), (4, 1), (2, 3)])
def test_conv_transpose_of_every_group(kind, group, per_group):
    made = model(
        MAPS[kind]("x", "a", 4),
        conv_transpose("up", "a", "y", (4, per_group, 1, 1), group=group),
        x=(4, 4, 4, 4),
    )
    goes(made)


TRANSPOSED: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "kernel 2, stride 2": ((2, 2), {"strides": [2, 2]}),
    "kernel 2": ((2, 2), {}),
    "stride 2": ((1, 1), {"strides": [2, 2]}),
    "output padding": ((1, 1), {"strides": [2, 2], "output_padding": [1, 1]}),
    "pads": ((1, 1), {"pads": [0, 0, 0, 1]}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
@pytest.mark.parametrize("bias", [True, False])
def test_conv_transpose_whose_outputs_sum_unlike_parts(name, bias):
    kernel, attrs = TRANSPOSED[name]
    up = conv_transpose("up", "a", "y", (4, 3, *kernel), bias, **attrs)
    x = (2, 4, 3, 3)
    goes(model(MAPS["mixed"]("x", "a", 4), up, x=x))
    stays(model(MAPS["shift"]("x", "a", 4), up, x=x), "zero-padding", "no-linear-operator")


@pytest.mark.parametrize("m, k, n", [(4, 4, 4), (2, 3, 5)])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("alpha, beta, c", [(1.0, 1.0, None), (0.5, -2.0, "n"), (-2.0, 0.5, "m1"),
                                            (1.0, 0.0, "mn"), (3.0, 2.0, "")])  # fmt: skip
def test_gemm(m, k, n, trans_a, trans_b, alpha, beta, c):
    """``α·A'·B' + β·C`` on data A with a constant B, and on data B with a constant A."""
    shape = {None: None, "n": (n,), "m1": (m, 1), "mn": (m, n), "": ()}[c]
    attrs = {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta, "name": "gemm"}

    def gemm(left: str, right: str, held: dict[str, Array]) -> Any:
        held = held if shape is None else {**held, "c": rand(*shape)}
        return op("Gemm", f"{left} {right}" + ("" if shape is None else " c"), "y", **attrs), held

    a, b = ((k, m) if trans_a else (m, k)), ((n, k) if trans_b else (k, n))
    summed = const("Mul", "x", "u", rand(*((k, 1) if trans_a else (k,))), name="map")
    held = {"w": weights(*b)}
    goes(model(summed, gemm("u", "w", held), x=a))
    summed = const("Add", "x", "u", rand(*((k, 1) if trans_a else (k,))), name="map")
    goes(model(summed, gemm("u", "w", held), x=a))
    if m != k:
        rows = const("Mul", "x", "u", rand(*((m,) if trans_a else (m, 1))), name="map")
        stays(model(rows, gemm("u", "w", held), x=a), "axis-mismatch", "no-linear-operator")
    held = {"w": weights(*a)}
    summed = const("Mul", "x", "u", rand(*((k,) if trans_b else (k, 1))), name="map")
    goes(model(summed, gemm("w", "u", held), x=b))
    summed = const("Sub", "x", "u", rand(*((k,) if trans_b else (k, 1))), left=True, name="map")
    goes(model(summed, gemm("w", "u", held), x=b))


@pytest.mark.parametrize("trans", [0, 1])
def test_square_gemm_takes_the_axis_that_it_sums_over(trans):
    """A norm's channels are on axis 1, which a transposed A does not sum over."""
    gemm = op("Gemm", "u w", "y", transA=trans), {"w": weights(4, 4)}
    made = model(bn("map", "x", "u", 4), gemm, x=(4, 4))
    if trans:
        stays(made, says="along axis 0 of its input")
    else:
        goes(made)


def test_gemm_whose_bias_is_what_it_reads():
    made = model(bn("map", "x", "u", 4), (op("Gemm", "u w u", "y"), {"w": weights(4, 4)}), x=(4, 4))
    stays(made)


def test_gemm_with_a_bias_computed_at_run_time_takes_scales_alone():
    gemm = op("Gemm", "u w z", "y", name="gemm"), {"w": weights(4, 3)}
    x = {"x": (2, 4), "z": (3,)}
    goes(model(const("Mul", "x", "u", rand(4), name="map"), gemm, x=x))
    stays(model(const("Add", "x", "u", rand(4), name="map"), gemm, x=x))


SIDES = [
    ((4, 4, 4), (4, 4), False),
    ((2, 3, 5), (5, 4), False),
    ((2, 3, 5), (4, 3), True),
    ((4, 4, 4), (4, 4), True),
    ((2, 3, 5), (2, 5, 4), False),
    ((4, 4, 4), (4, 4, 4), True),
    ((2, 3, 5), (5,), False),
    ((2, 3, 5), (3,), True),
    ((5,), (5, 4), False),
    ((5,), (4, 5), True),
    ((5, 4), (2, 4, 3), False),
]


@pytest.mark.parametrize("x, w, left", SIDES)
def test_matmul_takes_scales_along_what_it_sums_over(x, w, left):
    product = op("MatMul", "w u" if left else "u w", "y", name="product"), {"w": weights(*w)}
    along = (x[-2], 1) if left and len(x) > 1 else (x[-1],)
    goes(model(const("Mul", "x", "u", rand(*along), name="map"), product, x=x))
    goes(model(const("Mul", "x", "u", np.float32(-3), name="map"), product, x=x))
    across = (x[-1],) if left else (x[-2] if len(x) > 1 else 1, 1)
    if len(x) > 1:
        made = model(const("Mul", "x", "u", rand(*across), name="map"), product, x=x)
        stays(made, "axis-mismatch", "no-linear-operator")


@pytest.mark.parametrize("x, w, left", [s for s in SIDES if len(s[1]) == 2])
def test_a_shift_ahead_of_matmul_joins_the_one_behind(x, w, left):
    along = (x[-2], 1) if left and len(x) > 1 else (x[-1],)
    out = w[0] if left else w[1]
    bias = (out, 1) if left and len(x) > 1 else (out,)
    product = op("MatMul", "w u" if left else "u w", "p", name="product"), {"w": weights(*w)}
    made = model(
        const("Add", "x", "u", rand(*along), name="map"),
        product,
        const("Add", "p", "y", rand(*bias), name="bias"),
        x=x,
    )
    goes(made, left=1)
    alone = model(
        const("Add", "x", "u", rand(*along), name="map"),
        op("MatMul", "w u" if left else "u w", "y", name="product"),
        x=x,
        weights={"w": weights(*w)},
    )
    stays(alone, "no-gain", "no-linear-operator", says="has no bias to take the shift")


def test_the_shift_ahead_of_matmul_goes_through_what_was_absorbed_behind_it():
    """``s·(W·(x + t)) = s·W·x + s·W·t``: the image is scaled too."""
    made = model(
        const("Sub", "x", "u", rand(1, 4), left=True, name="map"),
        (op("MatMul", "u w", "p", name="product"), {"w": weights(4, 3)}),
        const("Mul", "p", "q", rand(3), name="scale"),
        const("Add", "q", "y", rand(3), name="bias"),
        x=(3, 2, 4),
    )
    goes(made, left=1)
    crossed = model(
        const("Sub", "x", "u", rand(1, 1), left=True, name="map"),
        (op("MatMul", "w u", "p", name="product"), {"w": weights(4, 1)}),
        const("Mul", "p", "o", np.float32(-1.3), name="scale"),
        const("Add", "o", "q", np.float32(0.7), name="bias"),
        (op("Expand", "q to", "r"), {"to": np.array([2, 4, 8], np.int64)}),
        const("Add", "r", "y", np.float32(-0.8), name="last"),
        x=(1, 1, 1),
    )
    goes(crossed, left=1)


@pytest.mark.parametrize("behind", ["bn", "scale"])
def test_maps_on_both_sides_of_a_conv(behind):
    mul = const("Mul", "b", "y", rand(3, 1, 1), name="map2")
    last = bn("map2", "b", "y", 3) if behind == "bn" else mul
    parts = [bn("map", "x", "a", 4), conv("conv", "a", "b", (3, 4, 2, 2)), last]
    goes(model(*parts, x=(4, 4, 4, 4)))


def test_weights_are_rounded_once():
    """``W[o, i]·s_o·s_i`` and ``s_o·(b + Σ W·t) + t_o`` in float64, then stored."""
    made = model(
        const("Mul", "x", "a", rand(4, 1, 1), name="in"),
        conv("conv", "a", "b", (3, 4, 1, 1)),
        const("Mul", "b", "y", rand(3, 1, 1), name="out"),
        x=(1, 4, 2, 2),
    )
    old, new = constants(made), constants(goes(made))
    exact = old["conv.w"].astype(np.float64) * old["in.k"].astype(np.float64)[None]
    exact = exact * old["out.k"].astype(np.float64)[:, None]
    assert np.array_equal(new["conv.w"], exact.astype(np.float32))


def test_a_weight_that_a_caller_may_override_takes_nothing():
    made = model(bn("map", "x", "a", 4), conv("conv", "a", "y", (3, 4, 1, 1)), x=(2, 4, 3, 3))
    stays(overridable(made, "conv.w"), says="conv")


def test_a_weight_that_another_reads_is_copied():
    made = model(
        bn("map", "x", "a", 4),
        conv("conv", "a", "y", (4, 4, 1, 1)),
        op("Conv", "x conv.w conv.b", "z"),
        x=(4, 4, 4, 4),
        y="y z",
    )
    goes(made)


def test_the_map_ahead_of_two_convolutions_goes_into_both():
    parts = [
        bn("map", "x", "a", 4),
        conv("c1", "a", "y", (3, 4, 1, 1)),
        conv("c2", "a", "z", (4, 4, 2, 2), group=1),
    ]
    goes(model(*parts, x=(4, 4, 4, 4), y="y z"))
    padded = [*parts[:2], conv("c2", "a", "z", (4, 4, 3, 3), pads=[1] * 4)]
    stays(model(*padded, x=(4, 4, 4, 4), y="y z"), "zero-padding", "no-linear-operator")
