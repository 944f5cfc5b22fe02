"""Files in onnxruntime's blocked layout: nothing folds, and the reason says what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bnfold

from . import graphs
from .graphs import bn, const, conv, model, op, rand

NCHWC = "com.microsoft.nchwc"
X = (2, 8, 8, 8)


def blocked(*pieces, **options):
    return model(*pieces, x=X, domains={NCHWC: 1}, **options)


def codes(made):
    once = graphs.done(made)
    assert once.folded.SerializeToString() == made.SerializeToString()
    return {k.node: k.code for k in once.plan.kept}


def test_maps_on_either_side_name_the_layout():
    """Behind it the rank is known, and the axis of the map with it."""
    made = blocked(
        bn("first", "x", "a", 8),
        op("ReorderInput", "a", "b", domain=NCHWC, channels_last=0),
        op("Conv", "b w", "c", domain=NCHWC, activation="Relu"),
        op("ReorderOutput", "c", "d", domain=NCHWC, channels=8, channels_last=0),
        const("Mul", "d", "y", rand(8, 1, 1), name="last"),
        weights={"w": rand(8, 8, 1, 1)},
    )
    assert codes(made) == dict.fromkeys(("first", "last"), "blocked-layout")
    (kept, *_) = graphs.done(made).plan.kept
    assert "saved the file" in kept.message and "level extended" in kept.advice


def test_channels_last_are_on_the_last_axis():
    made = blocked(
        op("ReorderInput", "x", "b", domain=NCHWC),
        op("ReorderOutput", "b", "d", domain=NCHWC, channels=8, channels_last=1),
        const("Mul", "d", "s", rand(8), name="along"),
        const("Mul", "s", "y", rand(8, 1, 1), name="across"),
    )
    assert codes(made)["along"] == "blocked-layout"
    assert codes(made)["across"] != "blocked-layout"  # of a size that is not known


@pytest.mark.parametrize(
    "attrs, inputs, listed",
    [
        ({"group": 8}, "b w", True),
        ({"group": 8}, "b w v", True),
        ({"group": 8, "activation": "Relu"}, "b w v", False),
        ({"group": 8}, "b w v b", False),
        ({"group": 4}, "b u", False),
    ],
    ids=["scale", "and shift", "with an activation", "with a sum", "of pairs"],
)
def test_a_map_that_has_become_a_convolution_is_listed(attrs, inputs, listed):
    made = blocked(
        op("ReorderInput", "x", "b", domain=NCHWC),
        op("Conv", inputs, "c", name="map", domain=NCHWC, **attrs),
        op("ReorderOutput", "c", "y", domain=NCHWC, channels=8),
        weights={"w": rand(8, 1, 1, 1), "v": rand(8), "u": rand(8, 2, 1, 1)},
    )
    assert codes(made) == ({"map": "blocked-layout"} if listed else {})


def test_a_file_that_onnxruntime_saved(tmp_path: Path):
    """The same file saved at the level extended folds; so does the original."""
    made = model(
        bn("bn", "x", "a", 8),
        conv("c1", "a", "h", (16, 8, 1, 1)),
        op("Relu", "h", "r"),
        const("Mul", "r", "s", rand(16, 1, 1), name="mul"),
        conv("c2", "s", "y", (16, 16, 3, 3), pads=[1] * 4),
        x=X,
    )
    found = {}
    for level in ("ENABLE_EXTENDED", "ENABLE_ALL"):
        found[level] = graphs.optimized(made, tmp_path / f"{level}.onnx", level)
    assert not bnfold.plan(found["ENABLE_EXTENDED"]).kept
    saved = found["ENABLE_ALL"]
    if all(node.domain != NCHWC for node in saved.graph.node):
        pytest.skip("this processor has no blocked layout")
    assert {k.code for k in bnfold.plan(saved).kept} == {"blocked-layout"}
    assert np.array_equal(
        graphs.run(saved, graphs.feeds(made))[0],
        graphs.run(bnfold.fold(saved), graphs.feeds(made))[0],
    )
