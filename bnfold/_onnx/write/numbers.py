"""New numbers for operators that maps were carried across: bounds of a Clip, the value of a Pad."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto

from bnfold._core.laws import Edit
from bnfold._core.view import Crossing
from bnfold._onnx.network import Graph
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.write.edits import Editor


def edit_numbers(editor: Editor, graph: Graph, index: int, edit: Edit) -> None:
    """Write an edit into a node: into the inputs and attributes that keep its numbers."""
    scope = graph.scope
    node = scope.nodes[graph.positions[index]]
    role = graph.view.nodes[index].role
    assert isinstance(role, Crossing)
    for name, value in edit.values.items():
        position = role.numbers[name]
        if isinstance(position, str):
            attribute = next((a for a in node.attribute if a.name == position), None)
            if attribute is None:
                attribute = node.attribute.add(name=position, type=AttributeProto.FLOAT)
            attribute.f = value
            continue
        old = graph.context.constant(node, position)
        held = old if isinstance(old, Constant) else None
        dtype = held.dtype if held is not None else np.dtype(np.float32)
        values = np.asarray(value).astype(dtype).reshape(held.shape if held is not None else ())
        stem = held.name if held is not None else node.name or node.op_type.lower()
        editor.store(scope, node, position, held, values, f"{stem}_folded")
