"""The certificate: every fold's new weights, computed a second time in another way.

With the code that folds it shares the reading of stored constants, and nothing else. A chain of
affine operators is followed by definition, one operator after the other, with NumPy broadcasting at
the tensor's full rank. It becomes a pair ``(S, T)`` with ``y = S·x + T``. Each linear operator's
formula in the ONNX specification then gives its new weights. Where maps were carried past tensors,
each operator on the way is checked by itself: the record of the rewrite says which maps its inputs
and outputs have passed. A stored value may be off by one unit in the last place of its dtype, and
by what float64 itself may lose. A check that could not run gives `Unchecked`: its certificate
neither holds nor fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from bnfold._onnx.merge.patch import Patch, lay
from bnfold._onnx.read.scopes import QUANTIZERS, Scope, label, type_of
from bnfold._onnx.write.applied import Applied
from bnfold._proof import local_probe
from bnfold._proof.absorption import Absorption, deviation, require_same_otherwise
from bnfold._proof.checked_model import CheckedModel, chain_between, follow, output_rank
from bnfold._proof.conversions import check_conversion
from bnfold._proof.crossings import check_crossing
from bnfold._proof.evidence import Certificate, Mismatch, Unchecked
from bnfold._proof.formulas import FORMULAS
from bnfold._proof.full_rank_maps import FullRankMap, composed, equalities
from bnfold._proof.inlined_calls import check_inlining, without_calls
from bnfold._proof.merges import check_equal, check_merge, check_rereading
from bnfold._proof.quantizers import check_quantizer
from bnfold._proof.steps import Steps
from bnfold._run.bounds import UNBOUNDED, Bounds, Exhausted

# Axes of a tensor whose rank is not known, between those that maps and those that constants have.
_BETWEEN = 8
Numbers = Callable[[Collection[str]], Iterable[tuple[str, NDArray[Any]]]]
"""Gives the values of tensors of the original's main graph, by name, on some inputs.

It leaves out a tensor whose values are not known."""


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

    Args:
        original: the model before the fold.
        folded: the model after it.
        applied: the record of the rewrite, with positions in the original graph and tensor names in
            the folded one.
        original_dir: the folder of the original's external data.
        folded_dir: the folder of the folded model's external data.
        numbers: values to probe the folds of the main graph on, besides the formulas.
        bounds: bounds of the operators that are run.

    Returns:
        One certificate for each fold. A fold whose operators are not where they should be has a
        certificate with a ``problem``; it raises no error.
    """
    started, held = without_calls(original, applied)
    before, after = CheckedModel.of(started, original_dir), CheckedModel.of(folded, folded_dir)
    # The path of a body has the name of an output if its operator has no name. That may be new.
    lost = [path for path in before.scopes if path not in after.scopes]
    more = [path for path in after.scopes if path not in before.scopes]
    if len(lost) == len(more):
        after.scopes.update(zip(lost, map(after.scopes.__getitem__, more), strict=True))
    steps = Steps(before, after, applied)
    found = [
        _inlined(original, started, fold)
        if fold.law == "inline"
        else _certificate(before, after, fold, steps, bounds)
        for fold in applied
    ]
    for at, fold in enumerate(applied):
        if fold.law == "equal" and fold.patch is not None and found[at].holds:
            found[at] = _with_readers(found[at], steps, fold.path, fold.patch)
    if numbers is not None:
        places: dict[str, list[int]] = {}
        for at, fold in enumerate(applied):
            name = local_probe.source(before, fold) if found[at].holds else None
            if name is not None:
                places.setdefault(name, []).append(at)
        with suppress(Exhausted, MemoryError):  # a fold without a probe still has its formulas
            for name, values in numbers(places) if places else ():
                for at in places[name]:
                    found[at] = _probed(before, after, applied[at], found[at], values)
    for at, certificate in enumerate(found):
        if certificate.unchecked is not None:
            inlined = certificate.law == "inline"
            layers = set(held.values()) if inlined else _resting(before, applied, at)
            named = frozenset(held.get(layer, layer) for layer in layers)
            found[at] = replace(certificate, layers=named)
    return tuple(found)


