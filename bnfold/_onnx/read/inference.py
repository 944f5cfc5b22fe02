"""ONNX's shape inference, kept from computing with long rows.

Inference follows the numbers of tensors of rank 1, since sizes are computed from them. It makes no
difference between a list of four sizes and a row of ten million samples: it makes a message for
each element, and a file of two hundred bytes takes gigabytes. No list of sizes is that long. So
operators that work on long rows are hidden from it. What it finds out about their shapes without
following numbers is told in their place.

Inference ends the process where a Slice reads a tensor with a negative size, which a pool larger
than its input has, for instance. So Slices are hidden at first, and shown again level by level
(`slices`), as long as no size comes out negative. Some operators end it where no runtime takes
them, or where it does not know what they read (`is_odd`): these are hidden for good.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, shape_inference

from bnfold._onnx.read.einsum import uneven
from bnfold._onnx.read.scopes import bodies, type_of
from bnfold._onnx.read.slices import slices_of

_FOLLOWED = frozenset(
    ("Add", "Cast", "Concat", "Gather", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze")
)
"""Operators through which inference follows numbers one by one (onnx 1.23)."""
_LONGEST = 1 << 14
_WORK = 200_000
"""So many nodes all looks at one model may go through, about 2 s; Slices further on stay hidden."""
_HIDDEN = "bnfold.hidden"
_TRIPPING = frozenset(
    ("EyeLike", "RegexFullMatch", "ai.onnx.ml::DictVectorizer", "ai.onnx.ml::LabelEncoder")
)
"""Inference ends the process at these where it knows no type of what they read (onnx 1.23)."""
_FURTHEST = 1 << 20
"""No axis is as far from 0 as this."""


def run(skeleton: ModelProto) -> ModelProto:
    """A copy of a model with what inference finds out; the model itself where it gives up.

    Where a size comes out negative, only what lies ahead of the Slices behind it is found out.
    """
    hidden = _copy(skeleton)
    _hide_odd(hidden)
    _show_sound(hidden)
    found = _look(hidden)
    return skeleton if found is None else _shown(found, skeleton)


def is_safe(model: ModelProto) -> bool | None:
    """Whether inference may be run on a model as it is: False where a size in it comes out
    negative, None where that is not known, or an operator is odd.
    """
    copy = _copy(model)
    return None if _hide_odd(copy) else _show_sound(copy)


def _copy(model: ModelProto) -> ModelProto:
    """A copy in which operators may be hidden: inference passes over a domain without schemas."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for holder in (copy, *copy.functions):
        holder.opset_import.add(domain=_HIDDEN, version=1)
    return copy


def _hide_odd(model: ModelProto) -> bool:
    """Hide the operators of a model that are odd, and tell whether there are any."""
    found = False
    for holder in (model, *model.functions):
        waiting: list[Sequence[NodeProto]] = [
            holder.graph.node if isinstance(holder, ModelProto) else holder.node
        ]
        while waiting:
            for node in waiting.pop():
                waiting.extend(body.node for _, body in bodies(node))
                if is_odd(node):
                    node.domain, found = _HIDDEN, True
    return found


def is_odd(node: NodeProto) -> bool:
    """Whether inference may end the process at an operator where no size is negative.

    It did (onnx 1.23) for an axis beyond 32 bits (LayerNormalization), a negative number of batch
    axes (GatherND), and more outputs than ``num_outputs`` says (Split), beside `_TRIPPING`.
    """
    if type_of(node) in _TRIPPING:
        return True
    return node.domain in ("", "ai.onnx") and any(
        (each.name in ("axis", "batch_dims") and abs(each.i) > _FURTHEST)
        or (each.name == "batch_dims" and each.i < 0)
        or (each.name == "num_outputs" and each.i != len(node.output))
        for each in node.attribute
    )


def _look(hidden: ModelProto) -> ModelProto | None:
    """What inference finds out about a model, in which it hides what works on long rows."""
    plain = _inferred(hidden, False)
    while plain is not None and _hide_uneven(hidden, plain):
        plain = _inferred(hidden, False)
    if plain is None or _has_negative(plain.graph):
        return plain
    _hide_long(hidden.graph, plain.graph)
    return _inferred(hidden, True) or plain


