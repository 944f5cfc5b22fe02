"""Every operator that keeps channels on their axis, with every kind of map, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest

from ..graphs import codes, const, conv, folds, model, op, overridable, rand
from ..runtimes import counts_what_is_past_the_end
from .nets import (
    EVERY,
    MAPS,
    MONOTONE,
    POSITIVE,
    SCALES,
    UNIFORM,
    Middle,
    ahead,
    behind,
    goes,
    stays,
)


class Law(NamedTuple):
    """An operator, the maps that pass it backward and forward, the opset it is written for, and
    whether the installed onnxruntime computes it wrongly.
    """

    middle: Middle
    back: frozenset[str]
    forth: frozenset[str]
    opset: int = 18
    x: Any = (2, 4, 4, 4)
    miscomputed: Callable[[], bool] = bool

    def needs_a_right_runtime(self) -> None:
        """Skip the test that asks where there is nothing to compare with."""
        if self.miscomputed():
            pytest.skip(f"onnxruntime {onnxruntime.__version__} computes it wrongly")


def one(kind: str, **attrs: Any) -> Middle:
    return lambda x, y: [op(kind, x, y, **attrs)]


def with_inputs(kind: str, *given: Any, **attrs: Any) -> Middle:
    """An operator with constant inputs; None for one that is left out."""

    def middle(x: str, y: str) -> Any:
        names = ["_" if value is None else f"{y}.{n}" for n, value in enumerate(given)]
        held = {f"{y}.{n}": np.asarray(v) for n, v in enumerate(given) if v is not None}
        return [(op(kind, " ".join([x, *names]), y, **attrs), held)]

    return middle


def numbers(*values: float) -> Any:
    return np.array(values, np.float32)


def integers(*values: int) -> Any:
    return np.array(values, np.int64)


NUMBER = frozenset({"number"})  # One scale for all, and no shift.
EMPTY = np.zeros(0, np.float32)
SPATIAL = integers(2, 3)


def resize(
    mode: str, place: str = "half_pixel", scales: Any = (1, 1, 2, 2), **attrs: Any
) -> Middle:
    attrs |= {"mode": mode, "coordinate_transformation_mode": place}
    return with_inputs("Resize", EMPTY, numbers(*scales), **attrs)


def pad(pads: Any, mode: str, value: Any = None) -> Middle:
    return with_inputs("Pad", integers(*pads), value, mode=mode)


def extreme(kind: str, bound: Any, *, left: bool = False) -> Middle:
    """A Max or a Min with a constant."""
    return lambda x, y: [const(kind, x, y, np.asarray(bound, np.float32), left=left)]


# Maps that keep the order of all numbers, or turn all of it round.
ONE_SIGN = UNIFORM | {"positive", "shift", "minus"}
WHOLE = UNIFORM | {"minus"}
AROUND = (0, 0, 1, 1, 0, 0, 0, 1)
SUMS = SCALES  # Padding that is counted: a shift would not be there.
LAWS = {
    "Identity": Law(one("Identity"), EVERY, EVERY),
    "Dropout": Law(one("Dropout"), EVERY, EVERY),
    "Relu": Law(one("Relu"), POSITIVE, POSITIVE),
    "LeakyRelu": Law(one("LeakyRelu", alpha=0.2), POSITIVE, POSITIVE),
    "LeakyRelu down": Law(one("LeakyRelu", alpha=-0.5), POSITIVE, POSITIVE),
    "PRelu": Law(with_inputs("PRelu", numbers(0.25)), POSITIVE, POSITIVE),
    "PRelu per channel": Law(
        with_inputs("PRelu", numbers(0.1, -0.3, 0.5, 2).reshape(4, 1, 1)), POSITIVE, POSITIVE
    ),
    "Abs": Law(one("Abs"), POSITIVE, SCALES),
    "Clip": Law(
        with_inputs("Clip", np.float32(0), np.float32(1)), UNIFORM | {"minus"}, UNIFORM | {"minus"}
    ),
    "Clip at 0": Law(with_inputs("Clip", np.float32(0)), UNIFORM | POSITIVE, UNIFORM | POSITIVE),
    "Clip of nothing": Law(one("Clip"), EVERY, EVERY),
    "Clip that is empty": Law(with_inputs("Clip", np.float32(1), np.float32(0)), UNIFORM, UNIFORM),
    "Max": Law(extreme("Max", 0.3), ONE_SIGN, ONE_SIGN),
    "Max at 0": Law(extreme("Max", 0), ONE_SIGN, ONE_SIGN, 8),
    "Max, the constant first": Law(extreme("Max", -0.2, left=True), ONE_SIGN, ONE_SIGN, 12),
    "Max per channel": Law(extreme("Max", rand(4, 1, 1)), ONE_SIGN, ONE_SIGN),
    "Max of all sizes": Law(extreme("Max", rand(2, 4, 4, 4)), ONE_SIGN, ONE_SIGN, 8),
    "Min": Law(extreme("Min", [0.3]), ONE_SIGN, ONE_SIGN),
    "Min along another axis": Law(extreme("Min", rand(4)), WHOLE, WHOLE),
    "Min of Max": Law(
        lambda x, y: [
            const("Max", x, f"{y}.m", np.float32(-0.5)),
            const("Min", f"{y}.m", y, np.float32(0.5)),
        ],
        ONE_SIGN,
        ONE_SIGN,
    ),
    "Clip below": Law(with_inputs("Clip", np.float32(-0.2)), UNIFORM, UNIFORM),
    "Clip above": Law(with_inputs("Clip", None, np.float32(0.3)), UNIFORM, UNIFORM),
    "Relu6 of opset 6": Law(
        one("Clip", min=0.0, max=6.0), UNIFORM | {"minus"}, UNIFORM | {"minus"}, 9
    ),
    "Clip of opset 6, one bound": Law(one("Clip", max=0.25), UNIFORM, UNIFORM, 10),
    "ThresholdedRelu": Law(one("ThresholdedRelu"), NUMBER, NUMBER),
    "ThresholdedRelu above": Law(one("ThresholdedRelu", alpha=0.3), NUMBER, NUMBER),
    "ThresholdedRelu below": Law(one("ThresholdedRelu", alpha=-0.4), NUMBER, NUMBER, 10),
    "HardSigmoid": Law(one("HardSigmoid"), frozenset(), UNIFORM | {"minus"}),
    "HardSigmoid of opset 6": Law(
        one("HardSigmoid", alpha=-0.25, beta=0.75), frozenset(), UNIFORM | {"minus"}, 9
    ),
    "MaxPool": Law(one("MaxPool", kernel_shape=[2, 2]), MONOTONE, MONOTONE),
    "MaxPool padded": Law(
        one("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]), MONOTONE, MONOTONE
    ),
    "MaxPool same": Law(
        one("MaxPool", kernel_shape=[2, 3], auto_pad="SAME_UPPER"), MONOTONE, MONOTONE
    ),
    "GlobalMaxPool": Law(one("GlobalMaxPool"), MONOTONE, MONOTONE),
    "ReduceMax": Law(with_inputs("ReduceMax", SPATIAL), MONOTONE, MONOTONE),
    "ReduceMin": Law(one("ReduceMin", axes=[2, 3]), MONOTONE, MONOTONE, 13),
    "AveragePool": Law(one("AveragePool", kernel_shape=[2, 2]), EVERY, EVERY),
    "AveragePool padded": Law(
        one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), EVERY, EVERY
    ),
    "AveragePool padded, counted": Law(
        one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), SUMS, SUMS
    ),
    "AveragePool same": Law(
        one("AveragePool", kernel_shape=[3, 2], auto_pad="SAME_LOWER"), EVERY, EVERY
    ),
    "AveragePool same, counted": Law(
        one("AveragePool", kernel_shape=[3, 2], auto_pad="SAME_LOWER", count_include_pad=1),
        SUMS,
        SUMS,
    ),
    "AveragePool same, counted, that pads nothing": Law(
        one(
            "AveragePool",
            kernel_shape=[2, 2],
            strides=[2, 2],
            auto_pad="SAME_LOWER",
            count_include_pad=1,
        ),
        EVERY,
        EVERY,
    ),
    "AveragePool to the ceiling": Law(
        one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), EVERY, EVERY
    ),
    "AveragePool to the ceiling, counted": Law(
        one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1),
        SUMS,
        SUMS,
        miscomputed=counts_what_is_past_the_end,
    ),
    "GlobalAveragePool": Law(one("GlobalAveragePool"), EVERY, EVERY),
    "ReduceMean": Law(with_inputs("ReduceMean", SPATIAL), EVERY, EVERY),
    "ReduceMean over the batch": Law(one("ReduceMean", axes=[0, -1]), EVERY, EVERY, 13),
    "ReduceSum": Law(with_inputs("ReduceSum", SPATIAL), EVERY, EVERY),
    "ReduceSum of opset 11": Law(one("ReduceSum", axes=[3]), EVERY, EVERY, 11),
    "Resize linear": Law(resize("linear"), EVERY, EVERY),
    "Resize cubic": Law(resize("cubic"), EVERY, EVERY),
    "Resize nearest": Law(resize("nearest"), EVERY, EVERY),
    "Resize to a size": Law(
        with_inputs("Resize", None, None, integers(2, 4, 6, 5), mode="linear"), EVERY, EVERY
    ),
    "Resize that crops": Law(
        with_inputs(
            "Resize",
            numbers(0, 0, -0.5, 0, 1, 1, 1.5, 1),
            numbers(1, 1, 2, 2),
            mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
        frozenset({"number", "minus"}),
        frozenset({"number", "minus"}),
    ),
    "Resize that crops, with a value": Law(
        with_inputs(
            "Resize",
            numbers(0, 0, -0.5, 0, 1, 1, 1.5, 1),
            numbers(1, 1, 2, 2),
            mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=1.0,
        ),
        frozenset(),
        frozenset(),
    ),
    "Upsample": Law(with_inputs("Upsample", numbers(1, 1, 2, 3), mode="linear"), EVERY, EVERY, 9),
    "Resize of opset 10": Law(with_inputs("Resize", numbers(1, 1, 2, 3)), EVERY, EVERY, 10),
    "Pad by reflection": Law(pad(AROUND, "reflect"), EVERY, EVERY),
    "Pad by its edge": Law(pad(AROUND, "edge"), EVERY, EVERY),
    "Pad around": Law(pad(AROUND, "wrap"), EVERY, EVERY, 19),
    "Pad": Law(pad(AROUND, "constant"), SCALES | UNIFORM, SCALES | UNIFORM),
    "Pad that cuts": Law(
        pad((0, 0, -1, 0, 0, 0, 0, -2), "constant", np.float32(0.5)), EVERY, EVERY
    ),
    "Pad that cuts, of opset 10": Law(
        one("Pad", pads=(0, 0, -1, 0, 0, 0, 0, -2), value=0.5), EVERY, EVERY, 10
    ),
    "Pad that cuts and pads": Law(
        pad((0, 0, -1, 0, 0, 0, 0, 1), "constant"), SCALES | UNIFORM, SCALES | UNIFORM
    ),
    "Pad with a value": Law(
        pad(AROUND, "constant", np.float32(0.5)), UNIFORM | {"minus"}, UNIFORM | {"minus"}
    ),
    "Pad of opset 10": Law(
        one("Pad", pads=AROUND, value=0.5), UNIFORM | {"minus"}, UNIFORM | {"minus"}, 10
    ),
    "Expand": Law(with_inputs("Expand", integers(2, 4, 4, 4)), EVERY, EVERY, 18, (1, 4, 4, 1)),
    "Tile": Law(with_inputs("Tile", integers(3, 1, 2, 1)), EVERY, EVERY),
    "Slice": Law(
        with_inputs("Slice", integers(-1), integers(-9), integers(3), integers(-2)), EVERY, EVERY
    ),
    "Slice of two axes": Law(
        with_inputs("Slice", integers(0, 1), integers(1, 3), integers(0, 2)), EVERY, EVERY
    ),
    "Slice of opset 9": Law(one("Slice", axes=[2], starts=[1], ends=[99]), EVERY, EVERY, 9),
    "Gather": Law(with_inputs("Gather", integers(3, 0, 0), axis=2), EVERY, EVERY),
    "Concat with itself": Law(lambda x, y: [op("Concat", f"{x} {x}", y, axis=3)], EVERY, EVERY),
    "sum with itself": Law(lambda x, y: [op("Sum", f"{x} {x}", y)], SCALES, EVERY),
}
CASES = [
    pytest.param(law, direction, kind, id=f"{name}-{direction}-{kind}")
    for name, law in LAWS.items()
    for direction in ("back", "forth")
    for kind in MAPS
    if kind != "norm"
]


@pytest.mark.parametrize("law, direction, kind", CASES)
def test_a_map_passes_where_its_law_says_so_and_stays_elsewhere(law, direction, kind):
    law.needs_a_right_runtime()
    build = behind if direction == "back" else ahead
    made = build(law.middle, kind, law.x, opset=law.opset)
    if kind in (law.back if direction == "back" else law.forth):
        goes(made)
    else:
        stays(made, "not-carried", "zero-padding", "shared-output", "no-linear-operator")


@pytest.mark.parametrize("law", list(LAWS.values()), ids=list(LAWS))
def test_a_norm_of_mixed_signs_is_carried_as_far_as_it_goes(law):
    law.needs_a_right_runtime()
    for build in (behind, ahead):
        whole = "norm" in (law.back if build is behind else law.forth)
        made = build(law.middle, "norm", law.x, opset=law.opset)
        if whole:
            goes(made)
        else:
            stays(made, "not-carried", "zero-padding", "shared-output", "no-linear-operator")


@pytest.mark.parametrize("name", ["Relu", "MaxPool", "AveragePool padded, counted", "Pad", "Clip"])
@pytest.mark.parametrize("x", [("n", 4, "h", "w"), ("n", "c", 4, 4), (4, 4, "h", 4)])
def test_unknown_sizes_stop_nothing_that_does_not_need_them(name, x):
    law = LAWS[name]
    kind = "number" if name == "Clip" else "positive"
    data = {"x": np.random.default_rng(0).normal(size=(4, 4, 4, 4)).astype(np.float32)}
    goes(behind(law.middle, kind, x, opset=law.opset), data)


@pytest.mark.parametrize("given", ["Clip", "Max per channel", "Pad with a value"])
def test_numbers_that_a_caller_may_override_stay(given):
    law = LAWS[given]
    made = behind(law.middle, "number")
    held = [t for t in made.graph.initializer if t.name[:2] in ("b.", "b_")]
    bound = (
        held[-1].name if given == "Max per channel" else next(t.name for t in held if not t.dims)
    )
    stays(overridable(made, bound), "not-carried", "no-linear-operator")


def test_a_resize_that_leaves_the_size_equal_still_mixes():
    """Scale 1.04 on four elements gives four: other ones by the definition."""
    goes(behind(resize("linear", scales=(1, 1, 2, 1.04)), "positive"))
    mixed = resize("nearest", "asymmetric", (1, 1.04, 1, 2), nearest_mode="floor")
    stays(behind(mixed, "positive"), "not-carried")


@pytest.mark.parametrize("value", [np.float32(0.5), rand(8, 1, 1)])
def test_a_tile_of_channels_lets_one_number_for_all_pass(value):
    made = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        (op("Tile", "c n", "t"), {"n": np.array([1, 2, 1, 1])}),
        const("Mul", "t", "y", value, name="map"),
        x=(2, 4, 4, 4),
    )
    if value.size == 1:
        folds(made, Conv=1, Tile=1)
    else:
        stays(made, "not-carried")


def test_windows_without_a_known_element_let_nothing_pass():
    """A dilated and padded window may hold padding alone."""
    attrs = {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1]}
    stays(behind(one("MaxPool", **attrs), "shift"), "no-linear-operator")
    leaps = {"kernel_shape": [1, 1], "strides": [2, 3], "ceil_mode": 1}
    stays(behind(one("MaxPool", **leaps), "shift", opset=12), "no-linear-operator")


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_channels_that_are_padded_have_no_map_of_their_own(kind, value):
    middle = pad((0, 1, 0, 0, 0, 1, 0, 0), "constant", np.float32(value))
    for made in (behind(middle, kind, c=4), ahead(middle, kind, reads=6)):
        if made.graph.node[-1].name == "map" and kind not in ("number", "minus", "constant"):
            continue  # it would have to have six channels
        if kind in UNIFORM or kind == "minus":
            goes(made)
        else:
            stays(made)
    other = behind(middle, "number", c=4)
    assert other.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 6


def test_indices_of_a_max_pool_are_left_alone():
    def middle(x: str, y: str) -> Any:
        return [op("MaxPool", x, f"{y} where", kernel_shape=[2, 2])]

    made = behind(middle, "positive", y="y where")
    assert codes(made) == {"map": "no-linear-operator"}
