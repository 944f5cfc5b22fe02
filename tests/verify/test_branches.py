"""Weights in bodies: moved like any other, and branches that no input takes are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold._pipeline.models import fold_file
from bnfold._run.hoist import hoist
from bnfold._run.nodes import all_nodes
from bnfold._run.perturbable import find_weights

from .. import graphs
from ..graphs import bn, const, conv, model, op, rand, subgraph


def product(x: str, y: str, weight: str, *shape: int) -> tuple[NodeProto, dict[str, np.ndarray]]:
    return op("MatMul", f"{x} {weight}", y), {weight: rand(*shape)}


def rated(rate: str = "rate", other: int = 16000) -> ModelProto:
    """As in a voice detector: a network for one sampling rate, and one for all others."""
    then = subgraph(product("x", "t", "w", 4, 4), op("Tanh", "t", "ty"), y="ty")
    also = subgraph(product("x", "e", "w", 4, 4), op("Relu", "e", "ey"), y="ey")
    made = model(
        const("Equal", rate, "cond", np.int64(other)),
        op("If", "cond", "y", then_branch=then, else_branch=also),
        x={"x": (3, 4), rate: ()},
    )
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    return made


def on_data(weight: str = "w") -> ModelProto:
    """A branch that no drawn input takes, since nothing is below 0 there."""
    branches = [
        subgraph(product("x", y, weight, 4, 4), op("Relu", y, f"{y}y"), y=f"{y}y") for y in "te"
    ]
    return model(
        op("Abs", "x", "a"),
        op("ReduceSum", "a", "s", keepdims=0),
        const("Less", "s", "never", np.float32(0)),
        op("If", "never", "y", then_branch=branches[0], else_branch=branches[1]),
        x=(3, 4),
    )


def branch(made: ModelProto, name: str) -> GraphProto:
    (node,) = (node for node in made.graph.node if node.op_type == "If")
    return next(each.g for each in node.attribute if each.name == name)


def changed(made: ModelProto, name: str, factor: float = 1.01) -> ModelProto:
    """A copy with another weight in a branch."""
    wrong = ModelProto()
    wrong.CopyFrom(made)
    tensor = branch(wrong, name).initializer[0]
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return wrong


@pytest.mark.parametrize("name", ["then_branch", "else_branch"])
@pytest.mark.parametrize("factor", [1.01, 1.0002])
def test_an_integer_is_drawn_as_what_it_is_compared_with_and_otherwise(
    name: str, factor: float
) -> None:
    made = rated()
    right = bnfold.verify(made, made, power=True)
    assert right.status == "pass"
    assert {check.inputs for check in right.checks} >= {"signed", "signed rate=8000"}
    assert [planted.noticed for planted in right.power] == [True, True]
    assert bnfold.verify(made, changed(made, name, factor)).status == "fail"


def test_an_integer_that_is_compared_with_several_constants() -> None:
    """Every branch of a chain is taken: each constant is drawn, and one that is none of them."""
    rates = [8000, 16000, 24000, 48000]
    body = subgraph(product("x", "o", "w", 4, 4), op("Identity", "o", "o_"), y="o_")
    for n, rate in enumerate(rates):
        then = subgraph(product("x", f"t{n}", "w", 4, 4), op("Tanh", f"t{n}", f"u{n}"), y=f"u{n}")
        body = subgraph(
            const("Equal", "rate", f"c{n}", np.int64(rate)),
            op("If", f"c{n}", f"v{n}", then_branch=then, else_branch=body),
            y=f"v{n}",
        )
    made = model(
        const("Less", "rate", "below", np.int64(0)),
        op("If", "below", "y", then_branch=body, else_branch=body),
        x={"x": (3, 4), "rate": ()},
    )
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    result = bnfold.verify(made, made, power=True)
    drawn = {check.inputs for check in result.checks}
    assert drawn == {"signed", "unsigned", "structured"} | {
        f"signed rate={rate}" for rate in (16000, 24000, 24001)
    }
    assert [planted.noticed for planted in result.power].count(True) == len(rates) + 1


def test_an_integer_that_the_original_takes_no_other_value_of() -> None:
    """The other branch asks for a row that nothing has: it is told that it was not compared."""
    made = rated()
    other = branch(made, "else_branch")
    other.node.insert(0, op("Gather", "x row", "rows"))
    other.node[1].input[0] = "rows"
    other.initializer.append(graphs.tensor(np.int64([9, 9, 9]), "row", TensorProto.INT64))
    assert bnfold.verify(made, made).status == "pass"
    result = bnfold.verify(made, changed(made, "else_branch"))
    assert result.status == "inconclusive"
    assert {check.inputs for check in result.checks} == {"signed", "unsigned", "structured"}
    assert any("the else_branch of" in note and "not compared" in note for note in result.notes)


def test_a_branch_that_no_input_takes_is_compared_as_it_stands() -> None:
    made = on_data()
    assert bnfold.verify(made, made).status == "pass"
    assert bnfold.verify(made, on_data_renamed(made)).status == "pass"
    wrong = changed(made, "then_branch")
    result = bnfold.verify(made, wrong)
    assert result.status == "inconclusive"
    assert any("no input took the then_branch of y_if" in note for note in result.notes)
    given = bnfold.verify(made, wrong, inputs={"x": rand(3, 4)})
    assert given.status == "pass"
    assert any("no input took" in note for note in given.notes)


def shared(condition: NodeProto) -> ModelProto:
    """Both branches read the same weight of the main graph, one of them behind a Transpose."""
    then = subgraph(op("MatMul", "x v", "t"), op("Tanh", "t", "ty"), y="ty")
    also = subgraph(op("MatMul", "x w", "e"), op("Relu", "e", "ey"), y="ey")
    return model(
        op("Abs", "x", "a"),
        op("ReduceSum", "a", "s", keepdims=0),
        op("Transpose", "w", "v"),
        condition,
        op("If", "never", "y", then_branch=then, else_branch=also),
        x=(3, 4),
        weights={"w": rand(4, 4), "zero": np.float32(0), "one": np.float32(1)},
    )


@pytest.mark.parametrize(
    ("condition", "told"),
    [(op("Less", "s zero", "never"), True), (op("Less", "one zero", "never"), False)],
)
def test_a_branch_whose_weights_are_read_elsewhere_too_or_that_none_can_take(
    condition: NodeProto, told: bool
) -> None:
    """Errors in its weights would have shown: a branch that only has other operators is told, where
    an input could take it, and no more.
    """
    made = shared(condition)
    other = ModelProto()
    other.CopyFrom(made)
    branch(other, "then_branch").node[1].op_type = "Sigmoid"
    result = bnfold.verify(made, other)
    assert result.status == "pass"
    assert any("no input took" in note for note in result.notes) == told


def on_data_renamed(made: ModelProto) -> ModelProto:
    """The same with other names in its branches, and a weight in a Constant."""
    other = ModelProto()
    other.CopyFrom(made)
    body = branch(other, "then_branch")
    (tensor,) = body.initializer
    node = helper.make_node("Constant", [], ["renamed"], value=tensor)
    first, second = body.node
    first.input[1], first.output[0], second.input[0] = "renamed", "product", "product"
    body.node.insert(0, node)
    del body.initializer[:]
    return other


ALTERED: list[Callable[[GraphProto], None]] = [
    lambda body: setattr(body.node[1], "op_type", "Elu"),
    lambda body: body.node[0].input.reverse(),
    lambda body: body.node[1].input.__setitem__(0, "x"),
    lambda body: setattr(body.node[1].attribute[0], "f", 0.25),
]


@pytest.mark.parametrize("alter", ALTERED)
def test_other_operators_in_a_branch_that_no_input_takes(
    alter: Callable[[GraphProto], None],
) -> None:
    made = on_data()
    body = branch(made, "then_branch")
    body.initializer[0].CopyFrom(graphs.tensor(rand(4, 4), "w"))
    body.node[1].op_type = "LeakyRelu"
    body.node[1].attribute.append(helper.make_attribute("alpha", 0.5))
    wrong = ModelProto()
    wrong.CopyFrom(made)
    alter(branch(wrong, "then_branch"))
    square = {"x": rand(4, 4)}
    for each in (made, wrong):
        del each.graph.input[0].type.tensor_type.shape.dim[:]
        each.graph.input[0].type.tensor_type.shape.dim.add(dim_value=4)
        each.graph.input[0].type.tensor_type.shape.dim.add(dim_value=4)
        graphs.run(each, square)
    assert bnfold.verify(made, made).status == "pass"
    assert bnfold.verify(made, wrong).status == "inconclusive"


def nested() -> ModelProto:
    """Equal names in several bodies, one in a body of a body, one that a body hides, one that is
    put out as it is, and a loop.
    """
    inner = subgraph(product("t", "u", "w", 4, 4), op("Add", "u b", "i"), y="i")
    hidden = subgraph(product("t", "v", "own", 4, 4), op("Mul", "v w", "j"), y="j")
    hidden.initializer.append(graphs.tensor(rand(4), "w"))
    then = subgraph(
        product("x", "t", "w", 4, 4),
        (op("If", "flag", "k", then_branch=inner, else_branch=hidden), {"b": rand(4)}),
        op("MatMul", "k w", "ty"),
        y="ty",
    )
    also = subgraph(product("x", "e", "w", 4, 4), op("MatMul", "e m", "ey"), y="ey")
    held = graphs.tensor(rand(4, 4), "m")
    also.node.insert(0, helper.make_node("Constant", [], ["m"], value=held))
    body = subgraph(
        product("h", "n", "w", 4, 4),
        op("Tanh", "n", "g"),
        op("Identity", "cond_in", "cond_out"),
        x={"n_": (7, ()), "cond_in": (9, ()), "h": (3, 4)},
        y="cond_out g",
    )
    made = model(
        op("If", "flag", "y", then_branch=then, else_branch=also),
        op("Loop", "trips _ y", "z", body=body),
        x={"x": (3, 4), "flag": ()},
        y="z",
        weights={"trips": np.int64(2)},
    )
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    return made


@pytest.mark.parametrize("flag", [False, True])
def test_weights_moved_out_of_bodies_change_nothing(flag: bool) -> None:
    made = nested()
    given = {"x": rand(3, 4), "flag": np.array(flag)}
    (expected,) = graphs.run(made, given)
    moved = ModelProto()
    moved.CopyFrom(made)
    assert hoist(moved)
    assert not hoist(moved)
    assert np.array_equal(graphs.run(moved, given)[0], expected)
    left = {t.name for node in moved.graph.node for a in node.attribute for t in a.g.initializer}
    assert not left
    assert not any(node.op_type == "Constant" for node in all_nodes(moved.graph.node))
    found = find_weights(moved, Path()).values
    assert sum(values is not None and values.shape == (4, 4) for values in found.values()) == 6


def test_errors_in_bodies_are_planted() -> None:
    """All are noticed but that in the branch which would have to be taken and not to be taken."""
    made = nested()
    assert bnfold.verify(made, made).status == "pass"
    result = bnfold.verify(made, made, power=True)
    assert [planted.noticed for planted in result.power].count(False) == 1
    assert len(result.power) == 6
    assert result.status == "inconclusive"


def test_what_a_body_puts_out_as_it_is_stays() -> None:
    branches = []
    for name in "te":
        body = subgraph(product("x", name, f"w{name}", 4, 4), y=f"{name} w{name}")
        branches.append(body)
    made = model(
        op("If", "flag", "y z", then_branch=branches[0], else_branch=branches[1]),
        x={"x": (3, 4), "flag": ()},
        y="y z",
    )
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    assert not hoist(made)


def test_folds_in_bodies_are_compared_with_a_measured_tolerance(tmp_path: Path) -> None:
    """The command's own verification, where the main graph has no weights at all."""
    branches = [
        subgraph(conv(f"c{y}", "x", y, (4, 3, 1, 1)), bn(f"n{y}", y, f"{y}y", 4), y=f"{y}y")
        for y in "te"
    ]
    made = model(
        op("If", "flag", "y", then_branch=branches[0], else_branch=branches[1]),
        x={"x": (2, 3, 5, 5), "flag": ()},
    )
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    onnx.save(made, tmp_path / "model.onnx")
    outcome = fold_file(
        tmp_path / "model.onnx",
        tmp_path / "folded.onnx",
        verify=True,
        inputs=None,
        progress=lambda step: None,
    )
    assert outcome.verdict.status == "pass"
    result = outcome.verdict.end_to_end
    assert result is not None
    assert [planted.noticed for planted in result.power] == [True]
    assert not result.notes
