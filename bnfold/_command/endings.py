"""How a run ends: its exit code, and the one line for an error."""

from __future__ import annotations

from bnfold._errors import UsageError
from bnfold._system import paths

PASSED, FAILED, UNUSABLE, UNDECIDED = range(4)
SIGNALLED = 128
EXIT_CODES = {
    "pass": PASSED,
    "unchanged": PASSED,
    "skipped": PASSED,
    "fail": FAILED,
    "inconclusive": UNDECIDED,
}


def in_one_line(error: Exception) -> str:
    """What went wrong, in words for the user."""
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{paths.why(error)}"
    from bnfold._system import memory  # imported late: NumPy comes along

    if memory.ran_out(error):
        return "out of memory"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (
        f"bnfold broke down ({text}). This is a defect of bnfold: please report it, with the "
        "output under BNFOLD_TRACEBACK=1"
    )