def _hide_uneven(hidden: ModelProto, told: ModelProto) -> bool:
    """Hide Einsums whose shape inference gets wrong, and tell it; whether there are any."""
    right = uneven(told.graph, {})
    waiting, found = [hidden.graph], False
    while waiting and right:
        graph = waiting.pop()
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            waiting.extend(body for _, body in bodies(node))
            name = node.output[0] if type_of(node) == "Einsum" and node.output else ""
            if name not in right:
                continue
            node.domain, found = _HIDDEN, True
            if right[name].type.tensor_type.elem_type and name not in outputs:
                others = [value for value in graph.value_info if value.name != name]
                del graph.value_info[:]
                graph.value_info.extend([*others, right[name]])
    return found


def _inferred(model: ModelProto, follow: bool) -> ModelProto | None:
    try:
        return shape_inference.infer_shapes(model, strict_mode=False, data_prop=follow)
    except Exception:  # What inference raises on an invalid model has no common base.
        return None


def _show_sound(model: ModelProto) -> bool | None:
    """Hide the Slices of a model, and show those that read no negative size.

    Gives True where all of them are shown, False where a size comes out negative, None where it
    would take too long to find out, or inference does not tell.
    """
    slices = slices_of(model)
    for node in (*slices.unknown, *(node for level in slices.levels for node in level)):
        node.domain = _HIDDEN
    work = 0
    for level in slices.levels:
        work += len(model.graph.node)
        if work > _WORK:
            return None
        found = _look(model)
        if found is not None and _has_negative(found.graph):
            return False
        for node in level:
            node.domain = ""
    return None if slices.unknown else True


def _has_negative(graph: GraphProto) -> bool:
    """Whether inference has found a negative size in a graph or in one of its bodies."""
    values = (*graph.value_info, *graph.output)
    return any(
        dim.dim_value < 0
        for value in values
        if value.type.WhichOneof("value") == "tensor_type"
        for dim in value.type.tensor_type.shape.dim
    ) or any(_has_negative(body) for node in graph.node for _, body in bodies(node))


def _hide_long(graph: GraphProto, told: GraphProto) -> None:
    """Hide operators on long rows in a graph; ``told`` is the same graph as inferred."""
    values = {value.name: value for value in (*told.input, *told.value_info, *told.output)}
    long = {name for name, value in values.items() if _is_long(value)}
    long.update(t.name for t in told.initializer if len(t.dims) == 1 and t.dims[0] > _LONGEST)
    outputs = {value.name for value in graph.output}
    for node, twin in zip(graph.node, told.node, strict=True):
        for (_, body), (_, body_told) in zip(bodies(node), bodies(twin), strict=True):
            _hide_long(body, body_told)
        if not long:
            continue
        followed = node.domain in ("", "ai.onnx") and node.op_type in _FOLLOWED
        if followed and not long.isdisjoint((*node.input, *node.output)):
            node.domain = _HIDDEN
            known = (name for name in node.output if name in values and name not in outputs)
            graph.value_info.extend(values[name] for name in known)
    for value in graph.output:
        if value.name in long:
            value.CopyFrom(values[value.name])


def _shown(found: ModelProto, skeleton: ModelProto) -> ModelProto:
    """A model in which operators that were hidden have their domain again."""
    _show(found.graph, skeleton.graph)
    for function, origin in zip(found.functions, skeleton.functions, strict=True):
        for node, twin in zip(function.node, origin.node, strict=True):
            node.domain = twin.domain
    return found


def _show(graph: GraphProto, skeleton: GraphProto) -> None:
    for node, origin in zip(graph.node, skeleton.node, strict=True):
        node.domain = origin.domain
        if not node.attribute:
            continue
        for (_, body), (_, body_origin) in zip(bodies(node), bodies(origin), strict=True):
            _show(body, body_origin)


def _is_long(value: ValueInfoProto) -> bool:
    if value.type.WhichOneof("value") != "tensor_type":
        return False
    dims = value.type.tensor_type.shape.dim
    return len(dims) == 1 and dims[0].dim_value > _LONGEST
