"""A model in float64: its outputs are almost free of rounding.

Where sums of large numbers cancel, the original may be further from the truth than the folded
model. The onnx package's evaluator runs the original in float64. The folded model runs in
onnxruntime and is compared with that. A bug of the evaluator could make a folded model look right
that is wrong in the same way: see `second_look`, which asks whether rounding explains what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from bnfold._onnx import tensors
from bnfold._onnx.tensors import all_tensors
from bnfold._run.bounds import Bounds
from bnfold._run.nodes import all_nodes
from bnfold._run.reference import Reference
from bnfold._run.source import Source


class Float64Model:
    """A model whose floats are all float64."""

    def __init__(self, source: Source, bounds: Bounds) -> None:
        """Load it.

        Raises:
            EngineError: the evaluator cannot run it, or runs it wrongly.
        """
        model = widened_proto(source)
        self._engine = Reference(model.SerializeToString(), source.folder, bounds=bounds)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Return the outputs in graph order.

        Raises:
            EngineError: the model does not run.
        """
        return self._engine.run(
            {
                name: values.astype(np.float64) if values.dtype.kind == "f" else values
                for name, values in feeds.items()
            }
        )


def widened_proto(source: Source) -> onnx.ModelProto:
    """A model whose floats are all float64, its data in it."""
    model = source.proto()
    for tensor in all_tensors(model):
        if tensor.data_type in tensors.FLOATS:
            values = tensors.read(tensor, source.folder).astype(np.float64)
            tensor.data_type = TensorProto.DOUBLE
            tensors.write(tensor, values)
    nodes = [*model.graph.node, *(node for each in model.functions for node in each.node)]
    for node in all_nodes(nodes):
        for attribute in node.attribute:
            _widen(node, attribute)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in tensors.FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del model.graph.value_info[:]
    return model


def _widen(node: onnx.NodeProto, attribute: AttributeProto) -> None:
    """Change an attribute that asks for a float type so that it asks for float64."""
    if attribute.name in ("to", "dtype") and attribute.i in tensors.FLOATS:
        attribute.i = TensorProto.DOUBLE
    if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        given = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        values = tensors.make("", np.asarray(given, np.float64))
        attribute.CopyFrom(onnx.helper.make_attribute("value", values))
