"""bnfold removes BatchNorm and per-channel affine operators from trained networks, and proves it.

bnfold.plan(model)                what folding would do, and why the rest stays
bnfold.fold(model)                the folded model, of the kind that was given
bnfold.verify(original, folded)   are these two the same function?
bnfold.prove(original, folded)    the same question, answered from the weights without a run
bnfold.report(model, page)        a page that shows the network before and after, and the verdict
bnfold.refold(folded, state_dict) a folded module with new weights, without another trace
bnfold.run(path, output)          one model of many, in a process of its own; see bnfold.registry
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own takes longer to import than all that a command begins with.
if TYPE_CHECKING:
    from typing import Any

    from bnfold._api import fold, plan, prove, refold, verify
    from bnfold._core.preprocessing import Preprocessing
    from bnfold._core.result import Fold, Kept, Plan
    from bnfold._errors import BnfoldError, UsageError
    from bnfold._judge.verdict import EndToEnd
    from bnfold._registry.report import Report
    from bnfold._registry.unit import run
    from bnfold._relation.proof import Proof
    from bnfold._report.page.api import report

_HOMES = {
    "BnfoldError": "bnfold._errors",
    "EndToEnd": "bnfold._judge.verdict",
    "Fold": "bnfold._core.result",
    "Kept": "bnfold._core.result",
    "Plan": "bnfold._core.result",
    "Preprocessing": "bnfold._core.preprocessing",
    "Proof": "bnfold._relation.proof",
    "Report": "bnfold._registry.report",
    "UsageError": "bnfold._errors",
    "fold": "bnfold._api",
    "plan": "bnfold._api",
    "prove": "bnfold._api",
    "refold": "bnfold._api",
    "report": "bnfold._report.page.api",
    "run": "bnfold._registry.unit",
    "verify": "bnfold._api",
}

__all__ = [
    "BnfoldError",
    "EndToEnd",
    "Fold",
    "Kept",
    "Plan",
    "Preprocessing",
    "Proof",
    "Report",
    "UsageError",
    "__version__",
    "fold",
    "plan",
    "prove",
    "refold",
    "report",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``import bnfold`` alone costs nothing."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("bnfold")
        except PackageNotFoundError:
            return "0+checkout"
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
