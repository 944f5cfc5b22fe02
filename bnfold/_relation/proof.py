"""Whether two files are the same function, from their weights alone.

This is translation validation (Pnueli, Siegel, Singerman, 1998): it does not ask who made the
second file, and trusts neither. Both are walked from the inputs on. Where every operator of the
second file finds its twin in the first, and every weight is what rounding explains, the outputs are
the same.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx.inliner
from onnx import ModelProto, ValueInfoProto

from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.scopes import Scope
from bnfold._relation.expressions import Expression, of_base
from bnfold._relation.integers import Integers, Sizes
from bnfold._relation.liveness import is_read, varies
from bnfold._relation.lowering import lowered
from bnfold._relation.matching import Matcher
from bnfold._relation.problems import Blame, Blamed, Layer, Problem
from bnfold._relation.side import Side
from bnfold._relation.table import Table, fingerprint
from bnfold._relation.walk import Walk

_SURE = 4
"""Weights that are apart by so many times what rounding explains are no rounding."""
_ATTEMPTS = 64
"""So many layers are looked behind whose outputs are scaled otherwise."""


@dataclass(frozen=True)
class Proof:
    """What was found.

    Attributes:
        status: "proved", "refuted" or "not proved".
        at: the operator of the second file where the files differ, or where the walk ended; ""
            where they are proved.
        why: what differs there, or why the walk ended.
        layers: the sums of linear operators that agree, in order.
    """

    status: str
    at: str = ""
    why: str = ""
    layers: Sequence[Layer] = ()

    @property
    def distance(self) -> float:
        """The largest difference of weights that agree, in units in the last place."""
        return max((layer.distance for layer in self.layers), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are valid JSON."""
        return {
            "status": self.status,
            "at": self.at,
            "why": self.why,
            "distance": self.distance,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        """The status, and where and why if it is not proved."""
        place = f" at {self.at}" if self.at else ""
        return f"{self.status}{place}: {self.why}" if self.why else self.status


def prove(
    first: ModelProto,
    second: ModelProto,
    first_dir: Path | None = None,
    second_dir: Path | None = None,
) -> Proof:
    """Prove that two models compute the same outputs, up to the rounding of stored weights.

    Nodes of every graph are in order. Nothing is run. Raises `UsageError` for weights that cannot
    be read.
    """
    models = [onnx.inliner.inline_local_functions(m) if m.functions else m for m in (first, second)]
    one, other = (
        Side.of(m, folder)
        for m, folder in zip(lowered(*models), (first_dir, second_dir), strict=True)
    )
    return prove_sides(one, other)


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # Weights may be infinite.
def prove_sides(one: Side, other: Side) -> Proof:
    """The same of two models that have been read. Raises `UsageError` as `prove` does."""
    table = Table()
    sizes = Sizes()
    start = Walk(one, Matcher(one, table, True), Integers(one, sizes))
    graphs = one.scopes[0], other.scopes[0]
    inputs = [
        [v for v in scope.graph.input if side.constant(scope, v.name) is None]
        for side, scope in zip((one, other), graphs, strict=True)
    ]
    pairs = _paired(inputs[0], inputs[1], some=True)
    results = _paired(graphs[0].graph.output, graphs[1].graph.output)
    if pairs is None or results is None:
        what = "inputs" if pairs is None else "outputs"
        return Proof("not proved", "", f"the files have other {what}")
    for a, b, exact in (*((a, b, True) for a, b in pairs), *((a, b, False) for a, b in results)):
        if not _is_alike(a, b, exact):
            return Proof("not proved", b.name, "it has another type or shape in the other file")
    for a, b in pairs:
        if _default(one, graphs[0], a.name) != _default(other, graphs[1], b.name):
            return Proof("not proved", b.name, "this input has another default value")
    bases = {a.name: table.fresh(one.shapes.type(graphs[0], a.name)) for a in inputs[0]}
    for name, base in bases.items():
        start.give(graphs[0], name, of_base(base))
    start.graph(graphs[0])
    wanted = [(a, start.result(graphs[0], a.name)) for a, _ in results]
    forced: dict[int, Blame] = {}
    is_open = False
    while True:
        table.reset()
        other.values.clear()
        walk = Walk(other, Matcher(other, table, False, forced), Integers(other, sizes))
        for a, b in pairs:
            walk.give(graphs[1], b.name, of_base(bases[a.name]))
        try:
            walk.graph(graphs[1])
            for (_, value), (_, name) in zip(wanted, results, strict=True):
                walk.found.require_same(name.name, value, walk.result(graphs[1], name.name))
            break
        except Blamed as blamed:
            if len(forced) >= _ATTEMPTS:
                return Proof("not proved", "", f"over {_ATTEMPTS} layers differ")
            forced.update(dict.fromkeys(blamed.bases, blamed.by))
        is_open |= walk.found.is_open
    walk.found.is_open |= is_open
    return _concluded(walk.found, table, [value for _, value in wanted])


def _paired(
    ones: Sequence[ValueInfoProto], others: Sequence[ValueInfoProto], some: bool = False
) -> list[tuple[ValueInfoProto, ValueInfoProto]] | None:
    """The ports of both files: by name where the names are the same, otherwise by position.

    The second file may lack inputs of the first, which it does not read.
    """
    by_name: Mapping[str, ValueInfoProto] = {value.name: value for value in others}
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
    shapes = [[d.dim_value for d in t.shape.dim] for t in types if t.HasField("shape")]
    alike = len(shapes) < 2 or (
        len(shapes[0]) == len(shapes[1])
        and all(a == b or not (exact or (a and b)) for a, b in zip(*shapes, strict=True))
    )
    return alike and types[0].elem_type == types[1].elem_type


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
    if sum(each.kind == "weights" for each in found.problems) > 1:
        count = len(found.problems)
        why = f"{first.why}; {count} layers differ, and one may make up for another"
        return Proof("not proved", first.at, why, found.layers)
    bases = {term.base for value in results for term in value.terms if np.any(term.scale)}
    weak = next((each for each in found.problems if not _is_refuted(each, table, bases)), None)
    if weak is None and found.is_open:
        weak = first
    if weak is not None:
        return Proof("not proved", weak.at, weak.why, found.layers)
    return Proof("refuted", first.at, first.why, found.layers)


def _is_refuted(problem: Problem, table: Table, results: Collection[int]) -> bool:
    """Whether the function is another one: the rest of both files is the same."""
    if not problem.is_sure or not problem.units >= _SURE * (1 + problem.allowed):
        return False
    if not all(varies(table, base) for base in problem.read):
        return False
    return problem.base is None or is_read(table, problem.base, problem.channels, results)
