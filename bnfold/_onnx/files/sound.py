"""Whether the tensors of a model can be what they say: checked before anything reads them.

onnxruntime refuses such a model, too. Whatever reads a tensor may then take for granted that its
type is known and that its numbers fill its shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
)

from bnfold._errors import UsageError
from bnfold._onnx import tensors
from bnfold._onnx.read.scopes import bodies, label
from bnfold._onnx.tensors import all_tensors

_TYPES = frozenset(TensorProto.DataType.values())
_FIELDS: dict[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}
"""The field that holds the numbers of a type, and how many entries one number takes.

All other types are in ``int32_data``, one entry each (ONNX, onnx.proto)."""


_TYPED_SINCE = 2
"""The version of the IR from which on an attribute says its type (ONNX, onnx.proto)."""
_HELD = {
    getattr(AttributeProto, kind): frozenset((field, "name", "type", "doc_string", "ref_attr_name"))
    for kind, field in (
        *(("FLOAT", "f"), ("INT", "i"), ("STRING", "s"), ("TENSOR", "t"), ("GRAPH", "g")),
        *(("SPARSE_TENSOR", "sparse_tensor"), ("TYPE_PROTO", "tp"), ("FLOATS", "floats")),
        *(("INTS", "ints"), ("STRINGS", "strings"), ("TENSORS", "tensors"), ("GRAPHS", "graphs")),
        *(("SPARSE_TENSORS", "sparse_tensors"), ("TYPE_PROTOS", "type_protos")),
    )
}
"""What an attribute of a type may hold."""
_LATEST = 2**31 - 1
_LARGE = 1 << 23
_MOST_OPERATORS = 500_000
"""Of a function, with those of all that it calls."""
_UNKNOWN = "which this version of onnx does not know; is the file damaged, or of a newer version?"


def refuse_unsound(model: ModelProto) -> None:
    """Raise `UsageError` for a tensor whose type is unknown, or whose data do not fill its shape.

    No version of an operator set is negative, or has more than 32 bits. Inputs and outputs must
    have known types, too, and an attribute must hold what its type says: one reader goes by the
    one, another by the other.
    """
    for holder in (model, *model.functions):
        for entry in holder.opset_import:
            if not 0 <= entry.version <= _LATEST:
                raise UsageError(
                    f"it asks for version {entry.version} of {entry.domain or 'ONNX'!r}"
                )
    _refuse_swollen(model)
    for tensor in all_tensors(model):
        _check(tensor)
    if not 0 < model.ir_version < _TYPED_SINCE:
        for node in _nodes(model):
            _check_attributes(node)
    for value in _values(model.graph):
        for kind in _kinds(value.type):
            if kind not in _TYPES:
                raise UsageError(f"{value.name!r} has the element type {kind}, {_UNKNOWN}")


def _check(tensor: TensorProto) -> None:
    name, kind = tensor.name, tensor.data_type
    if kind not in _TYPES:
        raise UsageError(f"tensor {name!r} has the element type {kind}, {_UNKNOWN}")
    if any(size < 0 for size in tensor.dims):
        raise UsageError(f"tensor {name!r} has the shape {list(tensor.dims)}")
    own = tensors.is_own(tensor)
    if (tensor.data_location == TensorProto.EXTERNAL and not own) or not kind:
        return
    count, bits = math.prod(tensor.dims), tensors.width(kind)
    needed, unit = -(-count * bits // 8), "bytes"
    if own:
        held = tensors.external_location(tensor)[2]
    elif not tensor.HasField("raw_data") or not bits:
        field, times = _FIELDS.get(kind, ("int32_data", 1))
        held, unit = len(getattr(tensor, field)), "numbers"
        needed = needed if kind in tensors.PACKED else count * times
    elif needed > _LARGE:  # Its bytes would be copied. Nothing else in a tensor is so large.
        held = needed if tensor.ByteSize() in range(needed, needed + _LARGE) else None
    else:
        held = len(tensor.raw_data)
    if held != needed:
        raise UsageError(
            f"tensor {name!r} holds {'other' if held is None else held} {unit}, its shape "
            f"{list(tensor.dims)} needs {needed}"
        )


def _refuse_swollen(model: ModelProto) -> None:
    """Raise `UsageError` where calls of functions in functions stand for too many operators.

    onnx goes through each call by itself: forty functions that call the next one twice are 2^40.
    """
    nodes = {(each.domain, each.name): [*_inner(each.node)] for each in model.functions}
    sizes, open_, waiting = dict[tuple[str, str], int](), set[tuple[str, str]](), list(nodes)
    while waiting:
        key = waiting[-1]
        called = [(node.domain, node.op_type) for node in nodes[key]]
        missing = {one for one in called if one in nodes and one not in sizes} - open_ - {key}
        if key in sizes or not missing or key in open_:
            waiting.pop()
            sizes.setdefault(key, len(called) + sum(sizes.get(one, 0) for one in called))
            if sizes[key] > _MOST_OPERATORS:
                raise UsageError(f"function {key[1]!r} stands for too many operators")
            continue
        open_.add(key)
        waiting.extend(missing)


def _check_attributes(node: NodeProto) -> None:
    for attribute in node.attribute[:]:
        held = {field.name for field, _ in attribute.ListFields()}
        if not held <= _HELD.get(attribute.type, frozenset()):
            what = f"the attribute {attribute.name!r} of {label(node)}"
            raise UsageError(f"{what} holds something else than its type says")


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of a model, in bodies and functions, too."""
    yield from _inner([*model.graph.node, *(n for each in model.functions for n in each.node)])


def _inner(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(inner for _, body in bodies(node) for inner in body.node)


def _values(graph: GraphProto) -> Iterator[ValueInfoProto]:
    waiting = [graph]
    while waiting:
        graph = waiting.pop()
        yield from (*graph.input, *graph.output, *graph.value_info)
        waiting.extend(body for node in graph.node for _, body in bodies(node))


def _kinds(kind: TypeProto) -> Iterator[int]:
    """The element types in a type."""
    waiting = [kind]
    while waiting:
        one = waiting.pop()
        which = one.WhichOneof("value")
        if which in ("tensor_type", "sparse_tensor_type"):
            yield getattr(one, which).elem_type
        elif which in ("sequence_type", "optional_type"):
            waiting.append(getattr(one, which).elem_type)
        elif which == "map_type":
            waiting.append(one.map_type.value_type)
