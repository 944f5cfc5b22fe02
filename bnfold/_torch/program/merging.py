"""Merge the linear operators of a program, in a draft of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from bnfold._core.reasons import Reason
from bnfold._core.result import Fold
from bnfold._merge.graph import MergeGraph, Operator, Written
from bnfold._merge.kernels import Kernel
from bnfold._merge.merging import Merger, Replacement, Stays
from bnfold._merge.steps import LinearForm, linear_form
from bnfold._merge.stored import Load, remembered, unfit
from bnfold._torch.program.applied import AppliedStep
from bnfold._torch.program.draft import Draft, fresh, like
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.graph import Graph, operator_of, read
from bnfold._torch.read.nodes import arguments, is_tensor, kind_of, main_of, reads_of, shape_of
from bnfold._torch.tensors import from_numpy

_ADD, _SUB = torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Merges:
    """A program after its linear operators are merged.

    ``folds`` are the merges in order, ``stays`` the operators that did not merge. ``exact`` has the
    merged weights in float64, by the names of the parameters that hold them rounded. ``before`` is
    the program as it was read for merging. ``standing`` has for names of nodes in it the names of
    the nodes that take their place. ``steps`` tell the merges to the proof. ``made`` has the names
    of new operators.
    """

    program: ExportedProgram
    exact: Mapping[str, Load]
    folds: tuple[Fold, ...]
    stays: tuple[Stays, ...]
    before: Graph
    standing: Mapping[str, str]
    steps: tuple[AppliedStep, ...]
    made: frozenset[str]

    def read(self) -> Graph:
        """The merged program as read. If nothing merged, it is not read again."""
        return read(self.program, None, self.exact) if self.folds else self.before


def merge(program: ExportedProgram) -> Merges:
    """Merge in a copy of a program. The program itself is not changed."""
    draft = Draft(program)
    before = read(program, None, graph=draft.module.graph)
    writer = _DraftMerger(draft, before)
    merger = Merger(writer.graph, writer)
    merger.run()
    merged = draft.program() if writer.folds else program
    exact = {name: load for name, load in writer.exact.items() if name in draft.state}
    alive = set(draft.module.graph.nodes)
    made = {node.name: name for node, name in writer.origins.items() if node in alive}
    made = made if writer.folds else {}
    new = frozenset(node.name for node in writer.parts if node in alive)
    kept = {node.name for node in merged.graph.nodes} - new
    standing = {**{name: name for name in kept}, **{old: node for node, old in made.items()}}
    steps = tuple(AppliedStep("merge", node, (), (), (old,)) for node, old in made.items())
    stays = tuple(merger.stays.values())
    return Merges(merged, exact, tuple(writer.folds), stays, before, standing, steps, new)


class _DraftMerger:
    """Tells what the operators of a draft compute, and carries out replacements in it.

    A tensor has the name of the node that first wrote it. It keeps this name when another node
    takes the place of that node.
    """

    def __init__(self, draft: Draft, before: Graph) -> None:
        """``before`` is the draft as read before any change."""
        self.draft = draft
        self.exact: dict[str, Load] = {}
        self.made: set[Node] = set()
        self.folds: list[Fold] = []
        self.parts: set[Node] = set()
        self.origins: dict[Node, str] = {}
        self.memory = before.memory
        self._records = dict(zip(before.nodes, before.records, strict=True))
        self._places: list[Node | None] = list(before.nodes)
        self._positions = {node: position for position, node in enumerate(before.nodes)}
        self._holders = dict(draft.nodes)
        self._names = {node: name for name, node in draft.nodes.items()}
        self._taken = set(draft.nodes)
        self._labels = {
            node: known.label for node, known in zip(before.nodes, before.view.nodes, strict=True)
        }
        self._context = replace(before.context, label=self._labels.__getitem__)
        self.graph = MergeGraph(before.view, self.describe)

    def describe(self, position: int) -> LinearForm:
        """What the operator at a position computes now."""
        node = self._node(position)
        if node not in self._records:
            self._records[node] = operator_of(self._context, node, self.memory.torn)
        return linear_form(self._records[node])

    def fresh(self, wanted: str) -> str:
        """A name like the wanted one that no tensor has had."""
        name = fresh(wanted, self._taken)
        self._taken.add(name)
        return name

    def write(self, replacement: Replacement) -> Written | Reason:
        """Put a new operator at the position of the first operator that it replaces.

        That operator reads the new one's source. Gives what has changed, or the reason why it
        cannot be done.
        """
        new = replacement
        lender, taken = max(new.weighted, key=lambda own: (own[1].kernel.size, -own[0]))
        where = self.graph.label(lender)
        call = _call(new.kernel, where, kind_of(self._node(lender)))
        if isinstance(call, Reason):
            return call
        if any(own.dtype != taken.dtype for _, own in new.weighted):
            return Reason("unsupported-dtype", where, f"{where}: weights are of several types")
        weight, bias = new.kernel.weight(), new.kernel.bias()
        problem = unfit(where, weight, bias, taken.dtype) or self._overwritten(where, new)
        if problem is not None:
            return problem
        old, holder = _weight(self._node(lender)), self._holders[new.source]
        source = holder.meta["val"]
        weight = weight.T if call.turned else weight
        tensors = [_laid(from_numpy(weight.astype(taken.dtype)), old.meta["val"])]
        if bool((bias != 0).any()):
            tensors.append(from_numpy(bias.astype(taken.dtype)))
        tensors = [tensor.to(source.device) for tensor in tensors]
        fakes = [like(tensor, source) for tensor in tensors]
        example = call.example(source, fakes)
        if not _lie_alike(example, self._holders[new.like].meta["val"]):
            what = f"{where}: one operator would lay its output out differently in memory"
            return Reason("not-mergeable", where, what)
        parameters = self._parameters(new, old, tensors, call.turned)
        with self.draft.module.graph.inserting_before(self._node(new.slots[0])):
            node = call.node(self.draft, holder, parameters)
        node.meta = {**self._node(lender).meta, "val": example}
        self.folds.append(self._fold(new, lender))
        return self._lay(new, node, lender, parameters)

    def _parameters(
        self, new: Replacement, old: Node, tensors: Sequence[Tensor], turned: bool
    ) -> list[Node]:
        """Add the weight, and a bias if there is one, as parameters. Gives their nodes."""
        # Without this, weights merged again would be computed from the first ones each time.
        stacked = any(
            source in self.made
            for position, _ in new.weighted
            for source in self._node(position).all_input_nodes
        )
        found = self._context.constants.find(old)
        assert isinstance(found, Constant)
        stem = found.name.removesuffix("weight").rstrip("._")
        stem = f"{stem}_" if stem else ""
        weight = (lambda: new.kernel.weight().T) if turned else new.kernel.weight
        loads = remembered(weight, stacked), remembered(new.kernel.bias, True)
        source = self._holders[new.source]
        nodes = []
        for name, tensor, load in zip(("weight", "bias"), tensors, loads, strict=False):
            node, target = self.draft.add_parameter(f"{stem}{name}", tensor, source)
            self._context.constants.add(node, target, tensor, load)
            self.exact[target] = load
            tensor_name = self.fresh(node.name)
            self._names[node], self._holders[tensor_name] = tensor_name, node
            self.made.add(node)
            nodes.append(node)
        return nodes

    def _overwritten(self, where: str, new: Replacement) -> Reason | None:
        """Why the new operators would read memory at a wrong time; None if they would not.

        The new linear operator reads its source earlier than some operators that it replaces. An
        operator that is left of a sum may read a term later than before. In between nobody may
        write into that memory.
        """
        gone = {*new.gone, *new.joined}
        reads = [(self._holders[new.source], new.slots[0], max(gone))]
        for position, joined in new.joined.items():
            for tensor in joined.operands if joined is not None else ():
                if tensor in self._holders and tensor not in self.graph.reads(position):
                    node = self._holders[tensor]
                    start = self._positions.get(node)
                    reads.append((node, -1 if start is None else start, position))
        for node, start, end in reads:
            for writer in self.memory.writers(node):
                at = self._positions.get(writer)
                if at is not None and at not in gone and start < at < end:
                    label = self.graph.label(at)
                    what = f"{label} writes into what {where} would read at another time"
                    return Reason("shared-output", label, what)
        return None

    def _fold(self, new: Replacement, lender: int) -> Fold:
        """The plan's entry for a merge."""
        none = {position for position, joined in new.joined.items() if joined is None}
        gone = sorted({*new.gone, *none} - {lender})
        labels, kinds = ([say(p) for p in gone] for say in (self.graph.label, self.graph.kind))
        return Fold(tuple(labels), tuple(kinds), self.graph.label(lender), (new.law,), "")

    def _lay(
        self, new: Replacement, node: Node, lender: int, parameters: Sequence[Node]
    ) -> Written:
        """Connect a new operator and the rest of a sum, and take out what these replace.

        Gives what has changed.
        """
        graph, view = self.draft.module.graph, self.graph
        names = {position: self._node(position).name for position in (lender, *new.joined)}
        known = {self._holders[new.source]: new.source, **{p: self._names[p] for p in parameters}}
        reads: Sequence[str] = [known[source] for source in reads_of(node)]
        made = {new.output: node}
        laid = [(new.slots[0], node, lender, reads, new.output)]
        for position, joined in new.joined.items():
            if joined is None:
                continue
            operands = [made.get(t) or self._holders[t] for t in joined.operands]
            target = _SUB if joined.minus else _ADD
            with graph.inserting_before(self._node(position)):
                rest = graph.call_function(target, tuple(operands))
            value = target(*(operand.meta["val"] for operand in operands))
            rest.meta = {**self._node(position).meta, "val": value}
            made[joined.output] = rest
            laid.append((position, rest, position, joined.operands, joined.output))
        ends = {self._holders[t]: made[t] for t in made if t in self._holders}
        self.parts.update(made.values())
        for old, part in ends.items():
            if old in self.origins or old not in self.parts:
                self.origins[part] = self.origins.get(old, old.name)
        gone = sorted({*new.gone, *new.joined}, reverse=True)
        operators: dict[int, Operator | None] = {}
        for position, one, named, inputs, tensor in laid:
            label = view.label(named)
            operators[position] = Operator(label, kind_of(one), tuple(inputs), (tensor,))
        for position in gone:
            old = self._node(position)
            end = main_of(old)
            for part in (old, *(() if is_tensor(old) else old.users)):
                self._take(self._positions[part])
            operators.setdefault(position, None)
            if end in ends:
                self.memory.follow(ends[end], end)
                self.draft.bypass(old, ends[end])
            else:
                self.draft.erase(old)
        for position, one, named, _, tensor in laid:
            self.draft.rename(one, names[named])
            self._put(position, one, tensor, view.label(named))
        tensors = {name for _, _, _, inputs, tensor in laid for name in (*inputs, tensor)}
        return Written(new.slots[0], operators, {t: shape_of(self._holders[t]) for t in tensors})

    def _node(self, position: int) -> Node:
        """The node at a position."""
        node = self._places[position]
        assert node is not None
        return node

    def _put(self, position: int, node: Node, tensor: str, label: str) -> None:
        """Note that a node stands at a position, and which tensor it writes."""
        self._places[position] = node
        self._positions[node] = position
        self._holders[tensor] = node
        self._names[node] = tensor
        self._labels[node] = label

    def _take(self, position: int) -> None:
        """Note that nothing stands at a position any more."""
        node = self._node(position)
        self._places[position] = None
        del self._positions[node]
        if self._holders[self._names[node]] is node:
            del self._holders[self._names[node]]


