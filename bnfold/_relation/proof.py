"""Whether two files are the same function, from their weights alone.

This is translation validation (Pnueli, Siegel, Singerman, 1998): it does not ask who made the
second file, and trusts neither. Both are walked from the inputs on. Where every operator of the
second file finds its twin in the first, and every weight is what rounding explains, the outputs are
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx.inliner
from onnx import ModelProto, TensorShapeProto, ValueInfoProto

from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.scopes import Scope
from bnfold._relation.bounds import Bounds, made_of
from bnfold._relation.effects import comes_out
from bnfold._relation.expressions import Expression, of_base
from bnfold._relation.integers import Integers
from bnfold._relation.liveness import needed, varies
from bnfold._relation.lowering import lowered
from bnfold._relation.matching import Matcher, draws
from bnfold._relation.problems import OUTPUT, SURE, Blame, Blamed, Layer, Problem
from bnfold._relation.side import Side
from bnfold._relation.sizes import Sizes
from bnfold._relation.table import Table, fingerprint
from bnfold._relation.walk import Walk

_ATTEMPTS = 64
"""So many layers are looked behind whose outputs are scaled otherwise."""
_WALKS = 3
"""So many times a file is walked at most: each time more sizes may be known."""
_SHARED = "it may share random numbers with another output in one of the files alone"


@dataclass(frozen=True)
class OutputProof:
    """What was found of one output of the models, by its name in the first; see `Proof`."""

    name: str
    status: str
    at: str = ""
    why: str = ""


@dataclass(frozen=True)
class Proof:
    """What was found.

    Attributes:
        status: "proved", "refuted" or "not proved".
        at: the operator of the second file where the files differ, or where the walk ended; ""
            where they are proved.
        why: what differs there, or why the walk ended.
        layers: the sums of linear operators that agree, in order.
        outputs: the same for each output by itself; empty where the walk did not begin.
    """

    status: str
    at: str = ""
    why: str = ""
    layers: Sequence[Layer] = ()
    outputs: Sequence[OutputProof] = ()

    @property
    def distance(self) -> float:
        """The largest difference of weights that agree, in units in the last place."""
        return max((layer.distance for layer in self.layers), default=0.0)

    @property
    def unsure(self) -> Proof:
        """The same where nothing is refuted: weights that differ are not proved."""
        found = [
            replace(each, status="not proved") if each.status == "refuted" else each
            for each in self.outputs
        ]
        status = "not proved" if self.status == "refuted" else self.status
        return replace(self, status=status, outputs=found)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are valid JSON."""
        return {
            "status": self.status,
            "at": self.at,
            "why": self.why,
            "distance": self.distance,
            "layers": [asdict(layer) for layer in self.layers],
            "outputs": [asdict(output) for output in self.outputs],
        }

    def __str__(self) -> str:
        """The status, and where and why if it is not proved."""
        place = f" at {self.at}" if self.at else ""
        return f"{self.status}{place}: {self.why}" if self.why else self.status


class Stopped(Exception):
    """A proof is to end here; the text says why."""


def prove(
    first: ModelProto,
    second: ModelProto,
    first_dir: Path | None = None,
    second_dir: Path | None = None,
    watch: Callable[[], None] = lambda: None,
) -> Proof:
    """Prove that two models compute the same outputs, up to the rounding of stored weights.

    Nodes of every graph are in order. Nothing is run. ``watch`` is called at every operator; it may
    raise `Stopped`. Raises that and `UsageError` for weights that cannot be read.
    """
    models = [onnx.inliner.inline_local_functions(m) if m.functions else m for m in (first, second)]
    one, other = (
        Side.of(m, folder)
        for m, folder in zip(lowered(*models), (first_dir, second_dir), strict=True)
    )
    return prove_sides(one, other, watch)


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # Weights may be infinite.
def prove_sides(one: Side, other: Side, watch: Callable[[], None] = lambda: None) -> Proof:
    """The same of two models that have been read. Raises as `prove` does."""
    sizes = Sizes()
    graphs = one.scopes[0], other.scopes[0]
    inputs = [
        [v for v in scope.graph.input if side.constant(scope, v.name) is None]
        for side, scope in zip((one, other), graphs, strict=True)
    ]
    pairs = _paired(inputs[0], inputs[1], some=True)
    results = _paired(graphs[0].graph.output, graphs[1].graph.output)
    if pairs is None or results is None:
        what = "inputs" if pairs is None else "outputs"
        return Proof("not proved", "", f"the two files differ in their {what}")
    for a, b, exact in (*((a, b, True) for a, b in pairs), *((a, b, False) for a, b in results)):
        if not _is_alike(a, b, exact):
            return Proof("not proved", b.name, "it has another type or shape in the other file")
    for a, b in pairs:
        if _default(one, graphs[0], a.name) != _default(other, graphs[1], b.name):
            return Proof("not proved", b.name, "this input has another default value")
    is_open = one.explains_more or other.explains_more
    for _ in range(_WALKS):
        table, bases, start = _first(one, graphs[0], inputs[0], sizes, watch)
        wanted = [_Result(a.name, b.name, start.result(graphs[0], a.name)) for a, b in results]
        given = {b.name: of_base(bases[a.name]) for a, b in pairs}
        task = _Task(other, table, sizes, given, watch, is_open)
        whole = _of_results(task, wanted)
        if whole.status == "proved" or not sizes.is_new:
            break
    if whole.status == "proved" or len(wanted) == 1:
        found = [OutputProof(r.first, whole.status, whole.at, whole.why) for r in wanted]
        return replace(whole, outputs=found)
    return _with_each(whole, task, wanted)


