"""Values that are the same at every run: initializers, Constant nodes, and chains of them.

Paddle and PyTorch's unoptimized exporter write parameters through chains of Identity, Reshape,
Cast, Shape, Expand and arithmetic. Standardized weights pass through norms. A chain is a constant
if all its inputs are constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, SparseTensorProto, TensorProto, helper

from bnfold._core.reasons import Reason
from bnfold._onnx import tensors
from bnfold._onnx.read import attributes, sparse
from bnfold._onnx.read.engines import Others, is_in_doubt, others
from bnfold._onnx.read.evaluation import (
    EVALUATED,
    Double,
    evaluated,
    is_followed,
    jumps,
    may_differ,
    refuse_undefined,
    rounds,
    widened,
)
from bnfold._onnx.read.growth import refuse_huge
from bnfold._onnx.read.scopes import DEQUANTIZERS, Scope, label
from bnfold._onnx.read.shapes import Shapes
from bnfold._onnx.read.sizes import Numbers
from bnfold._system.records import record

Array = NDArray[Any]

_CACHED_BYTES = 1 << 20
# So many bytes of larger values are remembered: what was asked for last.
_REMEMBERED = 1 << 28


@record(frozen=True)
class Constant:
    """A constant tensor. ``load`` reads its values; they are not read before.

    ``stored`` is the tensor that holds the values and may be rewritten in place, None if there is
    no such tensor. ``protected`` names a parameter that a caller may override and from which the
    constant is computed, None if there is no such parameter. ``sparse`` is the sparse tensor that
    holds the values. ``source`` is the tensor whose values these are, unchanged, None if there is
    none, or not of its own. ``wide`` are the values in float64 before they were rounded, None where
    the rounded ones are read on (`evaluation.widened`). Other engines may have other numbers if it
    ``is_free``: ``others``, None where that is not known (`engines.others`). It is ``in_doubt``
    where these are too far apart to tell what the network has.
    """

    name: str
    shape: tuple[int, ...]
    data_type: int
    load: Callable[[], Array]
    stored: TensorProto | None = None
    protected: str | None = None
    sparse: SparseTensorProto | None = None
    source: TensorProto | None = None
    wide: Double | None = None
    is_free: bool = False
    others: Others | None = None
    in_doubt: bool = False

    @property
    def is_float(self) -> bool:
        """Whether the element type is one that affine maps are folded in."""
        return self.data_type in tensors.FLOATS

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the values."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.data_type))


class Constants:
    """Finds constants by name, each resolved once."""

    def __init__(self, base_dir: Path | None, shapes: Shapes) -> None:
        self._base_dir = base_dir
        self._shapes = shapes
        self._found: dict[tuple[str, str], Constant | Reason] = {}
        self._recent: dict[tuple[str, ...], Array] = {}

    def add(self, scope: Scope, constant: Constant) -> None:
        """Add a constant that the model does not hold."""
        self._found[scope.path, constant.name] = constant

    def find(self, scope: Scope, name: str) -> Constant | Reason:
        """The constant of a name in a graph, or the reason why the name is no constant."""
        found = self._made(scope, name)
        if isinstance(found, Constant) and found.in_doubt:
            message = f"engines differ about {name}: they round in other ways on the way to it"
            return Reason("dynamic-weight", name, message)
        return found

    def _made(self, scope: Scope, name: str) -> Constant | Reason:
        """A constant, also one in doubt: another operator may make one of it that is not."""
        owner = scope.owner(name)
        if owner is None:
            return Reason("dynamic-weight", name, f"{name} is not defined in the model")
        known = self._found.get((owner.path, name))
        if known is not None:
            return known
        if name not in owner.producers:
            found = self._found[owner.path, name] = self._resolve(owner, name)
            return found
        waiting = [(owner, name)]
        expanded: set[tuple[str, str]] = set()
        while waiting:
            graph, current = waiting[-1]
            key = (graph.path, current)
            if key not in self._found and key not in expanded:
                expanded.add(key)
                waiting.extend(_sources(graph, current))
                continue
            waiting.pop()
            if key not in self._found:
                self._found[key] = Reason("dynamic-weight", current, f"{current} reads itself")
                self._found[key] = self._resolve(graph, current)
        return self._found[owner.path, name]

    def mapped(self, constant: Constant) -> Array:
        """The values of a constant that stay for long; see `tensors.mapped`."""
        if constant.source is None:
            return constant.load()
        return tensors.mapped(constant.source, self._base_dir)

    def part(self, constant: Constant, axis: int, start: int, stop: int) -> Array:
        """Some of the values of a constant; see `tensors.part`."""
        if constant.source is None:
            return constant.load()[(slice(None),) * axis + (slice(start, stop),)]
        return tensors.part(constant.source, self._base_dir, axis, start, stop)

    def _resolve(self, scope: Scope, name: str) -> Constant | Reason:
        tensor = scope.initializers.get(name)
        if tensor is not None:
            return self._from_tensor(name, tensor, name if name in scope.protected else None)
        if name in scope.sparse:
            return self._from_sparse(name, scope.sparse[name], name in scope.protected)
        if name in scope.inputs:
            if scope.is_function:
                return Reason("function-parameter", name, f"{name} is an input of the {scope.path}")
            return Reason("dynamic-weight", name, f"{name} is an input of the graph")
        node = scope.nodes[scope.producers[name]]
        numbers = self._shapes.numbers.get((scope.path, name))
        if numbers is not None and node.op_type != "Constant":
            data_type = self._shapes.type(scope, name) or TensorProto.INT64
            return _settled(name, _integers(numbers, data_type))
        if scope.kind(node) in DEQUANTIZERS:
            return Reason("quantized-weight", label(node), f"{name} is dequantized at run time")
        if node.domain not in ("", "ai.onnx") or list(node.output).index(name) != 0:
            return _computed(name, node)
        if any(attribute.ref_attr_name for attribute in node.attribute):
            return Reason(
                "function-parameter", label(node), f"{name} depends on an attribute of the call"
            )
        if node.op_type == "Constant":
            return self._from_constant_node(name, node)
        if node.op_type == "Identity":
            return self._from_identity(scope, name, node)
        if node.op_type in ("Shape", "CastLike"):
            return self._from_inferred(scope, name, node)
        # The reference implementation overlooks where such an operand lies (ONNX Add-6).
        misaligned = attributes.has(node, "broadcast") and attributes.has(node, "axis")
        if node.op_type in EVALUATED and not misaligned:
            return self._from_chain(scope, name, node)
        return _computed(name, node)

    def _from_tensor(self, name: str, tensor: TensorProto, protected: str | None) -> Constant:
        base_dir = self._base_dir
        return Constant(
            name,
            tuple(tensor.dims),
            tensor.data_type,
            lambda: tensors.read(tensor, base_dir),
            tensor,
            protected,
            source=tensor,
        )

    def _from_sparse(
        self, name: str, tensor: SparseTensorProto, protected: bool
    ) -> Constant | Reason:
        """The constant of a sparse tensor, which is made each time that it is asked for."""
        base_dir = self._base_dir
        try:
            sparse.places(tensor, base_dir)
        except ValueError as error:
            return Reason("dynamic-weight", name, f"{name} is a sparse tensor, and {error}")
        return Constant(
            name,
            tuple(tensor.dims),
            tensor.values.data_type,
            lambda: sparse.dense(tensor, base_dir),
            None,
            name if protected else None,
            tensor,
        )

    def _from_constant_node(self, name: str, node: NodeProto) -> Constant | Reason:
        if len(node.attribute) != 1:
            return _computed(name, node)
        attribute = node.attribute[0]
        if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
            return self._from_tensor(name, attribute.t, None)
        if attribute.name == "sparse_value":
            return self._from_sparse(name, attribute.sparse_tensor, False)
        if attribute.name in ("value_float", "value_floats"):
            return _settled(name, np.asarray(helper.get_attribute_value(attribute), np.float32))
        if attribute.name in ("value_int", "value_ints"):
            return _settled(name, np.asarray(helper.get_attribute_value(attribute), np.int64))
        return _computed(name, node)

    def _from_identity(self, scope: Scope, name: str, node: NodeProto) -> Constant | Reason:
        source = self._made(scope, node.input[0])
        if isinstance(source, Reason):
            return source
        return replace(source, name=name, stored=None, sparse=None)

    def _from_inferred(self, scope: Scope, name: str, node: NodeProto) -> Constant | Reason:
        """The constant of a Shape with known sizes, or of a CastLike with a known type."""
        if node.op_type == "Shape":
            sizes = self._shapes.shape(scope, node.input[0])
            if sizes is None or None in sizes:
                return self._from_chain(scope, name, node)
            attributes = {a.name: a.i for a in node.attribute}
            part = sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))]
            return _settled(name, np.asarray(part, np.int64))
        like = self._made(scope, node.input[1])
        target = like.data_type if isinstance(like, Constant) else 0
        target = target or self._shapes.type(scope, node.input[1])
        if not target:
            return _computed(name, node)
        cast = helper.make_node("Cast", [node.input[0]], list(node.output), to=target)
        return self._from_chain(scope, name, cast)

    def _from_chain(self, scope: Scope, name: str, node: NodeProto) -> Constant | Reason:
        sources: list[Constant | None] = []
        for source in node.input:
            found = self._made(scope, source) if source else None
            if isinstance(found, Reason):
                return found
            sources.append(found)
        wide = [s.wide if s else None for s in sources]
        given = [s.others if s else None for s in sources]
        known = not any(s.is_free and s.others is None for s in sources if s)
        key = scope.path, name

        def inputs() -> list[Array | None]:
            return [s.load() if s else None for s in sources]

        def made(one: NodeProto, read: Sequence[Array | None]) -> Array:
            return evaluated(one, read, scope.opset)

        def own() -> Array:
            return self._once((*key, "own"), lambda: made(node, inputs()))

        def elsewhere(read: Sequence[Array | None], values: Array) -> Others | None:
            return others(node, read, given, values, rounds(node, values), made)

        def carried() -> Array:
            read, values = inputs(), own()
            apart = elsewhere(read, values)
            return _rounded(widened(node, read, wide, values, apart, scope.opset), values)

        def load() -> Array:
            return self._once((*key, "rounded"), carried)

        apart, exact = None, None
        try:
            read = inputs()
            stored = {
                id(s.source): math.prod(s.shape) for s in sources if s and s.source is not None
            }
            refuse_huge(node, read, sum(stored.values()))
            refuse_undefined(node, read)
            values = self._once((*key, "own"), lambda: made(node, read))
            is_free = may_differ(node, values) and (not known or rounds(node, values) or any(given))
            if is_free and known and is_followed(read, values):
                apart = elsewhere(read, values)
                is_free = apart is not None
                exact = widened(node, read, wide, values, apart, scope.opset)
            if is_free and jumps(node, values):
                raise ValueError("engines may round what it reads in other ways")
        except Exception as error:  # Whatever an operator raises on constants it cannot take.
            return Reason("dynamic-weight", label(node), f"{name} could not be evaluated: {error}")
        is_kept, rounded = values.nbytes <= _CACHED_BYTES, values
        if exact is not None:
            rounded = self._once((*key, "rounded"), lambda: _rounded(exact, values))
        kept = own if exact is None else load
        lost = apart is None and any(s.in_doubt for s in sources if s)
        return Constant(
            name,
            values.shape,
            tensors.data_type(values.dtype),
            (lambda: rounded) if is_kept else kept,
            None,
            next((s.protected for s in sources if s and s.protected), None),
            wide=exact if is_kept else None,
            is_free=is_free,
            others=apart if is_kept else None,
            in_doubt=(is_free and lost) or is_in_doubt(values, apart),
        )

    def _once(self, key: tuple[str, ...], make: Callable[[], Array]) -> Array:
        """Some values; large ones are kept for whoever asks next, the first asked for give way."""
        values = self._recent.pop(key, None)
        values = make() if values is None else values
        if _CACHED_BYTES < values.nbytes <= _REMEMBERED:
            self._recent[key] = values
            while sum(held.nbytes for held in self._recent.values()) > _REMEMBERED:
                del self._recent[next(iter(self._recent))]
        return values


def _rounded(wide: Double | None, own: Array) -> Array:
    return own if wide is None else wide.astype(own.dtype)


def _sources(scope: Scope, name: str) -> list[tuple[Scope, str]]:
    """The inputs of a name's writer, each with its graph; none if the writer is not evaluated.

    The name is a constant if all of them are.
    """
    position = scope.producers.get(name)
    if position is None:
        return []
    node = scope.nodes[position]
    if node.op_type not in EVALUATED and node.op_type not in ("Identity", "CastLike"):
        return []
    owned = ((scope.owner(source), source) for source in node.input if source)
    return [(owner, source) for owner, source in owned if owner is not None]


def _integers(numbers: Numbers, data_type: int) -> Array:
    """Integers that are computed from sizes, as a tensor."""
    values = np.asarray(numbers.known, helper.tensor_dtype_to_np_dtype(data_type))
    return values.reshape(()) if numbers.is_scalar else values


def _settled(name: str, values: Array) -> Constant:
    return Constant(name, values.shape, tensors.data_type(values.dtype), lambda: values, None, None)


def _computed(name: str, node: NodeProto) -> Reason:
    return Reason("dynamic-weight", label(node), f"{name} is computed at run time by {label(node)}")


def agree(made: Callable[..., Array], *constants: Constant) -> bool:
    """Whether all engines make the same of some constants; False where that is not known."""
    free = [one for one in constants if one.is_free]
    sets = [one.others for one in free if one.others is not None]
    if len(sets) < len(free):
        return False
    own = made(*(one.load() for one in constants))
    elsewhere = (
        [one.load() if one.others is None else one.others[number] for one in constants]
        for number in range(min(map(len, sets), default=0))
    )
    return all(np.array_equal(made(*each), own) for each in elsewhere)
