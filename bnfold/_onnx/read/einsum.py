"""The letters of an Einsum, and where ONNX's inference does not see that its operands broadcast.

Runtimes let one letter have size 1 in an operand and another size in the next, as NumPy does.
ONNX's inference then takes the size of the first operand for that of what is put out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, NodeProto, TypeProto

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
    equation = attributes.text(node, "equation", "").replace(" ", "")
    words = equation.partition("->")[0].split(",")
    sizes: dict[str, set[int | None]] = {}
    for word, shape in zip(words, shapes, strict=False):
        head, dots, tail = word.partition("...")
        known = shape if shape is not None else (None,) * len(head + tail)
        ends = [*zip(head, known, strict=False), *zip(tail[::-1], known[::-1], strict=False)]
        for name, size in ends if dots else zip(word, known, strict=False):
            sizes.setdefault(name, set()).add(size)
    several = (found for found in sizes.values() if len(found) > 1)
    return any(1 in found or len(found - {None}) > 1 for found in several)


def uneven(graph: GraphProto, around: Mapping[str, Shape]) -> list[NodeProto]:
    """The Einsums of an inferred graph and its bodies of which `is_uneven` holds; ``around`` has
    the shapes of the graphs outside.
    """
    known = {**around, **{t.name: tuple(t.dims) for t in graph.initializer}}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = shape_of(value.type)
        if shape is not None:
            known[value.name] = shape
    found = []
    for node in graph.node:
        for _, body in bodies(node):
            found += uneven(body, known)
        if type_of(node) == "Einsum" and is_uneven(node, [known.get(n) for n in node.input]):
            found.append(node)
    return found


def shape_of(kind: TypeProto) -> Shape | None:
    """The sizes in a type; None where it has no rank."""
    tensor = kind.tensor_type
    if kind.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