def _first(
    side: Side,
    scope: Scope,
    inputs: Sequence[ValueInfoProto],
    sizes: Sizes,
    watch: Callable[[], None],
) -> tuple[Table, dict[str, int], Walk]:
    """The table of the first file, the bases of its inputs, and the walk through it.

    It is walked once more where it tells that sizes are equal which have names of their own.
    """
    ways = [needed(scope, [value.name]) for value in scope.graph.output]
    certain = set.intersection(*({id(node) for node in way} for way in ways)) if ways else set()
    for _ in range(_WALKS):
        told, table = (len(sizes.equal), sizes.asked), Table()
        side.values.clear()
        sizes.begin()
        bases = {value.name: table.fresh(side.shapes.type(scope, value.name)) for value in inputs}
        walk = Walk(side, Matcher(side, table, True), Integers(side, sizes), watch=watch)
        walk.certain = certain
        for name, base in bases.items():
            walk.give(scope, name, of_base(base))
            axes = range(side.rank(scope, name) or 0)
            sizes.inputs.update(("size", scope.path, name, axis) for axis in axes)
        walk.graph(scope)
        if (len(sizes.equal), sizes.asked) == told:
            break
    sizes.learns = False
    return table, bases, walk


class _Result(NamedTuple):
    """An output by its name in both files, and what it is in the first."""

    first: str
    second: str
    value: Expression


class _Task(NamedTuple):
    """The second file, what it is given, and the table and the sizes of the first.

    ``is_open`` says that weights that differ refute nothing.
    """

    side: Side
    table: Table
    sizes: Sizes
    given: Mapping[str, Expression]
    watch: Callable[[], None]
    is_open: bool


def _with_each(whole: Proof, task: _Task, wanted: Sequence[_Result]) -> Proof:
    """The proof of several outputs, each by itself: only what it depends on is walked for it.

    Where one of them is refuted, the whole is. Outputs that draw random numbers are proved only
    together: each by itself they may share numbers in one file and not in the other.
    """
    found: list[OutputProof] = []
    for result in wanted:
        try:
            own = _of_results(task, [result])
        except Stopped as stopped:
            own = Proof("not proved", "", str(stopped))
        found.append(OutputProof(result.first, own.status, own.at, own.why))
    proved = [r for r, each in zip(wanted, found, strict=True) if each.status == "proved"]
    drawn = {r.first for r in proved if draws(needed(task.side.scopes[0], [r.second]))}
    if drawn and len(proved) > 1 and not _are_together(task, proved):
        found = [
            replace(each, status="not proved", why=_SHARED) if each.name in drawn else each
            for each in found
        ]
    wrong = next((each for each in found if each.status == "refuted"), None)
    if wrong is not None:
        whole = replace(whole, status="refuted", at=wrong.at, why=wrong.why)
    return replace(whole, outputs=found)


def _are_together(task: _Task, wanted: Sequence[_Result]) -> bool:
    try:
        return _of_results(task, wanted).status == "proved"
    except Stopped:
        return False


