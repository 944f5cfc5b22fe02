"""The output of the command: text for people, JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bnfold
from bnfold._core.result import Fold, Kept, Plan
from bnfold._onnx.files.text_forms import written_as
from bnfold._report.findings import certified, figures, foldable, located, trouble

if TYPE_CHECKING:
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Outcome, Verdict
    from bnfold._proof.evidence import Certificate

SCHEMA = "bnfold.report/1"
COMPARISON = "bnfold.comparison/1"


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """The whole outcome as plain data; its schema is schemas/report-1.json."""
    return {
        "schema": SCHEMA,
        "bnfold": bnfold.__version__,
        "model": str(outcome.model),
        "output": str(outcome.output) if outcome.output else None,
        "left_behind": [str(path) for path in outcome.left_behind],
        "bytes": {"before": outcome.size_before, "after": outcome.size_after},
        **outcome.plan.to_dict(),
        "verification": outcome.verdict.to_dict(),
    }


def comparison_document(original: str, folded: str, result: EndToEnd) -> dict[str, Any]:
    """The comparison of two models as plain data; its schema is schemas/comparison-1.json."""
    return {
        "schema": COMPARISON,
        "bnfold": bnfold.__version__,
        "original": original,
        "folded": folded,
        **result.to_dict(),
    }


def json_text(document: Mapping[str, Any], *, ascii_only: bool = False) -> str:
    """A document as strict JSON. A path that is not valid text loses its invalid characters."""
    text = json.dumps(document, indent=2, ensure_ascii=ascii_only, allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8") + "\n"


def outcome_lines(outcome: Outcome, verbose: bool, power: bool = False) -> Iterator[str]:
    """Yield lines for a terminal. With ``power`` they always say what planted errors showed."""
    yield from _plan_lines(outcome, verbose, "folded", "merged", "dropped")
    yield from verdict_lines(outcome.verdict, verbose, power)
    if outcome.output is not None:
        form = written_as(outcome.output) if outcome.output.suffix != ".pt2" else None
        yield f"wrote {outcome.output}" + (f", in {form.told}" if form is not None else "")
        for path in outcome.left_behind:
            yield f"{path} is not read by it any more; remove it if no other model needs it"
    elif outcome.verdict.status == "fail":
        yield "no file was written"


def left_to_fold(outcome: Outcome, verbose: bool) -> Iterator[str]:
    """Yield lines that say what would fold, and what stays."""
    return _plan_lines(outcome, verbose, "can fold", "can merge", "can drop")


def _merged(merges: Sequence[Fold]) -> str:
    """How many operators merged into how many. A merged operator may merge again with others."""
    parts, made = 0, set[tuple[str, str]]()
    for fold in merges:
        for node in (*fold.nodes, fold.into):
            parts += (fold.graph, node) not in made
            made.discard((fold.graph, node))
        made.add((fold.graph, fold.into))
    return f"{_count(parts, 'linear operator')} into {len(made)}"


def _plan_lines(
    outcome: Outcome, verbose: bool, folded: str, merged: str, dropped: str
) -> Iterator[str]:
    """Yield lines that say what folded, merged and was dropped, and what stays."""
    plan = outcome.plan
    if outcome.frozen:
        yield f"froze {_count(outcome.frozen, 'initializer')} that a caller could override"
    rows = list(_operator_rows(plan))
    if plan.folds:
        rows.append(("file size", _size(outcome.size_before), _size(outcome.size_after)))
        yield from _table(("", "before", "after"), rows)
        merges = [fold for fold in plan.folds if fold.merges]
        equal = [fold for fold in plan.folds if fold.is_equal]
        folds = [fold for fold in plan.folds if not (fold.merges or fold.is_equal)]
        maps = sum(len(fold.nodes) for fold in folds)
        targets = len({(fold.graph, fold.into) for fold in folds})
        if folds:
            yield f"{folded} {_count(maps, 'map')} into {_count(targets, 'operator')}"
        if merges:
            yield f"{merged} {_merged(merges)}"
        if equal:
            yield f"{dropped} {_count(len(equal), 'map')} that another one is equal to"
        if verbose:
            yield from (f"  {foldable(fold)}" for fold in plan.folds)
    else:
        yield "nothing to fold"
    yield from _kept_lines(plan, verbose)
    if outcome.hanging:
        verb = "hangs" if outcome.hanging == 1 else "hang"
        yield (
            f"{_count(outcome.hanging, 'map')} {verb} on initializers that are listed as inputs, "
            "which --freeze-initializers takes for fixed"
        )


def verdict_lines(verdict: Verdict, verbose: bool, power: bool = False) -> Iterator[str]:
    """Yield the verdict on a fold: one line, or more if something is wrong or with ``verbose``."""
    if verdict.status in ("unchanged", "skipped"):
        if verdict.status == "skipped":
            yield "not verified (--no-verify)"
        return
    if verdict.certificates:
        yield _count_certificates(verdict.certificates)
    for certificate in verdict.certificates:
        if not certificate.holds:
            yield f"  {certified(certificate)}: {trouble(certificate)}"
    if verdict.end_to_end is not None:
        yield from end_to_end_lines(verdict.end_to_end, verbose, power)
    yield f"verification: {verdict.status}"


def _count_certificates(certificates: Sequence[Certificate]) -> str:
    """How many certificates hold, fail and are unchecked, as text."""
    held = sum(certificate.holds for certificate in certificates)
    told = f"certificates: {held} of {len(certificates)} hold"
    unchecked = sum(certificate.unchecked is not None for certificate in certificates)
    if not unchecked:
        return told
    failed = len(certificates) - held - unchecked
    return f"{told}, {failed} fail, {unchecked} unchecked"


def end_to_end_lines(result: EndToEnd, verbose: bool, power: bool = False) -> Iterator[str]:
    """Yield the largest difference of each output and its tolerance.

    With ``verbose`` there is a line for each input set. With ``power`` the lines always say what
    planted errors showed.
    """
    shown: dict[str, Any] = {}
    for check in result.checks:
        known = shown.get(check.output)
        worse = known is None or _rank(check) > _rank(known)
        if worse:
            shown[check.output] = check
    checks = result.checks if verbose or result.status != "pass" else shown.values()
    for check in checks:
        yield f"  {check.output} on {check.inputs} inputs: {check.status}, {figures(check)}"
    if (verbose or result.status != "pass") and any(check.was_drawn for check in result.checks):
        yield f"  inputs drawn with seed {result.seed}"
    for number, line in enumerate(located(result)):
        yield f"    {line}" if number else f"  {line}"
    if verbose or power or not all(planted.noticed for planted in result.power):
        yield from _power_lines(result)
    for deployed in result.providers:
        if deployed.note or deployed.provider != "cpu":
            note = f", {deployed.note}" if deployed.note else ""
            yield f"  on {deployed.provider}: {deployed.status}{note}"
    for note in result.notes:
        yield f"  note: {note}"


def _power_lines(result: EndToEnd) -> Iterator[str]:
    """Yield lines about planted errors, for each layer or each part of the graph."""
    if not result.power:
        return
    hidden = [planted for planted in result.power if not planted.noticed]
    each = all(len(planted.layers) == 1 for planted in result.power)
    what = "layers" if each else "parts of the graph"
    count = len(result.power)
    yield f"  planted errors of 1 % show in {count - len(hidden)} of {count} {what}"
    for planted in hidden:
        first, *others = planted.layers
        more = f" and {_count(len(others), 'layer')} more" if others else ""
        yield f"    not in {first}{more}: {planted.ratio:.2g} of the tolerance"


def _rank(check: Any) -> tuple[int, float]:
    order = {"inconclusive": 0, "pass": 1, "fail": 2}
    return order[check.status], check.ratio if check.ratio is not None else 0.0


def _operator_rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    for op in sorted({*plan.before, *plan.after}):
        before, after = plan.before.get(op, 0), plan.after.get(op, 0)
        if before != after:
            yield op, str(before), str(after)


def _table(header: tuple[str, ...], rows: list[tuple[str, str, str]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(3)]
    for name, before, after in (header, *rows):
        yield f"  {name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}".rstrip()


def _kept_lines(plan: Plan, verbose: bool) -> Iterator[str]:
    """Yield lines about the operators that stay, with their reasons."""
    if not plan.kept:
        return
    codes = Counter(kept.code for kept in plan.kept)
    unmerged = sum(kept.kind == "merge" for kept in plan.kept)
    counts = [(len(plan.kept) - unmerged, "map"), (unmerged, "unmerged operator")]
    yield "kept " + " and ".join(_count(number, noun) for number, noun in counts if number)
    for code, count in codes.most_common():
        members = [kept for kept in plan.kept if kept.code == code]
        if verbose:
            yield f"  {code} ({count}): {members[0].advice}"
            yield from (f"    {_kept_line(kept)}" for kept in members)
        else:
            more = f", and {count - 1} more" if count > 1 else ""
            yield f"  {code}: {_kept_line(members[0])}{more}"


def _kept_line(kept: Kept) -> str:
    place = f" [{kept.graph}]" if kept.graph else ""
    return f"{kept.node}{place}: {kept.message}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size: int) -> str:
    """Three digits and a unit."""
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB"):
        if value >= 999.5:
            value, unit = value / 1000, larger
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"
