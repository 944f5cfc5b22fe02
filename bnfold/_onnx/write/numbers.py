"""New numbers for operators that maps were carried across: bounds of a Clip, the value of a Pad."""

from __future__ import annotations

import numpy as np

from bnfold._core.laws import Edit
from bnfold._core.view import Crossing
from bnfold._onnx.network import Graph
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.write.edits import Editor


def edit_numbers(editor: Editor, graph: Graph, index: int, edit: Edit) -> None:
    """Write each number of an edit to where the operator keeps it: an input or an attribute."""
    scope = graph.scope
    node = scope.nodes[graph.positions[index]]
    role = graph.view.nodes[index].role
    assert isinstance(role, Crossing)
    for name, value in edit.values.items():
        place = role.numbers.get(name, name)
        if isinstance(place, str):
            attribute = next((a for a in node.attribute if a.name == place), None)
            if attribute is None:
                attribute = node.attribute.add(name=place, type=1)
            attribute.f = value
            continue
        old = graph.context.constant(node, place)
        held = old if isinstance(old, Constant) else None
        dtype = held.dtype if held is not None else np.dtype(np.float32)
        values = np.asarray(value).astype(dtype).reshape(held.shape if held is not None else ())
        stem = held.name if held is not None else node.name or node.op_type.lower()
        editor.store(scope, node, place, held, values, f"{stem}_folded")
