"""The output of the command: text for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bnfold
from bnfold._core.result import changed_operators, counted, fold_lines, kept_lines, table
from bnfold._judge.verdict import end_to_end_lines
from bnfold._onnx.files.text_forms import written_as
from bnfold._report.findings import certified, trouble

if TYPE_CHECKING:
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Outcome, Verdict
    from bnfold._proof.evidence import Certificate
    from bnfold._relation.proof import Proof

SCHEMA = "bnfold.report/1"
COMPARISON = "bnfold.comparison/1"
PROOF = "bnfold.proof/1"


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


def proof_document(original: str, folded: str, proof: Proof) -> dict[str, Any]:
    """The proof as plain data; its schema is schemas/proof-1.json."""
    return {
        "schema": PROOF,
        "bnfold": bnfold.__version__,
        "original": original,
        "folded": folded,
        **proof.to_dict(),
    }


def json_text(document: Mapping[str, Any], *, ascii_only: bool = False) -> str:
    """A document as strict JSON. A path that is not valid text loses its invalid characters."""
    text = json.dumps(document, indent=2, ensure_ascii=ascii_only, allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8") + "\n"


def outcome_lines(outcome: Outcome, verbose: bool, power: bool = False) -> Iterator[str]:
    """Yield lines for a terminal. With ``power`` they always say what planted errors showed."""
    yield from _plan_lines(outcome, verbose, "folded", "merged", "dropped", "rewrote")
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
    return _plan_lines(outcome, verbose, "can fold", "can merge", "can drop", "can rewrite")


def _plan_lines(outcome: Outcome, verbose: bool, *verbs: str) -> Iterator[str]:
    """Yield lines that say what folds, merges and is dropped, and what stays.

    ``verbs`` are those of `fold_lines`.
    """
    plan = outcome.plan
    if outcome.frozen:
        yield f"froze {counted(outcome.frozen, 'initializer')} that a caller could override"
    if plan.folds:
        sizes = ("file size", _size(outcome.size_before), _size(outcome.size_after))
        yield from table((("", "before", "after"), *changed_operators(plan), sizes))
        yield from fold_lines(plan, *verbs)
        if verbose:
            yield from (f"  {fold}" for fold in plan.folds)
    else:
        yield "nothing to fold"
    yield from kept_lines(plan, verbose)
    if outcome.hanging:
        verb = "hangs" if outcome.hanging == 1 else "hang"
        yield (
            f"{counted(outcome.hanging, 'map')} {verb} on initializers that are listed as inputs, "
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
