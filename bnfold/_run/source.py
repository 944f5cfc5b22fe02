"""A model file, and the inner tensors that it puts out too.

The scores of a detector may all be 1e-5 on noise. Then its last Sigmoid hides every error. The
tensor ahead of the Sigmoid shows it plainly. Two models that agree there and end in the same
function agree.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeAlias

import onnx

from bnfold._onnx.files.lean import read_lean, refer
from bnfold._onnx.read.order import put_in_order
from bnfold._onnx.read.scopes import opset_of, type_of
from bnfold._run.hoist import hoist
from bnfold._system import scratch
from bnfold._system.records import record

_SATURATING = {"HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Softsign", "Tanh"}
_PASS_THROUGH = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_BLOCK = 1 << 20
Edit: TypeAlias = Callable[[onnx.ModelProto], None]
"""Changes a model in place before it runs."""


class Tap(NamedTuple):
    """An inner tensor to put out, and the name of the output that it gets."""

    name: str
    alias: str


class Parsed:
    """A model that has been parsed already; large weights may still be in its file.

    The first caller takes it and may change it. It is not kept in memory after that.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model: onnx.ModelProto | None = model

    def take(self) -> onnx.ModelProto | None:
        """The model for the first caller, None for all others."""
        model, self._model = self._model, None
        return model


@record(frozen=True)
class Source:
    """A model file, and the inner tensors that it puts out.

    The tensors come after its outputs or, with ``alone``, in place of them. ``parsed`` is the
    content of the file, if it has been parsed already. With ``hoisted``, the structure of the model
    has the weights of bodies in its main graph. ``edits`` change the model, in their order, before
    anything else is done with it.
    """

    path: Path
    taps: tuple[Tap, ...] = ()
    alone: bool = False
    parsed: Parsed | None = field(default=None, compare=False)
    hoisted: bool = False
    edits: tuple[Edit, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the external data."""
        return self.path.parent.resolve()

    def proto(self) -> onnx.ModelProto:
        """Parse the model, with nodes in order. External data stays in its files."""
        model = onnx.load(self.path, "protobuf", load_external_data=False)
        put_in_order(model)
        self._change(model)
        return model

    def structure(self) -> onnx.ModelProto:
        """The model, to look at its graph. Large weights may be missing in it."""
        model = self.parsed.take() if self.parsed is not None else None
        if model is None:
            model = self.proto()
        else:
            self._change(model)
        if self.hoisted:
            hoist(model)
        return model

    def _change(self, model: onnx.ModelProto) -> None:
        for edit in self.edits:
            edit(model)
        self.tap(model)

    def tap(self, model: onnx.ModelProto) -> None:
        """Add the inner tensors to the outputs of a model that was parsed from the file."""
        if self.alone:
            del model.graph.output[:]
        for name, alias in self.taps:
            model.graph.output.add(name=alias)
            if alias != name:
                model.graph.node.add(op_type="Identity", input=[name], output=[alias])

    def content(self, more: onnx.ModelProto | None = None) -> Path | bytes:
        """Return the file's path or, if something is added, its bytes with the addition.

        ``more`` is a model to merge into it. Protocol buffers that follow each other merge. So the
        addition stands after the end of the file, and the file need not be parsed. Of a large file
        that may be mapped, only the structure is in the bytes: a session maps the weights, as it
        does external data.
        """
        if self.alone or self.edits:
            model = self.proto()
            if more is not None:
                model.MergeFrom(more)
            content: bytes = model.SerializeToString()
            return content
        added = onnx.ModelProto()
        Source(self.path, self.taps).tap(added)
        if more is not None:
            added.MergeFrom(more)
        tail = added.SerializeToString()
        if not tail:
            return self.path
        lean = read_lean(self.path) if self._may_be_mapped() else None
        if lean is not None:
            model = onnx.ModelProto.FromString(lean)
            refer(model, self.path.parent)
            model.MergeFrom(added)
            return bytes(model.SerializeToString())
        # It grows where it lies and is the result: the file is in memory once.
        with self.path.open("rb") as file, BytesIO() as whole:
            shutil.copyfileobj(file, whole, _BLOCK)
            whole.write(tail)
            return whole.getvalue()

    def _may_be_mapped(self) -> bool:
        """Whether a session may map the file, and does: none that a link leads to elsewhere."""
        return self.path.resolve().is_relative_to(self.folder) and scratch.may_map(self.path)


class Saturation(NamedTuple):
    """The saturating function that an output comes from, and its input in each model."""

    function: str
    original: str
    folded: str


def saturations(left: onnx.ModelProto, right: onnx.ModelProto) -> dict[str, Saturation]:
    """Return the saturating functions that both models end in, by the name of the output.

    An output counts if its function is the same in both models, and if only the same reshaping
    follows it.
    """
    if opset_of(left.opset_import) != opset_of(right.opset_import):
        return {}
    ours, theirs = ({n: list(e) for n, e in _endings(m.graph)} for m in (left, right))
    return {
        output: Saturation(ending[-1].op_type, ending[-1].input[0], theirs[output][-1].input[0])
        for output, ending in ours.items()
        if output in theirs and _same(ending, theirs[output])
    }


def _same(left: list[onnx.NodeProto], right: list[onnx.NodeProto]) -> bool:
    return len(left) == len(right) and all(
        one.op_type == other.op_type and list(one.attribute) == list(other.attribute)
        for one, other in zip(left, right, strict=True)
    )


def _endings(graph: onnx.GraphProto) -> Iterator[tuple[str, list[onnx.NodeProto]]]:
    """Yield each output that comes from a saturating function, and the nodes back to that function.

    Only reshaping may stand between the two.
    """
    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        nodes = []
        node = makers.get(value.name)
        while node is not None and type_of(node) in _PASS_THROUGH:
            nodes.append(node)
            node = makers.get(node.input[0])
        if node is not None and type_of(node) in _SATURATING:
            yield value.name, [*nodes, node]
