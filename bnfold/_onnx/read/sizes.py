"""The sizes that a graph computes from shapes, such as the target of a Reshape.

ONNX's inference follows such numbers too, but uses them for a Reshape only from opset 14 on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from onnx import GraphProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from bnfold._core.index_maps import Size
from bnfold._system.records import record

_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
_LONGEST = 64
# Between the factors of a word for a product; no word for a single size has it.
_TIMES = "\x1f"
_FACTORS = 8
_LARGE = 1 << 31
Tensor = TypeProto.Tensor


@record(frozen=True)
class Numbers:
    """A scalar or a vector of integers. An unknown integer is a symbol or None."""

    values: tuple[Size, ...]
    is_scalar: bool = False

    @property
    def fits_any_type(self) -> bool:
        """Whether all of them are known, and small enough for any type of integers."""
        return all(isinstance(value, int) and abs(value) < _LARGE for value in self.values)

    @property
    def known(self) -> tuple[int, ...] | None:
        """The integers, None if one is unknown."""
        found = tuple(value for value in self.values if isinstance(value, int))
        return found if len(found) == len(self.values) else None


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes: a number, or a word for it, the same in whatever order they are.

    None where a size has no word, and for a product that is no size or has many factors.
    """
    number, words = factors(sizes)
    if number is None or len(words) > _FACTORS or (words and number < 1):
        return None
    parts = [str(number)] * (number != 1) + sorted(words)
    return _TIMES.join(parts) if words else number


def factors(sizes: Iterable[Size]) -> tuple[int | None, list[str]]:
    """The product of the numbers among sizes, and the words; None for the number if one size has
    neither.
    """
    number, words, known = 1, list[str](), True
    for size in sizes:
        known = known and size is not None
        for part in size.split(_TIMES) if isinstance(size, str) else ():
            number, words = (
                (number * int(part), words) if part.isdigit() else (number, [*words, part])
            )
        number *= size if isinstance(size, int) else 1
    return number if known else None, words


