"""Fold an ExportedProgram: operators go, parameters change, and the user's own are never written.

A program holds its graph, so whatever the planner finds can be expressed: a shared parameter is
cloned, a missing bias becomes a parameter, a map that has to stand becomes a mul, an add or a norm.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from bnfold._core.laws import Edit
from bnfold._core.result import Plan
from bnfold._core.view import Affine, Crossing
from bnfold._errors import UsageError, first_line
from bnfold._plan.depthwise import without_norms
from bnfold._plan.fit import settle, standing_batch_norm, standing_constants, standing_dtype
from bnfold._plan.places import Standing
from bnfold._plan.planner import Move, Moves
from bnfold._plan.summary import kept_apart, summarize
from bnfold._system import file_kinds, paths
from bnfold._torch.program.applied import Applied, AppliedStep
from bnfold._torch.program.dialects import in_aten, in_dialect_of
from bnfold._torch.program.draft import Draft, set_argument
from bnfold._torch.program.expressions import Untrusted
from bnfold._torch.program.merging import merge
from bnfold._torch.program.parameters import ParameterWriter
from bnfold._torch.program.untrusted import refuse_code
from bnfold._torch.read.export import quiet
from bnfold._torch.read.graph import Graph, clashes, operators, written
from bnfold._torch.read.nodes import (
    inner_norms,
    is_tensor,
    kind_of,
    parts_of,
)
from bnfold._torch.read.standardized import Standardized
from bnfold._torch.tensors import from_numpy

# Operators whose numbers are part of their name, and those that are the same with any numbers.
_WITH_NUMBERS = {"relu6": "hardtanh", "relu6_": "hardtanh_"}


@dataclass(frozen=True)
class FoldedProgram:
    """A new program, and what was done: the merges, then the folds."""

    program: ExportedProgram
    applied: tuple[Applied, ...]


class PlannedProgram:
    """A program that has been read and planned."""

    def __init__(self, program: ExportedProgram, depthwise: bool = False) -> None:
        """Read and plan; the program is not changed.

        With ``depthwise`` norms that stay are written as other operators.
        """
        self._given, program = program, in_aten(program)
        self._original = program
        merges = merge(program)
        self._merges = merges
        self._graph = merges.read()
        view, readings = self._graph.view, self._graph.readings
        moves = settle(view, readings, partial(clashes, self._graph))
        self._moves: Moves = replace(moves, unneeded=())  # Operators ask for the types of tensors.
        if depthwise:
            records = self._graph.records
            self._moves = without_norms(view, records, readings, self._moves, double=True)
        count = Counter(node.op for node in view.nodes)
        plan = summarize([("", view, self._moves)], count, partial(written, self._graph))
        self._weights = weights = Standardized(self._graph, self._moves)
        self.plan: Plan = replace(
            plan,
            folds=(*merges.folds, *plan.folds, *weights.folds()),
            after=weights.without(plan.after, whole=True),
            kept=(
                *plan.kept,
                *weights.kept(whole=True),
                *inner_norms(program),
                *(kept_apart(stays, "") for stays in merges.stays),
            ),
            before=Counter(map(kind_of, operators(program.graph))),
        )

    def apply(self) -> ExportedProgram:
        """A new program with all moves carried out."""
        folder = _DraftFolder(self._graph, self._weights)
        return in_dialect_of(self._given, folder.write(self._moves))

    def apply_told(self) -> FoldedProgram:
        """A new program, and what was done, for who checks it."""
        folder, merges = _DraftFolder(self._graph, self._weights), self._merges
        program = folder.write(self._moves)
        view = self._graph.view
        merged = Applied(
            self._original,
            merges.program,
            merges.steps,
            merges.standing,
            exact_after=merges.exact,
        )
        folded = Applied(
            merges.program,
            program,
            tuple(_steps(self._graph, self._moves, {*merges.made, *self._weights.readers})),
            folder.standing(),
            {view.values[value].name: each for value, each in self._moves.relations.items()},
            merges.exact,
        )
        return FoldedProgram(in_dialect_of(self._given, program), (merged, folded))


def refuse_no_archive(path: Path) -> None:
    """Raise `UsageError` for a file that is none of PyTorch's, ahead of its being read whole.

    Raises `OSError` where it cannot be read at all.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head != b"PK\3\4":
        kind = file_kinds.of_path(path)
        why = "it is no archive" if kind in (None, file_kinds.PROGRAM) else kind
        raise UsageError(f"{path} is not a .pt2 file that torch can load: {why}")


