"""The graph that merging works on, and that its check notices what is wrong.

The check itself runs after every merge of every test (``tests/conftest.py``), where a graph that
is read on from its merges is compared with one read from the start, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bnfold
from bnfold._core.reasons import Reason
from bnfold._core.view import OPAQUE, Node, Value, View
from bnfold._merge.graph import MergeGraph, Operator, Written
from bnfold._merge.steps import LinearForm
from bnfold._onnx.merge import merging
from bnfold._onnx.merge.merging import reread
from bnfold._onnx.merge.patch import Patch, lay

from ..graphs import const, conv, model, op, rand
from .branches import SAME


def graph() -> MergeGraph:
    """``x → a → (b, c) → d``, the last an output, and a node that asks for the type of a's."""
    nodes = (
        Node("a", "Conv", OPAQUE, (0,), (1,)),
        Node("b", "Conv", OPAQUE, (1,), (2,)),
        Node("c", "Conv", OPAQUE, (1, -1), (3,)),
        Node("cast", "CastLike", OPAQUE, (0, 1), (5,), typed=(1,)),
        Node("d", "Add", OPAQUE, (2, 3), (4,)),
    )
    pinned = Reason("graph-output", "y", "y is an output of the graph")
    values = (
        Value("x", None, (0, 3), shape=(2, 4, 6, 7)),
        Value("ay", 0, (1, 2), shape=(None, 4, 6, 7)),
        Value("by", 1, (4,)),
        Value("cy", 2, (4,)),
        Value("y", 4, (), pinned),
        Value("cast", 3, ()),
    )
    return MergeGraph(View(nodes, values), lambda position: LinearForm())


CONV = Operator("b", "Conv", ("ay",), ("y",))
MERGED: dict[int, Operator | None] = {1: None, 2: None, 4: CONV}


def test_a_view_is_a_graph():
    made = graph()
    made.check()
    assert list(made.readers("ay")) == [1, 2]
    assert made.shared("ay") == Reason("shared-output", "c", "ay is also read by c")
    assert made.shared("by") is None
    assert made.shared("y") is not None
    assert (made.writer("ay"), made.writer("x")) == (0, None)
    assert [made.channel_axis("ay", 2), made.channel_axis("ay", 0)] == [1, 3]
    assert [made.channel_axis("by", 2), made.channel_axis("by", 0)] == [1, None]


def test_what_a_merge_leaves():
    made = graph()
    made.put(Written(4, MERGED, {}))
    assert list(made.readers("ay")) == [4]
    assert made.shared("ay") is None
    assert (made.writer("y"), made.output(1)) == (4, None)
    assert "by" not in made
    assert made.step(1) is None


@pytest.mark.parametrize(
    ("operators", "shapes", "message"),
    [
        ({2: Operator("c", "Conv", ("y",), ("cy",))}, {}, "y is read ahead of d"),
        ({2: Operator("c", "Conv", ("cy",), ("cy",))}, {}, "cy is read ahead of c"),
        ({1: Operator("b", "Conv", ("ay",), ("by", "cy"))}, {}, "cy is written at 2 and at 1"),
        ({4: CONV, 2: Operator("c", "Conv", ("ay",), ("cy", "y"))}, {}, "y is written at"),
        ({1: None}, {}, "d reads by: unknown"),
    ],
)
def test_what_is_wrong_is_noticed(operators, shapes, message):
    with pytest.raises(AssertionError, match=message):
        graph().put(Written(4, operators, shapes))


def test_reads_that_are_not_listed_are_noticed():
    made = graph()
    made._own("ay").readers.remove(1)
    with pytest.raises(AssertionError, match="ay is read at"):
        made.check()


# --- reading on --------------------------------------------------------------------------------


def unknown_rank() -> Any:
    """That a sum has four axes shows once a Conv stands in its place, and it is what the map behind
    the Relu needs to be one.
    """
    return model(
        conv("a", "x", "ay", (4, 4, 3, 3), **SAME),
        conv("b", "x", "by", (4, 4, 1, 1)),
        op("Add", "ay by", "s"),
        op("Relu", "s", "r"),
        const("Mul", "r", "m", rand(4, 1, 1)),
        conv("c", "m", "y", (4, 4, 1, 1)),
        x=None,
    )


def test_shapes_that_a_merge_makes_known_are_used_further_on():
    assert bnfold.plan(unknown_rank()).after == {"Conv": 2, "Relu": 1}


def sharing(reading):
    """Who else reads the integers that an operator reads."""
    (shared,) = (site.quantized.sharing for site in reading.sites if site.quantized is not None)
    return shared and shared.readers


def test_who_else_reads_a_weight_is_read_again():
    """A weight that is dequantized for one operator alone can take any scale."""
    integers = {
        "q": np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1),
        "scale": np.float32(0.5),
        "zero": np.int8(0),
    }
    made = model(
        op("DequantizeLinear", "q scale zero", "w"),
        op("Conv", "x w", "ay", name="a"),
        op("Conv", "x w", "by", name="b"),
        y="ay",
        weights=integers,
    )
    (graph,) = merging.read(made, None).graphs
    patch = Patch("", "", 1, {2: None}, {})
    lay(patch, graph.scope, graph.context.constants)
    assert [sharing(reading) for reading in graph.readings[1:]] == [("a", "b")] * 2
    _, alone = reread(graph, [patch]).readings
    assert sharing(alone) is None
