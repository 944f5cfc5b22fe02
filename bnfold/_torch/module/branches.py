"""Modules that are sums of branches, each to become one linear module.

The branches are taken out as a program of their own, in float64. If folding it, by the same merges
as any program, leaves one linear operator, a module with its weights stands for them. So it is with
a linear operator whose weight the module's own code standardizes in each run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bnfold._core.result import MERGES, STORES, Fold
from bnfold._errors import UsageError
from bnfold._merge.steps import Blocked, LinearForm, Mapped, Weighted, linear_form
from bnfold._merge.stored import unfit
from bnfold._plan.planner import Moves
from bnfold._torch.module.ownership import Ownership
from bnfold._torch.module.remainders import HERE, Remainders, Unsuited
from bnfold._torch.module.stand_ins import HOOKS, OneLinear, Step, names
from bnfold._torch.program.fold import PlannedProgram
from bnfold._torch.read.constants import Constant, jumps
from bnfold._torch.read.export import Calls, export
from bnfold._torch.read.graph import Graph, operators, path_of
from bnfold._torch.read.nodes import (
    arguments,
    dtype_of,
    free_axes,
    kind_of,
    listed,
    rank_of,
    sizes_in,
)
from bnfold._torch.read.standardized import Standardized
from bnfold._torch.tensors import DTYPES, to_numpy

_CONVOLUTIONS: Mapping[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}
_TRIES = 4
"""How many parts of a module are tried: each takes an export."""


@dataclass(frozen=True)
class Block:
    """What becomes of a module: the steps that stand for it, and the entry of the plan."""

    steps: tuple[Step, ...]
    fold: Fold

    def exact(self, path: str) -> Mapping[str, Tensor]:
        """The float64 values of the new parameters, by their names in the network."""
        found = {}
        for step, name in zip(self.steps, names(self.steps), strict=True):
            if isinstance(step, OneLinear):
                home = path if len(self.steps) == 1 else f"{path}.{name}"
                found.update({f"{home}.{each}": values for each, values in step.tensors()})
        return found


class Branches:
    """Finds the modules of a network that are sums of linear branches."""

    def __init__(self, graph: Graph, owned: Ownership, calls: Calls) -> None:
        """``calls`` are the calls of the network's submodules."""
        self._graph = graph
        self._owned = owned
        self._calls = calls
        self._remainders = Remainders(graph, owned, calls)

    @cached_property
    def _forms(self) -> Mapping[fx.Node, LinearForm]:
        """What each operator is for merging."""
        rows = zip(self._graph.nodes, self._graph.records, strict=True)
        return {node: linear_form(record) for node, record in rows}

    def _is_linear(self, node: fx.Node) -> bool:
        form = self._forms[node]
        return form.signs is not None or not isinstance(form.step, Blocked | None)

    def _joins(self, node: fx.Node) -> bool:
        """Whether an operator is a sum of branches, or a map, or reads a weight that is computed by
        a norm.
        """
        form = self._forms[node]
        mapped = isinstance(form.step, Mapped)
        return form.signs is not None or mapped or node in self._standardized

    @cached_property
    def _standardized(self) -> Mapping[fx.Node, Sequence[fx.Node]]:
        """The norms of weights alone, by the operators on data that read what they compute."""
        found: dict[fx.Node, list[fx.Node]] = {}
        weights = Standardized(self._graph, Moves((), {}, {}))
        for norm, ends in weights.norms.items():
            for reader in {user for end in ends or () for user in end.users}:
                found.setdefault(reader, []).append(norm)
        return found

    def find(self) -> tuple[Mapping[str, Block], Mapping[str, str]]:
        """The modules that become others, by path; and why others do not, in whose code there is a
        sum or a map. Of modules in each other the outermost one that can does.
        """
        homes = dict.fromkeys(path_of(node) for node in self._forms if self._joins(node))
        blocks: dict[str, Block] = {}
        reasons: dict[str, str] = {}
        done: set[int] = set()
        known = [path for path in homes if path in self._owned.modules]
        for path in sorted(known, key=lambda path: path.count(".")):
            around = any(path.startswith(f"{other}.") for other in blocks)
            if not path or around or id(self._owned.modules[path]) in done:
                continue
            try:
                blocks[path] = self._block(path)
                done.add(id(self._owned.modules[path]))
            except Unsuited as why:
                reasons[path] = str(why)
        return blocks, reasons

    def _block(self, path: str) -> Block:
        """What a module becomes. Raises `Unsuited`."""
        module = self._owned.modules[path]
        problem = self._problem(path, module)
        if problem is not None:
            raise Unsuited(problem)
        calls = self._remainders.by_call(path)
        why: Unsuited | None = None
        for part in itertools.islice(self._regions(path, calls[0]), _TRIES):
            try:
                return self._of_part(path, module, [(nodes, nodes[part]) for nodes in calls])
            except Unsuited as error:
                why = why or error
        assert why is not None
        raise why

    def _of_part(
        self,
        path: str,
        module: nn.Module,
        calls: Sequence[tuple[Sequence[fx.Node], Sequence[fx.Node]]],
    ) -> Block:
        """What a module becomes if a part of each of its calls becomes one. Raises `Unsuited`."""
        rows = {self._remainders.row(path, nodes, frozenset(), part) for nodes, part in calls}
        for nodes, _ in calls:
            self._refuse_kept(nodes)
        source, _ = self._remainders.ends(calls[0][1], None)
        problem = self._remainders.unseen_in(path, rank_of(source), {})
        if problem is not None:
            raise Unsuited(problem)
        first, *others = (self._merged(part, module) for _, part in calls)
        row = rows.pop()
        if rows or not all(first.is_like(other) for other in others):
            raise Unsuited("does not do the same in all its calls")
        if len(set(row)) != len(row):
            raise Unsuited("calls a submodule twice")
        steps = tuple(first if step == HERE else step for step in row)
        return Block(steps, self._told(calls[0][1]))

    def _problem(self, path: str, module: nn.Module) -> str | None:
        """Why a module cannot be replaced, whatever it computes."""
        if path in self._owned.hidden or self._owned.has_unknown_bodies:
            return "may be called in a branch or loop too"
        if not self._calls.are_plain(module):
            return "takes or gives something else than one tensor"
        if self._owned.is_read_elsewhere(path):
            return "has parameters that are used elsewhere too"
        hooks = [getattr(part, kind) for part in module.modules() for kind in HOOKS]
        weights = WeightNorm | SpectralNorm
        if not all(isinstance(hook, weights) for each in hooks for hook in each.values()):
            return "has hooks, which see what it computes on the way"
        return self._owned.kept_under(path)

    def _regions(self, path: str, nodes: Sequence[fx.Node]) -> Iterator[slice]:
        """The rows of linear operators around a sum in a module's own code with which the call is
        one chain, the longest first. Raises `Unsuited` if there are none.
        """
        own, found = self._owned.names(path), False
        why = Unsuited("has no weights that its sum could go into")
        for start, end in self._linear_runs(nodes):
            joins = (n for n in range(start, end) if self._joins(nodes[n]))
            own_join = next((n for n in joins if path_of(nodes[n]) in own), end)
            for first in range(start, own_join + 1):
                for last in range(end, own_join, -1):
                    part = nodes[first:last]
                    if not any(isinstance(self._forms[n].step, Weighted) for n in part):
                        continue
                    try:
                        self._remainders.row(path, nodes, frozenset(), part)
                    except Unsuited as error:
                        why = error
                        continue
                    found = True
                    yield slice(first, last)
        if not found:
            raise why

    def _linear_runs(self, nodes: Sequence[fx.Node]) -> list[tuple[int, int]]:
        """Where rows of linear operators begin and end, the longest ones."""
        found, start = [], 0
        for place, node in enumerate([*nodes, None]):
            if node is None or not self._is_linear(node):
                found.append((start, place))
                start = place + 1
        return found

    def _refuse_kept(self, nodes: Sequence[fx.Node]) -> None:
        """Raise `Unsuited` if a tensor on the way may not change. What comes out does not."""
        for node in nodes:
            if all(user in nodes for user in node.users):
                for value in self._graph.view.nodes[self._graph.numbers[node]].outputs:
                    pinned = self._graph.view.values[value].pinned
                    if pinned is not None:
                        raise Unsuited(f"has a tensor on the way that stays: {pinned.message}")

    def _merged(self, head: Sequence[fx.Node], module: nn.Module) -> OneLinear:
        """The one linear operator that the branches are. Raises `Unsuited`."""
        source, end = self._remainders.ends(head, None)
        dtype = dtype_of(end)
        kinds = {dtype_of(node) for node in (source, *head)}
        kinds |= {each.dtype for each in module.parameters()}
        if dtype not in DTYPES or len(kinds) != 1:
            raise Unsuited("computes in several types")
        assert dtype is not None
        try:
            planned = PlannedProgram(self._program(head, source, end))
        except UsageError as error:
            raise Unsuited(f"has branches that cannot be taken out: {error}") from error
        program = planned.apply()
        left = operators(program.graph)
        if len(left) != 1:
            stays = [each.message for each in planned.plan.kept]
            raise Unsuited(
                "; ".join([f"is {len(left)} operators when they are merged", *stays[:1]])
            )
        learns = any(each.requires_grad for each in module.parameters())
        made = _linear(program, left[0], dtype, learns)
        bias = made.bias if made.bias is not None else torch.zeros(len(made.weight))
        problem = unfit("it", to_numpy(made.weight), to_numpy(bias), DTYPES[dtype])
        if problem is not None:
            raise Unsuited(f"does not fit its type: {problem.message}")
        return made

    def _program(self, head: Sequence[fx.Node], source: fx.Node, end: fx.Node) -> ExportedProgram:
        """The branches as a program of their own, in float64.

        Raises `UsageError`, and `Unsuited` for a weight that is another one in float64.
        """
        constants, held = self._graph.context.constants, nn.Module()
        needed, waiting = set(head), list(head)
        while waiting:
            for node in waiting.pop().all_input_nodes:
                if node not in needed and node is not source:
                    needed.add(node)
                    waiting.append(node)
        graph = fx.Graph()
        made = {source: graph.placeholder("input")}
        for node in self._graph.program.graph.nodes:
            if node not in needed:
                continue
            if node.op != "placeholder":
                if node not in head and node.op == "call_function" and jumps(node):
                    raise Unsuited(
                        f"computes its weight with {node.name}, which rounds or compares"
                    )
                made[node] = graph.node_copy(node, made.__getitem__)
                continue
            found = constants.find(node)
            assert isinstance(found, Constant)
            values = found.tensor().detach()
            held.register_buffer(node.name, values.double() if found.is_float else values)
            made[node] = graph.get_attr(node.name)
        graph.output(made[end])
        example = source.meta["val"]
        x = torch.zeros(sizes_in(example), dtype=torch.float64, device=example.device)
        return export(fx.GraphModule(held, graph).eval(), (x,), None, (free_axes(example),))

    def _told(self, head: Sequence[fx.Node]) -> Fold:
        """The plan's entry: all operators of the branches go into the largest of them, with the
        norms of its weight.
        """
        seen = [self._graph.view.nodes[self._graph.numbers[node]] for node in head]

        def size(place: int) -> int:
            """How many weights an operator has; of a norm none."""
            sites = self._graph.readings[self._graph.numbers[head[place]]].sites
            return sum(math.prod(s.weight_value.shape) for s in sites if s.weight_value is not None)

        lender = seen[max(range(len(seen)), key=size)]
        norms = (norm for node in head for norm in self._standardized.get(node, ()))
        numbers = [self._graph.numbers[norm] for norm in norms]
        gone = [self._graph.view.nodes[number] for number in dict.fromkeys(numbers)]
        law = MERGES[0] if len(seen) > 1 else STORES
        gone += [each for each in seen if each is not lender]
        labels, kinds = (tuple(getattr(each, what) for each in gone) for what in ("label", "op"))
        return Fold(labels, kinds, lender.label, (law,), "")


