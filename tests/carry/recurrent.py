"""Recurrent operators with maps around them, and what must hold of what they fold to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from .. import graphs
from ..graphs import Piece, affine_nodes, op, rand

Array = Any
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Of numbers below 1 in magnitude that come of sums of a few terms, some steps long.
CLOSE = 1e-5


def recurrent(
    kind: str,
    x: str = "a",
    *,
    inputs: int = 4,
    hidden: int = 4,
    bias: Any = True,
    outputs: str = "y",
    more: Mapping[str, Array] | None = None,
    reads: str = "",
    **attrs: Any,
) -> Piece:
    """An LSTM, GRU or RNN. ``bias`` is True, False or "" (given as empty); ``reads`` are inputs
    from the fifth on, ``more`` constants among them.
    """
    d, rows = 1 + (attrs.get("direction") == "bidirectional"), GATES[kind] * hidden
    held = {"w": rand(d, rows, inputs) / 2, "r": rand(d, rows, hidden) / 2, **(more or {})}
    names = f"{x} w r"
    if bias is True:
        held["b"] = rand(d, 2 * rows) / 2
        names += " b"
    elif reads or bias == "":
        names += " _"
    return op(kind, f"{names} {reads}", outputs, name="rnn", hidden_size=hidden, **attrs), held


def batch_second(made: ModelProto) -> ModelProto:
    """The same in layout 0, which onnxruntime runs: what a node of layout 1 reads and puts out is
    transposed by the definition of ``layout``.
    """
    other = ModelProto()
    other.CopyFrom(made)
    nodes = list(other.graph.node)
    del other.graph.node[:]
    for node in nodes:
        layout = next((a for a in node.attribute if a.name == "layout" and a.i == 1), None)
        if layout is None:
            other.graph.node.append(node)
            continue
        node.attribute.remove(layout)
        ahead = helper.make_node("Transpose", [node.input[0]], ["x0"], perm=[1, 0, 2])
        node.input[0] = "x0"
        behind = []
        orders = ([2, 0, 1, 3], [1, 0, 2], [1, 0, 2])
        for k, (name, order) in enumerate(zip(list(node.output), orders)):
            node.output[k] = f"{name}0"
            behind.append(helper.make_node("Transpose", [f"{name}0"], [name], perm=order))
        other.graph.node.extend([ahead, node, *behind])
    return other


def folded(made: ModelProto, data: Mapping[str, Array] | None = None, *, left: int = 0) -> Any:
    """Fold, and hold the result to everything that must be true of it."""
    return folded_told(made, data, left=left).folded


def folded_told(
    made: ModelProto, data: Mapping[str, Array] | None = None, *, left: int = 0
) -> graphs.Done:
    """The same, with the plan."""
    before = made.SerializeToString()
    once = graphs.done(made)
    assert made.SerializeToString() == before, "the input model was changed"
    sessions = [graphs.session(batch_second(one)) for one in (made, once.folded)]
    for seed in (0, 1):
        given = graphs.feeds(made, seed) if data is None else data
        first, second = (one.run(None, dict(given)) for one in sessions)
        for wanted, found in zip(first, second, strict=True):
            assert float(np.abs(wanted).max()) > 0.01
            assert float(np.abs(wanted - found).max()) <= CLOSE
    settled(made, once, left)
    return once


def settled(made: ModelProto, once: graphs.Done, left: int) -> None:
    """All that needs no run."""
    graphs.check(made, once.folded, once.plan)
    graphs.certified(made, once)
    assert not graphs.orphans(made, once.folded)
    assert len(affine_nodes(once.folded)) == left, once.plan.kept


def kept(made: ModelProto, code: str, says: str = "", *, left: int | None = None) -> None:
    """Maps stay: all, or so many operators. The last says why."""
    once = folded_told(made, left=len(affine_nodes(made)) if left is None else left)
    reason = once.plan.kept[-1]
    assert reason.code == code and says in reason.message, reason
