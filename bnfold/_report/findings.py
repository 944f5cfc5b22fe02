"""A run as a list of questions with their answers, for programs that show such lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from bnfold._core.result import affine_counts, counted, fold_lines
from bnfold._judge.proof_text import in_units, proof_lines, status_of
from bnfold._judge.verdict import figures, located
from bnfold._system.records import record

if TYPE_CHECKING:
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Outcome
    from bnfold._proof.evidence import Certificate
    from bnfold._relation.proof import Proof


@record(frozen=True)
class Finding:
    """One question, its answer, and the text about it."""

    group: Literal["foldable", "certificate", "layer", "output", "proof", "verification"]
    name: str
    status: Literal["pass", "fail", "inconclusive"]
    message: str = ""


def of_check(outcome: Outcome) -> Iterator[Finding]:
    """Yield the findings of ``--check``: what is left to fold."""
    for fold in outcome.plan.folds:
        yield Finding("foldable", ", ".join(fold.nodes), "fail", str(fold))
    if not outcome.plan.folds:
        yield Finding("foldable", "the model", "pass", "nothing to fold")


def of_left(outcome: Outcome) -> Iterator[Finding]:
    """Yield one finding where something is left to fold: how much."""
    told = "; ".join(fold_lines(outcome.plan))
    if told:
        gone, _ = affine_counts(outcome.plan)
        name = "something is left to fold"
        if gone:
            verb = "is" if gone == 1 else "are"
            name = f"{counted(gone, 'affine operator')} {verb} left to fold"
        yield Finding("foldable", name, "fail", told)


def of_fold(outcome: Outcome) -> Iterator[Finding]:
    """Yield the findings of a fold and its verification."""
    verdict = outcome.verdict
    for certificate in verdict.certificates:
        status: Literal["pass", "fail", "inconclusive"] = "pass" if certificate.holds else "fail"
        if certificate.unchecked is not None:
            status = "inconclusive"
        yield Finding("certificate", certified(certificate), status, trouble(certificate))
    if verdict.end_to_end is not None:
        yield from of_verify(verdict.end_to_end)
    elif verdict.status == "unchanged":
        yield Finding("verification", "the model", "pass", "nothing to fold")
    else:
        yield Finding("verification", "the model", "inconclusive", "not verified (--no-verify)")
    done = outcome.equalization
    if done is not None and done.proof is not None:
        told = Finding("proof", "equalized", "pass", str(done.proof))
        yield replace(told, status="inconclusive", message=done.refused) if done.refused else told
    if outcome.simplification is not None and outcome.simplification.refused:
        refused = outcome.simplification
        yield Finding("proof", f"simplified by {refused.by}", "inconclusive", refused.refused)


def of_verify(result: EndToEnd) -> Iterator[Finding]:
    """Yield the findings of a comparison. One that could not be made has no outputs.

    What is not proved is no finding of its own where a run has shown enough.
    """
    proof = result.proof
    if proof is not None and (proof.status != "not proved" or result.status != "pass"):
        yield from of_proof(proof)
    for check in result.checks:
        name = f"{check.output} on {check.inputs} inputs"
        yield Finding("output", name, check.status, figures(check))
    if result.divergence is not None:
        # If no output shows it, it is no failure, but worth a look.
        shown: Literal["fail", "inconclusive"] = "inconclusive"
        if result.status == "fail":
            shown = "fail"
        yield Finding("verification", "first difference", shown, "; ".join(located(result)))
    for deployed in result.providers:
        yield Finding("verification", f"on {deployed.provider}", deployed.status, deployed.note)
    if not result.checks:
        yield Finding("verification", "both models", result.status, "; ".join(result.notes))


def of_proof(proof: Proof) -> Iterator[Finding]:
    """Yield a finding for each layer that agrees, and one for the files."""
    for layer in proof.layers:
        yield Finding("layer", layer.at, "pass", in_units(layer.distance))
    status = status_of(proof)
    if status == "pass":
        yield Finding("proof", "both models", status, next(proof_lines(proof, False)))
    else:
        yield Finding("proof", proof.at or "both models", status, proof.why)


def certified(certificate: Certificate) -> str:
    """The text about the fold that a certificate checks."""
    maps = f" ← {', '.join(certificate.maps)}" if certificate.maps else ""
    return certificate.into + maps


def trouble(certificate: Certificate) -> str:
    """Why a certificate does not hold, or ""."""
    if certificate.holds:
        return ""
    if certificate.unchecked is not None:
        return f"unchecked, {certificate.unchecked}"
    if certificate.problem:
        return certificate.problem
    if certificate.ulps > 1.0:
        return f"{certificate.ulps:.3g} units in the last place off"
    return f"on real numbers {certificate.probe:.3g} times what rounding explains"
