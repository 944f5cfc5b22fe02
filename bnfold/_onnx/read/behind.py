"""What a new shape tells of the tensors behind it: ONNX's inference of one operator at a time.

Inference of a whole model follows integers, too, and takes time by the size of the model. Here a
node is inferred alone, from what has been found out about its inputs since. What that tells is
never less than before, and all of it is found out again when the whole model is inferred.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    defs,
    helper,
    shape_inference,
)

from bnfold._onnx.read.einsum import is_uneven, shape_of
from bnfold._onnx.read.inference import is_odd
from bnfold._onnx.read.scopes import domain_of
from bnfold._onnx.read.sizes import Numbers, is_there

_BODIES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
Tensor = TypeProto.Tensor


class Behind:
    """Infers nodes behind shapes that are ``fresh``: known since the whole model was inferred.

    ``known`` has all shapes, and ``numbers`` the integers that nodes compute.
    """

    def __init__(
        self,
        inferred: ModelProto,
        known: dict[str, Tensor],
        numbers: Mapping[str, Numbers],
        overridable: Collection[str],
    ) -> None:
        self.fresh = set[str]()
        self._known = known
        self._numbers = numbers
        self._opsets = list(inferred.opset_import)
        self._versions = {domain_of(each): each.version for each in self._opsets}
        self._ir_version = inferred.ir_version
        self._schemas: dict[tuple[str, str], defs.OpSchema | None] = {}
        graph = inferred.graph
        values = (*graph.input, *graph.output, *graph.value_info)
        self._values: dict[str, TypeProto] = {value.name: value.type for value in values}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._given = overridable

    def note(self, name: str, shape: Tensor) -> None:
        """Note a shape that was not known before."""
        self._known[name] = shape
        self.fresh.add(name)

    def outputs(self, node: NodeProto) -> dict[str, Tensor]:
        """The shapes of a node's outputs, where its inputs tell them."""
        schema = None if is_odd(node) else self._schema(node)
        if schema is None or any(each.type in _BODIES for each in node.attribute):
            return {}
        types = {name: self._type(name) for name in node.input if name}
        if any(_is_unfit(each) for each in types.values()):
            return {}
        given = [shape_of(types.get(name, TypeProto())) for name in node.input]
        if node.op_type == "Einsum" and is_uneven(node, given):
            return {}
        try:
            found = shape_inference.infer_node_outputs(
                schema, node, types, dict(self._data(node)), None, self._opsets, self._ir_version
            )
        except Exception:  # What inference raises on an invalid node has no common base.
            return {}
        return {
            name: kind.tensor_type
            for name, kind in found.items()
            if name and kind.tensor_type.HasField("shape") and not _is_unfit(kind)
        }

    def _schema(self, node: NodeProto) -> defs.OpSchema | None:
        domain = domain_of(node)
        key = node.op_type, domain
        if key not in self._schemas:
            try:
                self._schemas[key] = defs.get_schema(
                    node.op_type, self._versions.get(domain, 0), domain
                )
            except defs.SchemaError:
                self._schemas[key] = None
        return self._schemas[key]

    def _type(self, name: str) -> TypeProto:
        own = self._known.get(name) or of_stored(self._stored.get(name))
        return self._values.get(name, TypeProto()) if own is None else TypeProto(tensor_type=own)

    def _data(self, node: NodeProto) -> Iterator[tuple[str, TensorProto]]:
        """The inputs of a node whose numbers are known, which may be sizes."""
        for name in filter(None, node.input):
            tensor = self._stored.get(name)
            if tensor is not None:
                if name not in self._given and is_there(tensor):
                    yield name, tensor
                continue
            numbers, own = self._numbers.get(name), self._known.get(name)
            if numbers is None or numbers.known is None or own is None:
                continue
            dims = [] if numbers.is_scalar else [len(numbers.known)]
            yield name, helper.make_tensor(name, own.elem_type, dims, numbers.known)


def of_stored(tensor: TensorProto | None) -> Tensor | None:
    """The type of an initializer."""
    if tensor is None:
        return None
    found = Tensor(elem_type=tensor.data_type)
    found.shape.SetInParent()
    for size in tensor.dims:
        found.shape.dim.add(dim_value=size)
    return found


def _is_unfit(kind: TypeProto) -> bool:
    """Whether a node may not be inferred from this: of an unknown type, or with a size below 0."""
    tensor = kind.tensor_type
    if kind.WhichOneof("value") != "tensor_type" or not tensor.elem_type:
        return True
    return any(dim.dim_value < 0 for dim in tensor.shape.dim)
