"""bnfold as a step of other tools: fold, verify, and go on only with what passed.

``bnfold.passes.onnx_ir.FoldPass`` is a pass of onnx-ir, ``bnfold.passes.olive.BnfoldFold`` one of
Olive. `fold_folder` folds what an exporter wrote into a folder, Optimum's for instance.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._errors import BnfoldError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bnfold._core.result import Plan

__all__ = ["NotVerified", "fold_and_verify", "fold_folder", "judged"]


class NotVerified(BnfoldError):
    """A fold did not pass its verification. The message says where the two models differ."""


def fold_and_verify(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    depthwise: bool = False,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
    follow_links: bool = False,
) -> Plan:
    """Fold a file as ``bnfold PATH -o OUTPUT`` does, and say what was folded.

    ``output`` may be ``path`` itself. It appears, or changes, only if the verification did not
    fail: model and external data as one. A verdict that could not be reached is a ``UserWarning``.
    The options are those of `bnfold.fold`.
    Raises `NotVerified`, and `UsageError` for a file that cannot be read or written.
    """
    from bnfold._judge.settings import Settings
    from bnfold._pipeline.models import fold_file
    from bnfold._report.text import outcome_lines

    settings = Settings(
        frozen=freeze_initializers, equal_dims=assume_equal_dims, follow_links=follow_links
    )
    outcome = fold_file(
        Path(path),
        Path(output),
        verify=True,
        inputs=None,
        progress=lambda step: None,
        settings=settings,
        depthwise=depthwise,
    )
    judged(outcome.verdict.status, str(path), outcome_lines(outcome, verbose=False))
    return outcome.plan


def judged(status: str, name: str, lines: Iterable[str]) -> None:
    """Raise `NotVerified` where a verification failed; warn where it could not be judged."""
    told = "\n".join(lines)
    if status == "fail":
        raise NotVerified(f"the fold of {name} is not the same function\n{told}")
    if status == "inconclusive":
        warnings.warn(
            f"whether the fold of {name} is the same function could not be judged\n{told}",
            stacklevel=3,
        )


def fold_folder(folder: str | os.PathLike[str], **options: bool) -> dict[Path, Plan]:
    """Fold every ``.onnx`` file of a folder in place, each as `fold_and_verify` does.

    Gives the plan of each file. ``options`` are those of `fold_and_verify`.
    Raises `UsageError` where there is none, and what `fold_and_verify` raises: the files ahead of
    that one, by name, are folded then, and the others are as they were.
    """
    found = sorted(Path(folder).glob("*.onnx"))
    if not found:
        raise UsageError(f"there is no .onnx file in {folder}")
    return {path: fold_and_verify(path, path, **options) for path in found}
