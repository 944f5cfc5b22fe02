"""Element types: those that follow from operators, and the law of a Cast between two of them.

They follow where ONNX's inference does not go: in functions.
A Conv puts out the type of its weight, a Cast the type that it names. The schema of an operator
says which of its inputs and outputs are of one type.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import cache

import numpy as np
from onnx import NodeProto, TensorProto, defs, helper
from onnx.defs import OpSchema

from bnfold._core.laws import Law
from bnfold._core.pointwise import Converted
from bnfold._onnx.read import attributes
from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._onnx.read.stand_ins import CASTING
from bnfold._onnx.tensors import FLOATS
from bnfold._system.records import record

Types = MutableMapping[tuple[str, str], int]
_NUMBERS = {"value_float": TensorProto.FLOAT, "value_floats": TensorProto.FLOAT}
_NUMBERS |= {"value_int": TensorProto.INT64, "value_ints": TensorProto.INT64}


def derive(owner: Scope, name: str, known: Types) -> None:
    """Add the element type of a name that a graph defines to ``known``, 0 where nothing tells it.

    So are the types of the tensors that it follows from.
    """
    waiting, expanded = [(owner, name)], set[tuple[str, str]]()
    while waiting:
        scope, current = waiting[-1]
        key = scope.path, current
        if known.get(key):
            waiting.pop()
            continue
        fixed, alike = _told(scope, current)
        sources = [(of, one) for one in alike if (of := scope.owner(one)) is not None]
        if not fixed and key not in expanded:
            expanded.add(key)
            waiting.extend(sources)
            continue
        waiting.pop()
        types = (known.get((of.path, one), 0) for of, one in sources)
        known[key] = fixed or next(filter(None, types), 0)


def cast_to(node: NodeProto) -> int:
    """The type that a Cast names, 0 where it names none. Below opset 6 it is a word."""
    word = attributes.text(node, "to", "")
    return attributes.integer(node, "to", 0) or dict(TensorProto.DataType.items()).get(word, 0)


def conversion(source: int, target: int, exact: bool) -> Law | None:
    """The law of a Cast from one element type to another; see `Converted.between`."""
    if source not in FLOATS or target not in FLOATS:
        return None
    read, written = (np.dtype(helper.tensor_dtype_to_np_dtype(one)) for one in (source, target))
    return Converted.between(read, written, exact)


def _told(scope: Scope, name: str) -> tuple[int, Sequence[str]]:
    """The type of a tensor, 0 if its writer does not tell, and the tensors of the same type."""
    stored = scope.initializers.get(name)
    if stored is not None:
        return stored.data_type, ()
    if name in scope.sparse:
        return scope.sparse[name].values.data_type, ()
    position = scope.producers.get(name)
    if position is None:
        return 0, ()
    node = scope.nodes[position]
    kind = type_of(node)
    if kind in scope.functions or attributes.depends_on_call(node):
        return 0, ()
    if kind == "Cast":
        return cast_to(node), ()
    if kind in CASTING:
        return TensorProto.FLOAT, ()
    if kind == "Constant":
        return _of_constant(node), ()
    sides = _sides(node.op_type, scope.opset, node.domain if kind != node.op_type else "")
    if sides is None:
        return 0, ()
    reads, writes = sides
    own = writes.word(list(node.output).index(name))
    return 0, [one for k, one in enumerate(node.input) if one and own and reads.word(k) == own]


def _of_constant(node: NodeProto) -> int:
    for attribute in node.attribute:
        if attribute.name == "value":
            return int(attribute.t.data_type)
        if attribute.name == "sparse_value":
            return int(attribute.sparse_tensor.values.data_type)
        if attribute.name in _NUMBERS:
            return _NUMBERS[attribute.name]
    return 0


@record(frozen=True)
class _Side:
    """The words for the types of an operator's inputs or outputs.

    ``last`` is the word of all further ones, "" if there are none or if each has its own type.
    """

    words: tuple[str, ...]
    last: str

    @classmethod
    def of(cls, formals: Sequence[OpSchema.FormalParameter]) -> _Side:
        """Those of a schema."""
        words = [one.type_str for one in formals]
        if not formals or formals[-1].option != OpSchema.FormalParameterOption.Variadic:
            return cls(tuple(words), "")
        return cls(tuple(words[:-1]), words[-1] if formals[-1].is_homogeneous else "")

    def word(self, number: int) -> str:
        """The word for one of them."""
        return self.words[number] if number < len(self.words) else self.last


@cache
def _sides(kind: str, opset: int, domain: str) -> tuple[_Side, _Side] | None:
    """The inputs and the outputs of an operator, None where its schema is not known."""
    try:
        schema = defs.get_schema(kind, opset, domain)
    except defs.SchemaError:
        return None
    return _Side.of(schema.inputs), _Side.of(schema.outputs)
