"""ONNX's shape inference, kept from computing with long rows.

Inference follows the numbers of tensors of rank 1, since sizes are computed from them. It makes no
difference between a list of four sizes and a row of ten million samples: it makes a message for
each element, and a file of two hundred bytes takes gigabytes. No list of sizes is that long. So
operators that work on long rows are hidden from it. What it finds out about their shapes without
following numbers is told in their place.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, ValueInfoProto, shape_inference

from bnfold._onnx.read.scopes import bodies

_FOLLOWED = frozenset(
    ("Add", "Cast", "Concat", "Gather", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze")
)
"""Operators through which inference follows numbers one by one (onnx 1.23)."""
_LONGEST = 1 << 14
_HIDDEN = "bnfold.hidden"


def run(skeleton: ModelProto) -> ModelProto:
    """A copy of a model with what inference finds out; the model itself where it gives up."""
    try:
        plain = shape_inference.infer_shapes(skeleton, strict_mode=False, data_prop=False)
    except Exception:  # What inference raises on an invalid model has no common base.
        return skeleton
    hidden = ModelProto()
    hidden.CopyFrom(skeleton)
    names = list(_hide(hidden.graph, plain.graph))
    try:
        found = shape_inference.infer_shapes(hidden, strict_mode=False, data_prop=True)
    except Exception:
        return plain
    if names:
        _show(found.graph, skeleton.graph)
    return found


def _hide(graph: GraphProto, told: GraphProto) -> Iterator[str]:
    """Hide operators on long rows, and yield what they write; ``told`` is the graph as inferred."""
    values = {value.name: value for value in (*told.input, *told.value_info, *told.output)}
    long = {name for name, value in values.items() if _is_long(value)}
    long.update(t.name for t in told.initializer if len(t.dims) == 1 and t.dims[0] > _LONGEST)
    for node, twin in zip(graph.node, told.node, strict=True):
        for (_, body), (_, body_told) in zip(bodies(node), bodies(twin), strict=True):
            yield from _hide(body, body_told)
        followed = node.domain in ("", "ai.onnx") and node.op_type in _FOLLOWED
        if followed and not long.isdisjoint((*node.input, *node.output)):
            node.domain = _HIDDEN
            outputs = {value.name for value in graph.output}
            for name in filter(None, node.output):
                yield name
                if name in values and name not in outputs:
                    graph.value_info.add().CopyFrom(values[name])
    for value in graph.output:
        if value.name in long:
            value.CopyFrom(values[value.name])


def _show(graph: GraphProto, skeleton: GraphProto) -> None:
    """Give operators that were hidden their domain again."""
    for node, origin in zip(graph.node, skeleton.node, strict=True):
        node.domain = origin.domain
        for (_, body), (_, body_origin) in zip(bodies(node), bodies(origin), strict=True):
            _show(body, body_origin)


def _is_long(value: ValueInfoProto) -> bool:
    if value.type.WhichOneof("value") != "tensor_type":
        return False
    dims = value.type.tensor_type.shape.dim
    return len(dims) == 1 and dims[0].dim_value > _LONGEST
