"""The letters of an Einsum, and where ONNX's inference does not see that its operands broadcast.

Runtimes let one letter have size 1 in an operand and another size in the next, as NumPy does.
ONNX's inference then takes the size of the first operand for that of what is put out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, NodeProto, TypeProto, ValueInfoProto, helper

from bnfold._core.broadcast import Shape
from bnfold._onnx.read import attributes
from bnfold._onnx.read.scopes import bodies, type_of


def axis_names(equation: str, weight: int) -> tuple[str, str, str] | None:
    """The letters of the axes of the input ``weight``, of the other of two inputs, and of what an
    Einsum puts out; None where they are not all told, or one comes twice in a tensor.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    words = left.split(",")
    if not arrow or len(words) != 2:
        return None
    names = words[weight], words[1 - weight], out
    plain = all(word.isalpha() and len(set(word)) == len(word) for word in names if word)
    return names if plain else None


def is_uneven(node: NodeProto, shapes: Sequence[Shape | None]) -> bool:
    """Whether a letter of an Einsum may have several sizes: two that are known and differ, or 1 in
    one place and none that is known in another. ``shapes`` are those of its inputs.
    """
    several = (found for found in _sizes(node, shapes).values() if len(found) > 1)
    return any(1 in found or len(found - {None}) > 1 for found in several)


def output(node: NodeProto, shapes: Sequence[Shape | None]) -> Shape | None:
    """The shape of what an Einsum puts out; None where its letters do not tell the rank. An axis
    has the size that is not 1, if one is known, and 1 if all are.
    """
    _, arrow, out = attributes.text(node, "equation", "").replace(" ", "").partition("->")
    if not arrow or "." in out:
        return None
    sizes = _sizes(node, shapes)
    return tuple(_broadcast(sizes.get(name, {None})) for name in out)


def _broadcast(sizes: set[int | None]) -> int | None:
    larger = [size for size in sizes if size not in (None, 1)]
    if len(larger) == 1:
        return larger[0]
    return 1 if sizes == {1} else None


def _sizes(node: NodeProto, shapes: Sequence[Shape | None]) -> dict[str, set[int | None]]:
    """The sizes of each letter in the inputs of an Einsum."""
    equation = attributes.text(node, "equation", "").replace(" ", "")
    words = equation.partition("->")[0].split(",")
    sizes: dict[str, set[int | None]] = {}
    for word, shape in zip(words, shapes, strict=False):
        head, dots, tail = word.partition("...")
        known = shape if shape is not None else (None,) * len(head + tail)
        ends = [*zip(head, known, strict=False), *zip(tail[::-1], known[::-1], strict=False)]
        for name, size in ends if dots else zip(word, known, strict=False):
            sizes.setdefault(name, set()).add(size)
    return sizes


def uneven(graph: GraphProto, around: Mapping[str, TypeProto]) -> dict[str, ValueInfoProto]:
    """What the Einsums of an inferred graph and its bodies put out of which `is_uneven` holds, by
    name, with the right shape; ``around`` has the types of the graphs outside.
    """
    if not _has_einsum(graph):
        return {}
    known = dict(around)
    for tensor in graph.initializer:
        known[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    known |= {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    found: dict[str, ValueInfoProto] = {}
    for node in graph.node:
        for _, body in bodies(node):
            found |= uneven(body, known)
        types = [known.get(name, TypeProto()) for name in node.input]
        shapes = [shape_of(each) for each in types]
        if type_of(node) == "Einsum" and node.output and is_uneven(node, shapes):
            kinds = (each.tensor_type.elem_type for each in types)
            kind, name = next(filter(None, kinds), 0), node.output[0]
            found[name] = helper.make_tensor_value_info(name, kind, output(node, shapes))
    return found


def _has_einsum(graph: GraphProto) -> bool:
    """Whether a graph or a body in it has an Einsum: few have, and all shapes take a while."""
    return any(
        node.op_type == "Einsum" or any(_has_einsum(body) for _, body in bodies(node))
        for node in graph.node
    )


def shape_of(kind: TypeProto) -> Shape | None:
    """The sizes in a type; None where it has no rank."""
    tensor = kind.tensor_type
    if kind.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
