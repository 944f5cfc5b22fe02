"""The certificate: every fold's new weights, computed a second time by another way.

Nothing here is shared with the code that folds but the reading of stored constants. A chain of
affine operators is followed by its definition, operator by operator with NumPy broadcasting at the
tensor's full rank, as a pair ``(S, T)`` with ``y = S·x + T``; weights are then derived from each
operator's formula in the ONNX specification. Where maps were carried past a tensor, each operator
on the way is checked by itself, given what its inputs and outputs are said to have gone through. A
stored value may be off by one unit in the last place of its dtype, and by what float64 itself may
lose. A check that could not run is `Unchecked`: its certificate neither holds nor fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from bnfold._onnx.merge.patch import lay
from bnfold._onnx.read.scopes import Scope, label, type_of
from bnfold._onnx.write.applied import Applied
from bnfold._proof import local_probe
from bnfold._proof.absorption import Absorption, deviation
from bnfold._proof.carried import claims, laid_out
from bnfold._proof.crossings import check_crossing
from bnfold._proof.formulas import FORMULAS
from bnfold._proof.merges import check_merge
from bnfold._proof.rows import Line, Mismatch, Side, chain_between, follow, output_rank
from bnfold._proof.unchecked import Unchecked
from bnfold._run.bounds import UNBOUNDED, Bounds, Exhausted


@dataclass(frozen=True)
class Certificate:
    """One fold, checked; ``law`` is one of those that `Applied` names.

    ``ulps`` is the largest deviation in units in the last place, beyond what float64 may lose;
    ``problem`` says what was wrong, or is empty. ``probe`` is how far its operators are from those
    before on real numbers, in what rounding explains; None where they were not run. ``unchecked``
    says why the check did not run, if so; ``layers`` are then the operators of the main graph,
    by label, whose fold rests on it: none where they are in a body or a function.
    """

    graph: str
    into: str
    maps: tuple[str, ...]
    ulps: float
    problem: str = ""
    law: str = "absorb"
    probe: float | None = None
    unchecked: Unchecked | None = None
    layers: frozenset[str] = frozenset()

    @property
    def holds(self) -> bool:
        """Whether the fold's new weights were seen to be right."""
        return self.unchecked is None and not self.fails

    @property
    def fails(self) -> bool:
        """Whether they were seen to be wrong."""
        right = not self.problem and self.ulps <= 1.0
        return not right or (self.probe is not None and self.probe > 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are valid JSON."""
        return {
            "graph": self.graph,
            "into": self.into,
            "maps": list(self.maps),
            "law": self.law,
            "holds": self.holds,
            "unchecked": str(self.unchecked or ""),
            "ulps": self.ulps if np.isfinite(self.ulps) and not self.unchecked else None,
            "problem": self.problem,
            "probe": str(self.probe) if self.probe in _ENDLESS else self.probe,
        }


_ENDLESS = (float("inf"),)
Numbers = Callable[[Collection[str]], Iterable[tuple[str, NDArray[Any]]]]
"""Gives what tensors of the original's main graph hold on some inputs; fewer where not known."""


def certify(
    original: ModelProto,
    folded: ModelProto,
    applied: Sequence[Applied],
    original_dir: Path | None = None,
    folded_dir: Path | None = None,
    numbers: Numbers | None = None,
    bounds: Bounds = UNBOUNDED,
) -> tuple[Certificate, ...]:
    """Check every fold that was carried out, in float64.

    ``applied`` is what the rewrite recorded: positions in the original graph, tensor names in the
    folded one. The folders are those of external data. With ``numbers``, folds of the main graph
    are probed on them as well. A fold whose operators are not found where
    they should be gets a certificate with a ``problem``, never an exception. ``bounds`` are for the
    operators that are run.
    """
    before, after = Side.of(original, original_dir), Side.of(folded, folded_dir)
    found = [_certify(before, after, fold, bounds) for fold in applied]
    if numbers is not None:
        places: dict[str, list[int]] = {}
        for at, fold in enumerate(applied):
            name = local_probe.source(before, fold) if found[at].holds else None
            if name is not None:
                places.setdefault(name, []).append(at)
        with suppress(Exhausted, MemoryError):  # what is not probed rests on its certificate
            for name, given in numbers(places) if places else ():
                for at in places[name]:
                    found[at] = _probed(before, after, applied[at], found[at], given)
    for at, certificate in enumerate(found):
        if certificate.unchecked is not None:
            found[at] = replace(certificate, layers=_resting(before, applied, at))
    return tuple(found)


def _resting(before: Side, applied: Sequence[Applied], at: int) -> frozenset[str]:
    """The operators of the main graph, by label, whose folds rest on one step: those of the steps
    that maps connect it with, from tensor to tensor.
    """
    path = applied[at].path
    if path:
        return frozenset()
    others = [fold for fold in applied if fold.path == path]
    taken, names = [applied[at]], set(applied[at].related)
    while joined := [
        fold for fold in others if fold not in taken and not names.isdisjoint(fold.related)
    ]:
        taken += joined
        names.update(*(fold.related for fold in joined))
    nodes = before.scopes[path].nodes
    places = {place for fold in taken for place in (fold.into, *fold.maps)}
    return frozenset(label(nodes[place]) for place in places)


def _probed(
    before: Side, after: Side, fold: Applied, found: Certificate, given: NDArray[Any]
) -> Certificate:
    try:
        with np.errstate(all="ignore"):
            return replace(found, probe=local_probe.probe(before, after, fold, given))
    except (Mismatch, ValueError) as mismatch:
        return replace(found, problem=f"on real numbers: {mismatch}")


def _certify(before: Side, after: Side, fold: Applied, bounds: Bounds) -> Certificate:
    scope = before.scopes[fold.path]
    maps = tuple(label(scope.nodes[i]) for i in fold.maps)
    made = fold.patch.nodes[fold.into] if fold.patch is not None else None
    into = label(made or scope.nodes[fold.into])
    check = partial(_cross, bounds) if fold.law == "cross" else _CHECKS[fold.law]
    try:
        if fold.path not in after.scopes:
            raise Mismatch(f"the folded model has no graph {fold.path}")
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            ulps = check(before, after, fold)
    except Mismatch as mismatch:
        return Certificate(fold.path, into, maps, float("inf"), str(mismatch), fold.law)
    except ValueError as error:  # Operands that NumPy cannot broadcast.
        problem = f"shapes do not agree: {error}"
        return Certificate(fold.path, into, maps, float("inf"), problem, fold.law)
    if isinstance(ulps, Unchecked):
        return Certificate(fold.path, into, maps, 0.0, law=fold.law, unchecked=ulps)
    return Certificate(fold.path, into, maps, max(ulps, 0.0), law=fold.law)


def _compose(before: Side, after: Side, fold: Applied) -> float:
    """``L∘F = R∘G`` for the row L that stood and the row R that stands, where what they read is
    ``F(z)`` (old) or ``G(z)`` (new), but for what is said of what they put out.
    """
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    first = old.nodes[fold.into]
    rank = before.rank(old, first.output[0]) or _least_rank(old, fold)
    wanted, made = Line.identity(rank), Line.identity(rank)
    data = next((n for n in first.input if before.fixed(old, n) is None), "")
    _read(fold, data, wanted, made)
    for position in fold.chain:
        follow(before, old, old.nodes[position], wanted)
    kind = _standing(after, new, fold, made)
    last = old.nodes[fold.chain[-1]].output[0]
    pairs = _put_out(fold, last, wanted, made)
    return max(_apart(fold, one, other, kind) for one, other in pairs)


def _apart(fold: Applied, wanted: Line, made: Line, kind: np.dtype[Any]) -> float:
    size = np.abs(wanted.scale)
    loose = made.steps - 1
    scale = deviation(made.scale, wanted.scale, size, kind, loose=loose)
    plain = made.steps <= 1 and not fold.related
    sizes = (np.abs(wanted.shift),) if plain else (wanted.bulk, made.bulk)
    return max(scale, deviation(made.shift, wanted.shift, wanted.bulk, kind, sizes, loose))


def _least_rank(scope: Scope, fold: Applied) -> int:
    """The rank to follow maps at where it is not known: numbers need none, a BatchNormalization
    needs its channels.
    """
    return 2 if any(scope.nodes[p].op_type == "BatchNormalization" for p in fold.chain) else 0


def _read(fold: Applied, name: str, wanted: Line, made: Line) -> None:
    """Let both lines begin with what the values of a tensor come from."""
    related = fold.related.get(name)
    if related is not None:
        wanted.then(laid_out(related.old, wanted.scale.ndim))
        made.then(laid_out(related.new, made.scale.ndim))


def _put_out(fold: Applied, name: str, wanted: Line, made: Line) -> list[tuple[Line, Line]]:
    """The lines that have to be the same if what is said of a tensor is true. They must not depend
    on what is unknown.
    """
    pairs = []
    for claim in claims(fold.related.get(name), wanted.scale.ndim):
        pair = wanted.copy(), made.copy()
        for line, then in zip(pair, (claim.old, claim.new), strict=True):
            line.then(then)
            line.without(claim.apart)
            if bool(line.unknown.any()):
                raise Mismatch(f"{name} depends on values that nothing is known of")
        pairs.append(pair)
    return pairs


def _standing(side: Side, scope: Scope, fold: Applied, line: Line) -> np.dtype[Any]:
    """Let a line go through the operators of the folded graph from a fold's source to its end."""
    kind: np.dtype[Any] = np.dtype(np.float32)
    for node in chain_between(side, scope, fold.source, fold.output):
        dtype = follow(side, scope, node, line)
        if dtype is not None:
            kind = dtype
            line.steps += 1
    return kind


def _absorb(before: Side, after: Side, fold: Applied) -> float:
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    node = old.nodes[fold.into]
    twin = _twin(new, node, fold.source)
    rank = output_rank(before, old, node) or _least_rank(old, fold)
    line, added = Line.identity(rank), Line.identity(rank)
    read = node.output[0]
    for place in fold.chain:
        if read not in old.nodes[place].input:
            raise Mismatch(f"{label(old.nodes[place])} does not read {read}")
        follow(before, old, old.nodes[place], line)
        read = old.nodes[place].output[0]
    _standing(after, new, fold, added)
    final = old.nodes[fold.chain[-1]].output[0] if fold.chain else node.output[0]
    pairs = _put_out(fold, final, line, added)
    _same_otherwise(before, after, old, new, node, twin)
    check = FORMULAS.get(type_of(node))
    if check is None:
        raise Mismatch(f"{node.op_type} has no formula to check against")
    sides = before, after, old, new, node, twin
    cases = [Absorption(*sides, one, other, fold.related) for one, other in pairs]
    if any(case.entry is not None and case.entry.new for case in cases):
        raise Mismatch(f"what {label(node)} reads has changed, and its weights cannot follow")
    return max(map(check, cases))


def _cross(bounds: Bounds, before: Side, after: Side, fold: Applied) -> float | Unchecked:
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    node = old.nodes[fold.into]
    twin = _twin(new, node, fold.source)
    return check_crossing(before, after, old, new, node, twin, fold.related, bounds)


def _twin(scope: Scope, node: NodeProto, source: str) -> NodeProto:
    """The operator of the folded graph that is what became of one of the original."""
    position = scope.producers.get(source)
    if position is None:
        raise Mismatch(f"no operator of the folded graph writes {source}")
    twin = scope.nodes[position]
    if type_of(twin) != type_of(node):
        raise Mismatch(f"{source} is written by {type_of(twin)}, not by {type_of(node)}")
    return twin


def _integers(side: Side, scope: Scope, name: str) -> NDArray[Any]:
    """The integers of a weight that is dequantized; nothing for any other."""
    found = side.integers(scope, name)
    stored = None if found is None else scope.nodes[found.position].input[0]
    values = None if stored is None else side.values(scope, stored)
    return np.zeros(0) if values is None else values


def _same_otherwise(
    before: Side, after: Side, old: Scope, new: Scope, node: NodeProto, twin: NodeProto
) -> None:
    """Everything else that decides what an operator computes is as it was: its attributes (but
    Gemm's beta, which its formula knows) and a BatchNormalization's statistics.
    """

    def attributes(of: NodeProto) -> dict[str, bytes]:
        return {
            a.name: a.SerializeToString(deterministic=True)
            for a in of.attribute
            if (of.op_type, a.name) != ("Gemm", "beta")
        }

    if attributes(node) != attributes(twin):
        raise Mismatch(f"attributes of {label(twin)} changed")
    for name, new_name in zip(node.input[:2], twin.input[:2], strict=False):
        if not np.array_equal(_integers(before, old, name), _integers(after, new, new_name)):
            raise Mismatch(f"the integers of {label(twin)} changed")
    if node.op_type == "BatchNormalization":
        for position in (3, 4):
            was = before.double(old, node, position)
            now = after.double(new, twin, position)
            if was is None or now is None or not np.array_equal(was, now):
                raise Mismatch(f"the statistics of {label(twin)} changed")


def _merge(before: Side, after: Side, fold: Applied) -> float | Unchecked:
    """The merged operator in float64 is what stood; all that follows starts from it."""
    assert fold.patch is not None
    scope = before.scopes[fold.path]
    try:
        return check_merge(before, scope, fold.patch)
    finally:
        lay(fold.patch, scope, before.constants)


_CHECKS: dict[str, Callable[[Side, Side, Applied], float | Unchecked]] = {
    "absorb": _absorb,
    "carry": _compose,
    "compose": _compose,
    "merge": _merge,
}
