"""One of two files under proof: its graphs, its constants, and what each tensor of it is.

With the code that folds it shares the reading of stored constants, shapes and names, nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from bnfold._errors import UsageError
from bnfold._onnx import tensors
from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.quantized import Dequantized, dequantized
from bnfold._onnx.read.scopes import Scope, label, read_scopes, type_of
from bnfold._onnx.read.shapes import Shapes, infer
from bnfold._relation.expressions import Double, Expression
from bnfold._system.records import record

Array = NDArray[Any]
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_EPS: dict[int, float] = {
    TensorProto.FLOAT16: 2.0**-10,
    TensorProto.BFLOAT16: 2.0**-7,
    TensorProto.FLOAT: 2.0**-23,
    TensorProto.DOUBLE: 2.0**-52,
}


class Weight(NamedTuple):
    """Stored numbers that an operator reads: shape, unit in the last place, how to read them.

    ``part`` reads those of some places of the first or second axis.
    """

    name: str
    shape: tuple[int, ...]
    unit: float
    load: Callable[[], Array]
    part: Callable[[int, int, int], Array] | None = None

    def double(self) -> Double:
        """The numbers in float64."""
        return self.load().astype(np.float64)


@record(eq=False)
class Side:
    """One file. ``values`` has the expressions of tensors by graph and name.

    ``ranks`` has ranks that shape inference does not know, but an operator's weights tell.
    ``functions`` are the model's local functions. ``versions`` has those of the operators' domains.
    With ``halves_are_exact`` nothing is laid to the rounding of numbers in half precision, beyond
    that of float32.
    """

    scopes: list[Scope]
    constants: Constants
    shapes: Shapes
    values: dict[tuple[str, str], Expression] = field(default_factory=dict)
    ranks: dict[tuple[str, str], int | None] = field(default_factory=dict)
    functions: Hashable = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    halves_are_exact: bool = False

    @classmethod
    def of(cls, model: ModelProto, base_dir: Path | None) -> Side:
        """The side of a model without local functions."""
        scopes = read_scopes(model)
        for scope in scopes:
            _refuse_references(scope)
        shapes = infer(model, scopes, believe_bodies=False)
        functions = tuple(sorted(f.SerializeToString(deterministic=True) for f in model.functions))
        versions = {each.domain: each.version for each in model.opset_import}
        return cls(
            scopes, Constants(base_dir, shapes), shapes, functions=functions, versions=versions
        )

    def opset(self, scope: Scope, node: NodeProto) -> int:
        """The version of an operator's domain; 0 if the file does not say it."""
        own = node.domain in ("", "ai.onnx")
        return scope.opset if own else self.versions.get(node.domain, 0)

    @property
    def explains_more(self) -> bool:
        """Whether weights that differ may yet be right.

        In an empty tensor no weight shows. And weights that are stored in half precision, and are
        used in a wider type, are rounded to more than a unit of that.
        """
        return (
            self.shapes.declared_empty
            or any(self.shapes.empty.values())
            or any(
                type_of(node) == "Cast"
                and self.shapes.type(scope, node.input[0]) in _HALVES
                and self.constant(scope, node.input[0]) is not None
                for scope in self.scopes
                for node in scope.nodes
            )
        )

    def body(self, graph: Any) -> Scope:
        """The scope of a graph of the model."""
        return next(scope for scope in self.scopes if scope.graph is graph)

    def constant(self, scope: Scope, name: str) -> Constant | None:
        """A constant that no caller can override, or None."""
        found = self.constants.find(scope, name) if name else None
        return found if isinstance(found, Constant) and found.protected is None else None

    def floats(self, scope: Scope, name: str) -> Weight | None:
        """Constant numbers of floating point, dequantized ones as well, or None."""
        found = self.constant(scope, name)
        if found is None and name:
            integers = dequantized(self.constants, scope, name)
            if not isinstance(integers, Dequantized) or integers.weight.protected is not None:
                return None
            found = integers.weight
        if found is None or not found.is_float:
            return None
        part = functools.partial(self.constants.part, found)
        unit = _EPS[found.data_type]
        unit = min(unit, _EPS[TensorProto.FLOAT]) if self.halves_are_exact else unit
        return Weight(name, found.shape, unit, found.load, part)

    def rank(self, scope: Scope, name: str) -> int | None:
        """The number of axes of a tensor, or None."""
        shape = self.shapes.shape(scope, name)
        if shape is not None:
            return len(shape)
        owner = scope.owner(name)
        return None if owner is None else self.ranks.get((owner.path, name))

    def spatial(self, scope: Scope, name: str) -> tuple[int | None, ...] | None:
        """The sizes of a tensor behind its channels, as far as they are known."""
        shape = self.shapes.shape(scope, name)
        if shape is None:
            return None
        return tuple(size if isinstance(size, int) else None for size in shape[2:])

    def note_rank(self, scope: Scope, name: str, rank: int | None) -> None:
        """Note the rank of a tensor that an operator of a known rank reads."""
        owner = scope.owner(name)
        if owner is not None and rank is not None:
            self.ranks.setdefault((owner.path, name), rank)

    def is_float(self, scope: Scope, name: str) -> bool:
        """Whether a tensor is known to have numbers of floating point."""
        return self.shapes.type(scope, name) in tensors.FLOATS

    def is_fitting(self, scope: Scope, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a constant of a shape, combined with a tensor, leaves the tensor its shape."""
        sizes = self.shapes.shape(scope, name)
        if sizes is None:
            return shape == ()
        if len(shape) > len(sizes):
            return False
        pairs = zip(reversed(shape), reversed(sizes), strict=False)
        return all(one in (1, size) for one, size in pairs)


def _refuse_references(scope: Scope) -> None:
    """Raise `UsageError` for a node outside of functions that reads an attribute of a call."""
    for node in () if scope.is_function else scope.nodes:
        for attribute in node.attribute[:]:
            if attribute.ref_attr_name:
                raise UsageError(
                    f"attribute {attribute.name} of {label(node)} refers to the attribute of a "
                    "function's call, and this node is in no function; give it a value"
                )


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node that are no graphs, and are of the type that they have to be."""
    types = _types(node.op_type, node.domain)
    return {
        a.name: helper.get_attribute_value(a)
        for a in node.attribute[:]
        if not (a.HasField("g") or a.graphs) and a.type == types.get(a.name, a.type) != 0
    }


@functools.lru_cache(maxsize=1024)
def _types(kind: str, domain: str) -> Mapping[str, int]:
    """The types of an operator's attributes, as far as ONNX says them."""
    if not onnx.defs.has(kind, domain):
        return {}
    held: Mapping[str, Any] = onnx.defs.get_schema(kind, domain=domain).attributes
    return {name: attribute.type.value for name, attribute in held.items()}
