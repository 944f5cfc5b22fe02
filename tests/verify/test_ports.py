"""Inputs and outputs with other names are paired by position, where that tells which is which."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold._run.hoist import rename

from ..graphs import bn, const, conv, model, op, rand, subgraph

TWO = {"a": (1, 3, 8, 8), "b": (1, 3, 8, 8)}


def original() -> ModelProto:
    """Two inputs and two outputs of the same types and shapes; what differs shows a wrong pair."""
    return model(
        conv("left", "a", "c", (4, 3, 3, 3)),
        bn("bn", "c", "y", 4),
        conv("right", "b", "z", (4, 3, 3, 3)),
        x=TWO,
        y="y z",
    )


def called(made: ModelProto, **names: str) -> ModelProto:
    """A model whose inputs and outputs have other names."""
    for old, new in names.items():
        for node in made.graph.node:
            node.output[:] = [new if name == old else name for name in node.output]
        rename(made.graph, old, new)
        for value in (*made.graph.input, *made.graph.output):
            value.name = new if value.name == old else value.name
    onnx.checker.check_model(made)
    return made


@pytest.mark.parametrize(
    "names, told",
    [
        ({"y": "153"}, "paired in their outputs by position: y is 153"),
        ({"a": "i", "b": "j"}, "paired in their inputs by position: a is i, b is j"),
        ({"a": "i", "z": "o"}, "inputs by position: a is i; outputs by position: z is o"),
    ],
)
def test_other_names_are_paired_by_position_and_that_is_said(
    names: dict[str, str], told: str
) -> None:
    made = original()
    result = bnfold.verify(made, called(bnfold.fold(made), **names))
    assert result.status == "pass"
    assert told in result.notes[0]
    assert {check.output for check in result.checks} == {"y", "z"}


def test_given_inputs_have_the_names_of_the_original() -> None:
    made = original()
    feeds = {name: rand(*shape) for name, shape in TWO.items()}
    assert bnfold.verify(made, called(bnfold.fold(made), a="i"), inputs=feeds).status == "pass"


def test_an_inner_name_of_the_other_file_may_be_the_wanted_one() -> None:
    """Exporters number tensors, so one file's output is another file's inner tensor."""
    made = called(original(), y="153")
    other = bnfold.fold(made)
    other.graph.node.append(helper.make_node("Identity", ["153"], ["161"]))
    other.graph.output[0].name = "161"
    result = bnfold.verify(made, other)
    assert (result.status, result.notes[0][-10:]) == ("pass", "153 is 161")


def test_a_body_may_read_what_is_renamed() -> None:
    def made(inner: str, output: str) -> ModelProto:
        branch = subgraph(const("Add", inner, "r", np.float32(1), name="add"), y="r")
        other = subgraph(op("Identity", inner, "s"), y="s")
        return model(
            op("ReduceMax", "x", "m", keepdims=0),
            op("Less", "m zero", "t"),
            op("Relu", "x", inner),
            op("If", "t", output, then_branch=branch, else_branch=other),
            x=(2, 4),
            y=output,
            weights={"zero": np.float32(0.5)},
        )

    assert bnfold.verify(made("191", "153"), made("153", "191")).notes[0].endswith("153 is 191")


def swapped(made: ModelProto) -> None:
    """Its outputs in the other order, under names that are none of the original's."""
    first, second = made.graph.output
    first.name, second.name = second.name, first.name
    called(made, y="o0", z="o1")


def one_output(made: ModelProto) -> None:
    called(made, y="o0")
    del made.graph.output[1]


def other_type(made: ModelProto) -> None:
    made.graph.node.append(
        helper.make_node("Cast", ["y"], ["o0"], to=TensorProto.DOUBLE, name="to")
    )
    made.graph.output[0].name = "o0"
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def other_shape(made: ModelProto) -> None:
    called(made, a="i")
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 9


def moved_name(made: ModelProto) -> None:
    called(made, y="o0", z="y")


def wrong_weight(made: ModelProto) -> None:
    called(made, y="o0")
    weight = max(made.graph.initializer, key=lambda tensor: len(tensor.dims))
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.02)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


@pytest.mark.parametrize(
    "spoil", [swapped, one_output, other_type, other_shape, moved_name, wrong_weight]
)
def test_what_position_does_not_tell_or_what_differs_fails(
    spoil: Callable[[ModelProto], None],
) -> None:
    made = original()
    other = bnfold.fold(made)
    spoil(other)
    assert bnfold.verify(made, other).status == "fail"