def _inlined(original: ModelProto, started: ModelProto, fold: Applied) -> Certificate:
    """The certificate of calls of local functions that were inlined."""
    try:
        ulps = check_inlining(original, started)
    except Mismatch as mismatch:
        return Certificate("", fold.output, (), float("inf"), str(mismatch), "inline")
    unchecked = ulps if isinstance(ulps, Unchecked) else None
    return Certificate("", fold.output, (), 0.0, law="inline", unchecked=unchecked)


def _resting(before: CheckedModel, applied: Sequence[Applied], at: int) -> frozenset[str]:
    """The operators of the main graph, by label, whose folds rest on one step.

    Two steps belong together where a map was carried past a tensor of both. The result has the
    operators of this step, of all that belong to it, of all that belong to one of those, and so on.
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


def _with_readers(found: Certificate, steps: Steps, path: str, patch: Patch) -> Certificate:
    """The certificate of an equal map, with what its readers read in the folded graph."""
    try:
        steps.require_readers(path, patch)
    except Mismatch as mismatch:
        return replace(found, ulps=float("inf"), problem=str(mismatch))
    return found


def _probed(
    before: CheckedModel,
    after: CheckedModel,
    fold: Applied,
    found: Certificate,
    values: NDArray[Any],
) -> Certificate:
    """The certificate of a fold, with the result of the local probe on some values."""
    try:
        with np.errstate(all="ignore"):
            return replace(found, probe=local_probe.probe(before, after, fold, values))
    except (Mismatch, ValueError) as mismatch:
        return replace(found, problem=f"on real numbers: {mismatch}")


def _certificate(
    before: CheckedModel,
    after: CheckedModel,
    fold: Applied,
    steps: Steps,
    bounds: Bounds,
) -> Certificate:
    """The certificate of a fold, by the check of its law."""
    scope = before.scopes[fold.path]
    maps = tuple(label(scope.nodes[i]) for i in fold.maps)
    made = fold.patch.nodes.get(fold.into) if fold.patch is not None else None
    into = label(made or scope.nodes[fold.into])
    check = _CHECKS.get(fold.law) or partial(_check_crossing, bounds)
    try:
        if fold.path not in after.scopes:
            raise Mismatch(f"the folded model has no graph {fold.path}")
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            ulps = check(before, after, fold, steps)
    except Mismatch as mismatch:
        return Certificate(fold.path, into, maps, float("inf"), str(mismatch), fold.law)
    except ValueError as error:  # Operands that NumPy cannot broadcast.
        problem = f"shapes do not agree: {error}"
        return Certificate(fold.path, into, maps, float("inf"), problem, fold.law)
    if isinstance(ulps, Unchecked):
        return Certificate(fold.path, into, maps, 0.0, law=fold.law, unchecked=ulps)
    return Certificate(fold.path, into, maps, max(ulps, 0.0), law=fold.law)


def _check_composition(
    before: CheckedModel, after: CheckedModel, fold: Applied, steps: Steps
) -> float:
    """Check ``L∘F = R∘G`` for the old affine operators L and the new ones R; return the deviation.

    L reads ``F(z)`` in the original model, R reads ``G(z)`` in the folded one. Where maps were
    carried past the output too, both sides are compared through these maps.
    """
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    first = old.nodes[fold.into]
    rank = before.rank(old, first.output[0]) or _least_rank(old, fold)
    wanted, made = FullRankMap.identity(rank), FullRankMap.identity(rank)
    data = next((n for n in first.input if before.fixed(old, n) is None), "")
    if not steps.may_stand(old, new, fold.source, data):
        raise Mismatch(f"{fold.output} is computed from {fold.source} in the place of {data}")
    _start_from(fold, data, wanted, made)
    kinds = {follow(before, old, old.nodes[position], wanted) for position in fold.chain} - {None}
    kind = _follow_folded(after, new, fold, made)
    if not made.steps and len(kinds) == 1:  # What is left out was 1 and 0 in the type that it had.
        kind = kinds.pop() or kind
    last = old.nodes[fold.chain[-1]].output[0]
    pairs = _equal_maps(fold, last, wanted, made)
    return max(_deviation(fold, one, other, kind) for one, other in pairs)


def _deviation(fold: Applied, wanted: FullRankMap, made: FullRankMap, kind: np.dtype[Any]) -> float:
    """The largest distance of two maps, in units in the last place of a dtype."""
    size = np.abs(wanted.scale)
    forgiven = made.steps - 1
    scale = deviation(made.scale, wanted.scale, size, kind, forgiven=forgiven)
    plain = made.steps <= 1 and not fold.related
    sizes = (np.abs(wanted.shift),) if plain else (wanted.bulk, made.bulk)
    return max(scale, deviation(made.shift, wanted.shift, wanted.bulk, kind, sizes, forgiven))


def _least_rank(scope: Scope, fold: Applied) -> int:
    """The rank to compute with where the tensor's rank is not known.

    Single numbers need 0. A BatchNormalization needs 2, for its channels lie on axis 1. A map that
    was carried here needs the axis that it varies along. These axes count from the first, those of
    a constant from the last: there are so many axes between them that none meet.
    """
    needed = [0]
    if any(scope.nodes[p].op_type == "BatchNormalization" for p in fold.chain):
        needed.append(2)
    for relation in fold.related.values():
        maps = (*relation.old, *relation.new)
        needed += [map_.axis + 1 for map_ in maps if map_.axis is not None]
    return max(needed) + _BETWEEN if any(needed) else 0


def _start_from(fold: Applied, name: str, wanted: FullRankMap, made: FullRankMap) -> None:
    """Apply the maps that were carried past a tensor, before the operators that read it."""
    related = fold.related.get(name)
    if related is not None:
        wanted.apply(composed(related.old, wanted.scale.ndim))
        made.apply(composed(related.new, made.scale.ndim))


def _equal_maps(
    fold: Applied, name: str, wanted: FullRankMap, made: FullRankMap
) -> list[tuple[FullRankMap, FullRankMap]]:
    """The pairs of maps that have to be equal, if maps were carried past a tensor as recorded.

    Raises:
        Mismatch: one of the maps depends on values that nothing is known of.
    """
    pairs = []
    for equality in equalities(fold.related.get(name), wanted.scale.ndim):
        pair = wanted.copy(), made.copy()
        for map_, apply in zip(pair, (equality.old, equality.new), strict=True):
            map_.apply(apply)
            map_.leave_out(equality.exempt)
            if bool(map_.unknown.any()):
                raise Mismatch(f"{name} depends on values that nothing is known of")
        pairs.append(pair)
    return pairs


def _follow_folded(
    model: CheckedModel, scope: Scope, fold: Applied, map_: FullRankMap
) -> np.dtype[Any]:
    """Follow the operators that remain in the folded graph, from a fold's source to its output.

    ``map_`` becomes their map. Returns the dtype of their constants, float32 if they have none.
    """
    kind: np.dtype[Any] = np.dtype(np.float32)
    for node in chain_between(model, scope, fold.source, fold.output):
        dtype = follow(model, scope, node, map_)
        if dtype is not None:
            kind = dtype
            map_.steps += 1
    return kind


def _check_absorption(
    before: CheckedModel, after: CheckedModel, fold: Applied, steps: Steps
) -> float:
    """Check the new weights of an operator that took in maps; return the largest deviation."""
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    node = old.nodes[fold.into]
    twin = _twin(new, node, fold.source)
    rank = output_rank(before, old, node) or _least_rank(old, fold)
    target, remaining = FullRankMap.identity(rank), FullRankMap.identity(rank)
    read = node.output[0]
    for place in fold.chain:
        if read not in old.nodes[place].input:
            raise Mismatch(f"{label(old.nodes[place])} does not read {read}")
        follow(before, old, old.nodes[place], target)
        read = old.nodes[place].output[0]
    _follow_folded(after, new, fold, remaining)
    final = old.nodes[fold.chain[-1]].output[0] if fold.chain else node.output[0]
    pairs = _equal_maps(fold, final, target, remaining)
    check = FORMULAS.get(type_of(node))
    if check is None:
        raise Mismatch(f"{node.op_type} has no formula to check against")
    sides = before, after, old, new, node, twin
    require_same_otherwise(*sides)
    steps.require_same_data(old, new, node, twin)
    cases = [Absorption(*sides, one, other, fold.related) for one, other in pairs]
    return max(map(check, cases))


def _check_crossing(
    bounds: Bounds,
    before: CheckedModel,
    after: CheckedModel,
    fold: Applied,
    steps: Steps,
) -> float | Unchecked:
    """Check an operator that maps were carried across; return how far it is off."""
    old, new = before.scopes[fold.path], after.scopes[fold.path]
    node = old.nodes[fold.into]
    if node.op_type == "Cast" and not before.is_no_cast(old, node):
        return check_conversion(before, after, node, fold, steps)
    twin = _writer(new, fold.source)  # Of another type, maybe: it is run.
    if type_of(node) in QUANTIZERS:
        return check_quantizer(before, after, old, new, node, twin, fold.related, steps)
    return check_crossing(before, after, old, new, node, twin, fold, steps, bounds)


def _writer(scope: Scope, source: str) -> NodeProto:
    """The operator of the folded graph that writes a tensor."""
    position = scope.producers.get(source)
    if position is None:
        raise Mismatch(f"no operator of the folded graph writes {source}")
    return scope.nodes[position]


def _twin(scope: Scope, node: NodeProto, source: str) -> NodeProto:
    """The operator of the folded graph that stands for ``node``; it writes ``source``.

    It has the same type, but that a MatMul may be a Gemm, which adds a bias.
    """
    twin = _writer(scope, source)
    if type_of(twin) != type_of(node) and (type_of(node), type_of(twin)) != ("MatMul", "Gemm"):
        raise Mismatch(f"{source} is written by {type_of(twin)}, not by {type_of(node)}")
    return twin


def _check_merge(
    before: CheckedModel, after: CheckedModel, fold: Applied, steps: Steps
) -> float | Unchecked:
    """Check that a merged operator equals the operators that it stands for, both in float64.

    It then goes into ``before``. The checks of later folds start from it.
    """
    assert fold.patch is not None
    scope = before.scopes[fold.path]
    try:
        return check_merge(before, scope, fold.patch)
    finally:
        lay(fold.patch, scope, before.constants)


def _check_equal(before: CheckedModel, after: CheckedModel, fold: Applied, steps: Steps) -> float:
    """Check that a map that goes puts out what another one does.

    With the last map of a patch all who read one of them are checked, and ``before`` is then
    without any.
    """
    patch = fold.patch
    assert patch is not None
    scope = before.scopes[fold.path]
    same = [step for step in steps.of(fold.path) if step.patch is patch]
    last = fold is same[-1]
    try:
        (gone,) = fold.maps
        check_equal(before, scope, patch, gone, fold.into)
        if last:
            check_rereading(scope, patch, [step.maps for step in same])
    finally:
        if last:
            lay(patch, scope, before.constants)
    return 0.0


_Check = Callable[[CheckedModel, CheckedModel, Applied, Steps], "float | Unchecked"]
_CHECKS: dict[str, _Check] = {
    "absorb": _check_absorption,
    "carry": _check_composition,
    "compose": _check_composition,
    "equal": _check_equal,
    "merge": _check_merge,
}
