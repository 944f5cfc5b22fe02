"""Weights that cannot be moved: the inputs are moved instead, before a difference is a failure."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold

from ..graphs import Piece, const, conv, model, op, rand, reseed

X = (1, 3, 8, 8)
INT = TensorProto.INT64


def hidden(*pieces: Piece, kind: int = TensorProto.FLOAT, scale: float = 1) -> ModelProto:
    """A Conv whose weights a local function holds, so that no run can move them, and an ending."""
    imports = [helper.make_opsetid("", 17)]
    body = [
        op("Constant", "", "w", value=numpy_helper.from_array(rand(4, 3, 3, 3), "w")),
        op("Conv", "a w", "c"),
        op("Constant", "", "k", value=numpy_helper.from_array(np.float32(scale), "k")),
        op("Mul", "c k", "b"),
    ]
    function = helper.make_function("f", "layer", ["a"], ["b"], body, imports)
    made = model(
        op("layer", "x", "t", domain="f"), *pieces, x=X, functions=[function], domains={"f": 1}
    )
    made.graph.output[0].type.tensor_type.elem_type = kind
    return made


def changed(made: ModelProto, factor: float | None) -> ModelProto:
    """One channel of the weights off by a factor, or all of them by one rounding step for None."""
    other = ModelProto.FromString(made.SerializeToString())
    held = other.functions[0].node[0].attribute[0].t
    values = numpy_helper.to_array(held).copy()
    if factor is None:
        values = np.nextafter(values, np.float32(9))
    else:
        values[0] *= np.float32(factor)
    held.CopyFrom(numpy_helper.from_array(values, "w"))
    return other


PHASE = op("Sin", "t", "y")
INDICES = op("Cast", "t", "y", to=INT)


@pytest.mark.parametrize("piece, kind", [(PHASE, TensorProto.FLOAT), (INDICES, INT)])
def test_where_rounding_alone_moves_the_original_nothing_is_decided(
    piece: Piece, kind: int
) -> None:
    reseed()
    made = hidden(piece, kind=kind, scale=1e6)
    result = bnfold.verify(made, changed(made, None))
    assert result.status == "inconclusive"
    assert {check.note for check in result.checks} == {"rounding alone changes it"}
    assert "the inputs are where outputs differ" in result.notes[0]
    assert bnfold.verify(made, changed(made, 1.02)).status != "pass"


@pytest.mark.parametrize("piece", [op("Identity", "t", "y"), PHASE])
def test_what_rounding_does_not_explain_fails(piece: Piece) -> None:
    reseed()
    made = hidden(piece)
    assert bnfold.verify(made, changed(made, None)).status == "pass"
    assert bnfold.verify(made, changed(made, 1.02)).status == "fail"


def test_a_chosen_tolerance_is_that_of_the_user() -> None:
    made = hidden(PHASE, scale=1e6)
    assert bnfold.verify(made, changed(made, None), atol=1e-6).status == "fail"


def test_a_large_phase_of_weights_that_can_be_moved_fails_no_right_fold() -> None:
    made = model(
        conv("conv", "x", "c", (4, 3, 3, 3)), const("Mul", "c", "t", np.float32(1e6)), PHASE, x=X
    )
    other = ModelProto.FromString(made.SerializeToString())
    stored = next(tensor for tensor in other.graph.initializer if tensor.name == "conv.w")
    values = np.nextafter(numpy_helper.to_array(stored), np.float32(9))
    stored.CopyFrom(numpy_helper.from_array(values, "conv.w"))
    assert bnfold.verify(made, other).status in ("pass", "inconclusive")
    wrong = values.copy()
    wrong[0] *= np.float32(1.02)
    stored.CopyFrom(numpy_helper.from_array(wrong, "conv.w"))
    assert bnfold.verify(made, other).status != "pass"


def test_an_output_that_no_weight_reaches_that_can_be_moved() -> None:
    """Rounding is not zero there, only because other outputs have weights that can be moved."""
    reseed()
    made = hidden(op("Identity", "t", "y"), conv("conv", "t", "z", (4, 4, 1, 1)))
    made.graph.output.add(name="z")
    result = bnfold.verify(made, changed(made, None))
    assert {(check.output, check.status) for check in result.checks} == {
        ("y", "inconclusive"),
        ("z", "pass"),
    }
    assert bnfold.verify(made, changed(made, 1.02)).status == "fail"
