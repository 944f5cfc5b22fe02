"""A model file, and tensors on the way that it puts out too.

A detector whose scores are all 1e-5 on noise hides every error behind its last Sigmoid. Ahead of it
the same error is plain, and two models that agree there and end in the same function agree.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from bnfold._run.hoist import hoist

_SATURATING = {"HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Softsign", "Tanh"}
_PASS_THROUGH = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_OWN = ("", "ai.onnx")


class Tap(NamedTuple):
    """A tensor that is put out, and the name of that output."""

    name: str
    alias: str


class Parsed:
    """A model that somebody has parsed already, large weights possibly left in its file, for the
    first who asks and may change it. Nobody holds it in memory after that.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model: onnx.ModelProto | None = model

    def take(self) -> onnx.ModelProto | None:
        """The model; None for all but the first."""
        model, self._model = self._model, None
        return model


@dataclass(frozen=True)
class Source:
    """A model file, and what it puts out besides its outputs, or instead of them (``alone``).

    ``parsed`` is what the file holds, if somebody knows that already. The structure of one that is
    ``hoisted`` has the weights of bodies in its main graph.
    """

    path: Path
    taps: tuple[Tap, ...] = ()
    alone: bool = False
    parsed: Parsed | None = field(default=None, compare=False)
    hoisted: bool = False

    @property
    def folder(self) -> Path:
        """Where external data lies."""
        return self.path.parent.resolve()

    def proto(self) -> onnx.ModelProto:
        """Parse the model, external data left where it is."""
        model = onnx.load(self.path, load_external_data=False)
        self.tap(model)
        return model

    def structure(self) -> onnx.ModelProto:
        """The model to look at its graph: large weights may not be in it."""
        model = self.parsed.take() if self.parsed is not None else None
        if model is None:
            model = self.proto()
        else:
            self.tap(model)
        if self.hoisted:
            hoist(model)
        return model

    def tap(self, model: onnx.ModelProto) -> None:
        """Let a model that was parsed from the file put out the tensors that are tapped."""
        if self.alone:
            del model.graph.output[:]
        for name, alias in self.taps:
            model.graph.output.add(name=alias)
            if alias != name:
                model.graph.node.add(op_type="Identity", input=[name], output=[alias])

    def content(self, more: onnx.ModelProto | None = None) -> Path | bytes:
        """Return what a session loads, ``more`` merged into it: the path where nothing is changed.

        Protocol buffers that follow each other merge, so what is added stands after the end of the
        file, which need not be parsed for that.
        """
        if self.alone:
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
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as it,
        ):
            parts: tuple[Any, ...] = (it, tail)
            return b"".join(parts)


class Saturation(NamedTuple):
    """A saturating function that an output comes from, and its input in either model."""

    function: str
    original: str
    folded: str


def saturations(left: onnx.ModelProto, right: onnx.ModelProto) -> dict[str, Saturation]:
    """Return, by output, the saturating function in which both models end, if it is the same, and
    nothing but the same reshaping comes after it.
    """
    if _opset(left) != _opset(right):
        return {}
    ours, theirs = ({n: list(e) for n, e in _endings(m.graph)} for m in (left, right))
    return {
        output: Saturation(ending[-1].op_type, ending[-1].input[0], theirs[output][-1].input[0])
        for output, ending in ours.items()
        if output in theirs and _same(ending, theirs[output])
    }


def _opset(model: onnx.ModelProto) -> int:
    return next((each.version for each in model.opset_import if each.domain in _OWN), 0)


def _same(left: list[onnx.NodeProto], right: list[onnx.NodeProto]) -> bool:
    return len(left) == len(right) and all(
        one.op_type == other.op_type and list(one.attribute) == list(other.attribute)
        for one, other in zip(left, right, strict=True)
    )


def _endings(graph: onnx.GraphProto) -> Iterator[tuple[str, list[onnx.NodeProto]]]:
    """Yield an output and the nodes from it back to a saturating function, reshaping only between
    the two, where there is one.
    """
    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        nodes = []
        node = makers.get(value.name)
        while node is not None and node.op_type in _PASS_THROUGH:
            nodes.append(node)
            node = makers.get(node.input[0])
        if node is not None and node.op_type in _SATURATING and node.domain in _OWN:
            yield value.name, [*nodes, node]
