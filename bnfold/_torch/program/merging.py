"""Merge linear operators of a program, in a draft of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from bnfold._core.reasons import Reason
from bnfold._core.result import Fold
from bnfold._merge.kernels import Kernel
from bnfold._merge.merging import Merger, Replacement, Stays
from bnfold._merge.stored import Load, remembered, unfit
from bnfold._torch.program.applied import Step
from bnfold._torch.program.draft import Draft, like
from bnfold._torch.program.wiring import Wiring
from bnfold._torch.read.aliases import Memory
from bnfold._torch.read.constants import Constant, Constants
from bnfold._torch.read.nodes import arguments, kind_of
from bnfold._torch.tensors import from_numpy

_ADD, _SUB = torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Merges:
    """A program once its linear operators are merged, what merged, in order, and what did not.

    ``exact`` gives merged weights in float64, by the names of the parameters that have them
    rounded. ``standing`` names for nodes of the program those that stand for them once it is
    merged, ``steps`` those that do not bear their own operator's value any more; ``made`` are the
    operators that are new.
    """

    program: ExportedProgram
    exact: Mapping[str, Load]
    folds: tuple[Fold, ...]
    stays: tuple[Stays, ...]
    standing: Mapping[str, str]
    steps: tuple[Step, ...]
    made: frozenset[str]


def merge(program: ExportedProgram) -> Merges:
    """Merge in a copy of a program; the program itself is not changed."""
    draft = Draft(program)
    memory = Memory(draft.module.graph)
    wiring = Wiring(draft, Constants(program, memory.written, {}), memory)
    writer = _DraftMerger(draft, wiring)
    order = range(len(wiring.places))
    merger = Merger(wiring, writer, order)
    for position in order:
        merger.visit(position)
    merged = draft.program() if writer.folds else program
    exact = {name: load for name, load in writer.exact.items() if name in draft.state}
    alive = set(draft.module.graph.nodes)
    made = {node.name: name for node, name in writer.origins.items() if node in alive}
    made = made if writer.folds else {}
    new = frozenset(node.name for node in writer.parts if node in alive)
    kept = {node.name for node in merged.graph.nodes} - new
    standing = {**{name: name for name in kept}, **{old: node for node, old in made.items()}}
    steps = tuple(Step("merge", node, (), (), (old,)) for node, old in made.items())
    stays = tuple(merger.stays.values())
    return Merges(merged, exact, tuple(writer.folds), stays, standing, steps, new)


class _DraftMerger:
    """Carries out replacements in a draft."""

    def __init__(self, draft: Draft, wiring: Wiring) -> None:
        self.draft = draft
        self.wiring = wiring
        self.exact: dict[str, Load] = {}
        self.made: set[Node] = set()
        self.folds: list[Fold] = []
        self.parts: set[Node] = set()
        self.origins: dict[Node, str] = {}

    def fresh(self, wanted: str) -> str:
        """A name like the wanted one that no tensor has had."""
        return self.wiring.fresh(wanted)

    def write(self, replacement: Replacement) -> int | Reason:
        """Put an operator where the first of those stood that it replaces, which read what it
        reads. A reason says why it cannot be.
        """
        wiring, new = self.wiring, replacement
        lender, taken = max(new.weighted, key=lambda own: (own[1].kernel.size, -own[0]))
        where = wiring.label(lender)
        call = _call(new.kernel, where)
        if isinstance(call, Reason):
            return call
        if any(own.dtype != taken.dtype for _, own in new.weighted):
            return Reason("unsupported-dtype", where, f"{where}: weights are of several types")
        weight, bias = new.kernel.weight(), new.kernel.bias()
        problem = unfit(where, weight, bias, taken.dtype) or self._overwritten(where, new)
        if problem is not None:
            return problem
        old = _weight(wiring.node(lender))
        source = wiring.holder(new.source).meta["val"]
        tensors = [_laid(from_numpy(weight.astype(taken.dtype)), old.meta["val"])]
        if bool((bias != 0).any()):
            tensors.append(from_numpy(bias.astype(taken.dtype)))
        tensors = [tensor.to(source.device) for tensor in tensors]
        fakes = [like(tensor, source) for tensor in tensors]
        example = call.example(source, fakes)
        if not _lie_alike(example, wiring.holder(new.like).meta["val"]):
            what = f"{where}: one operator would lay its output out differently in memory"
            return Reason("not-mergeable", where, what)
        parameters = self._parameters(new, old, tensors)
        place = new.slots[0]
        with self.draft.module.graph.inserting_before(wiring.node(place)):
            node = call.node(self.draft, wiring.holder(new.source), parameters)
        node.meta = {**wiring.node(lender).meta, "val": example}
        self.folds.append(self._fold(new, lender))
        self._lay(new, node, lender)
        return place

    def _parameters(self, new: Replacement, old: Node, tensors: Sequence[Tensor]) -> list[Node]:
        """The weight and perhaps the bias as parameters, known in float64."""
        # What is made of merged weights would be computed from the first ones each time.
        stacked = any(
            source in self.made
            for position, _ in new.weighted
            for source in self.wiring.node(position).all_input_nodes
        )
        found = self.wiring.constants.find(old)
        assert isinstance(found, Constant)
        stem = found.name.removesuffix("weight").rstrip("._")
        stem = f"{stem}_" if stem else ""
        loads = remembered(new.kernel.weight, stacked), remembered(new.kernel.bias, True)
        source = self.wiring.holder(new.source)
        nodes = []
        for name, tensor, load in zip(("weight", "bias"), tensors, loads, strict=False):
            node, target = self.draft.add_parameter(f"{stem}{name}", tensor, source)
            self.wiring.constants.add(node, target, tensor, load)
            self.exact[target] = load
            self.made.add(node)
            nodes.append(node)
        return nodes

    def _overwritten(self, where: str, new: Replacement) -> Reason | None:
        """Whether anybody writes into what the new operators read before they did at first, or
        after.

        The linear operator reads its source earlier than some that it replaces; what is left of a
        sum may read a term later.
        """
        wiring = self.wiring
        gone = {*new.gone, *new.joined}
        reads = [(wiring.holder(new.source), new.slots[0], max(gone))]
        for position, joined in new.joined.items():
            for tensor in joined.operands if joined is not None else ():
                if wiring.knows(tensor) and tensor not in wiring.reads(position):
                    node = wiring.holder(tensor)
                    start = wiring.position(node)
                    reads.append((node, -1 if start is None else start, position))
        for node, start, end in reads:
            for writer in wiring.memory.writers(node):
                at = wiring.position(writer)
                if at is not None and at not in gone and start < at < end:
                    what = f"{wiring.label(at)} writes into what {where} would read at another time"
                    return Reason("shared-output", wiring.label(at), what)
        return None

    def _fold(self, new: Replacement, lender: int) -> Fold:
        """A merge in a plan's words."""
        none = {position for position, joined in new.joined.items() if joined is None}
        gone = sorted({*new.gone, *none} - {lender})
        labels, kinds = ([say(p) for p in gone] for say in (self.wiring.label, self.wiring.kind))
        return Fold(tuple(labels), tuple(kinds), self.wiring.label(lender), (new.law,), "")

    def _lay(self, new: Replacement, node: Node, lender: int) -> None:
        """Join what is left of a sum to a new operator, and take out what both replace."""
        wiring, graph = self.wiring, self.draft.module.graph
        known = {lender: (wiring.node(lender).name, wiring.label(lender))}
        made, laid = {new.output: node}, [(new.slots[0], new.output, node, lender)]
        for position, joined in new.joined.items():
            known[position] = wiring.node(position).name, wiring.label(position)
            if joined is None:
                continue
            operands = [made.get(t) or wiring.holder(t) for t in joined.operands]
            target = _SUB if joined.minus else _ADD
            with graph.inserting_before(wiring.node(position)):
                part = graph.call_function(target, tuple(operands))
            value = target(*(operand.meta["val"] for operand in operands))
            part.meta = {**wiring.node(position).meta, "val": value}
            made[joined.output] = part
            laid.append((position, joined.output, part, position))
        ends = {wiring.holder(tensor): made[tensor] for tensor in made if wiring.knows(tensor)}
        self.parts.update(made.values())
        for old, part in ends.items():
            if old in self.origins or old not in self.parts:
                self.origins[part] = self.origins.get(old, old.name)
        for position in sorted({*new.gone, *new.joined}, reverse=True):
            old = wiring.node(position)
            wiring.take(position)
            if old in ends:
                wiring.memory.follow(ends[old], old)
                self.draft.bypass(old, ends[old])
            else:
                graph.erase_node(old)
        for position, tensor, one, named in laid:
            name, label = known[named]
            self.draft.rename(one, name)
            wiring.put(position, one, tensor, label)


