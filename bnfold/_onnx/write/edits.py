"""Edits to a model's graphs that count the readers of every tensor.

When an initializer, or a chain of nodes for a constant, loses its last reader, it is removed. A
tensor that had no reader before stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, NodeProto

from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.scopes import Scope, bodies, copy_of
from bnfold._onnx.tensors import Array
from bnfold._onnx.write import lists
from bnfold._onnx.write.constants import Load, Storing

if TYPE_CHECKING:
    from bnfold._onnx.merge.merging import Merges, Network


class Editor:
    """Edits one model.

    ``constants`` stores new values, those that may be made ``later`` among them.
    """

    def __init__(self, network: Network, later: bool = False) -> None:
        self.names = network.names
        self._ir_version = network.model.ir_version
        self._unlisted = lists.unread(network.model.graph) if self._ir_version < 4 else set[str]()
        self._scopes = network.scopes
        self._uses: dict[str, Counter[str]] = {s.path: s.uses() for s in network.scopes}
        self._gone: dict[str, set[int]] = {s.path: set() for s in network.scopes}
        self._vanished: dict[str, dict[str, str | None]] = {s.path: {} for s in network.scopes}
        self._dropped: dict[str, set[str]] = {s.path: set() for s in network.scopes}
        self._inserted: dict[str, list[NodeProto]] = {s.path: [] for s in network.scopes}
        self._early: dict[str, set[int]] = {s.path: set() for s in network.scopes}
        self._unread: list[tuple[Scope, str]] = []
        self._merged: dict[str, dict[str, Load]] = {s.path: {} for s in network.scopes}
        self._held: list[tuple[Scope, str]] = []
        self.constants = Storing(network, self._uses, later)
        for scope, merges in zip(network.scopes, network.merges, strict=True):
            self._land(scope, merges)

    def store(
        self,
        scope: Scope,
        node: NodeProto,
        position: int,
        old: Constant | None,
        values: Array,
        wanted: str,
    ) -> None:
        """Make an input of a node a constant with the given values; see `Storing.put`.

        For a constant that a merge makes, the values are stored later.
        """
        owner = scope.owner(old.name) if old is not None else None
        if old is not None and owner is not None and old.name in self._merged[owner.path]:
            self._merged[owner.path][old.name] = lambda: values
            return
        name = self.constants.put(scope, old, values, wanted)
        if name is not None:
            self._connect(scope, node, position, name)

    def connect(self, scope: Scope, position: int, number: int, name: str) -> None:
        """Let input ``number`` of a node that stays read another tensor."""
        self._connect(scope, scope.nodes[position], number, name)
        scope.readers.setdefault(name, []).append(position)

    def keep_inputs(self, scope: Scope, node: NodeProto, count: int) -> None:
        """Let a node that stays read its first inputs alone."""
        for name in node.input[count:]:
            self._count(scope, name, -1)
        del node.input[count:]

    def rename_output(
        self,
        scope: Scope,
        position: int,
        name: str | None,
        fresh: bool,
        which: str | None = None,
    ) -> str:
        """Give an output of a node, the main one or ``which``, another name.

        Without ``name`` it gets a fresh one, or keeps its own if not ``fresh``. Gives the name.
        """
        node = scope.nodes[position]
        number = 0 if which is None else list(node.output).index(which)
        old: str = node.output[number]
        if name is None:
            if not fresh:
                return old
            name = self.names.fresh(f"{old}_folded")
            self._vanished[scope.path][old] = name
        else:
            self._vanished[scope.path].setdefault(old, None)
            self._vanished[scope.path].pop(name, None)
        node.output[number] = name
        scope.producers[name] = position
        return name

    def remove(self, scope: Scope, position: int) -> None:
        """Take a node out. Its outputs vanish and its inputs lose a reader."""
        node = scope.nodes[position]
        self._gone[scope.path].add(position)
        for name in node.output:
            if name:
                self._vanished[scope.path].setdefault(name, None)
        for name in node.input:
            self._count(scope, name, -1)

    def borrow(
        self, scope: Scope, position: int, copy: NodeProto, constants: Iterable[int]
    ) -> None:
        """Copy a removed node, to be placed again. Its constant inputs get their reader back."""
        copy.CopyFrom(scope.nodes[position])
        for number in constants:
            self._count(scope, copy.input[number], 1)

    def place(
        self, scope: Scope, slot: int, node: NodeProto, data: int, source: str, output: str
    ) -> str:
        """Put a node in the place of a removed one. It reads ``source`` and writes ``output``."""
        self._gone[scope.path].discard(slot)
        node.input[data] = source
        node.output[0] = output
        if any(scope.producers.get(name, -1) > slot for name in node.input):
            self._early[scope.path].add(slot)
        self._count(scope, source, 1)
        scope.nodes[slot].CopyFrom(node)
        scope.producers[output] = slot
        scope.readers.setdefault(source, []).append(slot)
        self._vanished[scope.path].pop(output, None)
        return output

    def insert(
        self, scope: Scope, slot: int, node: NodeProto, data: int, source: str, output: str
    ) -> str:
        """Put one more node ahead of the one in a slot, which is going to read ``output``."""
        node.input[data] = source
        node.output[0] = output
        self._count(scope, source, 1)
        self._inserted[scope.path].append(node)
        scope.producers[output] = slot
        return output

    def duplicate(self, scope: Scope, position: int) -> NodeProto:
        """One more node like that at a position, which reads constants alone. It goes ahead of the
        first node that is going to read what it writes.
        """
        copy = copy_of(scope.nodes[position])
        copy.name = self.names.fresh(copy.name) if copy.name else ""
        for name in copy.input[1:]:
            self._count(scope, name, 1)
        self.insert(scope, position, copy, 0, copy.input[0], self.names.fresh(copy.output[0]))
        return copy

    def bypass(self, scope: Scope, position: int, source: str) -> str:
        """Take out a node that hands ``source`` on; its readers read that. Gives the name that the
        tensor has then: an output of the graph keeps its own.
        """
        name: str = scope.nodes[position].output[0]
        self.remove(scope, position)
        self.forget(scope, name)
        if name in scope.outputs or name in scope.captures:
            self.rename_output(scope, scope.producers[source], name, False, source)
            self.forget(scope, source)
            self.reread(scope, [source], name)
            return name
        self.reread(scope, [name], source)
        return source

    def forget(self, scope: Scope, name: str) -> None:
        """Drop the notes on a tensor, which has gone or has another type now."""
        vanished = self._vanished[scope.path]
        for old in [old for old, new in vanished.items() if new == name]:
            vanished[old] = None
        vanished.setdefault(name, None)

    def reread(self, scope: Scope, old: Iterable[str], new: str) -> None:
        """Let every remaining node read ``new`` instead of ``old``, which has vanished."""
        for name in old:
            if name == new or name not in self._vanished[scope.path]:
                continue
            for node in self._inserted[scope.path]:
                for number, read in enumerate(node.input):
                    if read == name:
                        self._connect(scope, node, number, new)
            for position in dict.fromkeys(scope.readers.get(name, ())):
                node = scope.nodes[position]
                for number, read in enumerate(node.input):
                    if read == name and position not in self._gone[scope.path]:
                        self._connect(scope, node, number, new)
                        scope.readers.setdefault(new, []).append(position)

    def finish(self) -> None:
        """Store merged constants. Then remove unread constants and nodes marked for removal."""
        for scope in self._scopes:
            for name, values in self._merged[scope.path].items():
                if self._uses[scope.path][name] > 0:
                    self.constants.add(scope, name, values())
        for owner, name in self._held:
            self._count(owner, name, -1)
        self._sweep()
        for scope in self._scopes:
            gone, dropped = self._gone[scope.path], self._dropped[scope.path]
            vanished, first = self._vanished[scope.path], self.constants.prepended[scope.path]
            if self._early[scope.path]:
                order = lists.sort(scope, self._early[scope.path])
                gone = {n for n, position in enumerate(order) if position in gone}
            if gone or vanished or dropped:
                lists.clean(scope, gone, dropped, vanished)
            if self._inserted[scope.path]:
                lists.insert(scope, self._inserted[scope.path])
            if first:
                lists.prepend(scope, first)
        main = self._scopes[0].graph
        if self._ir_version < 4 and isinstance(main, GraphProto):
            lists.list_unread(main, self._unlisted)

    def _land(self, scope: Scope, merges: Merges) -> None:
        """Bring merged operators into the graph.

        The constants from which their weights are computed are held until the end.
        """
        nodes = scope.graph.node
        for position in {p: None for patch in merges.patches for p in patch.nodes}:
            old, new = nodes[position], scope.nodes[position]
            for name in old.input:
                owner = scope.owner(name) if name else None
                if owner is not None:
                    self._uses[owner.path][name] += 1
                    self._held.append((owner, name))
            for name in old.output:
                if name not in scope.producers:
                    self._vanished[scope.path].setdefault(name, None)
            if new.op_type:
                old.CopyFrom(new)
                scope.nodes[position] = old
            else:
                self._gone[scope.path].add(position)
        for patch in merges.patches:
            for name, constant in patch.constants.items():
                self._merged[scope.path][name] = _rounded(constant)

    def _connect(self, scope: Scope, node: NodeProto, number: int, name: str) -> None:
        while len(node.input) <= number:
            node.input.append("")
        self._count(scope, node.input[number], -1)
        node.input[number] = name
        self._count(scope, name, 1)

    def _count(self, scope: Scope, name: str, change: int) -> None:
        owner = scope.owner(name) if name else None
        if owner is None:
            return
        self._uses[owner.path][name] += change
        if change < 0 and self._uses[owner.path][name] == 0:
            self._unread.append((owner, name))

    def _sweep(self) -> None:
        """Remove constants without readers, and then those that only they read, and so on."""
        while self._unread:
            scope, name = self._unread.pop()
            if self._uses[scope.path][name] > 0 or name in self._dropped[scope.path]:
                continue
            if name in scope.protected:
                continue
            if name in scope.initializers or name in scope.sparse:
                self._dropped[scope.path].add(name)
                self._vanished[scope.path].setdefault(name, None)
                continue
            position = scope.producers.get(name)
            if position is None or position in self._gone[scope.path]:
                continue
            node = scope.nodes[position]
            unread = all(self._uses[scope.path][n] == 0 for n in node.output if n)
            if unread and name in node.output and not any(bodies(node)):
                self.remove(scope, position)


def _rounded(constant: Constant) -> Load:
    """A function for the values of an unrounded constant, rounded to its stored type."""
    return lambda: np.asarray(constant.load()).astype(constant.dtype)
