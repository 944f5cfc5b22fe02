"""What a graph says about the values that its inputs may take."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import numpy_helper

from bnfold._run.nodes import all_nodes, subgraphs

_PASS_THROUGH = {
    "Cast",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
_MATRIX_PRODUCTS = {"Gemm": 2, "MatMul": 2}


_PIXELS = {
    "nominalrange_0_255": (0.0, 255.0),
    "nominalrange_16_235": (16.0, 235.0),
    "normalized_0_1": (0.0, 1.0),
    "normalized_1_1": (-1.0, 1.0),
}


def pixel_range(model: onnx.ModelProto) -> tuple[float, float] | None:
    """Return the range of an image's pixels that a model's metadata gives, or None.

    Keys and values are those of ONNX's image metadata; case does not matter. The range is for
    inputs whose type is denoted ``IMAGE``.
    """
    for entry in model.metadata_props:
        if entry.key.lower() == "image.nominalpixelrange":
            return _PIXELS.get(entry.value.lower())
    return None


class Hints:
    """What a main graph says about its inputs: who reads a value, and which values are constants.

    It uses the shapes of constants, and the values of small ones only. So it works on a model that
    was loaded without its external data.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        """Index the main graph and its subgraphs."""
        self._readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in all_nodes(graph.node):
            for body in subgraphs(node):
                self._constants |= {tensor.name: tensor for tensor in body.initializer}
            for index, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((node, index))
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._constants[node.output[0]] = attribute.t

    def rank(self, name: str) -> int | None:
        """Return the rank that a value must have for the first linear operator that reads it."""
        for node, index in self._readers.get(name, ()):
            shape = self._weight_shape(node, index)
            if shape is not None:
                return _MATRIX_PRODUCTS.get(node.op_type, len(shape))
        return None

    def size(self, name: str, axis: int, rank: int) -> int | None:
        """Return the size of a channel or feature axis that such an operator needs, or None."""
        for node, index in self._readers.get(name, ()):
            shape = self._weight_shape(node, index)
            if shape is None:
                continue
            attributes = {item.name: item.i for item in node.attribute}
            if node.op_type == "Conv" and axis == 1:
                return shape[1] * int(attributes.get("group", 1))
            if node.op_type == "ConvTranspose" and axis == 1:
                return shape[0]
            if node.op_type in _MATRIX_PRODUCTS and axis == rank - 1:
                transposed = bool(attributes.get("transB"))
                return shape[-1] if transposed else shape[-2]
        return None

    def index_bound(self, name: str) -> int | None:
        """Return the size of the smallest axis that a value indexes through Gather, or None."""
        bounds = []
        for node, index in self._reached(name):
            if node.op_type in ("Gather", "GatherElements") and index == 1:
                data = self._constants.get(node.input[0])
                axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
                if data is not None:
                    bounds.append(data.dims[axis])
        return min(bounds, default=None)

    def compared_with(self, name: str) -> list[int]:
        """Return the integer constants that a value is compared with for equality."""
        found = []
        for node, index in self._reached(name):
            if node.op_type == "Equal":
                other = self._constants.get(node.input[1 - index])
                inside = other is not None and other.data_location != onnx.TensorProto.EXTERNAL
                if other is not None and inside and list(other.dims) in ([], [1]):
                    found.append(int(numpy_helper.to_array(other).reshape(-1)[0]))
        return found

    def _weight_shape(self, node: onnx.NodeProto, index: int) -> tuple[int, ...] | None:
        if index != 0 or node.op_type not in ("Conv", "ConvTranspose", *_MATRIX_PRODUCTS):
            return None
        weight = self._constants.get(node.input[1])
        if weight is None or len(weight.dims) < 2:
            return None
        return tuple(weight.dims)

    def _reached(self, name: str) -> Iterator[tuple[onnx.NodeProto, int]]:
        """Yield each node that reads a value, and the number of the input.

        A node may read it through operators that keep its elements.
        """
        pending, seen = [name], {name}
        while pending:
            current = pending.pop()
            for node, index in self._readers.get(current, ()):
                yield node, index
                if node.op_type in _PASS_THROUGH and index == 0 and node.output[0] not in seen:
                    seen.add(node.output[0])
                    pending.append(node.output[0])
