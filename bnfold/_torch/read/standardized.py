"""Operators on constants alone: which of them go with the maps, and the norms among the others.

A norm of a weight (weight standardization) is no map, since no data pass it. What it computes is
the same in every run, so that it can be stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, fx

from bnfold._core.reasons import Reason
from bnfold._core.result import STORES, Fold, Kept
from bnfold._plan.planner import Moves
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.graph import ROUNDED, Graph
from bnfold._torch.read.nodes import arguments, is_norm, kind_of, reads_of
from bnfold._torch.tensors import from_numpy


@dataclass(frozen=True)
class Standardized:
    """The operators on constants of a graph, once some moves are made."""

    graph: Graph
    moves: Moves

    @cached_property
    def gone(self) -> Mapping[fx.Node, None]:
        """The operators on constants that nothing reads any more.

        Who reads one takes in a map, so that the result is stored, or goes itself.
        """
        norms = [m for m in self.moves.moves if all(s.op != _NORM for s in m.stands)]
        readers = {self.graph.nodes[index] for move in norms for index in move.maps}
        found: dict[fx.Node, None] = {}
        for node in reversed(self.graph.nodes):
            stays = [
                user
                for user in node.users
                if user not in readers and user not in found
                if node not in self._rewritten.get(user, ())
            ]
            if node.users and not stays and self._is_fixed(node):
                found[node] = None
        return found

    @cached_property
    def _rewritten(self) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
        """The weights and biases that operators read no more, as they take in maps."""
        found = {}
        for index, sides in self.moves.sides.items():
            node = self.graph.nodes[index]
            bound, reads = arguments(node), list(reads_of(node))
            behind, ahead = sides.behind, sides.ahead
            old: list[object] = []
            for site in self.graph.readings[index].sites:
                if site.rescales(behind, ahead):
                    old.append(bound["weight"] if "weight" in bound else reads[site.weight])
                stays = behind.is_identity and ahead.keeps_origin
                if site.bias_value is not None and site.bias is not None and not stays:
                    old.append(bound["bias"] if "bias" in bound else reads[site.bias])
            kept = [source for source in reads if reads.count(source) > old.count(source)]
            found[node] = tuple(
                each for each in old if isinstance(each, fx.Node) and each not in kept
            )
        return found

    @cached_property
    def norms(self) -> Mapping[fx.Node, tuple[fx.Node, ...] | None]:
        """The norms of constants alone that something reads still, each with the tensors that can
        be stored in its place; None if one cannot: it is put out, nobody reads it, or can evaluate
        it.
        """
        left = [n for n in self.graph.nodes if is_norm(n) and self._is_fixed(n)]
        return {node: self._ends(node) for node in left if node not in self.gone}

    def _ends(self, norm: fx.Node) -> tuple[fx.Node, ...] | None:
        """What operators on data read of a norm of constants, behind other operators on constants.

        What is rounded to integers goes on being rounded: what is stored stands ahead of that.
        """
        ends: dict[fx.Node, None] = {}
        waiting, seen = [norm], {norm}
        while waiting:
            node = waiting.pop()
            for user in node.users:
                if user in self.gone or node in self._rewritten.get(user, ()):
                    continue
                if self._is_constant(user) and kind_of(user) not in ROUNDED:
                    waiting += [user] if user not in seen else []
                    seen.add(user)
                elif user.op != "call_function" or not self._is_constant(node):
                    return None
                else:
                    ends[node] = None
        return tuple(ends) or None

    def value(self, end: fx.Node) -> tuple[str, Tensor]:
        """What is stored for a tensor, rounded once, and a name like the weight's."""
        found = self.graph.context.constants.find(end)
        assert isinstance(found, Constant)
        name = found.sources[0] if len(found.sources) == 1 else end.name
        return name, from_numpy(found.load()).to(found.torch_dtype)

    @cached_property
    def ends(self) -> tuple[fx.Node, ...]:
        """The tensors that are stored."""
        return tuple(dict.fromkeys(end for ends in self.norms.values() for end in ends or ()))

    @property
    def readers(self) -> set[str]:
        """The names of the operators on data that read what is stored."""
        readers = (user for end in self.ends for user in self._readers(end))
        return {user.name for user in readers if not self._is_constant(user)}

    def _readers(self, end: fx.Node) -> list[fx.Node]:
        return [user for user in end.users if end not in self._rewritten.get(user, ())]

    def without(self, after: Mapping[str, int], whole: bool = False) -> dict[str, int]:
        """How many operators of each type are left, without those on constants that go, too; in a
        ``whole`` program with those whose results are stored.
        """
        gone = dict(self.gone)
        for node in reversed(self.graph.nodes) if whole else ():
            stored = node in self.ends
            if stored or (node.users and set(node.users) <= gone.keys() and self._is_fixed(node)):
                gone[node] = None
        count = Counter(after)
        count.subtract(kind_of(node) for node in gone)
        return dict(+count)

    def folds(self) -> Iterator[Fold]:
        """The plan's entries for norms whose results are stored."""
        for norm, ends in self.norms.items():
            if ends is not None:
                into = self._label(self._readers(ends[0])[0])
                yield Fold((self._label(norm),), (kind_of(norm),), into, (STORES,), "")

    def kept(self, whole: bool = False) -> Iterator[Kept]:
        """The plan's entries for norms that stay: for a ``whole`` program those whose results
        cannot be stored.
        """
        for norm, ends in self.norms.items():
            if not whole or ends is None:
                label = self._label(norm)
                message = f"{label} computes a weight, the same in every run: no data pass it"
                if whole:
                    message += "; its result is put out, or no operator on data reads it"
                why = Reason("constant-norm", label, message)
                yield Kept(label, kind_of(norm), why.code, label, message, why.advice, "")

    def _label(self, node: fx.Node) -> str:
        return self.graph.view.nodes[self.graph.numbers[node]].label

    def _is_constant(self, node: fx.Node) -> bool:
        return self.graph.context.is_constant(node)

    def _is_fixed(self, node: fx.Node) -> bool:
        """Whether an operator reads constants alone, as one does that puts out several tensors."""
        sources = node.all_input_nodes
        return self._is_constant(node) or (bool(sources) and all(map(self._is_constant, sources)))


_NORM = "BatchNormalization"