def _linear(program: ExportedProgram, node: fx.Node, dtype: torch.dtype, learns: bool) -> OneLinear:
    """The one operator of a program as a module. Raises `Unsuited` if there is none."""
    bound, kind, signature = arguments(node), kind_of(node), program.graph_signature
    known = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    data, weight, bias = (bound.get(name) for name in ("input", "weight", "bias"))
    tensors = [
        program.state_dict[known[each.name]].detach()
        for each in (weight, bias)
        if isinstance(each, fx.Node) and each.name in known
    ]
    whole = len(tensors) == 1 + (bias is not None)
    if not whole or not isinstance(data, fx.Node) or data.name not in signature.user_inputs:
        raise Unsuited(f"is one {kind} of something else when they are merged")
    shape = tuple(tensors[0].shape)
    options: dict[str, Any]
    if kind in _CONVOLUTIONS:
        rank, groups = len(shape) - 2, bound["groups"]
        padding = bound["padding"]
        options = {
            "in_channels": shape[1] * groups,
            "out_channels": shape[0],
            "kernel_size": shape[2:],
            "stride": _each(bound["stride"], rank),
            "padding": padding if isinstance(padding, str) else _each(padding, rank),
            "dilation": _each(bound["dilation"], rank),
            "groups": groups,
        }
    elif kind == "linear":
        options = {"in_features": shape[1], "out_features": shape[0]}
    else:
        raise Unsuited(f"is one {kind} when they are merged, for which there is no module")
    module = _CONVOLUTIONS.get(kind, nn.Linear)
    found = tensors[1] if bias is not None else None
    return OneLinear(module, options, tensors[0], found, dtype, learns)


def _each(numbers: int | Sequence[int], rank: int) -> tuple[int, ...]:
    found = listed(numbers)
    return tuple(found * rank if len(found) == 1 else found)