def load(path: Path, trust: bool = False) -> ExportedProgram:
    """Read a .pt2 file.

    Raises `UsageError` where PyTorch cannot, and where the file would run code of its own
    (`untrusted`) unless there is ``trust`` in it.
    """
    try:
        refuse_no_archive(path)
    except OSError as error:
        raise paths.unreadable(path, error) from error
    try:
        with quiet("torch.export"):
            if not trust:
                refuse_code(path)
            return torch.export.load(path)
    except Untrusted as error:
        raise UsageError(
            f"loading {path} would run code out of it: {error}; give --trust (in Python, load it "
            "with torch.export.load) if you trust whoever made it"
        ) from error
    except Exception as error:  # torch.export.load raises many things.
        kind = file_kinds.of_path(path)
        why = first_line(error) if kind in (None, file_kinds.PROGRAM) else kind
        raise UsageError(f"{path} is not a .pt2 file that torch can load: {why}") from error


class _DraftFolder:
    """Writes moves into a draft of a program."""

    def __init__(self, graph: Graph, weights: Standardized) -> None:
        self._read = graph
        self._weights = weights
        self._draft = Draft(graph.program)
        self._nodes = dict(self._draft.nodes)

    def write(self, moves: Moves) -> ExportedProgram:
        for index, edit in moves.edits.items():
            self._edit(index, edit)
        parameters = ParameterWriter(self._read, self._draft, self._nodes)
        for index, sides in moves.sides.items():
            for site in self._read.readings[index].sites:
                parameters.write(index, site, sides)
        for move in moves.moves:
            self._replace(move)
        for end in self._weights.ends:
            node, (name, values) = self._nodes[end.name], self._weights.value(end)
            node.replace_all_uses_with(self._draft.add_parameter(name, values, node)[0])
        return self._draft.program()

    def standing(self) -> dict[str, str]:
        """The nodes by their names before, with the names of those that stand for them now."""
        return {name: node.name for name, node in self._nodes.items()}

    def _node(self, place: int) -> Node:
        return self._nodes[self._read.nodes[place].name]

    def _edit(self, index: int, edit: Edit) -> None:
        """Give an operator new numbers, as the arguments that hold them: ``min`` of clamp is the
        ``min_val`` of hardtanh. An operator without arguments becomes one that has them; one that
        becomes another has its data alone.
        """
        node, role = self._node(index), self._read.view.nodes[index].role
        assert isinstance(role, Crossing)
        general, numbers = _WITH_NUMBERS.get(kind_of(node)), role.numbers
        if edit.form is not None:
            general, numbers = edit.form.op, edit.form.numbers
            node.args, node.kwargs = tuple(node.all_input_nodes[: len(role.data)]), {}
        if general is not None:
            node.target = getattr(torch.ops.aten, general).default
        for name, value in edit.values.items():
            set_argument(node, str(numbers.get(name, name)), float(value))

    def _replace(self, move: Move) -> None:
        """Take the maps out, and put what has to stand where the last of them was."""
        *others, last = move.maps
        end = self._node(last)
        with self._draft.module.graph.inserting_before(end):
            made = [self._standing(move, standing, end) for standing in move.stands]
        for place in others:
            self._bypass(self._node(place), self._data(place))
        current = self._data(last)
        for node in made:
            reader = node if node.target is not operator.getitem else node.all_input_nodes[0]
            reader.replace_input_with(end, current)
            current = node
        self._bypass(end, current)

    def _data(self, place: int) -> Node:
        """What the data input of a map is by now."""
        before, seen = self._read.nodes[place], self._read.view.nodes[place]
        assert isinstance(seen.role, Affine)
        name = self._read.view.values[seen.inputs[seen.role.data]].name
        position = [source.name for source in before.all_input_nodes].index(name)
        return self._node(place).all_input_nodes[position]

    def _bypass(self, node: Node, source: Node) -> None:
        """Take a node out, and let everything that reads it read another one instead."""
        gone = (node,) if is_tensor(node) else (node, *node.users)
        for name, known in list(self._nodes.items()):
            if known in gone:
                self._nodes[name] = source
        self._draft.bypass(node, source)

    def _standing(self, move: Move, standing: Standing, end: Node) -> Node:
        """What puts out the result of an operator that is left of a move. The operator reads
        ``end`` until its data is known.
        """
        if standing.op == "BatchNormalization":
            return self._batch_norm(move, standing, end)
        if standing.op == "Conv":
            return self._depthwise(move, standing, end)
        (vector,) = standing_constants(self._read.readings, move, standing)
        dtype = standing_dtype(self._read.view, self._read.readings, move)
        example = _example(end)
        axis, rank = standing.map.axis, example.dim()
        shape = () if axis is None else (vector.size, *(1,) * (rank - 1 - axis))
        values = vector.astype(dtype).reshape(shape)
        target: Callable[..., Any] = (
            torch.ops.aten.mul.Tensor if standing.op == "Mul" else torch.ops.aten.add.Tensor
        )
        stem = f"{end.name}_{standing.op.lower()}"
        constant = self._draft.add_parameter(stem, from_numpy(values), self._near(end))[0]
        node: Node = self._draft.module.graph.call_function(target, (end, constant))
        node.meta = {**end.meta, "val": example}
        return node

    def _depthwise(self, move: Move, standing: Standing, end: Node) -> Node:
        """A convolution that scales and shifts each channel by itself."""
        dtype = standing_dtype(self._read.view, self._read.readings, move)
        weight, bias = (
            from_numpy(vector.astype(dtype))
            for vector in standing_constants(self._read.readings, move, standing)
        )
        example, near = _example(end), self._near(end)
        spatial = example.dim() - 2
        held = [
            self._draft.add_parameter(f"{end.name}_{name}", values, near)[0]
            for name, values in (
                ("weight", weight.reshape(-1, 1, *(1,) * spatial)),
                ("bias", bias),
            )
        ]
        target = getattr(torch.ops.aten, f"conv{spatial}d").default
        ones, zeros = [1] * spatial, [0] * spatial
        node: Node = self._draft.module.graph.call_function(
            target, (end, held[0], held[1], ones, zeros, ones, standing.channels)
        )
        node.meta = {**end.meta, "val": example}
        return node

    def _batch_norm(self, move: Move, standing: Standing, end: Node) -> Node:
        """The last norm of a move with the composed map. It keeps its variance and its ε."""
        index = standing_batch_norm(self._read.readings, move)
        norm, dtype = self._node(index), self._read.readings[index].dtype
        assert callable(norm.target)
        graph = self._draft.module.graph
        node: Node = graph.call_function(norm.target, norm.args, norm.kwargs)
        node.meta = {**end.meta, "val": norm.meta["val"]}
        set_argument(node, "input", end)
        vectors = standing_constants(self._read.readings, move, standing)
        for name, vector in zip(("weight", "bias", "running_mean"), vectors, strict=True):
            values = from_numpy(vector.astype(dtype))
            stem = f"{norm.name}_{name}"
            set_argument(node, name, self._draft.add_parameter(stem, values, self._near(end))[0])
        if is_tensor(node):
            return node
        part: Node = graph.call_function(operator.getitem, (node, 0))
        part.meta = {**end.meta, "val": _example(norm)}
        return part

    def _near(self, node: Node) -> Node:
        """A node on the device of another one: an input of the program, if it has one."""
        return next((n for n in self._nodes.values() if n.op == "placeholder"), node)


