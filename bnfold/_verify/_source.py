"""A model file, as it is or stopped short of an output's saturating function.

A detector whose scores are all 1e-5 on noise hides every error behind its last Sigmoid. Ahead of it
the same error is plain, and two models that agree there and end in the same function agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

_SATURATING = {"HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Softsign", "Tanh"}
_PASS_THROUGH = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class Source:
    """A model file, the outputs ahead of whose saturating function it stops, and the tensors that
    it puts out instead of its outputs, if any.
    """

    path: Path
    short_of: frozenset[str] = field(default_factory=frozenset)
    tapped: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where external data lies."""
        return self.path.parent.resolve()

    def proto(self) -> onnx.ModelProto:
        """Parse the model, external data left where it is."""
        model = onnx.load(self.path, load_external_data=False)
        for output, node in _last_functions(model.graph).items():
            if output in self.short_of:
                node.op_type = "Identity"
                del node.attribute[:]
        if self.tapped:
            del model.graph.output[:]
            for name in self.tapped:
                model.graph.output.add(name=name)
        return model

    def content(self) -> Path | bytes:
        """Return what a session loads: the path where the model is not changed."""
        changed = self.short_of or self.tapped
        return self.proto().SerializeToString() if changed else self.path


def common_functions(left: onnx.ModelProto, right: onnx.ModelProto) -> dict[str, str]:
    """Return, by output, the saturating function in which both models end, if it is the same."""
    if list(left.opset_import) != list(right.opset_import):
        return {}
    ours, theirs = _last_functions(left.graph), _last_functions(right.graph)
    return {
        output: node.op_type
        for output, node in ours.items()
        if output in theirs and _same(node, theirs[output])
    }


def _same(left: onnx.NodeProto, right: onnx.NodeProto) -> bool:
    return left.op_type == right.op_type and list(left.attribute) == list(right.attribute)


def _last_functions(graph: onnx.GraphProto) -> Mapping[str, onnx.NodeProto]:
    """Find the saturating function that an output comes from through reshaping only."""
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for value in graph.output:
        node = makers.get(value.name)
        while node is not None and node.op_type in _PASS_THROUGH:
            node = makers.get(node.input[0])
        if node is not None and node.op_type in _SATURATING and node.domain in ("", "ai.onnx"):
            found[value.name] = node
    return found
