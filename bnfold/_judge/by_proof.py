"""The proof from the weights within a verdict: what it settles, and what it leaves to a run.

An output that is proved passes, whatever a run can see of it. A run stays a second opinion: it sees
overflow and bugs of a runtime, which no weight shows, and where outputs differ by these the verdict
stays. Files that are refuted fail. A proof takes no verdict down: it has bounds of its own, and an
error in it is a reason why nothing is proved.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from onnx import ModelProto

from bnfold._errors import UsageError
from bnfold._judge.difference import NOT_FINITE_ALIKE
from bnfold._judge.settings import Settings
from bnfold._judge.verdict import Cause, EndToEnd, OutputCheck
from bnfold._onnx.files.load import why_invalid
from bnfold._relation.proof import Proof, Stopped, prove
from bnfold._run.bounds import Bounds
from bnfold._run.ports import alike_in_ports, renamed
from bnfold._run.providers import CPU
from bnfold._system import memory
from bnfold._system.records import record

SECONDS = 120.0
"""A proof takes no longer; and with --timeout no more than half of what is left."""
_FREE = 1 << 30
"""So many bytes a proof may take, and twice the models' besides."""
_EVERY_S = 0.2
_NONE: Mapping[str, ModelProto] = {}
_SEEN_TO_DIFFER = (Cause.DIFFERS_AHEAD, Cause.DIFFERS_AT)


@record
class _Watch:
    """Ends a proof that takes too long, or too much memory."""

    deadline: float
    most: int
    next: float = field(default_factory=time.monotonic)

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + _EVERY_S
        if now > self.deadline:
            raise Stopped("the time for a proof is up")
        if memory.held() > self.most:
            raise Stopped("a proof would take too much memory")


def proof_of(
    original: tuple[ModelProto, Path],
    folded: tuple[ModelProto, Path],
    size: int,
    settings: Settings,
    bounds: Bounds,
) -> Proof | None:
    """The proof for two models, each with the folder of its external data; None if not asked for.

    ``size`` is how many bytes both have. Their ports have to be those that a run compares: of the
    same names in the same order, or renamed as position tells.
    """
    if not settings.prove:
        return None
    (one, one_dir), (other, other_dir) = original, folded
    if not alike_in_ports(one, other) and renamed(one, other) is None:
        why = "the two files differ in their inputs or outputs, or in the order of these"
        return Proof("not proved", "", why)

    def proved(watch: Callable[[], None]) -> Proof:
        return prove(one, other, one_dir, other_dir, watch)

    return within(proved, size, bounds, {"original": one, "folded model": other})


def within(
    prove: Callable[[Callable[[], None]], Proof],
    size: int,
    bounds: Bounds,
    files: Mapping[str, ModelProto] = _NONE,
) -> Proof:
    """What ``prove`` finds of two models of so many bytes, if it does so within time and memory.

    ``files`` are those of ONNX among them: one that is not valid is told to be the cause of an
    error.
    """
    now, end = time.monotonic(), bounds.deadline
    seconds = SECONDS if end is None else min(SECONDS, (end - now) / 2)
    watch = _Watch(now + seconds, memory.held() + _FREE + 2 * size)
    try:
        return prove(watch)
    except (Stopped, UsageError) as error:
        return Proof("not proved", "", str(error))
    except MemoryError:
        return Proof("not proved", "", "out of memory")
    except Exception as error:
        for side, model in files.items():
            problem = why_invalid(model)
            if problem is not None:
                return Proof("not proved", "", f"the {side} is not a valid ONNX model: {problem}")
        return of_defect(error)


def of_defect(error: Exception) -> Proof:
    """What an error of the proof's own amounts to; BNFOLD_TRACEBACK shows where it is."""
    if memory.ran_out(error):
        return Proof("not proved", "", "out of memory")
    if "BNFOLD_TRACEBACK" in os.environ:
        raise error
    why = f"a defect of bnfold: {type(error).__name__}: {error}; BNFOLD_TRACEBACK=1 shows where"
    return Proof("not proved", "", why)


def is_proved(proof: Proof | None) -> bool:
    """Whether all outputs are proved."""
    return proof is not None and proof.status == "proved"


def judged(checks: Sequence[OutputCheck], proof: Proof | None) -> list[OutputCheck]:
    """The checks of outputs, where those that are proved pass.

    A check that fails stays. So does one that is open because numbers ahead of its output differ
    by more than rounding does, or because its infinities do: that is what a run is for.
    """
    if proof is None:
        return list(checks)
    unproved = {each.name for each in proof.outputs if each.status != "proved"}
    proved = {each.name for each in proof.outputs} - unproved
    whole = is_proved(proof)
    return [_by_proof(each) if whole or each.output in proved else each for each in checks]


def _by_proof(check: OutputCheck) -> OutputCheck:
    if check.status == "pass" and check.cause is Cause.POWER_UNKNOWN:
        return replace(check, cause=None)
    differs = check.cause in _SEEN_TO_DIFFER or (
        check.cause is Cause.MISMATCH_BY_ROUNDING and check.about[0] in NOT_FINITE_ALIKE
    )
    if check.status != "inconclusive" or differs:
        return check
    cause, about = (Cause.PROVED_THOUGH, (check.note,)) if check.note else (Cause.PROVED, ())
    return replace(check, status="pass", cause=cause, about=about, contested=False)


def settled(result: EndToEnd, proof: Proof | None, settings: Settings) -> EndToEnd:
    """The verdict on two models that ran, or did not run, after their proof.

    What is refuted fails, unless a tolerance was asked for: that says which differences matter.
    What could not be run passes if it is proved, but not on a provider that somebody asked for.
    """
    if proof is None:
        return result
    status, notes = result.status, list(result.notes)
    if proof.status == "refuted":
        if settings.fixed is not None:
            notes.append("the weights are not the same; the tolerance that was asked for decides")
        else:
            if status == "pass":
                notes.append("outputs do not show on these inputs that the weights are wrong")
            status = "fail"
    elif is_proved(proof) and status == "fail":
        notes.append(
            "the weights prove that both are one function on real numbers: what differs comes from "
            "the types (overflow) or from the runtime"
        )
    elif is_proved(proof) and not result.checks and all(p == CPU for p in settings.providers):
        status = "pass"
        notes.append("the two were not compared in a run: the verdict rests on the proof alone")
    return replace(result, status=status, notes=tuple(notes), proof=proof)
