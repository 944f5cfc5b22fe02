"""``--tidy``: what does nothing goes, and nobody outside sees it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold._onnx.front.tidying import tidy

from .. import zoo
from ..cli.command import bnfold as command
from ..graphs import (
    HALF,
    conv,
    counts,
    feeds,
    i64,
    model,
    op,
    overridable,
    rand,
    run,
    subgraph,
    valid,
)


def branch(*pieces, y="out"):
    return subgraph(*pieces, y=y)


def loop():
    """Its condition and a state go through Identity, from an input to an output: these stay."""
    body = helper.make_graph(
        [
            op("Identity", "cond", "cond_out"),
            op("Identity", "state", "held"),
            op("Add", "held x", "sum"),
            op("Identity", "sum", "state_out"),
            op("Identity", "kept", "kept_out"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 3]),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, [2, 3]),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [2, 3]),
            helper.make_tensor_value_info("kept_out", TensorProto.FLOAT, [2, 3]),
        ],
    )
    return model(
        op("Identity", "x", "x2"),
        op("Loop", "n on x2 x2", "a b", body=body),
        op("Add", "a b", "y"),
        x=(2, 3),
        weights={"n": i64(3).reshape(()), "on": np.array(True)},
    )


def two_branches():
    """Both branches use the same names; what they capture is renamed in both."""
    return model(
        op("Relu", "x", "r"),
        op("Identity", "r", "c"),
        op("Abs", "c", "a"),
        op("ReduceMax", "a", "m", keepdims=0),
        op("Cast", "m", "on", to=TensorProto.BOOL),
        op(
            "If",
            "on",
            "h",
            then_branch=branch(op("Identity", "c", "t"), op("Neg", "t", "out")),
            else_branch=branch(op("Exp", "c", "t"), op("Identity", "t", "out")),
        ),
        op("Identity", "r", "z"),
        op("Add", "h r", "y"),
        x=(2, 3),
        y="y z",
    )


def shadowed(body_input):
    """A state of the loop is called as a tensor around it is, which the loop reads, too."""
    body = helper.make_graph(
        [
            op("Identity", "cond", "cond_out"),
            op("Add", f"{body_input} seen", "sum"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info(body_input, TensorProto.FLOAT, [2, 3]),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [2, 3]),
        ],
    )
    return model(
        op("Relu", "x", "r"),
        op("Identity", "r", "seen"),
        op("Neg", "r", "m"),
        op("Loop", "n on m", "a", body=body),
        op("Identity", "a", "y"),
        x=(2, 3),
        weights={"n": i64(3).reshape(()), "on": np.array(True)},
    )


# name: the model, and how many operators go, by type
CASES = {
    "a chain": (
        lambda: model(
            op("Identity", "x", "a"), op("Identity", "a", "b"), op("Relu", "b", "y"), x=(2, 3)
        ),
        {"Identity": 2},
    ),
    "an output": (
        lambda: model(op("Relu", "x", "a"), op("Identity", "a", "y"), x=(2, 3)),
        {"Identity": 1},
    ),
    "two outputs of one tensor": (
        lambda: model(
            op("Relu", "x", "a"),
            op("Identity", "a", "y"),
            op("Identity", "a", "z"),
            op("Neg", "a", "w"),
            x=(2, 3),
            y="y z w",
        ),
        {"Identity": 1},
    ),
    "an output of an output": (
        lambda: model(op("Relu", "x", "y"), op("Identity", "y", "z"), x=(2, 3), y="y z"),
        {},
    ),
    "an output of an input": (lambda: model(op("Identity", "x", "y"), x=(2, 3)), {}),
    "casts": (
        lambda: model(
            op("Cast", "x", "a", to=TensorProto.FLOAT),
            op("Cast", "a", "b", to=HALF),
            op("Cast", "b", "c", to=HALF),
            op("Cast", "c", "d", to=TensorProto.FLOAT),
            op("Neg", "d", "y"),
            x=(2, 3),
        ),
        {"Cast": 2},
    ),
    "a dropout": (
        lambda: model(
            op("Dropout", "x r", "a"),
            op("Relu", "a", "y"),
            x=(2, 3),
            weights={"r": np.array(0.5, np.float32)},
        ),
        {"Dropout": 1},
    ),
    "a dropout whose mask is an output": (
        lambda: model(op("Dropout", "x", "a m"), op("Relu", "a", "y"), x=(2, 3)),
        {},
    ),
    "a dropout in training": (
        lambda: model(
            op("Dropout", "x r t", "a"),
            op("Relu", "a", "y"),
            x=(2, 3),
            weights={"r": np.array(0.0, np.float32), "t": np.array(True)},
        ),
        {},
    ),
    "a weight": (
        lambda: model(
            op("Identity", "w", "v"),
            op("MatMul", "x v", "h"),
            op("Relu", "h", "y"),
            x=(2, 3),
            weights={"w": rand(3, 3)},
        ),
        {"Identity": 1},
    ),
    "a loop": (loop, {"Identity": 3}),
    "two branches": (two_branches, {"Identity": 4}),
    "a body that has the name for another tensor": (lambda: shadowed("r"), {"Identity": 1}),
    "a body that has the output's name for another tensor": (
        lambda: shadowed("y"),
        {"Identity": 1},
    ),
    "a dropout whose ratio a caller may set": (
        lambda: overridable(
            model(
                op("Dropout", "x r", "a"),
                op("Relu", "a", "y"),
                x=(2, 3),
                weights={"r": np.array(0.5, np.float32)},
            ),
            "r",
        ),
        {"Dropout": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_function_stays(name):
    make, gone = CASES[name]
    made = make()
    tidied = onnx.ModelProto.FromString(made.SerializeToString())
    assert tidy(tidied, None) == gone
    assert valid(tidied) or not valid(made)
    assert [v.name for v in tidied.graph.output] == [v.name for v in made.graph.output]
    before, after = counts(made), counts(tidied)
    assert {op: before[op] - after.get(op, 0) for op in before} == {
        op: gone.get(op, 0) for op in before
    }
    assert [v.name for v in tidied.graph.input] == [v.name for v in made.graph.input]
    known = {name for node in tidied.graph.node for name in (*node.input, *node.output)}
    known |= {v.name for v in tidied.graph.input}
    assert {t.name for t in tidied.graph.initializer} <= known
    for seed in range(2):
        given = feeds(made, seed)
        for one, other in zip(run(made, given), run(tidied, given), strict=True):
            assert np.array_equal(one, other)


def test_an_input_that_is_no_weight_stays():
    made = model(op("Dropout", "x r", "a"), op("Relu", "a", "y"), x={"x": (2, 3), "r": ()})
    assert tidy(made, None) == {"Dropout": 1}
    assert [value.name for value in made.graph.input] == ["x", "r"]


@pytest.mark.parametrize("outputs", ["", " "])
@pytest.mark.parametrize("kind, more", [("Identity", {}), ("Dropout", {}), ("Cast", {"to": 1})])
def test_an_operator_that_puts_out_nothing_stays(outputs, kind, more):
    """Its name for that, "", is the name of every input that is not there."""
    made = model(op("Relu", "x", "a"), op("Clip", "a", "y"), x=(2, 3), weights={"hi": rand()})
    made.graph.node.insert(1, helper.make_node(kind, ["a"], [""] if outputs else [], **more))
    made.graph.node[2].input.extend(["", "hi"])
    before = made.SerializeToString()
    assert tidy(made, None) == {}
    assert made.SerializeToString() == before


def test_the_command_tidies_folds_and_tells(tmp_path):
    made = model(
        conv("a", "x", "h", (4, 3, 3, 3)),
        op("Identity", "h", "i"),
        op("Dropout", "i", "d"),
        op("Mul", "d k", "m"),
        op("Relu", "m", "r"),
        op("Identity", "r", "y"),
        weights={"k": np.array(2.0, np.float32)},
    )
    path, out, report = (tmp_path / name for name in ("net.onnx", "out.onnx", "r.json"))
    onnx.save(made, path)
    run_ = command(path, "-o", out, "--tidy", "--report", report)
    assert run_.code == 0, run_.out
    assert run_.lines[0] == "took out what does nothing: 1 Dropout, 2 Identity"
    assert json.loads(report.read_text())["tidied"] == {"Dropout": 1, "Identity": 2}
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Conv", "Relu"]


def test_large_weights_in_the_file(tmp_path):
    """From 4 MB on those may be left in the file when it is read; the tidied model is another."""
    made = model(
        op("Identity", "x", "i"),
        op("MatMul", "i w", "h"),
        op("Mul", "h k", "y"),
        x=(2, 1100),
        weights={"w": rand(1100, 1100), "k": np.array(2.0, np.float32)},
    )
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(made, path)
    done = command(path, "-o", out, "--tidy")
    assert done.code == 0, done.out + done.err
    assert [node.op_type for node in onnx.load(out).graph.node] == ["MatMul"]


@pytest.mark.parametrize("name", ["det", "silero-silero_vad"])
def test_real_models(name, tmp_path):
    path, out = zoo.path(name), tmp_path / "out.onnx"
    done = command(path, "-o", out, "--tidy")
    assert done.code in (0, 3), done.out
    assert "took out what does nothing" in done.out
    assert valid(onnx.load(out)) or not valid(onnx.load(path))
