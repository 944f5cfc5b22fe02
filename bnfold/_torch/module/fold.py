"""Plan and fold a PyTorch module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from bnfold._core.reasons import Reason
from bnfold._core.result import Fold, Kept, Plan
from bnfold._core.view import View
from bnfold._errors import UsageError
from bnfold._merge.merging import Stays
from bnfold._merge.stored import Load
from bnfold._plan.depthwise import without_norms
from bnfold._plan.fit import settle
from bnfold._plan.planner import Move, Moves
from bnfold._plan.summary import kept_apart, summarize
from bnfold._torch.module.branches import Block, Branches
from bnfold._torch.module.copying import copied
from bnfold._torch.module.keeping import Keep, looked_up, refuse_operators
from bnfold._torch.module.other_ways import other_ways
from bnfold._torch.module.outside import changed_outside
from bnfold._torch.module.ownership import Ownership
from bnfold._torch.module.plain_attributes import Aliases, aliases
from bnfold._torch.module.stand_ins import become
from bnfold._torch.module.surgery import Surgery, Uneven
from bnfold._torch.module.ties import Groups, tie, untie
from bnfold._torch.module.trace import unsure
from bnfold._torch.program.fold import PlannedProgram
from bnfold._torch.program.merging import merge as merged
from bnfold._torch.read.export import Calls, check, export, refuse_pruned, watched
from bnfold._torch.read.graph import Graph, clashes, operators, read, written
from bnfold._torch.read.nodes import inner_norms, kind_of
from bnfold._torch.read.standardized import Standardized
from bnfold._torch.tensors import to_numpy

# How the types of linear operators begin that merge, and how many operators a message names.
_LINEAR = ("avg_pool", "conv", "linear", "matmul")
_NAMED = 3


@dataclass(frozen=True)
class Example:
    """Inputs that a module can be called with, and which of their sizes may vary.

    ``made_up`` says that nobody gave them, so that their sizes prove nothing.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dynamic_shapes: Any = None
    made_up: bool = False


@dataclass(frozen=True)
class Traced:
    """A module that has been traced, and what its plan depends on beside the weights.

    ``module`` is the module itself or a copy, ``program`` its export, ``calls`` are those of its
    submodules. ``clones`` are the names that were tied before they were taken apart. ``again``
    exports once more. ``takers`` and ``aliased``, see `Surgery`. ``exact`` has by name the float64
    values of parameters that the module holds rounded.
    With ``depthwise`` norms that nothing takes in become depthwise convolutions.
    """

    module: nn.Module
    program: ExportedProgram
    calls: Calls
    kept: Keep = field(default_factory=Keep)
    clones: tuple[Groups, Groups] = ((), ())
    made_up: bool = False
    again: Callable[[], ExportedProgram] | None = None
    takers: Set[str] | None = None
    aliased: Set[str] = frozenset()
    exact: Mapping[str, Load] = field(default_factory=dict)
    depthwise: bool = False

    def planned(self) -> tuple[Graph, Surgery, Moves, View]:
        """What of the module folds, and the view that it was planned on."""
        graph = read(self.program, self.module, self.exact, kept=self.kept.values)
        tensors = self.kept.tensors
        surgery = Surgery(
            self.module, graph, self.calls, self.again, tensors, self.takers, self.aliased
        )

        def objections(moves: Sequence[Move]) -> Mapping[int, Reason]:
            doubts = unsure(graph, self.module, moves) if self.made_up else {}
            return {**clashes(graph, moves), **surgery.objections(moves), **doubts}

        apart: Set[Uneven] = frozenset()
        while True:
            view = surgery.restricted(graph.view, apart)
            moves = settle(view, graph.readings, objections)
            uneven = surgery.uneven(moves)
            if not uneven:
                break
            assert not uneven <= apart  # What is blocked is even.
            apart |= uneven
        if self.depthwise:
            moves = without_norms(
                graph.view,
                graph.records,
                graph.readings,
                moves,
                double=True,
                whole=True,
                objection=surgery.rewriting(moves),
            )
        # Conversions between types are the module's own code.
        return graph, surgery, replace(moves, unneeded=()), view


