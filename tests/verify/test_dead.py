"""A layer whose result is multiplied by zero is dead: no comparison can show an error in it.

It leaves nothing open, for a folded model in which it is alive gives other outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import bnfold

from ..graphs import Piece, bn, const, conv, model, op, rand

X = (1, 4, 6, 6)


def zeroed(*pieces: Piece, zeros: str) -> ModelProto:
    """x + a branch whose last scale is zero."""
    made = model(
        conv("inner", "x", "a", (4, 4, 1, 1)),
        bn("norm", "a", "n", 4),
        *pieces,
        op("Add", "x z", "s"),
        conv("last", "s", "y", (4, 4, 1, 1)),
        x=X,
    )
    stored = next(tensor for tensor in made.graph.initializer if tensor.name == zeros)
    values = np.zeros_like(numpy_helper.to_array(stored))
    stored.CopyFrom(numpy_helper.from_array(values, zeros))
    return made


DEAD: dict[str, tuple[list[Piece], str]] = {
    "layer scale": ([op("Sigmoid", "n", "g"), const("Mul", "g", "z", rand(4, 1, 1))], "z_mul.k"),
    "zero gamma": (
        [op("Relu", "n", "g"), conv("outer", "g", "c", (4, 4, 1, 1)), bn("last_norm", "c", "z", 4)],
        "last_norm.scale",
    ),
    "zero weights": ([op("Relu", "n", "g"), conv("outer", "g", "z", (4, 4, 1, 1))], "outer.w"),
}


def off(made: ModelProto, name: str, change: Callable[[Any], Any]) -> ModelProto:
    other = ModelProto.FromString(made.SerializeToString())
    stored = next(tensor for tensor in other.graph.initializer if tensor.name == name)
    values = np.asarray(change(numpy_helper.to_array(stored)), np.float32)
    stored.CopyFrom(numpy_helper.from_array(values, name))
    return other


@pytest.mark.parametrize("kind", DEAD)
def test_a_dead_layer_leaves_nothing_open(kind: str) -> None:
    pieces, zeros = DEAD[kind]
    made = zeroed(*pieces, zeros=zeros)
    other = bnfold.fold(made)
    other.opset_import[0].version += 1  # so that nothing is the same for its operators' sake
    result = bnfold.verify(made, other)
    assert result.status == "pass", result
    assert any(note.startswith("dead, for what they put out") for note in result.notes)
    assert "inner" in "".join(result.notes)
    assert not any("inner" in planted.layers for planted in result.power)
    assert result.power and all(planted.noticed for planted in result.power)


@pytest.mark.parametrize("kind", DEAD)
def test_what_is_not_dead_in_the_other_model_fails(kind: str) -> None:
    pieces, zeros = DEAD[kind]
    made = zeroed(*pieces, zeros=zeros)
    alive = off(made, zeros, lambda values: values + np.float32(0.01))
    assert bnfold.verify(made, alive).status == "fail"
    assert bnfold.verify(made, off(made, "last.w", lambda w: w * np.float32(1.01))).status == "fail"


def test_a_channel_that_is_not_zero_keeps_it_alive() -> None:
    pieces, zeros = DEAD["layer scale"]
    made = zeroed(*pieces, zeros=zeros)
    made = off(made, zeros, lambda values: values + np.array([[[1]], [[0]], [[0]], [[0]]]))
    result = bnfold.verify(made, made)
    assert not any(note.startswith("dead") for note in result.notes)
    assert any("inner" in planted.layers for planted in result.power)


def test_a_layer_that_something_else_reads_is_alive() -> None:
    pieces, zeros = DEAD["layer scale"]
    made = zeroed(*pieces, zeros=zeros)
    made.graph.output.add(name="a")
    wrong = off(made, "inner.w", lambda w: w * np.float32(1.01))
    assert bnfold.verify(made, wrong).status == "fail"
    assert not any("inner" in note for note in bnfold.verify(made, made).notes)
