"""Fresh names: none that a model uses anywhere is given out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import ModelProto

from bnfold._onnx.read.scopes import Scope


class Names:
    """All names in a model, whatever they name."""

    def __init__(self, model: ModelProto, scopes: Iterable[Scope]) -> None:
        self._taken = set(_names_of(model, scopes))

    def fresh(self, wanted: str) -> str:
        """The wanted name, or the first ``wanted_1``, ``wanted_2``, … that nothing bears."""
        name, number = wanted, 0
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def _names_of(model: ModelProto, scopes: Iterable[Scope]) -> Iterator[str]:
    for info in model.training_info:
        for graph in (info.initialization, info.algorithm):
            for node in graph.node:
                yield from (*node.input, *node.output)
            yield from (tensor.name for tensor in graph.initializer)
    for scope in scopes:
        yield from scope.initializers
        yield from scope.sparse
        yield from scope.inputs
        yield from scope.outputs
        for node in scope.nodes:
            yield node.name
            yield from node.input
            yield from node.output
        yield from (value.name for value in scope.graph.value_info)
