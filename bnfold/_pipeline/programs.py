"""Fold a .pt2 file and judge the result, as the command does with ONNX files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from bnfold._pipeline.modules import compare_programs
from bnfold._pipeline.outcome import Outcome, Progress, Verdict
from bnfold._system import paths
from bnfold._torch.program.fold import PlannedProgram, load


def fold_program_file(
    path: Path,
    output: Path | None,
    *,
    verify: bool,
    seed: int,
    progress: Progress,
) -> Outcome:
    """Fold a file, judge the result in PyTorch, and put it in place unless the verdict is "fail".

    Raises `UsageError` for what cannot be read or written; no file is left behind then.
    """
    progress("reading")
    original = paths.read(path)
    program = load(path)
    planned = PlannedProgram(program)
    changed = bool(planned.plan.folds)
    size = len(original)
    if not changed and (output is None or paths.is_same(output, path)):
        return Outcome(path, planned.plan, Verdict("unchanged"), size, size, None)
    progress("folding")
    folded = planned.apply() if changed else program
    verdict = Verdict("skipped" if changed else "unchanged")
    if verify and changed:
        progress("running both programs")
        result = compare_programs(program, folded, seed)
        verdict = Verdict(result.status, (), result)
    home = output.parent if output is not None else None
    try:
        with tempfile.TemporaryDirectory(prefix=".bnfold-", dir=home) as folder:
            draft = Path(folder) / "folded.pt2"
            if changed:
                torch.export.save(folded, draft)
            else:
                draft.write_bytes(original)
            after = draft.stat().st_size
            written = output if verdict.status != "fail" else None
            if written is not None:
                os.replace(draft, written)
    except OSError as error:
        raise paths.unwritable(output, error) from error
    return Outcome(path, planned.plan, verdict, size, after, written)
