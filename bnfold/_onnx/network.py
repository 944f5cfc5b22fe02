"""A model read into neutral views, one for each of its graphs, its linear operators merged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from bnfold._onnx.merge.merging import Merges, merge, reread
from bnfold._onnx.read.constants import Constants
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.graph import Graph, read_graph
from bnfold._onnx.read.scopes import Names, Scope, read_scopes
from bnfold._onnx.read.shapes import infer


@dataclass(frozen=True)
class Network:
    """A whole model as read, and the folder its external data is relative to.

    ``merges`` has an entry for each graph. Scopes and graphs are those after merging; the model
    itself is as it was.
    """

    model: ModelProto
    base_dir: Path | None
    scopes: tuple[Scope, ...]
    graphs: tuple[Graph, ...]
    names: Names
    merges: tuple[Merges, ...]


def read(model: ModelProto, base_dir: Path | None) -> Network:
    """Read every graph of a model; no large weight is loaded, but those of operators that merge.

    Raises `UsageError` on cycles.
    """
    scopes = read_scopes(model)
    shapes = infer(model, scopes)
    constants = Constants(base_dir, shapes)
    names = Names(model, scopes)
    found = [_read_merged(Context(scope, constants, shapes), names) for scope in scopes]
    merged, merges = (tuple(part) for part in zip(*found, strict=True))
    return Network(model, base_dir, tuple(scopes), merged, names, merges)


def _read_merged(context: Context, names: Names) -> tuple[Graph, Merges]:
    """One graph, as it is once its linear operators are merged."""
    graph = read_graph(context)
    merges = merge(graph, names)
    return (reread(graph, merges.patches) if merges.patches else graph), merges