@dataclass(frozen=True)
class _Call:
    """A linear operator and what it is given besides its tensors."""

    target: Callable[..., Any]
    rest: tuple[Any, ...] = ()

    def example(self, source: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """What it puts out for tensors without values."""
        with torch.no_grad():
            result: Tensor = self.target(*self._given(source, parameters))
        return result

    def node(self, draft: Draft, source: Node, parameters: Sequence[Node]) -> Node:
        """The operator as a node of a graph."""
        return draft.module.graph.call_function(self.target, self._given(source, parameters))

    def _given(self, source: Any, parameters: Sequence[Any]) -> tuple[Any, ...]:
        weight, *bias = parameters
        return (source, weight, bias[0] if bias else None, *self.rest)


def _call(kernel: Kernel, where: str) -> _Call | Reason:
    """The operator that computes a kernel: `linear`, or a convolution, which pads both ends of an
    axis alike, or as ``"same"`` does, which gives the odd one to the end.
    """
    if not kernel.windows:
        return _Call(torch.ops.aten.linear.default)
    windows = kernel.windows
    packet = getattr(torch.ops.aten, f"conv{len(windows)}d")
    strides, steps = [w.stride for w in windows], [w.step for w in windows]
    pads = [window.pads for window in windows]
    if min(map(min, pads)) < 0:
        what = f"{where}: one operator would have to cut its input"
    elif all(start == end for start, end in pads):
        return _Call(packet.default, (strides, [start for start, _ in pads], steps, kernel.groups))
    elif all(w.stride == 1 and w.room == -1 and w.pads[0] == sum(w.pads) // 2 for w in windows):
        return _Call(packet.padding, (strides, "same", steps, kernel.groups))
    else:
        what = f"{where}: one operator would have to pad its two ends differently"
    return Reason("not-mergeable", where, what)


def _weight(node: Node) -> Node:
    """The weight of a linear operator."""
    bound = arguments(node)
    weight: Node = bound["other" if kind_of(node) == "matmul" else "weight"]
    return weight


def _laid(tensor: Tensor, old: Tensor) -> Tensor:
    """The same values, channels last where those of an old one are."""
    order = _FORMATS.get(old.dim())
    if order is None or old.is_contiguous() or not old.is_contiguous(memory_format=order):
        return tensor
    return tensor.contiguous(memory_format=order)


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    """Whether elements of two tensors of one shape are in the same order in memory: a `view` that
    reads one may need that.
    """
    steps = zip(one.stride(), other.stride(), one.shape, strict=True)
    return all(
        statically_known_true(a == b) for a, b, n in steps if not statically_known_true(n == 1)
    )