@dataclass(frozen=True)
class _Call:
    """A linear operator and its arguments other than tensors.

    One that is ``turned`` multiplies by a matrix ``[in, out]``, as mm and addmm do.
    """

    target: Callable[..., Any]
    rest: tuple[Any, ...] = ()
    turned: bool = False

    def example(self, source: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The operator's output for tensors without values."""
        with torch.no_grad():
            result: Tensor = self.target(*self._given(source, parameters))
        return result

    def node(self, draft: Draft, source: Node, parameters: Sequence[Node]) -> Node:
        """The operator as a node of a graph."""
        return draft.module.graph.call_function(self.target, self._given(source, parameters))

    def _given(self, source: Any, parameters: Sequence[Any]) -> tuple[Any, ...]:
        weight, *bias = parameters
        if self.turned:
            return (*bias, source, weight)
        return (source, weight, bias[0] if bias else None, *self.rest)


def _call(kernel: Kernel, where: str, kind: str) -> _Call | Reason:
    """The operator that computes a kernel, or the reason why there is none.

    It is `linear` or a convolution. A convolution pads both ends of an axis alike, or by "same":
    then an odd padding has one more at the end. What decompositions have made of the operator of
    the ``kind`` that it stands for, it is, too: addmm or mm, or the one for all convolutions.
    """
    if not kernel.windows and kind in ("addmm", "mm"):
        matrices = torch.ops.aten.addmm if bool((kernel.bias() != 0).any()) else torch.ops.aten.mm
        return _Call(matrices.default, turned=True)
    if not kernel.windows:
        return _Call(torch.ops.aten.linear.default)
    windows = kernel.windows
    packet = getattr(torch.ops.aten, f"conv{len(windows)}d")
    strides, steps = [w.stride for w in windows], [w.dilation for w in windows]
    pads = [window.pads for window in windows]
    if min(map(min, pads)) < 0:
        what = f"{where}: one operator would have to cut its input"
    elif kind == "convolution" and all(start == end for start, end in pads):
        given = strides, [start for start, _ in pads], steps, False, [0] * len(pads), kernel.groups
        return _Call(torch.ops.aten.convolution.default, given)
    elif all(start == end for start, end in pads):
        return _Call(packet.default, (strides, [start for start, _ in pads], steps, kernel.groups))
    elif kind != "convolution" and all(
        w.stride == 1 and w.room == -1 and w.pads[0] == sum(w.pads) // 2 for w in windows
    ):
        return _Call(packet.padding, (strides, "same", steps, kernel.groups))
    else:
        what = f"{where}: one operator would have to pad its two ends differently"
    return Reason("not-mergeable", where, what)


def _weight(node: Node) -> Node:
    """The weight of a linear operator."""
    bound = arguments(node)
    names = {"matmul": "other", "mm": "mat2", "addmm": "mat2"}
    weight: Node = bound[names.get(kind_of(node), "weight")]
    return weight


def _laid(tensor: Tensor, old: Tensor) -> Tensor:
    """The same values, with channels last in memory if ``old`` has them there."""
    order = _FORMATS.get(old.dim())
    if order is None or old.is_contiguous() or not old.is_contiguous(memory_format=order):
        return tensor
    return tensor.contiguous(memory_format=order)


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order in memory.

    A `view` that reads one of them may need that.
    """
    steps = zip(one.stride(), other.stride(), one.shape, strict=True)
    return all(
        statically_known_true(a == b) for a, b, n in steps if not statically_known_true(n == 1)
    )
