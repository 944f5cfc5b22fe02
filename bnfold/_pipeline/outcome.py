"""What comes of one run: the plan, the verdict, and the file if one was written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bnfold._core.result import Plan

if TYPE_CHECKING:
    from bnfold._judge.verdict import EndToEnd
    from bnfold._proof.evidence import Certificate

RunStatus = Literal["pass", "fail", "inconclusive", "unchanged", "skipped"]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """The certificate of every fold and the comparison of the two models.

    ``status`` is "unchanged" when nothing folded and "skipped" when no check was asked for.
    """

    status: RunStatus
    certificates: tuple[Certificate, ...] = ()
    end_to_end: EndToEnd | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are valid JSON."""
        return {
            "status": self.status,
            "certificates": [certificate.to_dict() for certificate in self.certificates],
            "end_to_end": self.end_to_end.to_dict() if self.end_to_end else None,
        }


@dataclass(frozen=True)
class Outcome:
    """One run: what was planned, the verdict, sizes in bytes, and the file if one was written.

    ``left_behind`` are data files of a model that was written over, which it no longer reads; other
    models may.
    """

    model: Path
    plan: Plan
    verdict: Verdict
    size_before: int
    size_after: int
    output: Path | None
    left_behind: tuple[Path, ...] = ()