def quotient(whole: Iterable[Size], part: Iterable[Size]) -> Size:
    """What a product is divided by another one; None where that is not known."""
    number, words = factors(whole)
    divisor, others = factors(part)
    for word in others:
        if word not in words:
            return None
        words.remove(word)
    if number is None or not divisor or number % divisor:
        return None
    return product([number // divisor, *words])


class Following:
    """The integers that nodes compute from stored integers and known shapes, node by node.

    ``found`` has them by name. Integers that a caller may override count as unknown.
    """

    def __init__(
        self, graph: GraphProto, known: Mapping[str, Tensor], overridable: Collection[str]
    ) -> None:
        self.known = known
        self.found: dict[str, Numbers] = {}
        for tensor in graph.initializer:
            numbers = _stored(tensor)
            if numbers is not None and tensor.name not in overridable:
                self.found[tensor.name] = numbers

    def follow(self, node: NodeProto) -> None:
        """Note what a node computes; what it reads has been noted before."""
        found, known = self.found, self.known
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx") or not node.output:
            return
        try:
            if node.op_type == "Shape":
                made = _shape(node, known.get(node.input[0]))
            else:
                inputs = [found.get(name) or unknown(known.get(name)) for name in node.input[:]]
                made = rule(node, inputs)
        except (IndexError, TypeError, ValueError):  # An invalid node: nothing is known of it.
            return
        if made is not None and len(made.values) <= _LONGEST:
            found[node.output[0]] = made


def computed(
    graph: GraphProto, known: Mapping[str, Tensor], overridable: Collection[str]
) -> dict[str, Numbers]:
    """The integers that all nodes of a graph compute, by name."""
    following = Following(graph, known, overridable)
    for node in graph.node:
        following.follow(node)
    return following.found


def dimensions(tensor: Tensor) -> tuple[Size, ...]:
    """The sizes of a shape."""
    return tuple(dim.dim_value or dim.dim_param or None for dim in tensor.shape.dim)


def unknown(tensor: Tensor | None) -> Numbers | None:
    """Unknown integers, as many as the shape tells; None if it does not."""
    if tensor is None or tensor.elem_type not in _INTEGERS or len(tensor.shape.dim) > 1:
        return None
    count = tensor.shape.dim[0].dim_value if tensor.shape.dim else 1
    return Numbers((None,) * count, not tensor.shape.dim) if 0 < count <= _LONGEST else None


def _stored(tensor: TensorProto) -> Numbers | None:
    small = len(tensor.dims) < 2 and all(size <= _LONGEST for size in tensor.dims)
    if tensor.data_type not in _INTEGERS or not small or not is_there(tensor):
        return None
    values = numpy_helper.to_array(tensor)
    return Numbers(tuple(int(value) for value in values.reshape(-1)), values.ndim == 0)


def is_there(tensor: TensorProto) -> bool:
    """Whether a tensor holds its numbers: external data is left out of the copy for inference."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return False
    held = tensor.raw_data or tensor.int64_data or tensor.int32_data or tensor.uint64_data
    return bool(held) or 0 in tensor.dims


def _shape(node: NodeProto, tensor: Tensor | None) -> Numbers | None:
    if tensor is None:
        return None
    sizes = dimensions(tensor)
    attributes = _attributes(node)
    return Numbers(sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))])


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute[:] if not a.ref_attr_name}


Inputs = Sequence[Numbers | None]


def _constant(node: NodeProto, inputs: Inputs) -> Numbers | None:
    attributes = _attributes(node)
    if "value" in attributes:
        return _stored(attributes["value"])
    if "value_int" in attributes:
        return Numbers((attributes["value_int"],), True)
    return Numbers(tuple(attributes["value_ints"])) if "value_ints" in attributes else None


def _same(node: NodeProto, inputs: Inputs) -> Numbers | None:
    if node.op_type == "Cast" and _attributes(node).get("to") not in _INTEGERS:
        return None
    return inputs[0]


def _turned(node: NodeProto, inputs: Inputs) -> Numbers | None:
    """The integers behind a Squeeze or Unsqueeze: a scalar or a vector of one."""
    data, scalar = inputs[0], node.op_type == "Unsqueeze"
    if data is None or len(data.values) != 1 or data.is_scalar != scalar:
        return None
    axes = _attributes(node).get("axes")
    if len(inputs) > 1:
        axes = inputs[1].values if inputs[1] is not None else ()
    if axes is None and not scalar:  # A Squeeze without axes takes out all of size 1.
        return Numbers(data.values, True)
    return Numbers(data.values, not scalar) if axes and len(axes) == 1 else None


def _gather(node: NodeProto, inputs: Inputs) -> Numbers | None:
    data, at = inputs
    if data is None or at is None or data.is_scalar:
        return None
    places = [n for n in at.values if isinstance(n, int) and -len(data.values) <= n]
    if len(places) < len(at.values) or any(n >= len(data.values) for n in places):
        return None
    return Numbers(tuple(data.values[n] for n in places), at.is_scalar)


def _slice(node: NodeProto, inputs: Inputs) -> Numbers | None:
    attributes = _attributes(node)
    given = {name: tuple(attributes[name]) for name in _SLICE if name in attributes}
    for name, numbers in zip(_SLICE, inputs[1:], strict=False):
        if numbers is None:
            return None
        given[name] = numbers.values
    start, end = given.get("starts", ()), given.get("ends", ())
    axes, steps = given.get("axes", (0,)), given.get("steps", (1,))
    data = inputs[0]
    known = all(isinstance(n, int) for n in (*start, *end)) and len(start) == len(end) == 1
    if data is None or data.is_scalar or not known or axes not in ((0,), (-1,)) or steps != (1,):
        return None
    return Numbers(data.values[start[0] : end[0]])


_SLICE = ("starts", "ends", "axes", "steps")


def _concat(node: NodeProto, inputs: Inputs) -> Numbers | None:
    parts = [part for part in inputs if part is not None and not part.is_scalar]
    if len(parts) < len(inputs):
        return None
    return Numbers(tuple(value for part in parts for value in part.values))


def _arithmetic(node: NodeProto, inputs: Inputs) -> Numbers | None:
    one, other = inputs
    if one is None or other is None:
        return None
    count = max(len(one.values), len(other.values))
    if not {len(one.values), len(other.values)} <= {1, count}:
        return None
    pairs = zip(_spread(one, count), _spread(other, count), strict=True)
    values = tuple(_number(node.op_type, a, b) for a, b in pairs)
    return Numbers(values, one.is_scalar and other.is_scalar)


def _spread(numbers: Numbers, count: int) -> tuple[Size, ...]:
    return numbers.values if len(numbers.values) == count else numbers.values * count


def _number(kind: str, a: Size, b: Size) -> Size:
    if kind == "Mul" and isinstance(a, str) | isinstance(b, str):
        return product([a, b])
    if kind == "Div" and isinstance(a, str):
        return quotient([a], [b])
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    if kind == "Div":  # Integers are divided toward zero.
        return a // b if a >= 0 and b > 0 else None
    return {"Add": a + b, "Sub": a - b, "Mul": a * b}[kind]


_RULES: dict[str, Callable[[NodeProto, Inputs], Numbers | None]] = {
    "Add": _arithmetic,
    "Cast": _same,
    "Concat": _concat,
    "Constant": _constant,
    "Div": _arithmetic,
    "Gather": _gather,
    "Identity": _same,
    "Mul": _arithmetic,
    "Shape": _same,
    "Slice": _slice,
    "Squeeze": _turned,
    "Sub": _arithmetic,
    "Unsqueeze": _turned,
}
