"""A model read into neutral views, one for each graph, with linear operators merged."""

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
    """A whole model as read.

    ``base_dir`` is the folder of its external data. ``merges`` has an entry for each graph. Scopes
    and graphs are those after merging. The model itself is not changed.
    """

    model: ModelProto
    base_dir: Path | None
    scopes: tuple[Scope, ...]
    graphs: tuple[Graph, ...]
    names: Names
    merges: tuple[Merges, ...]
    equal_dims: bool = False


def read(model: ModelProto, base_dir: Path | None, equal_dims: bool = False) -> Network:
    """Read every graph of a model. Large weights are loaded only for operators that merge.

    ``equal_dims`` is as in `shapes.infer`. Raises `UsageError` on cycles.
    """
    scopes = read_scopes(model)
    shapes = infer(model, scopes, equal_dims)
    constants = Constants(base_dir, shapes)
    names = Names(model, scopes)
    found = [_read_merged(Context(scope, constants, shapes), names) for scope in scopes]
    merged, merges = (tuple(part) for part in zip(*found, strict=True))
    return Network(model, base_dir, tuple(scopes), merged, names, merges, equal_dims)


def _read_merged(context: Context, names: Names) -> tuple[Graph, Merges]:
    """One graph after its linear operators are merged, and the merges."""
    graph = read_graph(context)
    merges = merge(graph, names)
    return (reread(graph, merges.patches) if merges.patches else graph), merges
