"""Which tensors of a program share memory, and which reads see overwritten memory.

An operator that works in place gives the tensor into which it wrote. So a chain of such operators
is a chain of values like any other. There is one exception: an operator reads the memory later by
an older name. It then does not read the value that the producer of that name put out.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Set
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from bnfold._torch.read.nodes import arguments, values_read

_OF_THE_BATCH = ("training", "train", "use_input_stats")
"""What says by its name that a norm takes the statistics of the batch it is given."""


@dataclass(frozen=True)
class _Stale:
    """A read of memory by a ``name`` that it had before ``writer`` wrote into it.

    A tensor that enters the program is known outside: every write into it counts as read there by
    an old name. Then ``reader`` is None.
    """

    writer: Node
    name: Node
    reader: Node | None


class Memory:
    """The memory of one program's tensors."""

    def __init__(self, graph: Graph) -> None:
        self._nodes: list[Node] = list(graph.nodes)
        self._order = {node: place for place, node in enumerate(self._nodes)}
        self._homes: dict[Node, Node] = {}
        self._writes: list[tuple[Node, Node]] = []
        places: dict[int, Node] = {}
        for node in self._nodes:
            for tensor in pytree.tree_leaves(node.meta.get("val")):
                if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                    memory: int = tensor.untyped_storage()._cdata
                    _join(self._homes, places.setdefault(memory, node), node)
            if node.op == "call_function":
                self._note(node)

    def _note(self, node: Node) -> None:
        """Note whose memory an operator hands on, and into whose memory it writes."""
        schema = getattr(node.target, "_schema", None)
        if node.target is operator.getitem or "dropout" in str(node.target):
            # A part of a list. In eval mode Dropout gives its input itself; no schema tells that.
            for source in node.all_input_nodes:
                _join(self._homes, source, node)
        if schema is None:
            return
        returns_alias = any(value.alias_info is not None for value in schema.returns)
        inputs = arguments(node)
        # A norm of the batch writes its running statistics. Its schema does not tell that.
        if any(inputs.get(name) is True for name in _OF_THE_BATCH):
            held = (inputs.get(name) for name in ("running_mean", "running_var"))
            self._writes += [(node, source) for source in held if isinstance(source, Node)]
        for argument in schema.arguments:
            alias = argument.alias_info
            for source in _nodes_in(inputs.get(argument.name)) if alias is not None else ():
                if returns_alias:
                    _join(self._homes, source, node)
                if alias.is_write:
                    self._writes.append((node, source))

    @property
    def written(self) -> Set[Node]:
        """All nodes into whose memory some operator writes, directly or through a view."""
        roots = {_home(self._homes, source) for _, source in self._writes}
        return {node for node in self._nodes if _home(self._homes, node) in roots}

    def writers(self, node: Node) -> Set[Node]:
        """The operators that write into the memory of a node."""
        return self._writers.get(_home(self._homes, node), frozenset())

    def follow(self, node: Node, old: Node) -> None:
        """Add a new node that takes the place, and the memory, of an old one."""
        _join(self._homes, old, node)

    @cached_property
    def _writers(self) -> dict[Node, set[Node]]:
        found: dict[Node, set[Node]] = {}
        for writer, source in self._writes:
            found.setdefault(_home(self._homes, source), set()).add(writer)
        return found

    @cached_property
    def torn(self) -> Set[Node]:
        """The operators that hand on, or write into, memory that is read by an old name."""
        roots = {_home(self._homes, stale.name) for stale in self._stale_as_it_is}
        return {
            node
            for node in self._nodes
            if (root := _home(self._homes, node)) in roots
            and any(_home(self._homes, source) is root for source in node.all_input_nodes)
        }

    def torn_by(
        self, joined: Collection[tuple[Node, Node]], gone: Set[Node]
    ) -> list[tuple[tuple[Node, Node], Node]]:
        """The pairs of ``joined`` that cause new reads by an old name, each with the writer.

        ``joined`` are pairs of nodes that become one tensor when the nodes ``gone`` are taken out.
        """
        homes = dict(self._homes)
        for one, other in joined:
            _join(homes, one, other)
        writers = {
            _home(homes, stale.name): stale.writer
            for stale in self._stale(homes, gone)
            if stale not in self._stale_as_it_is
        }
        return [
            (pair, writers[root]) for pair in joined if (root := _home(homes, pair[0])) in writers
        ]

    @cached_property
    def _stale_as_it_is(self) -> Set[_Stale]:
        return set(self._stale(self._homes, frozenset()))

    def _stale(self, homes: dict[Node, Node], gone: Set[Node]) -> list[_Stale]:
        """All reads by an old name. Inputs of the program are read outside after all writes."""
        writes = [(writer, _home(homes, at)) for writer, at in self._writes if writer not in gone]
        names: dict[Node, list[Node]] = {root: [] for _, root in writes}
        for node in self._nodes if writes else ():
            names.get(_home(homes, node), []).append(node)
        return [
            _Stale(writer, name, reader)
            for writer, root in writes
            for name in names[root]
            if self._order[name] < self._order[writer]
            for reader in (*([None] if name.op == "placeholder" else []), *name.users)
            if reader is None
            or (self._order[reader] > self._order[writer] and name in values_read(reader))
        ]


def _home(homes: dict[Node, Node], node: Node) -> Node:
    """The node that represents all nodes with the same memory as ``node``."""
    while (up := homes.setdefault(node, node)) is not node:
        homes[node] = homes[up]
        node = up
    return node


def _join(homes: dict[Node, Node], one: Node, other: Node) -> None:
    homes[_home(homes, other)] = _home(homes, one)


def _nodes_in(value: object) -> list[Node]:
    values = value if isinstance(value, list | tuple) else [value]
    return [item for item in values if isinstance(item, Node)]
