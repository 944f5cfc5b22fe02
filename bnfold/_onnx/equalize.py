"""Equalize the channels of a model in place; see `_plan/equalizing`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path

from onnx import ModelProto

from bnfold._onnx.merge.merging import Merges, Network
from bnfold._onnx.read.constants import Constant, Constants
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.graph import Graph, read_graph
from bnfold._onnx.read.scopes import Names, read_scopes
from bnfold._onnx.read.shapes import infer
from bnfold._onnx.write.applied import Rewritten
from bnfold._onnx.write.rewriting import apply
from bnfold._plan.equalizing import Equalized, equalize
from bnfold._system.records import record


@record(frozen=True)
class EqualizedModel:
    """What was done to a model: ``rewritten`` as after a fold, ``lost`` as in `Equalized`."""

    rewritten: Rewritten = field(default_factory=Rewritten)
    lost: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def equalize_model(
    model: ModelProto, base_dir: Path | None, strength: float = 1.0
) -> EqualizedModel:
    """Equalize every graph of a model, in place; ``strength`` is as in `equalize`.

    A weight that several operators read stays as it is: each would need a copy of its own.
    """
    scopes = read_scopes(model)
    shapes = infer(model, scopes, False)
    constants = Constants(base_dir, shapes)
    graphs = tuple(read_graph(Context(scope, constants, shapes)) for scope in scopes)
    merges = tuple(Merges() for _ in scopes)
    network = Network(model, base_dir, tuple(scopes), graphs, Names(model, scopes), merges)
    found = [
        equalize(graph.view, graph.readings, set(_shared(graph)), strength) for graph in graphs
    ]
    rewritten = apply(network, zip(graphs, (one.moves for one in found), strict=True))
    return EqualizedModel(rewritten, _lost(graphs, found))


def _lost(graphs: tuple[Graph, ...], found: list[Equalized]) -> dict[str, tuple[float, float]]:
    return {
        f"{graph.scope.path}/{label}" if graph.scope.path else label: numbers
        for graph, one in zip(graphs, found, strict=True)
        for label, numbers in one.lost.items()
    }


def _shared(graph: Graph) -> Iterator[int]:
    """The operators whose weight or bias others read, too."""
    for index, reading in enumerate(graph.readings):
        for site in reading.sites:
            for value in (site.weight_value, site.bias_value):
                if isinstance(value, Constant) and _is_shared(graph, value):
                    yield index


def _is_shared(graph: Graph, constant: Constant) -> bool:
    owner = graph.scope.owner(constant.name)
    if owner is None:
        return True
    readers = owner.readers.get(constant.name, [])
    return owner is not graph.scope or len(readers) > 1 or constant.name in owner.captures
