"""New numbers for operators that maps were carried across: bounds of a Clip, the value of a Pad."""

from __future__ import annotations

import numpy as np

from bnfold._core.laws import Edit
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.write.edits import Editor

_POSITIONS = {"min": 1, "max": 2, "value": 2}


def edit_numbers(editor: Editor, graph: Graph, index: int, edit: Edit) -> None:
    """Write an edit into a node: into its inputs from opset 11 on, into attributes before."""
    scope = graph.scope
    node = scope.nodes[graph.positions[index]]
    for name, value in edit.values.items():
        if graph.context.opset < 11:
            attribute = next((a for a in node.attribute if a.name == name), None)
            if attribute is None:
                attribute = node.attribute.add(name=name, type=1)
            attribute.f = value
            continue
        position = _POSITIONS[name]
        old = graph.context.constant(node, position)
        held = old if isinstance(old, Constant) else None
        dtype = held.dtype if held is not None else np.dtype(np.float32)
        values = np.asarray(value).astype(dtype).reshape(held.shape if held is not None else ())
        stem = held.name if held is not None else node.name or node.op_type.lower()
        editor.store(scope, node, position, held, values, f"{stem}_folded")