@dataclass(frozen=True)
class PlannedModule:
    """A module that has been read and planned.

    ``traced`` is a copy of it with the same tensors, or itself if it cannot be copied.
    ``other_ways`` are its methods beside forward that see what the fold changes, each with the
    names that ``keep`` would take so that it does not. ``blocks`` are the submodules, by path, that
    become one linear module ahead of the fold. ``told`` makes the plan. ``aliases`` are what plain
    attributes of the module have of it.
    """

    module: nn.Module
    traced: Traced
    surgery: Surgery
    moves: Moves
    told: Callable[[], Plan]
    aliases: Aliases
    other_ways: Mapping[str, Sequence[str]] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)

    @cached_property
    def plan(self) -> Plan:
        """What is done, and what stays and why: made where it is asked for, ahead of ``apply``.

        It reads the weights, and what an exported program would do beyond it is planned for it.
        """
        return self.told()

    def apply(self, inplace: bool) -> nn.Module:
        """Fold a copy of the module, or the module itself."""
        target = self.module if inplace else copied(self.module)
        if any(self.traced.clones):
            untie(target)
        for path, block in self.blocks.items():
            become(target.get_submodule(path), block.steps)
        self.surgery.apply(target, self.moves)
        tie(target, self.traced.clones, self.surgery.called)
        return target


def prepare_module(
    module: nn.Module,
    example: Example,
    clone: bool = False,
    keep: Sequence[str] = (),
    merge: bool = False,
    depthwise: bool = False,
) -> PlannedModule:
    """Read and plan a module in eval mode; it is not changed.

    With ``clone`` modules and tensors that several places share may become different in each.
    ``keep`` names submodules and tensors that may not change. With ``merge`` submodules that are
    sums of linear branches become one linear module each, and the rest is planned for what is then
    the module.
    With ``depthwise`` norms that nothing takes in become depthwise convolutions.

    If the module can be copied, a copy with the same tensors is read instead of it. There are two
    reasons. Hooks and the module's own code leave traces in the module in which they run. And the
    copy shows where the code calls parts of the original, as it would in the folded copy too.
    Raises `UsageError` for a module that is not ready or cannot be traced.
    """
    check(module)
    refuse_pruned(module)
    try:
        subject = copied(module, shared=True)
    except UsageError:
        if clone or merge:
            raise
        subject = module
    clones = untie(subject) if clone else ((), ())

    def again() -> ExportedProgram:
        return export(subject, example.args, example.kwargs, example.dynamic_shapes)

    with watched() as calls:
        program = again()
    kept = looked_up(program, subject, keep)
    before = Counter(map(kind_of, operators(program.graph)))
    if merge:
        refuse_operators(subject, keep)
    blocks, exact, apart = _blocks(subject, program, calls, kept) if merge else ({}, {}, {})
    if blocks:
        why, made = None, program
        try:
            with watched() as calls:
                made = again()
            first = changed_outside(subject, blocks, program, made)
            why = first and f"would do something else, first at {first}"
        except UsageError as error:
            why = f"could not run: {error}"
        if why is not None:
            around = ", ".join([*blocks][:_NAMED])
            apart = {**apart, **dict.fromkeys(blocks, f"stays: the code around {around} {why}")}
            blocks, exact, subject = {}, {}, copied(module, shared=True)
            clones = untie(subject) if clone else ((), ())
            with watched() as calls:
                made = again()
        program, kept = made, looked_up(made, subject, keep)
    traced = Traced(subject, program, calls, kept, clones, example.made_up, again)
    found = aliases(module)
    traced = replace(traced, aliased=found.names, exact=exact, depthwise=depthwise)
    graph, surgery, moves, view = traced.planned()

    def told() -> Plan:
        count = Counter(node.op for node in view.nodes)
        plan = summarize([("", view, moves)], count, partial(written, graph))
        weights = Standardized(graph, moves)
        plan = replace(plan, after=weights.without(plan.after))
        stays = _of_weights(weights.kept(), apart if merge else None)
        plan = replace(plan, kept=(*plan.kept, *stays, *inner_norms(program)))
        plan = replace(plan, folds=(*(b.fold for b in blocks.values()), *plan.folds), before=before)
        if example.made_up:
            return plan
        kinds = {node.label: node.op for node in view.nodes}
        merges = merged(program)
        found = [*_apart(merges.folds, kinds, apart if merge else None)]
        linear = [kept_apart(each, "") for each in (*found, *(merges.stays if merge else ()))]
        return replace(plan, kept=(*_with_program(plan, program), *linear))

    ways = other_ways(subject, graph, moves)
    return PlannedModule(module, traced, surgery, moves, told, found, ways, blocks)


