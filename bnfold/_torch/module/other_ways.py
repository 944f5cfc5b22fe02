"""Finds the methods of a module, beside forward, that see what a fold changes.

A fold keeps what ``forward`` computes. On the way there tensors change. A method that gives such a
tensor away, or reads one that comes from elsewhere, computes something else afterwards. The source
of each method says which parts of the module it uses. Nothing of it is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType

from torch import nn

from bnfold._core.view import View
from bnfold._plan.planner import Moves
from bnfold._torch.module.used_parts import Uses, uses_of
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.graph import Graph, path_of, paths_of


def other_ways(module: nn.Module, graph: Graph, moves: Moves) -> Mapping[str, Sequence[str]]:
    """The public methods that see a changed tensor, each with the names to keep for it."""
    changed = _changed(graph.view, moves)
    found = {}
    for name, method in _public(type(module)) if changed else ():
        names = sorted(_Seen(graph, changed, uses_of(module, method)).tensors())
        if names:
            found[name] = names
    return found


def _public(kind: type[nn.Module]) -> Iterator[tuple[str, FunctionType]]:
    """The public methods that a class and its bases define, without those of PyTorch."""
    seen = {"forward"}
    for base in kind.__mro__:
        own = base.__module__.partition(".")[0] not in ("torch", "builtins")
        for name, member in vars(base).items():
            public = own and not name.startswith("_") and isinstance(member, FunctionType)
            if public and name not in seen:
                yield name, member
            seen.add(name)


def _changed(view: View, moves: Moves) -> set[int]:
    """The tensors whose values a fold changes.

    These are the tensors that maps are carried past, and those between an operator that takes a map
    in and where the map was.
    """
    found = {value for value, each in moves.relations.items() if each.old or each.new}
    for move in moves.moves:
        if move.law == "absorb" and not move.absorbed.is_identity:
            until = move.chain.index(move.maps[-1])
            for node in (move.into, *move.chain[:until]):
                found.update(view.nodes[node].outputs)
    return found


class _Seen:
    """The changed tensors that one method gives away, or gets from elsewhere."""

    def __init__(self, graph: Graph, changed: set[int], uses: Uses) -> None:
        self._graph = graph
        self._changed = changed
        self._uses = uses

    def tensors(self) -> set[str]:
        """The names of what gives these tensors: modules, or operators in the root's own code."""
        found = set()
        for value in self._changed:
            producer = self._graph.view.values[value].producer
            if producer is None or not self._is_placed(producer):
                continue
            if any(self._differ(producer, reader) for reader in self._readers(value)):
                node = self._graph.nodes[producer]
                found.add(path_of(node) or node.name)
        return found

    def _differ(self, one: int, other: int) -> bool:
        """Whether a method runs one of two operators, and may do so without the other, or lets
        others see what is between the two.
        """
        parts = self._part(one), self._part(other)
        if parts[0] == parts[1]:
            return False
        if parts[0] in self._uses.given:
            return True
        groups = [self._uses.parts[part] for part in parts if part is not None]
        return len(groups) == 1 or (groups[0] is not None and groups[0] == groups[1])

    def _readers(self, value: int) -> Iterator[int]:
        """The operators in modules that read a changed tensor.

        Operators of the root's own code hand it on, as long as what they give is changed too.
        """
        view, waiting, seen = self._graph.view, [value], {value}
        while waiting:
            for reader in view.values[waiting.pop()].readers:
                if self._is_placed(reader):
                    yield reader
                    continue
                for output in view.nodes[reader].outputs:
                    if output in self._changed and output not in seen:
                        seen.add(output)
                        waiting.append(output)

    def _is_placed(self, index: int) -> bool:
        """Whether an operator is in a submodule, or has weights that tell who runs it."""
        return bool(path_of(self._graph.nodes[index]) or self._weights(index))

    def _part(self, index: int) -> str | None:
        """The part of the module that a method uses and an operator belongs to, if there is one."""
        names = (*paths_of(self._graph.nodes[index]), *self._weights(index))
        return next((name for name in names if name in self._uses.parts), None)

    def _weights(self, index: int) -> list[str]:
        """The names of the parameters and buffers that an operator takes maps in by."""
        return [
            parameter.name
            for site in self._graph.readings[index].sites
            for parameter in (site.weight_value, site.bias_value)
            if isinstance(parameter, Constant)
        ]
