"""Initializers that are listed as inputs, too: from IR version 4 on, a caller may override them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnx import GraphProto, ModelProto

_OVERRIDABLE = 4


def listed(model: ModelProto) -> frozenset[str]:
    """The initializers of the main graph that a caller may override.

    Before IR version 4 an initializer had to be an input, and that said nothing. The inputs of a
    body are set by the operator around it, one after the other, so a body has none.
    """
    if model.ir_version < _OVERRIDABLE:
        return frozenset()
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    stored.update(tensor.values.name for tensor in graph.sparse_initializer)
    return frozenset(value.name for value in graph.input if value.name in stored)


def freeze(model: ModelProto) -> None:
    """Drop the initializers that a caller may override from the inputs, in place: they are fixed.

    The order of the other inputs stays.
    """
    names = listed(model)
    if names:
        kept = [value for value in model.graph.input if value.name not in names]
        del model.graph.input[:]
        model.graph.input.extend(kept)


@contextmanager
def as_if_frozen(model: ModelProto) -> Iterator[None]:
    """Freeze a model for a while; then its inputs are what they were."""
    inputs = GraphProto(input=model.graph.input)
    freeze(model)
    try:
        yield
    finally:
        del model.graph.input[:]
        model.graph.input.extend(inputs.input)
