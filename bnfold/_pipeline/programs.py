"""Fold a .pt2 file and judge the result, as the command does with ONNX files."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.export import ExportedProgram

from bnfold._judge.power import RestingFold
from bnfold._pipeline.modules import compare_programs
from bnfold._pipeline.outcome import Outcome, Progress, Verdict
from bnfold._pipeline.proved_in_pytorch import settled_by_proof
from bnfold._proof.torch_certificate import certify_program
from bnfold._run.torch_model import one_thread
from bnfold._system import paths, scratch, time_limit
from bnfold._torch.program.fold import FoldedProgram, PlannedProgram, load, refuse_no_archive


def fold_program_file(
    path: Path,
    output: Path | None,
    *,
    verify: bool,
    seed: int,
    trust: bool,
    progress: Progress,
    depthwise: bool = False,
) -> Outcome:
    """Fold a file, judge the result in PyTorch, and put it in place unless the verdict is "fail".

    Raises `UsageError` for a file that cannot be read or written; then no file is left behind.
    """
    progress("reading")
    original = paths.read(path, refuse_no_archive)
    program = load(path, trust)
    planned = PlannedProgram(program, depthwise)
    changed = bool(planned.plan.folds)
    size = len(original)
    if not changed and (output is None or paths.is_same(output, path)):
        return Outcome(path, planned.plan, Verdict("unchanged"), size, size, None)
    progress("folding")
    told = planned.apply_told() if changed else FoldedProgram(program, ())
    folded = told.program
    verdict = Verdict("skipped" if changed else "unchanged")
    if verify and changed:
        verdict = _judged(program, told, seed, progress)
    home = output.parent if output is not None else None
    try:
        with scratch.beside(home) as folder:
            draft = folder / "folded.pt2"
            if changed:
                torch.export.save(folded, draft)
            else:
                draft.write_bytes(original)
            after = draft.stat().st_size
            written = output if verdict.status != "fail" else None
            if written is not None:
                time_limit.lift()
                paths.set_mode(draft, written, path)
                os.replace(draft, written)
    except OSError as error:
        raise paths.unwritable(output, error) from error
    return Outcome(path, planned.plan, verdict, size, after, written)


def _judged(
    program: ExportedProgram, told: FoldedProgram, seed: int, progress: Progress
) -> Verdict:
    """The verdict: certificates of all steps first, then a run of both programs, and the proof of
    the pair where these leave it open.
    """
    progress("certifying every fold")
    with one_thread():
        certificates = certify_program(told.applied)
    resting = [
        RestingFold(certificate.into, certificate.layers)
        for certificate in certificates
        if certificate.unchecked is not None
    ]
    certified = all(certificate.holds for certificate in certificates)
    progress("running both programs")
    result = compare_programs(program, told.program, seed, certified, resting)
    if result.status == "inconclusive":
        progress("proving")
    result = settled_by_proof(result, program, told.program, None)
    wrong = any(certificate.fails for certificate in certificates)
    return Verdict("fail" if wrong else result.status, certificates, result)
