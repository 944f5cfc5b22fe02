"""Everything that a page shows, as plain data; the page's script draws it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bnfold
from bnfold._core.reasons import CODES
from bnfold._core.result import Plan
from bnfold._report.page.channels import number
from bnfold._report.page.drawing import INPUT, OUTPUT
from bnfold._report.page.grouping import between, grouped, parents
from bnfold._report.page.layout import laid_out
from bnfold._report.page.pairing import AFTER, BEFORE, Picture
from bnfold._report.text import extra_lines

if TYPE_CHECKING:
    from bnfold._judge.timing import Timing
    from bnfold._judge.verdict import EndToEnd, OutputCheck
    from bnfold._pipeline.outcome import Outcome
    from bnfold._proof.evidence import Certificate
    from bnfold._relation.proof import Proof
    from bnfold._report.page.changes import Place
    from bnfold._report.page.witness import Witness


@dataclass(frozen=True)
class Run:
    """What is told of a run besides its result: how to repeat it, and how long it took."""

    commands: Sequence[str]
    seconds: float


def of_fold(outcome: Outcome, seen: Witness, run: Run) -> dict[str, Any]:
    """The page of a fold and its verification."""
    picture = seen.picture
    plan, verdict = outcome.plan, outcome.verdict
    place = _Finder(picture, seen.before.places)
    counts = (plan.before, plan.after)
    if seen.is_altered:
        counts = (_by_type(picture, BEFORE), _by_type(picture, AFTER))
    return {
        **_of_picture("fold", picture, run),
        "altered": seen.altered,
        "extras": list(extra_lines(outcome)),
        "head": {
            "status": verdict.status,
            "model": str(outcome.model),
            "output": str(outcome.output) if outcome.output else None,
            "bytes": [outcome.size_before, outcome.size_after],
            "counts": _counts(*counts),
            "seconds": number(run.seconds),
        },
        "folds": list(_folds(plan, seen, place, verdict.certificates)),
        "kept": list(_kept(plan, seen, place)),
        "tables": {str(place.of(at)): told for at, told in seen.tables.items()},
        "certificates": [
            [
                certificate.into,
                _state(certificate),
                number(certificate.ulps),
                place.named(certificate.graph, certificate.into),
            ]
            for certificate in verdict.certificates
        ],
        **_compared(verdict.end_to_end, place),
    }


def of_verify(
    names: Sequence[str],
    sizes: Sequence[int],
    picture: Picture,
    changed: Sequence[int],
    result: EndToEnd | Proof,
    run: Run,
    supposed: tuple[Plan, Witness] | None = None,
) -> dict[str, Any]:
    """The page of a comparison of two files. ``changed`` are operators that have other weights.

    ``supposed`` is what folding the first file would do, with the weights of the second. Of that
    the page tells what can have been done to make the second file.
    """
    counts = [_by_type(picture, side) for side in (BEFORE, AFTER)]
    place = _Finder(picture, {})
    told: dict[str, Any] = {
        **_of_picture("verify", picture, run),
        "head": {
            "status": _STATUS.get(result.status, result.status),
            "model": names[0],
            "output": names[1],
            "bytes": list(sizes),
            "counts": _counts(*counts),
            "seconds": number(run.seconds),
        },
        "changed": list(changed),
        "folds": [],
        "kept": [],
        "tables": {},
        "certificates": [],
    }
    if hasattr(result, "layers"):
        told |= _compared(None, place)
        told["proof"] = _proof(result, place)
    else:
        told |= _compared(result, place)
    if supposed is not None:
        plan, seen = supposed
        place = _Finder(picture, seen.before.places)
        told["folds"] = [
            fold
            for fold in _folds(plan, seen, place, ())
            if fold["into"] in told["changed"] and _all_gone(fold["gone"], picture)
        ]
        layers = {fold["into"] for fold in told["folds"]}
        told["tables"] = {
            str(place.of(at)): each for at, each in seen.tables.items() if place.of(at) in layers
        }
    return told


def _all_gone(operators: Sequence[int], picture: Picture) -> bool:
    return bool(operators) and all(picture.sides[at] == BEFORE for at in operators)


_STATUS = {"proved": "pass", "refuted": "fail", "not proved": "inconclusive"}


class _Finder:
    """Finds operators of the first network in the picture."""

    def __init__(self, picture: Picture, places: Mapping[Place, int]) -> None:
        self._picture, self._places = picture, places
        self._named: dict[tuple[str, str], int] = {}
        self._bare: dict[str, int] = {}
        for k, operator in enumerate(picture.operators):
            if operator.op not in (INPUT, OUTPUT):
                self._named.setdefault((operator.graph, operator.name), k)
                self._bare.setdefault(operator.name, k)

    def of(self, place: Place | None) -> int | None:
        """The number of the operator at a place."""
        at = self._places.get(place) if place is not None else None
        return None if at is None else self._picture.first[at]

    def named(self, graph: str, name: str) -> int | None:
        """The number of an operator by its graph and name."""
        return self._named.get((graph, name), self._bare.get(name))

    def typed(self, told: str) -> int | None:
        """The number of an operator of the main graph that is told as ``name (type)``."""
        return self.named("", told.rpartition(" (")[0])


def _of_picture(kind: str, picture: Picture, run: Run) -> dict[str, Any]:
    operators = picture.operators
    edges = [(a, b) for a, b, side, way in picture.edges if side & BEFORE or not way]
    groups = grouped([operator.folder for operator in operators], edges)
    owners = parents(groups, len(operators))
    inside = between(groups, owners, edges)
    kinds = {op: k for k, op in enumerate(dict.fromkeys(o.op for o in operators))}
    told = []
    for at, group in enumerate(groups):
        links = inside.get(at, [])
        level = laid_out(group.children, links)
        order = {child: k for k, child in enumerate(group.children)}
        routes = {(a, b): way for a, b, way in level.routes}
        pairs = [(order[a], order[b]) for a, b in links]
        told.append(
            [
                group.name,
                group.parent,
                group.children,
                [[layer, _short(x)] for layer, x in level.places],
                [
                    [a, b, [[layer, _short(x)] for layer, x in routes.get((a, b), ())]]
                    for a, b in pairs
                ],
            ]
        )
    return {
        "kind": kind,
        "bnfold": bnfold.__version__,
        "commands": list(run.commands),
        "ops": list(kinds),
        "nodes": [
            [kinds[o.op], o.name, side, o.shape, o.graph]
            for o, side in zip(operators, picture.sides, strict=True)
        ],
        "edges": [[a, b, side, list(way)] for a, b, side, way in picture.edges],
        "groups": told,
    }


def _short(x: float) -> float | int:
    return int(x) if x == int(x) else round(x, 2)


def _counts(before: Mapping[str, int], after: Mapping[str, int]) -> list[list[Any]]:
    return [[op, before.get(op, 0), after.get(op, 0)] for op in sorted({*before, *after})]


def _by_type(picture: Picture, side: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for operator, sides in zip(picture.operators, picture.sides, strict=True):
        if sides & side and operator.op not in (INPUT, OUTPUT):
            found[operator.op] = found.get(operator.op, 0) + 1
    return found


def _state(certificate: Certificate) -> str:
    if certificate.unchecked is not None:
        return "unchecked"
    return "fails" if certificate.fails else "holds"


def _folds(
    plan: Plan, seen: Witness, place: _Finder, certificates: Sequence[Certificate]
) -> Iterator[dict[str, Any]]:
    known = {(each.into, each.maps): each for each in certificates}
    by_target: dict[str, Certificate] = {}
    for each in certificates:
        by_target.setdefault(each.into, each)
    steps = seen.steps if len(seen.steps) == len(plan.folds) else [None] * len(plan.folds)
    for fold, step in zip(plan.folds, steps, strict=True):
        if step is not None:
            gone, into = [place.of(at) for at in step.gone], place.of(step.into)
            crossed = [place.of(at) for at in step.crossed]
        else:
            gone = [place.named(fold.graph, name) for name in fold.nodes]
            into, crossed = place.named(fold.graph, fold.into), []
        certificate = known.get((fold.into, fold.nodes)) or by_target.get(fold.into)
        yield {
            "gone": [at for at in gone if at is not None],
            "names": list(fold.nodes),
            "into": into,
            "target": fold.into,
            "crossed": [at for at in crossed if at is not None],
            "laws": list(fold.laws),
            "kind": _kind(fold),
            "graph": fold.graph,
            "ranges": [list(each) for each in step.ranges] if step is not None else [],
            "state": _state(certificate) if certificate is not None else "",
            "ulps": number(certificate.ulps) if certificate is not None else None,
            "probe": number(certificate.probe) if certificate is not None else None,
            "problem": (certificate.problem or str(certificate.unchecked or ""))
            if certificate is not None
            else "",
        }


def _kind(fold: Any) -> str:
    if fold.merges:
        return "merge"
    return "equal" if fold.is_equal else "rewrite" if fold.rewrites else "fold"


def _kept(plan: Plan, seen: Witness, place: _Finder) -> Iterator[dict[str, Any]]:
    places = seen.kept if len(seen.kept) == len(plan.kept) else [None] * len(plan.kept)
    for kept, at in zip(plan.kept, places, strict=True):
        own = place.of(at)
        yield {
            "node": own if own is not None else place.named(kept.graph, kept.node),
            "name": kept.node,
            "op": kept.op,
            "at": place.named(kept.graph, kept.at),
            "code": kept.code,
            "meaning": CODES[kept.code].meaning if kept.code in CODES else "",
            "brief": kept.brief,
            "message": kept.message,
            "advice": kept.advice,
            "kind": "bias" if kept.is_bias else kept.kind,
            "graph": kept.graph,
        }


def _compared(result: EndToEnd | None, place: _Finder) -> dict[str, Any]:
    if result is None:
        return {"checks": [], "power": [], "notes": [], "providers": [], "divergence": None}
    found = result.divergence
    return {
        "proof": _proof(result.proof, place) if result.proof is not None else None,
        "checks": [_check(check) for check in result.checks],
        "power": [
            {
                "layers": list(planted.layers[:50]),
                "count": len(planted.layers),
                "ratio": number(planted.ratio),
                "noticed": planted.noticed,
                "size": planted.size,
            }
            for planted in result.power
        ],
        "notes": list(result.notes),
        "timing": _timing(result.timing) if result.timing is not None else None,
        "runtime": result.runtime,
        "seed": result.seed,
        "providers": [[each.provider, each.status, each.note] for each in result.providers],
        "divergence": None
        if found is None
        else {
            "tensor": found.tensor,
            "inputs": found.inputs,
            "difference": number(found.difference),
            "tolerance": number(found.tolerance),
            "original": found.original,
            "note": found.note,
            "at": place.typed(found.original),
            "suspects": [[name, place.typed(name)] for name in found.suspects[-50:]],
        },
    }


def _check(check: OutputCheck) -> dict[str, Any]:
    return {
        "output": check.output,
        "inputs": check.inputs,
        "status": check.status,
        "difference": number(check.difference),
        "tolerance": number(check.tolerance),
        "ratio": number(check.ratio),
        "power": number(check.power),
        "note": check.note,
        "spread": None
        if check.spread is None
        else [check.spread.same, check.spread.first, list(check.spread.counts)],
    }


def _timing(timing: Timing) -> dict[str, Any]:
    ratio = timing.clock
    return {
        "text": str(timing),
        "note": timing.note,
        "measurable": timing.is_measurable,
        **{"clock": number(ratio.median), "low": number(ratio.low), "high": number(ratio.high)},
    }


def _proof(proof: Any, place: _Finder) -> dict[str, Any]:
    return {
        "status": proof.status,
        "at": proof.at,
        "node": place.named("", proof.at),
        "why": proof.why,
        "layers": [
            [layer.at, number(layer.distance), place.named("", layer.at)] for layer in proof.layers
        ],
    }