def _example(node: Node) -> Tensor:
    """What a node puts out in the example; the first, if it puts out several tensors."""
    example = node.meta["val"]
    first: Tensor = example if isinstance(example, Tensor) else example[0]
    return first


def _steps(graph: Graph, moves: Moves, made: Collection[str]) -> Iterator[AppliedStep]:
    """The steps of moves: maps that give way, operators that take in only what was carried to them,
    operators that were crossed, and those ``made`` by merges, or that read a weight which is stored
    now, of which nothing but the rounding is new.
    """
    view = graph.view

    def step(law: str, into: int, maps: Sequence[int], chain: Sequence[int]) -> AppliedStep:
        outputs = tuple(view.values[value].name for value in view.nodes[chain[-1]].outputs)
        read = [graph.nodes[index] for index in chain]
        parts = [part for node in read if not is_tensor(node) for part in parts_of(node)]
        nodes = tuple(node.name for node in (*read, *parts))
        labels = tuple(view.nodes[index].label for index in maps)
        return AppliedStep(law, view.nodes[into].label, labels, nodes, outputs)

    for move in moves.moves:
        first = (move.into,) if move.law == "absorb" else ()
        yield step(move.law, move.into, move.maps, (*first, *move.chain))
    known = {move.into for move in moves.moves if move.law == "absorb"}
    for index in moves.sides:
        if index not in known:
            yield step("absorb", index, (), (index,))
    crossed = dict.fromkeys(index for move in moves.moves for index in move.crossed)
    for index in crossed:
        yield step("cross", index, (), (index,))
    moved = {*known, *moves.sides, *crossed, *(i for move in moves.moves for i in move.chain)}
    for index, node in enumerate(graph.nodes):
        if node.name in made and index not in moved:
            yield step("absorb", index, (), (index,))
