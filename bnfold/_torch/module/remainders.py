"""What a module still does when its affine operators are gone, as modules one behind the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from torch import fx

from bnfold._core.view import Affine
from bnfold._torch.module.formulas import Formula
from bnfold._torch.module.ownership import Ownership
from bnfold._torch.module.stand_ins import Step
from bnfold._torch.module.unseen import state_of, unseen
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.export import Calls, key_of
from bnfold._torch.read.graph import Graph
from bnfold._torch.read.nodes import kind_of, rank_of, shape_of

HERE = ""
"""The step where branches stood, which become one module."""


class Remainders:
    """Tells what modules still do when some of their affine operators are gone."""

    def __init__(self, graph: Graph, owned: Ownership, calls: Calls) -> None:
        self._graph = graph
        self._owned = owned
        self._calls = calls
        self._unseen: dict[object, str | None] = {}

    def steps(self, path: str, gone: Set[fx.Node]) -> tuple[Step, ...] | str:
        """The submodules and operators that are left of a module, in order; or why it cannot go.

        It can if each of its calls is one chain, of the operators that are ``gone`` and of others
        that have no weights and keep the shape: activations and dropouts. Its submodules have to be
        called once each and as a whole. Its code must not do what no graph shows, or choose its way
        by what it is given.
        """
        try:
            rows = {self.row(path, nodes, gone) for nodes in self.by_call(path)}
            if len(rows) != 1:
                return "does not do the same in all its calls"
            steps = self._with_silent(path, rows.pop())
        except Unsuited as why:
            return str(why)
        node = next(node for node in self._owned.inside(path) if node in gone)
        role, sizes = self._graph.readings[self._graph.numbers[node]].role, shape_of(node) or ()
        assert isinstance(role, Affine)
        axis = role.map.axis  # There are as many channels in every call as the map has.
        known = {axis: sizes[axis]} if axis is not None and role.map.scale.size > 1 else {}
        return self.unseen_in(path, rank_of(node), known) or steps

    def unseen_in(self, path: str, rank: int, sizes: Mapping[int, int | None]) -> str | None:
        """What a module's code does that the graph does not show; see `unseen`."""
        module = self._owned.modules[path]
        alike = (*state_of(module, self._calls), rank, *sizes.items())
        if alike not in self._unseen:
            self._unseen[alike] = unseen(module, self._calls, rank, sizes)
        return self._unseen[alike]

    def by_call(self, path: str) -> list[list[fx.Node]]:
        """The operators of each call of a module."""
        found: dict[str, list[fx.Node]] = {}
        for node in self._owned.inside(path):
            if kind_of(node) != "_assert_tensor_metadata":  # It computes nothing.
                found.setdefault(self._stack(path, node)[0][0], []).append(node)
        return list(found.values())

    def _stack(self, path: str, node: fx.Node) -> list[tuple[str, str]]:
        """The calls in which a node stands, from the call of a module on, each with its path."""
        names = self._owned.names(path)
        stack = [(key, name) for key, (name, _) in node.meta["nn_module_stack"].items()]
        start = next(place for place, (_, name) in enumerate(stack) if name in names)
        return stack[start:]

    def row(
        self,
        path: str,
        nodes: Sequence[fx.Node],
        gone: Set[fx.Node],
        branches: Sequence[fx.Node] = (),
    ) -> tuple[Step, ...]:
        """What is left of one call. Where ``branches`` stood is `HERE`; with them, submodules may
        be anything. Raises `Unsuited` if the call is more than one chain.
        """
        segments: list[tuple[object, list[fx.Node]]] = []
        taken = {inner for node in branches for inner in self._stack(path, node)[1:2]}
        for node in nodes:
            _, *inner = self._stack(path, node)
            slot: object = inner[0] if inner else node if node in gone else None
            if node in branches:
                slot = HERE
            elif slot in taken:
                _no(f"needs a part of {inner[0][1]} alone")
            if not segments or segments[-1][0] != slot:
                segments.append((slot, []))
            segments[-1][1].append(node)
        steps: list[Step] = []
        before: fx.Node | None = None
        for slot, part in segments:
            source, before = self.ends(part, before)
            if isinstance(slot, tuple):
                activation = None if branches else source
                steps.append(self._child(path, str(slot[1]), part, activation))
            elif slot == HERE:
                steps.append(HERE)
            elif slot is None:
                steps += Formula.of(part, source, self._is_constant) or _no(self._more(part[0]))
        return tuple(steps)

    def _more(self, node: fx.Node) -> str:
        """What an operator is that is neither gone nor an activation."""
        if isinstance(self._graph.readings[self._graph.numbers[node]].role, Affine):
            return f"also has {node.name}, which stays"
        return f"does more than a norm and an activation: {node.name}"

    def ends(self, part: Sequence[fx.Node], before: fx.Node | None) -> tuple[fx.Node, fx.Node]:
        """What goes into a part of a chain, and what comes out of it.

        Nothing else goes in or out, and what comes out ahead of it goes nowhere else.
        """
        sources = {
            source
            for node in part
            for source in node.all_input_nodes
            if source not in part and not self._is_constant(source)
        }
        ends = [node for node in part if any(user not in part for user in node.users)]
        silent = [node for node in part if not node.users]
        if len(sources) != 1 or len(ends) != 1 or silent:
            _no("is more than one chain of operators")
        (source,), (end,) = sources, ends
        if before is not None and (source is not before or not set(source.users) <= set(part)):
            _no("is more than one chain of operators")
        return source, end

    def _child(self, path: str, name: str, part: Sequence[fx.Node], source: fx.Node | None) -> str:
        """The name of a submodule that is a step of its own: an activation if it has a source."""
        module, last = self._owned.modules[path], name.rpartition(".")[2]
        child = module._modules.get(last)
        if child is None or self._owned.modules.get(name) is not child:
            _no(f"calls {name}, which is no submodule of its own")
        if not self._calls.are_plain(child):
            _no(f"calls {name} with something else than one tensor")
        weighted = any(self._graph.readings[self._graph.numbers[node]].sites for node in part)
        if source and (weighted or any(shape_of(node) != shape_of(source) for node in part)):
            _no(f"does more than a norm and an activation: {name}")
        return last

    def _with_silent(self, path: str, row: Sequence[Step]) -> tuple[Step, ...]:
        """A row with the submodules that did nothing, such as a dropout in eval, in their order."""
        module = self._owned.modules[path]
        names = {key_of(part): name for name, part in module._modules.items() if part is not None}
        rows = self._calls.inner.get(key_of(module), set())
        if len(rows) != 1:
            _no("does not call the same submodules in all its calls")
        (calls,) = rows
        called = [(names.get(key), same) for key, same in calls]
        order = [name for name, _ in called]
        if None in order or len(set(order)) != len(order) or set(order) != set(names.values()):
            _no("does not call each of its submodules once")
        if not all(same or name in row for name, same in called):
            _no("has a submodule whose output depends on no input")
        steps: list[Step] = []
        waiting = [str(name) for name in order]
        for step in row:
            while step in waiting and waiting[0] not in row:
                steps.append(waiting.pop(0))
            if step in waiting:
                waiting.remove(str(step))
            steps.append(step)
        return (*steps, *waiting)

    def _is_constant(self, node: fx.Node) -> bool:
        return isinstance(self._graph.context.constants.find(node), Constant)


class Unsuited(Exception):
    """A module does more than a chain of affine operators, activations and dropouts."""


def _no(why: str) -> list[Formula]:
    raise Unsuited(why)
