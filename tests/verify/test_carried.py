"""Certificates of carried maps: a wrong law, wherever it sits, does not get past them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bnfold._core import channels
from bnfold._core.affine import AffineMap
from bnfold._core.bounded import Clipped, Thresholded
from bnfold._core.joins import Summed
from bnfold._core.laws import Edit, Mixed, Padded, Way
from bnfold._core.operators.linear import Convolution
from bnfold._core.parameters import Site
from bnfold._core.parts import Concatenated
from bnfold._core.pointwise import Homogeneous
from bnfold._onnx.read import pointwise
from bnfold._onnx.write.applied import Factor, Related

from ..graphs import bn, const, conv, model, op, positive, rand
from .folds import folded

CONV = ("conv", "x", "c", (4, 3, 3, 3))


def scale_behind(x, c=4):
    return const("Mul", x, "y", positive(c, 1, 1))


def both_behind(x, c=4):
    return (const("Mul", x, "s", rand(c, 1, 1)), const("Add", "s", "y", rand(c, 1, 1)))


MODELS = {
    "relu": lambda: model(conv(*CONV), op("Relu", "c", "r"), scale_behind("r")),
    "relu-shift": lambda: model(
        conv(*CONV), op("Relu", "c", "r"), const("Add", "r", "y", rand(4, 1, 1))
    ),
    "relu-negative": lambda: model(
        conv(*CONV), op("Relu", "c", "r"), const("Mul", "r", "y", -positive(4, 1, 1))
    ),
    "max-pool": lambda: model(
        conv(*CONV),
        op("MaxPool", "c", "r", kernel_shape=[2, 2]),
        const("Mul", "r", "y", -positive(4, 1, 1)),
    ),
    "average-pool": lambda: model(
        conv(*CONV),
        op("AveragePool", "c", "r", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        const("Add", "r", "y", rand(4, 1, 1)),
    ),
    "sum": lambda: model(
        conv("a", "x", "ca", (4, 3, 3, 3)),
        op("Relu", "x", "r"),
        conv("b", "r", "cb", (4, 3, 3, 3)),
        op("Add", "ca cb", "s0"),
        *both_behind("s0"),
    ),
    "concat": lambda: model(
        conv("a", "x", "ca", (2, 3, 3, 3)),
        conv("b", "x", "cb", (2, 3, 3, 3)),
        op("Concat", "ca cb", "s0", axis=1),
        *both_behind("s0"),
    ),
    "clip": lambda: model(
        conv(*CONV),
        (op("Clip", "c lo hi", "r"), {"lo": np.float32(0), "hi": np.float32(6)}),
        const("Mul", "r", "y", np.float32(3)),
    ),
    "clip-high": lambda: model(
        conv(*CONV),
        (op("Clip", "c lo hi", "r"), {"lo": np.float32(-40), "hi": np.float32(60)}),
        const("Mul", "r", "y", np.float32(3)),
    ),
    "threshold": lambda: model(
        conv(*CONV),
        op("ThresholdedRelu", "c", "r"),
        const("Mul", "r", "y", np.float32(0.3)),
    ),
    "threshold-high": lambda: model(
        const("Mul", "x", "m", np.float32(0.3)),
        op("ThresholdedRelu", "m", "r", alpha=-25.0),
        conv("conv", "r", "y", (4, 3, 3, 3)),
    ),
    "threshold-shift": lambda: model(
        conv(*CONV),
        op("ThresholdedRelu", "c", "r", alpha=0.5),
        const("Add", "r", "y", np.float32(0.3)),
    ),
    "pad": lambda: model(
        (op("Pad", "x p", "a"), {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}),
        conv("first", "a", "c0", (4, 3, 1, 1)),
        (op("Pad", "c0 p", "r"), {}),
        const("Add", "r", "y", np.float32(3)),
    ),
    "ahead": lambda: model(bn("bn", "x", "a", 3), conv("conv", "a", "y", (4, 3, 3, 3))),
    "ahead-padded": lambda: model(
        bn("bn", "x", "a", 3), conv("conv", "a", "y", (4, 3, 3, 3), pads=[1] * 4)
    ),
    "ahead-groups": lambda: model(
        bn("bn", "x", "a", 6), conv("conv", "a", "y", (4, 3, 3, 3), group=2), x=(2, 6, 7, 7)
    ),
}


def pass_shifts(patch):
    patch.setattr(Homogeneous, "_check", lambda self, map_: None)


def pass_negative(patch):
    right = Mixed._moved

    def wrong(self, map_, axes, factor):
        return right(Mixed(self.axes, self.weight), map_, axes, factor)

    patch.setattr(Mixed, "_moved", wrong)


def count_padding(patch):
    right = Mixed._moved
    patch.setattr(Mixed, "_moved", lambda self, m, a, f: right(self, m, a, 1.0 if f is None else f))


def shift_both(patch):
    right = Summed.backward

    def wrong(self, output, map_):
        return [Way({0: map_, 1: map_})] if right(self, output, map_) else []

    patch.setattr(Summed, "backward", wrong)


def swap_parts(patch):
    right = Concatenated.backward

    def wrong(self, output, map_):
        (way,) = right(self, output, map_)
        return [Way({0: way.maps[1], 1: way.maps[0]})]

    patch.setattr(Concatenated, "backward", wrong)


def leave_bounds(patch):
    right = Clipped._edit
    patch.setattr(Clipped, "_edit", lambda self, moved: right(self, lambda bound: bound))


def leave_threshold(patch):
    patch.setattr(Thresholded, "_edit", lambda self, moved: None)


def move_bounds_too_far(patch):
    """By a part in a thousand."""
    for law in (Clipped, Thresholded):
        right = law._edit

        def wrong(self, moved, right=right):
            return right(self, lambda number: moved(number) * 1.001)

        patch.setattr(law, "_edit", wrong)


def let_the_value_be(patch):
    patch.setattr(Thresholded, "_edit", lambda self, m: Edit({"threshold": m(self.threshold)}))


def leave_value(patch):
    patch.setattr(Padded, "_edit", lambda self, value: None)


def misplace_bounds(patch):
    patch.setattr(pointwise, "_BOUNDS", {"max": 1, "min": 2})


def ignore_padding(patch):
    patch.setattr(Convolution, "_partial", None)


def turn_groups(patch):
    right = channels.conv_inputs

    def wrong(shape, group):
        made = right(shape, group)
        turned = (made.view[2], made.view[1], made.view[0], *made.view[3:])
        return channels.ChannelLayout(turned, (made.along[2], 1, made.along[0], *made.along[3:]))

    patch.setattr(channels, "conv_inputs", wrong)


def forget_the_image(patch):
    patch.setattr(Site, "image", lambda self, shift: np.zeros(1))


def scale_twice(patch):
    right = Site._entered

    def wrong(self, ahead):
        twice = AffineMap.of(ahead.scale**2, 0.0, ahead.axis)
        return right(self, twice)

    patch.setattr(Site, "_entered", wrong)


BUGS: list[tuple[str, Callable[..., None], tuple[str, ...]]] = [
    ("shift through Relu", pass_shifts, ("relu-shift", "relu-negative")),
    ("negative scale through a maximum", pass_negative, ("max-pool",)),
    ("shift through counted padding", count_padding, ("average-pool",)),
    ("shift into both summands", shift_both, ("sum",)),
    ("parts of a Concat swapped", swap_parts, ("concat",)),
    ("bounds left", leave_bounds, ("clip",)),
    ("bounds misplaced", misplace_bounds, ("clip",)),
    ("threshold left", leave_threshold, ("threshold", "threshold-high")),
    (
        "bounds nearly right",
        move_bounds_too_far,
        ("clip", "clip-high", "threshold", "threshold-high"),
    ),
    ("shift past a fixed value", let_the_value_be, ("threshold-shift",)),
    ("padding left", leave_value, ("pad",)),
    ("shift across zero padding", ignore_padding, ("ahead-padded",)),
    ("groups turned", turn_groups, ("ahead-groups",)),
    ("shift forgotten", forget_the_image, ("ahead", "ahead-groups")),
    ("scale twice", scale_twice, ("ahead", "ahead-groups")),
]
CASES = [(bug, name, plant) for bug, plant, names in BUGS for name in names]


STAY = ("relu-shift", "relu-negative", "average-pool", "max-pool", "threshold-shift")


@pytest.mark.parametrize("name", [name for name in MODELS if name not in STAY])
def test_right_laws_hold(name):
    assert all(certificate.holds for certificate in folded(MODELS[name]()).certificates())


CARRIED = [name for name in MODELS if name not in (*STAY, "ahead", "ahead-padded", "ahead-groups")]


@pytest.mark.parametrize("name", CARRIED)
def test_nothing_rests_on_what_is_unknown(name):
    """Were nothing known of the tensors on the way, what reads the last of them would fail."""
    fold = folded(MODELS[name]())
    unknown = Related((Factor(np.array([np.nan]), np.zeros(1), None),), ())
    applied = tuple(
        replace(step, related=dict.fromkeys(step.related, unknown)) for step in fold.applied
    )
    fold = replace(fold, applied=applied)
    problems = [c.problem for c in fold.certificates() if not c.holds]
    assert problems
    assert all("nothing is known" in problem for problem in problems)


@pytest.mark.parametrize("bug, name, plant", CASES, ids=[f"{bug}-{name}" for bug, name, _ in CASES])
def test_wrong_laws_are_noticed(bug, name, plant, monkeypatch):
    plant(monkeypatch)
    fold = folded(MODELS[name]())
    monkeypatch.undo()
    assert any(not certificate.holds for certificate in fold.certificates())
