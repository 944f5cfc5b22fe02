"""The output of the command: text for people, JSON for programs."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import bnfold
from bnfold._core.result import changed_operators, counted, fold_lines, kept_lines, table
from bnfold._judge.proof_text import proof_lines, status_of
from bnfold._judge.verdict import end_to_end_lines
from bnfold._onnx.files.text_forms import written_as
from bnfold._report.escapes import COMMANDS
from bnfold._report.findings import certified, trouble
from bnfold._report.lines import VERDICTS, Line, concluding

if TYPE_CHECKING:
    from pathlib import Path

    from bnfold._core.result import Plan
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Equalization, Outcome, Simplification, Verdict
    from bnfold._proof.evidence import Certificate
    from bnfold._relation.proof import Proof

SCHEMA = "bnfold.report/1"
COMPARISON = "bnfold.comparison/1"
CHECK = "bnfold.check/1"
PROOF = "bnfold.proof/1"
_COMMANDS = ("fold", "verify", "explain")


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
        "inputs": [change.to_dict() for change in outcome.inputs],
        "tidied": dict(outcome.tidied),
        "verification": outcome.verdict.to_dict(),
        "equalization": outcome.equalization.to_dict() if outcome.equalization else None,
        "simplification": outcome.simplification.to_dict() if outcome.simplification else None,
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


def check_document(checked: Sequence[tuple[Path, Outcome | None, str]]) -> dict[str, Any]:
    """What is left to fold in several models as plain data; its schema is schemas/check-1.json.

    Each is a path with its outcome, or with the error that says why it could not be read.
    """
    models = []
    for path, outcome, error in checked:
        status = "unreadable"
        if outcome is not None:
            status = "left to fold" if outcome.plan.folds else "nothing to fold"
        document = outcome_document(outcome) if outcome is not None else None
        models.append(
            {"model": str(path), "status": status, "error": error or None, "report": document}
        )
    return {"schema": CHECK, "bnfold": bnfold.__version__, "models": models}


def json_text(document: Mapping[str, Any], *, ascii_only: bool = False) -> str:
    """A document as strict JSON. A path that is not valid text loses its invalid characters.

    No CI server takes what stands in it for a command.
    """
    text = json.dumps(document, indent=2, ensure_ascii=ascii_only, allow_nan=False)
    text = re.sub(COMMANDS, r"\\u0023#", text)
    return text.encode("utf-8", "replace").decode("utf-8") + "\n"


def outcome_lines(
    outcome: Outcome,
    verbose: bool,
    power: bool = False,
    quiet: bool = False,
    words: Sequence[str] = (),
) -> Iterator[str]:
    """Yield lines for a terminal. With ``power`` they always say what planted errors showed.

    With ``quiet`` there are none unless something is wrong or open. ``words`` are those of the
    command line, the model among them: what to type next repeats them.
    """
    if quiet:
        if outcome.verdict.status not in ("fail", "inconclusive"):
            return
        yield f"{outcome.model}:"
    written = outcome.output is not None
    if not quiet:
        yield from _plan_lines(outcome, verbose, "" if written else "would ")
    yield from verdict_lines(outcome.verdict, verbose, power)
    if outcome.simplification is not None and (not quiet or outcome.simplification.refused):
        yield _simplification_line(outcome.simplification)
    if outcome.equalization is not None and (not quiet or outcome.equalization.refused):
        yield from _equalization_lines(outcome.equalization, verbose)
    if outcome.output is not None:
        form = written_as(outcome.output) if outcome.output.suffix != ".pt2" else None
        yield f"wrote {outcome.output}" + (f", in {form.told}" if form is not None else "")
        for path in outcome.left_behind:
            yield f"{path} is not read by it any more; remove it if no other model needs it"
    elif outcome.verdict.status == "fail":
        yield Line("no file was written", "bad")
    elif not quiet:
        yield from _what_next(outcome, words)


def extra_lines(outcome: Outcome) -> Iterator[str]:
    """Yield what was done to a model besides folding."""
    yield from _ahead_lines(outcome, "")
    if outcome.simplification is not None:
        yield _simplification_line(outcome.simplification)
    if outcome.equalization is not None:
        yield from _equalization_lines(outcome.equalization, verbose=False)


def _ahead_lines(outcome: Outcome, would: str) -> Iterator[str]:
    """Yield what was done to a model ahead of folding."""
    yield from map(str, outcome.inputs)
    if outcome.tidied:
        told = ", ".join(f"{count} {op}" for op, count in outcome.tidied.items())
        yield f"{'would take' if would else 'took'} out what does nothing: {told}"
    if outcome.frozen:
        yield f"froze {counted(outcome.frozen, 'initializer')} that a caller could override"


def _simplification_line(done: Simplification) -> str:
    """What came of letting another tool simplify the model."""
    if done.refused:
        return f"not simplified, {done.by}: {done.refused}"
    if not done.applied:
        return f"not simplified: {done.by} finds nothing to take away"
    proved = "; proved" if done.proof is not None and done.proof.status == "proved" else ""
    return f"simplified by {done.by}: {done.after} operators, {done.before} without{proved}"


def _equalization_lines(done: Equalization, verbose: bool) -> Iterator[str]:
    """Yield what came of equalizing; with ``verbose`` each layer by itself."""
    if done.refused:
        yield f"not equalized: {done.refused}"
        return
    if not done.layers:
        yield "not equalized: no scales between layers would make their channels more alike"
        return
    told = f"equalized {counted(len(done.layers), 'layer')}"
    if done.errors is not None:
        before, after = done.errors
        told += f": in int8 the model is off by {after:.2%}, and by {before:.2%} without"
    yield told
    if verbose:
        yield from (
            f"  {name}: its channels lose {now:.2f} bits of a scale in common, {was:.2f} before"
            for name, (was, now) in done.layers.items()
        )
    if done.proof is not None:
        yield from proof_lines(done.proof, False)


def left_to_fold(outcome: Outcome, verbose: bool, repeated: Sequence[str] = ()) -> Iterator[str]:
    """Yield lines that say what would fold, and what stays.

    ``repeated`` are options that a fold needs as well to do what is said here.
    """
    yield from _plan_lines(outcome, verbose, "would ")
    yield from _what_next(outcome, (typed(outcome.model), *repeated))


VERBS = (("fold", "folded"), ("merge", "merged"), ("drop", "dropped"), ("rewrite", "rewrote"))


def _plan_lines(outcome: Outcome, verbose: bool, would: str) -> Iterator[str]:
    """Yield lines that say what folds, merges and is dropped, and what stays.

    ``would`` is "would " where nothing is written, and "" where it is.
    """
    plan = outcome.plan
    yield from _ahead_lines(outcome, would)
    if plan.folds:
        sizes = ("file size", size_in_words(outcome.size_before), size_in_words(outcome.size_after))
        for line in fold_lines(plan, *(would + now if would else done for now, done in VERBS)):
            yield Line(line, "head")
        yield from table((("", "before", "after"), *changed_operators(plan), sizes))
        if verbose:
            yield from (f"  {fold}" for fold in plan.folds)
    else:
        yield Line("nothing to fold", "head")
    yield from (
        line if line.startswith(" ") else Line(line, "head") for line in kept_lines(plan, verbose)
    )
    yield from _what_more(plan, verbose)
    if outcome.hanging:
        yield (
            f"{counted(outcome.hanging, 'affine operator')} would fold if nobody overrides the "
            "initializers that are listed as inputs, too; --freeze-initializers says that"
        )


def _what_next(outcome: Outcome, words: Sequence[str] = ()) -> Iterator[str]:
    """Yield what to type to get the folded file, where there would be one."""
    if outcome.inputs or outcome.tidied or outcome.plan.folds:
        yield f"nothing was written; to {'fold' if outcome.plan.folds else 'write'} it, type:"
        command = folding_command(outcome.model, words)
        yield Line(f"  {command}", "type", "  bnfold MODEL -o FOLDED")


def folding_command(model: Path, words: Sequence[str] = ()) -> str:
    """What to type to fold a model: the words that were typed, and where to write."""
    folded = model.with_name(f"{model.stem}.folded{model.suffix or '.onnx'}")
    if not words or words[0].startswith("-"):  # it may be behind a "--"
        words = [typed(model)]
    return shlex.join(("bnfold", *words, "-o", typed(folded)))


def typed(path: Path) -> str:
    """A path as an argument: it is taken for no option, no list of models and no command."""
    name = str(path)
    return f".{os.sep}{name}" if name[:1] in ("-", "@") or name in _COMMANDS else name


def _what_more(plan: Plan, verbose: bool) -> Iterator[str]:
    """Yield how to learn more about what stays."""
    stays = [kept for kept in plan.kept if not kept.is_bias]
    if stays and not verbose:
        code = min(stays, key=lambda kept: not kept.is_batch_norm).code
        hidden = len(stays) > len({(kept.kind, kept.code) for kept in stays})
        every = "-v lists all that stay; " if hidden else ""
        yield Line(f"{every}'bnfold explain {code}' says what helps", "faint")


def verdict_lines(verdict: Verdict, verbose: bool, power: bool = False) -> Iterator[str]:
    """Yield the verdict on a fold: one line, or more if something is wrong or with ``verbose``."""
    if verdict.status in ("unchanged", "skipped"):
        if verdict.status == "skipped":
            yield "not verified (--no-verify)"
        return
    if verdict.certificates:
        yield f"certificates: {count_certificates(verdict.certificates)}"
    for certificate in verdict.certificates:
        if not certificate.holds:
            yield f"  {certified(certificate)}: {trouble(certificate)}"
    if verdict.end_to_end is not None:
        yield from _compared(verdict.end_to_end, verbose, power)
    yield verification_line(verdict.status)


def comparison_lines(
    result: EndToEnd, verbose: bool, power: bool = False, quiet: bool = False
) -> Iterator[str]:
    """Yield lines about a comparison; with ``quiet`` none where it passes."""
    if not (quiet and result.status == "pass"):
        yield from _compared(result, verbose, power)
        yield verification_line(result.status)


def _compared(result: EndToEnd, verbose: bool, power: bool) -> Iterator[str]:
    """The lines of a comparison, of which what was proved stands out."""
    style = VERDICTS[status_of(result.proof)] if result.proof is not None else "plain"
    return concluding(end_to_end_lines(result, verbose, power), style)


def verification_line(status: str) -> Line:
    """The verdict as the last word of a run."""
    return Line(f"verification: {status}", VERDICTS.get(status, "plain"))


def count_certificates(certificates: Sequence[Certificate]) -> str:
    """How many certificates hold, fail and are unchecked, as text."""
    held = sum(certificate.holds for certificate in certificates)
    told = f"{held} of {len(certificates)} hold"
    unchecked = sum(certificate.unchecked is not None for certificate in certificates)
    if not unchecked:
        return told
    failed = len(certificates) - held - unchecked
    return f"{told}, {failed} fail, {unchecked} unchecked"


def size_in_words(size: int) -> str:
    """Three digits and a unit."""
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB"):
        if value >= 999.5:
            value, unit = value / 1000, larger
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"
