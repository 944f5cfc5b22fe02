"""Outputs that are another on every run."""

from __future__ import annotations

import onnx

from bnfold._run.nodes import all_nodes, reached

_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def random_values(graph: onnx.GraphProto) -> set[str]:
    """Return the values of the main graph that depend on random numbers drawn while it runs."""
    drawn = {
        name
        for node in graph.node
        if any(inner.op_type in _RANDOM for inner in all_nodes([node]))
        for name in node.output
        if name
    }
    return reached(graph, drawn) if drawn else set()
