"""An If in one file and what it comes to in the other.

onnxruntime says which branch a condition takes. What does not follow from sizes is never taken for
granted, and neither are sizes that only a body's inputs are declared to have.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from ..graphs import const, model, op, rand, subgraph
from .pairs import ints, proof, run, value

INT, BOOL = np.int64, np.bool_
SHAPE = (2, "n", 3)
RANK = [op("Shape", "x", "s"), op("Size", "s", "r")]
FIRST = [op("Shape", "x", "s"), op("Gather", "s zero", "g", axis=0)]
SECOND = [op("Shape", "x", "s"), op("Gather", "s one", "g", axis=0)]
HELD = {"zero": INT(0), "one": INT(1), "two": INT(2), "three": INT(3), "five": INT(5)}


def asked(*nodes, x=SHAPE, branches=("Relu", "Neg"), **weights):
    """``c`` chooses between two operators."""
    bodies = [subgraph(op(kind, "x", "own"), y="own") for kind in branches]
    chosen = op("If", "c", "y", then_branch=bodies[0], else_branch=bodies[1])
    used = {name for node in nodes for name in node.input}
    held = {k: v for k, v in HELD.items() if k in used} | weights
    return model(*nodes, chosen, x={"x": x}, weights=held)


def plain(kind, x=SHAPE):
    return model(op(kind, "x", "y"), x={"x": x})


# What makes ``c``, of x with the sizes 2, n and 3.
KNOWN = {
    "rank": [*RANK, op("Equal", "r three", "c")],
    "not that rank": [*RANK, op("Equal", "r two", "c")],
    "neither": [*RANK, op("Equal", "r two", "e"), op("Not", "e", "c")],
    "less": [*RANK, op("Less", "r three", "c")],
    "greater": [*RANK, op("Greater", "r two", "c")],
    "less or equal": [*RANK, op("LessOrEqual", "r three", "c")],
    "greater or equal": [*RANK, op("GreaterOrEqual", "r five", "c")],
    "a size as a boolean": [*FIRST, op("Cast", "g", "c", to=TensorProto.BOOL)],
    "a difference of 0": [
        *FIRST,
        op("Sub", "g two", "d"),
        op("Cast", "d", "c", to=TensorProto.BOOL),
    ],
    "both": [
        *FIRST,
        op("Equal", "g two", "a"),
        op("Less", "g two", "b"),
        op("And", "a b", "c"),
    ],
    "one of two": [
        *FIRST,
        op("Equal", "g two", "a"),
        op("Less", "g two", "b"),
        op("Or", "a b", "c"),
    ],
    "one alone": [
        *FIRST,
        op("Equal", "g two", "a"),
        op("LessOrEqual", "g two", "b"),
        op("Xor", "a b", "c"),
    ],
    "a boolean as a number": [
        *FIRST,
        op("Equal", "g two", "a"),
        op("Cast", "a", "i", to=TensorProto.INT64),
        op("Equal", "i one", "c"),
    ],
    "a size with itself": [*SECOND, op("Equal", "g g", "c")],
    "a size below 0": [*SECOND, op("Sub", "zero one", "d"), op("Equal", "g d", "c")],
}
OPEN = {
    "a size": [*SECOND, op("Equal", "g two", "c")],
    "a size that may be 0": [*SECOND, op("Cast", "g", "c", to=TensorProto.BOOL)],
    "a size that is larger than most": [*SECOND, op("Greater", "g zero", "c")],
    "not a size": [*SECOND, op("Equal", "g two", "e"), op("Not", "e", "c")],
    "numbers": [op("ReduceMax", "x", "m", keepdims=0), op("Greater", "m half", "c")],
}


def right_branch(nodes):
    feeds = {"x": np.abs(rand(2, 4, 3))}
    held = {"half": np.float32(0.5)} if any("half" in n.input for n in nodes) else {}
    (found,) = run(asked(*nodes, **held), feeds)
    return "Relu" if np.all(found >= 0) else "Neg"


@pytest.mark.parametrize("nodes", KNOWN.values(), ids=KNOWN)
def test_a_condition_that_sizes_tell_takes_its_branch(nodes):
    taken = right_branch(nodes)
    other = {"Relu": "Neg", "Neg": "Relu"}[taken]
    assert proof(asked(*nodes), plain(taken)).status == "proved"
    assert proof(plain(taken), asked(*nodes)).status == "proved"
    assert proof(asked(*nodes), plain(other)).status != "proved"
    assert proof(plain(other), asked(*nodes)).status != "proved"


@pytest.mark.parametrize("nodes", OPEN.values(), ids=OPEN)
def test_a_condition_that_sizes_do_not_tell_takes_no_branch(nodes):
    held = {"half": np.float32(0.5)} if any("half" in n.input for n in nodes) else {}
    made = asked(*nodes, **held)
    for kind, turned in itertools.product(("Relu", "Neg"), (False, True)):
        pair = (plain(kind), made) if turned else (made, plain(kind))
        assert proof(*pair).status == "not proved"
    assert proof(made, made).status == "proved"


def test_sizes_that_agree_by_accident_decide_nothing():
    """The first axis may be as long as the last; and another axis is another size."""
    for one, other, x in (("zero", "two", ("n", 4, "n")), ("zero", "two", ("n", 4, 3))):
        nodes = [
            op("Shape", "x", "s"),
            op("Gather", f"s {one}", "a", axis=0),
            op("Gather", f"s {other}", "b", axis=0),
            op("Equal", "a b", "c"),
        ]
        for kind in ("Relu", "Neg"):
            assert proof(asked(*nodes, x=x), plain(kind, x)).status != "proved"


def test_a_stored_condition_counts_unless_a_caller_may_override_it():
    made = asked(c=BOOL(True))
    assert proof(made, plain("Relu")).status == "proved"
    assert proof(made, plain("Neg")).status != "proved"
    made.graph.input.append(value("c", TensorProto.BOOL))
    assert proof(made, plain("Relu")).status != "proved"


def test_of_one_body_after_another_each_condition_is_followed():
    """An If in a branch that is taken, and one whose branches are of several ranks."""
    inner = op(
        "If",
        "c",
        "b",
        then_branch=subgraph(op("Relu", "x", "q"), y="q"),
        else_branch=subgraph(const("Unsqueeze", "x", "q", ints(0)), y="q"),
    )
    outer = op(
        "If",
        "c",
        "y",
        then_branch=subgraph(inner, y="b"),
        else_branch=subgraph(op("Neg", "x", "b"), y="b"),
    )
    made = model(*KNOWN["rank"], outer, x={"x": SHAPE}, weights={"three": INT(3)})
    assert proof(made, plain("Relu")).status == "proved"
    assert proof(made, plain("Neg")).status != "proved"


def test_branches_that_are_one_need_no_condition():
    nodes = OPEN["a size"]
    assert proof(asked(*nodes, branches=("Relu", "Relu")), plain("Relu")).status == "proved"
    assert proof(plain("Relu"), asked(*nodes, branches=("Relu", "Relu"))).status == "proved"
    for kind in ("Relu", "Abs"):
        assert proof(asked(*nodes, branches=("Relu", "Abs")), plain(kind)).status != "proved"


def test_branches_that_draw_are_never_one():
    nodes = OPEN["a size"]
    one = model(op("RandomNormalLike", "x", "y", seed=1.0), x={"x": SHAPE})
    twice = asked(*nodes, branches=("RandomNormalLike",) * 2)
    assert proof(twice, one).status != "proved"


def test_a_constant_that_a_branch_puts_out_stays_what_it_is():
    def made(number):
        body = subgraph(const("Add", "k", "b", np.float32(number)), y="b")
        body.initializer.append(helper.make_tensor("k", TensorProto.FLOAT, [1], [0.0]))
        chosen = op("If", "c", "d", then_branch=body, else_branch=body)
        last = op("Add", "x d", "y")
        return model(*KNOWN["rank"], chosen, last, x={"x": SHAPE}, weights={"three": INT(3)})

    assert proof(made(2.0), made(2.0)).status == "proved"
    assert proof(made(2.0), made(3.0)).status != "proved"


def grown(declared, *inside, y="z"):
    """A state that gets longer each time, and what is made of it."""
    body = subgraph(
        op("Identity", "cond", "cond_out"),
        op("Concat", "h h", "h_out", axis=0),
        op("Shape", "h", "s"),
        *inside,
        x={"i": (7, ()), "cond": (9, ()), "h": declared},
        y=f"cond_out h_out {y}",
    )
    body.output[2].type.tensor_type.elem_type = TensorProto.INT64
    loop = op("Loop", "m _ x", "last all", body=body)
    whole = model(loop, x={"x": (2,)}, y="all", weights={"m": INT(3)})
    whole.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return whole


def test_what_a_body_declares_of_its_inputs_is_no_evidence():
    """The state is said to have two numbers, and has more from the second time on."""
    shape, two = op("Identity", "s", "z"), op("Identity", "k", "z")
    honest, false = grown(["k"], shape), grown([2], shape)
    stored = grown([2], two)
    stored.graph.initializer.append(helper.make_tensor("k", TensorProto.INT64, [1], [2]))
    feeds = {"x": np.float32([1, 2])}
    assert not np.array_equal(run(false, feeds)[0], run(stored, feeds)[0])
    for one in (honest, false):
        assert proof(one, stored).status != "proved"
        assert proof(stored, one).status != "proved"
    assert proof(honest, false).status == "proved"
