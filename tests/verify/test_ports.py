"""Inputs and outputs with other names are paired by position, where that tells which is which."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold._run.draws import Form, _orders
from bnfold._run.hoist import rename
from bnfold._run.ports import renamed, ways_of_inputs

from ..graphs import bn, const, conv, model, op, rand, subgraph

X = (1, 3, 8, 8)
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
    wrong_weight_in(made)


def wrong_weight_in(made: ModelProto) -> None:
    weight = max(made.graph.initializer, key=lambda tensor: len(tensor.dims))
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.02)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def wrong_weight_of_two(made: ModelProto) -> None:
    wrong_weight(made)
    called(made, z="o1")


def wrong_weight_of_swapped(made: ModelProto) -> None:
    swapped(made)
    wrong_weight(made)


@pytest.mark.parametrize(
    "spoil",
    [
        one_output,
        other_type,
        other_shape,
        moved_name,
        wrong_weight,
        wrong_weight_of_two,
        wrong_weight_of_swapped,
    ],
)
def test_what_position_does_not_tell_or_what_differs_fails(
    spoil: Callable[[ModelProto], None],
) -> None:
    made = original()
    other = bnfold.fold(made)
    spoil(other)
    assert bnfold.verify(made, other).status == "fail"


# --- ports of one type in another order ----------------------------------------------------------


def turned_inputs(made: ModelProto) -> None:
    """Its inputs in the other order, and other names for them."""
    made.graph.input.reverse()
    called(made, a="i", b="j")


def turned_all(made: ModelProto) -> None:
    turned_inputs(made)
    swapped(made)


@pytest.mark.parametrize("turn", [swapped, turned_inputs, turned_all])
def test_another_order_is_no_failure(turn: Callable[[ModelProto], None]) -> None:
    """A right fold whose renamed ports lie in another order: nothing but values tells that."""
    made = original()
    other = bnfold.fold(made)
    turn(other)
    for inputs in (None, {name: rand(*shape) for name, shape in TWO.items()}):
        result = bnfold.verify(made, other, inputs=inputs)
        assert result.status == "inconclusive"
        assert "paired by position the two differ, but they agree in another order" in str(result)
        assert {check.status for check in result.checks} == {"pass"}


@pytest.mark.parametrize("order", ["yzu", "zuy", "uyz", "uzy", "zyu"])
def test_of_outputs_that_are_near_the_nearest_counts(order: str) -> None:
    near = (const("Mul", "y", name, np.float32(k)) for name, k in (("z", 1.001), ("u", 0.999)))
    made = model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4), *near, x=X, y="y z u")
    other = bnfold.fold(made)
    outputs = {value.name: value for value in made.graph.output}
    del other.graph.output[:]
    other.graph.output.extend(outputs[name] for name in order)
    called(other, y="o0", z="o1", u="o2")
    wanted = "pass" if order == "yzu" else "inconclusive"
    assert bnfold.verify(made, other).status == wanted
    wrong_weight_in(other)
    assert bnfold.verify(made, other).status == "fail"


def test_another_order_of_other_types_is_no_failure() -> None:
    """Position does not fit the types then; names that both have stay where they are."""

    def made(*outputs: str) -> ModelProto:
        found = model(
            conv("conv", "x", "y", (4, 3, 1, 1)),
            op("ArgMax", "y", "k", axis=1),
            op("ReduceMean", "y", "m", keepdims=0),
            x=X,
            y="y k m",
        )
        types = {"y": (TensorProto.FLOAT, [1, 4, 8, 8]), "k": (TensorProto.INT64, [1, 1, 8, 8])}
        types["m"] = (TensorProto.FLOAT, [])
        del found.graph.output[:]
        for name in outputs:
            found.graph.output.append(helper.make_tensor_value_info(name, *types[name]))
        return found

    one = made("y", "k", "m")
    for order, names in (("mky", {"y": "a", "k": "b", "m": "c"}), ("kym", {"y": "a", "k": "b"})):
        other = made(*order)
        for stored, same in zip(other.graph.initializer, one.graph.initializer, strict=True):
            stored.CopyFrom(same)
        called(other, **names)
        result = bnfold.verify(one, other)
        assert result.status == "inconclusive"
        assert "a" in result.notes[0] and "in another order" in result.notes[0]
        wrong_weight_in(other)
        assert bnfold.verify(one, other).status == "fail"


def test_three_outputs_in_another_order() -> None:
    made = model(*(conv(f"c{k}", "x", f"y{k}", (4, 3, 1, 1)) for k in range(3)), x=X, y="y0 y1 y2")
    other = ModelProto()
    other.CopyFrom(made)
    other.graph.output.insert(0, other.graph.output.pop())
    called(other, y0="p", y1="q", y2="r")
    assert bnfold.verify(made, other).status == "inconclusive"
    other.graph.node[1].input[1] = "c0.w"
    assert bnfold.verify(made, other).status == "fail"


def test_more_ways_than_are_tried_say_nothing() -> None:
    """Five inputs may belong together in 120 ways, and the first that is right is not among those
    that are tried; of four all are.
    """
    for count, status in ((4, "fail"), (5, "inconclusive")):
        names = [f"x{k}" for k in range(count)]
        made = model(
            op("Concat", " ".join(names), "j", axis=1),
            conv("c", "j", "y", (4, 3 * count, 1, 1)),
            x=dict.fromkeys(names, X),
        )
        other = ModelProto()
        other.CopyFrom(made)
        called(other, **{name: f"i{name}" for name in names})
        assert bnfold.verify(made, other).status == "pass"
        stored = other.graph.initializer[0]
        values = onnx.numpy_helper.to_array(stored) * np.float32(1.02)
        stored.CopyFrom(onnx.numpy_helper.from_array(values, stored.name))
        result = bnfold.verify(made, other)
        assert result.status == status
        assert ("more than 24 other ways" in str(result)) == (count == 5)


def test_notes_on_an_inner_tensor_follow_its_name() -> None:
    made = called(original(), y="153")
    other = bnfold.fold(made)
    other.graph.node.append(helper.make_node("Identity", ["153"], ["161"]))
    other.graph.output[0].name = "161"
    other.graph.value_info.append(helper.make_tensor_value_info("153", TensorProto.FLOAT, [7]))
    pairing = renamed(made, other)
    assert pairing is not None
    pairing(other)
    assert [value.name for value in other.graph.value_info] == ["153_1"]
    assert [value.name for value in other.graph.output] == ["153", "z"]


def test_ways_to_pair_many_ports_are_found_at_once() -> None:
    """Input k fits those of the original from number k on, so that there is one way. A search that
    does not look ahead tries all orders of the rest.
    """
    count = 14
    made = model(op("Sum", " ".join(f"x{k}" for k in range(count)), "y"), x={})
    other = model(op("Sum", " ".join(f"i{k}" for k in range(count)), "y"), x={})
    for k in range(count):
        shape = [1 if axis == k else None for axis in range(count)]
        made.graph.input.append(helper.make_tensor_value_info(f"x{k}", TensorProto.FLOAT, shape))
        shape = [2 if axis < k else None for axis in range(count)]
        other.graph.input.append(helper.make_tensor_value_info(f"i{k}", TensorProto.FLOAT, shape))
    pairing = renamed(made, other)
    assert pairing is not None
    assert list(ways_of_inputs(pairing, made, other)) == [pairing.inputs]


def test_of_many_inputs_two_may_have_changed_places() -> None:
    names = [f"x{k}" for k in range(60)]
    made = model(op("Sum", " ".join(names), "y"), x=dict.fromkeys(names, X))
    other = ModelProto()
    other.CopyFrom(made)
    called(other, **{name: f"i{name}" for name in names})
    pairing = renamed(made, other)
    assert pairing is not None
    ways = list(ways_of_inputs(pairing, made, other))
    assert ways[0] == pairing.inputs
    assert len(ways) == 1 + 60 * 59 // 2


def test_orders_of_many_draws_are_found_at_once() -> None:
    """Of twelve alike and one that is not there is none, and none is sought."""
    alike: Form = ("RandomNormalLike", [])
    ours: list[Form] = [alike] * 12 + [("RandomUniformLike", [])]
    assert list(_orders(ours, [alike] * 12 + [("Bernoulli", [])])) == []
    assert len(list(islice(_orders(ours, ours[::-1]), 7))) == 7