def _with_program(plan: Plan, program: ExportedProgram) -> Iterator[Kept]:
    """The maps that stay. Of those in a module's own code the reason says what a program would do.

    It is planned for that, which takes some time, only where there are such maps.
    """
    inside = [kept for kept in plan.kept if kept.code == "not-a-module"]
    other = PlannedProgram(program).plan if inside else plan
    goes = {label for fold in other.folds for label in fold.nodes}
    counts = [sum(each.after.values()) for each in (other, plan)]
    for kept in plan.kept:
        if kept in inside and kept.node in goes and counts[0] < counts[1]:
            more = (
                "; bnfold.fold(exported_program) takes it away, and leaves "
                f"{counts[0]} of {counts[1]} operators"
            )
            kept = replace(kept, message=kept.message + more)
        yield kept


def _blocks(
    subject: nn.Module, program: ExportedProgram, calls: Calls, kept: Keep
) -> tuple[Mapping[str, Block], Mapping[str, Load], Mapping[str, str]]:
    """Let submodules that are sums of branches become one linear module each. Gives them by path,
    the float64 values of their new parameters, and why others do not become one.
    """
    graph = read(program, subject, kept=kept.values)
    blocks, apart = Branches(graph, Ownership(subject, graph, kept.tensors), calls).find()
    exact: dict[str, Load] = {}
    for path, block in blocks.items():
        become(subject.get_submodule(path), block.steps)
        for name, values in block.exact(path).items():
            exact[name] = partial(to_numpy, values)
    return blocks, exact, apart


def _of_weights(norms: Iterable[Kept], reasons: Mapping[str, str] | None) -> Iterator[Kept]:
    """The norms of weights that stay, with what would store their results. For ``reasons`` see
    `_apart`.
    """
    for kept in norms:
        more = "bnfold.fold(exported_program) stores it"
        if reasons is None:
            more = (
                "merge=True stores it where a submodule is one linear operator and an activation, "
                "bnfold.fold(exported_program) anywhere"
            )
        homes = _homes(kept.node, reasons or {})
        more += f"; {homes[0]} {(reasons or {})[homes[0]]}" if homes else ""
        yield replace(kept, message=f"{kept.message}; {more}")


def _homes(label: str, paths: Iterable[str]) -> list[str]:
    """The modules among some paths to which an operator belongs."""
    return [path for path in paths if label.startswith((f"{path}.", f"{path}:"))]


def _apart(
    merges: Sequence[Fold], kinds: Mapping[str, str], reasons: Mapping[str, str] | None
) -> Iterator[Stays]:
    """The linear operators that could merge, but that the module's own code brings together.

    An operator that merges several times counts once. ``reasons`` says by path why a module did not
    become one; None if that was not tried.
    """
    linear: dict[str, list[str]] = {}
    for fold in merges:
        taken = [label for label in fold.nodes if kinds[label].startswith(_LINEAR)]
        linear.setdefault(fold.into, []).extend(taken)
    gone = {label for fold in merges for label in fold.nodes}
    for into in [label for label in linear if label not in gone]:
        parts = list(linear[into])
        for part in parts:
            parts += linear.get(part, [])
        others = ", ".join(parts[:_NAMED]) or "what is added to it"
        others += f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
        homes = _homes(into, reasons or ())
        message = f"{into} could become one operator with {others}, which "
        if reasons is None:
            message += (
                "replacing submodules cannot express: merge=True can where a submodule is a sum of "
                "branches, bnfold.fold(exported_program) anywhere"
            )
        else:
            message += "replacing submodules cannot express: bnfold.fold(exported_program) can"
            message += f"; {homes[0]} {(reasons or {})[homes[0]]}" if homes else ""
        yield Stays(into, kinds[into], Reason("not-a-module", into, message))
