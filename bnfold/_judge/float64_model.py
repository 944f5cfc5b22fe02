"""The original in float64: what its outputs would be if nothing were rounded on the way.

Where sums of large numbers cancel, the original itself may be further from the truth than a folded
model. The onnx package's evaluator runs the original with every float widened; the folded model,
as onnxruntime runs it, is then held against that. A bug of the evaluator cannot make a wrong model
look right, for that would take the very same error in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from bnfold._onnx import tensors
from bnfold._onnx.files.external import all_tensors
from bnfold._run.bounds import Bounds
from bnfold._run.nodes import all_nodes
from bnfold._run.session import Reference
from bnfold._run.source import Source


class Float64Model:
    """A model whose floats are all float64."""

    def __init__(self, source: Source, bounds: Bounds) -> None:
        """Load it.

        Raises:
            EngineError: the evaluator cannot run it, or runs it wrongly.
        """
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


def _widen(node: onnx.NodeProto, attribute: AttributeProto) -> None:
    """Let a node ask for float64 where it asks for floats by an attribute."""
    if attribute.name in ("to", "dtype") and attribute.i in tensors.FLOATS:
        attribute.i = TensorProto.DOUBLE
    if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        given = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        values = tensors.make("", np.asarray(given, np.float64))
        attribute.CopyFrom(onnx.helper.make_attribute("value", values))