def _of_results(task: _Task, wanted: Sequence[_Result]) -> Proof:
    """Walk what some outputs of the second file need, and compare these with the first's."""
    side, forced, is_open = task.side, dict[int, Blame](), task.is_open
    while True:
        task.table.reset()
        side.values.clear()
        matcher = Matcher(side, task.table, False, forced)
        walk = Walk(side, matcher, Integers(side, task.sizes), watch=task.watch)
        for name, value in task.given.items():
            walk.give(side.scopes[0], name, value)
        try:
            walk.graph(side.scopes[0], [result.second for result in wanted])
            for _, name, value in wanted:
                walk.found.require_same(name, value, walk.result(side.scopes[0], name))
            break
        except Blamed as blamed:
            if len(forced) >= _ATTEMPTS:
                return Proof("not proved", "", f"over {_ATTEMPTS} layers differ")
            forced.update(dict.fromkeys(blamed.bases, blamed.by))
        is_open |= walk.found.is_open
    walk.found.is_open |= is_open
    return _concluded(walk.found, task.table, [result.value for result in wanted])


def _paired(
    ones: Sequence[ValueInfoProto], others: Sequence[ValueInfoProto], some: bool = False
) -> list[tuple[ValueInfoProto, ValueInfoProto]] | None:
    """The ports of both files: by name where the names are the same, otherwise by position.

    The second file may lack inputs of the first, which it does not read.
    """
    by_name: Mapping[str, ValueInfoProto] = {value.name: value for value in others}
    if len({value.name for value in ones}) < len(ones):  # One name twice is two ports.
        by_name = {}
    shared = [(value, by_name[value.name]) for value in ones if value.name in by_name]
    if len(shared) == len(others) and (len(others) == len(ones) or some):
        return shared
    return list(zip(ones, others, strict=True)) if len(ones) == len(others) else None


def _is_alike(one: ValueInfoProto, other: ValueInfoProto, exact: bool) -> bool:
    """Whether two ports have one type and one shape, as far as both say it or, if ``exact``, so."""
    kinds = one.type.WhichOneof("value"), other.type.WhichOneof("value")
    if kinds != ("tensor_type", "tensor_type"):
        return one.type == other.type
    types = one.type.tensor_type, other.type.tensor_type
    shapes = [[_size(d) for d in t.shape.dim] for t in types if t.HasField("shape")]
    alike = len(shapes) < 2 or (
        len(shapes[0]) == len(shapes[1])
        and all(a == b or not (exact or (a and b)) for a, b in zip(*shapes, strict=True))
    )
    return alike and types[0].elem_type == types[1].elem_type


def _size(dim: TensorShapeProto.Dimension) -> int:
    """The size of an axis; 0 for one that is not told, as runtimes take any below zero to be."""
    return max(dim.dim_value, 0)


def _default(side: Side, scope: Scope, name: str) -> Hashable:
    """What an input is where a caller does not say it, or None."""
    stored = name in scope.initializers or name in scope.sparse
    found = side.constants.find(scope, name) if stored else None
    return fingerprint(found.load()) if isinstance(found, Constant) else None


def _concluded(found: Matcher, table: Table, results: Sequence[Expression]) -> Proof:
    if not found.problems:
        return Proof("proved", layers=found.layers)
    structure = next((each for each in found.problems if each.kind == "structure"), None)
    if structure is not None:
        return Proof("not proved", structure.at, structure.why, found.layers)
    first = found.problems[0]
    if len(found.problems) > 1:
        count = len(found.problems)
        why = f"{first.why}; {count} places differ, and one may make up for another"
        return Proof("not proved", first.at, why, found.layers)
    weak = next((each for each in found.problems if not _is_refuted(each, table, results)), None)
    if weak is None and found.is_open:
        weak = first
    if weak is not None:
        return Proof("not proved", weak.at, weak.why, found.layers)
    return Proof("refuted", first.at, first.why, found.layers)


def _is_refuted(problem: Problem, table: Table, results: Sequence[Expression]) -> bool:
    """Whether the function is another one: the rest of both files is the same.

    Some input has to show it at an output.
    """
    if not problem.is_sure or not problem.units >= SURE * (1 + problem.allowed):
        return False
    if problem.showing is None or not all(varies(table, base) for base in problem.read):
        return False
    bounds = Bounds(table, made_of(table))
    start = dict(problem.showing(bounds))
    if OUTPUT in start:
        return start[OUTPUT] is not None
    return comes_out(bounds, start, results, problem.kind == "map")
