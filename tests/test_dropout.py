"""A Dropout in training draws numbers: no map passes it, no proof goes through it, and a verdict
counts it among the random operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold._onnx.read import graph
from bnfold._proof.certificate import certify
from bnfold._run.nodes import random_values

from .graphs import bn, const, conv, counts, done, model, op, rand, subgraph

MODE = {"mode": np.array(True)}
OFF = {"mode": np.array(False)}


def dropout(x: str, y: str, ratio: float = 0.25, **attrs: Any) -> Any:
    node = op("Dropout", f"{x} ratio mode", y, name="drop", **attrs)
    return node, {"ratio": np.float32(ratio)}


def ahead(*middle: Any, weights: Any = None, **options: Any) -> ModelProto:
    """A scale behind a Dropout behind a Conv, and a Conv behind it."""
    return model(
        conv("c", "x", "h", (4, 3, 3, 3)), bn("bn", "h", "b", 4), *middle,
        const("Mul", "d", "m", rand(4, 1, 1), name="map"), op("Tanh", "m", "y"),
        weights=weights, **options,
    )  # fmt: skip


def given_mode() -> ModelProto:
    made = ahead(dropout("b", "d"))
    made.graph.input.append(helper.make_tensor_value_info("mode", TensorProto.BOOL, []))
    return made


def overridable_mode() -> ModelProto:
    made = ahead(dropout("b", "d"), weights=OFF)
    made.graph.input.append(helper.make_tensor_value_info("mode", TensorProto.BOOL, []))
    return made


def computed(value: bool) -> ModelProto:
    held = numpy_helper.from_array(np.array(value))
    return ahead(
        op("Constant", "", "mode", value=held),
        (op("Dropout", "b ratio mode", "d", name="drop"), {"ratio": np.float32(0.25)}),
    )


TRAINING = {
    "a constant": lambda: ahead(dropout("b", "d"), weights=MODE),
    "in opset 12": lambda: ahead(dropout("b", "d"), weights=MODE, opset=12),
    "with a seed": lambda: ahead(dropout("b", "d", seed=3), weights=MODE),
    "with a mask": lambda: ahead(dropout("b", "d mask"), weights=MODE),
    "a Constant": lambda: computed(True),
    "an input": given_mode,
    "an input with a default": overridable_mode,
    "of opset 6": lambda: ahead(op("Dropout", "b", "d", name="drop", is_test=0), opset=6),
    "of opset 6 by default": lambda: ahead(op("Dropout", "b", "d", name="drop"), opset=6),
    "of opset 1": lambda: ahead(op("Dropout", "b", "d", name="drop", is_test=0), opset=1),
}
STILL = {
    "a constant": lambda: ahead(dropout("b", "d"), weights=OFF),
    "a Constant": lambda: computed(False),
    "handed on": lambda: ahead(
        op("Identity", "off", "mode"), dropout("b", "d"), weights={"off": np.array(False)}, opset=12
    ),
    "absent": lambda: ahead(op("Dropout", "b", "d", name="drop")),
    "empty": lambda: ahead(
        (op("Dropout", "b ratio _", "d", name="drop"), {"ratio": np.float32(0.25)})
    ),
    "of opset 7": lambda: ahead(op("Dropout", "b", "d", name="drop"), opset=7),
    "of opset 11": lambda: ahead(op("Dropout", "b", "d", name="drop", ratio=0.9), opset=11),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_no_map_passes_a_dropout_in_training(kind):
    """The norm ahead of it folds; the map behind stays."""
    m = TRAINING[kind]()
    if m.opset_import[0].version < 7:  # No broadcasting there; its numbers are those of all.
        m.graph.node[1].attribute.add(name="is_test", type=2, i=1)
        m.graph.node[3].attribute.add(name="broadcast", type=2, i=1)
        m.graph.node[3].attribute.add(name="axis", type=2, i=1)
        (k,) = (t for t in m.graph.initializer if t.name == "map.k")
        k.dims[:] = [4]
    once = done(m)
    (kept,) = once.plan.kept
    assert kept.node == "map"
    assert kept.code == ("unsupported-opset" if kind == "of opset 1" else "no-linear-operator")
    assert counts(once.folded) == {"Conv": 1, "Dropout": 1, "Mul": 1, "Tanh": 1} | {
        kind: n for kind, n in counts(m).items() if kind == "Constant"
    }
    assert random_values(m) >= {"d", "m", "y"}
    assert not random_values(m) & {"h", "b"}


@pytest.mark.parametrize("made", STILL.values(), ids=STILL)
def test_every_map_passes_one_in_inference(made):
    m = made()
    assert "Mul" not in counts(done(m).folded)
    assert not random_values(m)


def test_a_map_that_went_past_one_in_training_is_no_fold():
    """Whatever reads it so: its certificates fail, ahead of it and behind."""
    for made in (TRAINING["a constant"](), TRAINING["an input"]()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(graph.ROWS, "Dropout", graph.ROWS["Identity"])
            once = done(made)
        assert "Mul" not in counts(once.folded)
        assert any(one.fails for one in certify(made, once.folded, once.applied))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["a constant", "with a seed", "with a mask", "a Constant"])
def test_both_models_drop_the_same(kind, ratio):
    made = TRAINING[kind]()
    for t in made.graph.initializer:
        if t.name == "ratio":
            t.CopyFrom(numpy_helper.from_array(np.float32(ratio), "ratio"))
    right = bnfold.verify(made, bnfold.fold(made))
    assert right.status == "pass"
    assert "draw the same numbers" in str(right)
    wrong = bnfold.fold(made)
    bias = next(t for t in wrong.graph.initializer if t.name == "c.b")
    values = numpy_helper.to_array(bias).copy()
    values[1] += np.float32(0.25)
    bias.CopyFrom(numpy_helper.from_array(values, "c.b"))
    assert bnfold.verify(made, wrong).status == "fail"


def test_of_old_opsets_what_is_ahead_of_it_is_compared():
    """No fixed numbers stand for those that it draws."""
    made = ahead(dropout("b", "d"), weights=MODE, opset=12)
    result = bnfold.verify(made, bnfold.fold(made))
    assert result.status == "pass"
    assert "compared at b" in str(result)


def test_what_differs_behind_it_is_not_judged_there():
    """In the original it reads another tensor: random numbers are no evidence of anything."""
    made = ahead(dropout("b", "d"), weights=MODE, opset=12)
    other = ModelProto()
    other.CopyFrom(made)
    (held,) = (t for t in other.graph.initializer if t.name == "map.k")
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) * np.float32(1.5), "map.k"))
    result = bnfold.verify(made, other, prove=False)
    assert result.status == "inconclusive"
    assert "random numbers" in str(result)


def test_bodies_and_functions_drop_too():
    body = subgraph(dropout("x", "t"), y="t")
    other = subgraph(op("Identity", "x", "e"), y="e")
    branch = op("If", "cond", "y", then_branch=body, else_branch=other)
    imports = [helper.make_opsetid("", 17)]
    inner = [op("Dropout", "a r m", "o", name="drop")]
    function = helper.make_function("mine", "Drop", ["a", "r", "m"], ["o"], inner, imports)
    for mode in (MODE, OFF):
        made = model(branch, weights={**mode, "cond": np.array(True)}, y="y")
        assert random_values(made) == ({"y"} if mode is MODE else set())
        call = helper.make_node("Drop", ["x", "r", "mode"], ["y"], domain="mine")
        stored = {"r": np.float32(0.5), **mode}
        called = model(call, weights=stored, functions=[function], domains={"mine": 1})
        assert random_values(called) == ({"y"} if mode is MODE else set())
    two = [
        helper.make_node("Drop", ["x", "r", name], [out], domain="mine")
        for name, out in (("on", "y"), ("off", "z"))
    ]
    stored = {"r": np.float32(0.5), "on": np.array(True), "off": np.array(False)}
    called = model(*two, weights=stored, functions=[function], domains={"mine": 1}, y="y z")
    assert random_values(called) == {"y", "z"}  # by the name of the argument


def test_a_function_of_that_name_drops_nothing():
    imports = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Identity", ["a"], ["o"])]
    function = helper.make_function("", "Dropout", ["a", "r", "m"], ["o"], body, imports)
    made = model(
        (op("Dropout", "x ratio mode", "y"), {"ratio": np.float32(0.5), **MODE}),
        functions=[function],
    )
    assert not random_values(made)


def test_an_operator_of_another_domain_is_another():
    made = model(
        (op("Dropout", "x ratio mode", "y", domain="mine"), {"ratio": np.float32(0.5), **MODE}),
        domains={"mine": 1},
    )
    assert not random_values(made)
