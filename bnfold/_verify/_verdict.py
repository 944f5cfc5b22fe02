"""What a check found: one verdict per output and input set, and one for the model."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class OutputCheck:
    """One output of the model, compared on one input set.

    All figures are in the unit of the output; they are None where there was nothing to measure.

    Attributes:
        output: name of the graph output.
        inputs: label of the input set.
        status: the verdict.
        difference: largest absolute difference between original and folded model.
        tolerance: largest difference that a right fold may cause.
        ratio: difference / tolerance.
        rounding: how far the original moves when its weights move by one rounding step each.
        power: how far the original moves when the folded layers are wrong by 1 % (10 % in
            float16), in that part of the graph where it shows least.
        note: why, where the figures do not say it.
    """

    output: str
    inputs: str
    status: Status
    difference: float | None = None
    tolerance: float | None = None
    ratio: float | None = None
    rounding: float | None = None
    power: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are valid JSON."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class EndToEnd:
    """The comparison of two whole models.

    Attributes:
        status: "fail" if any check failed, "pass" if every output was seen to agree on at least
            one input set, else "inconclusive".
        checks: one entry per output and input set.
        notes: what concerns the whole comparison.
        seed: seed of the drawn inputs and of the weight noise.
        runtime: name and version of what ran the models.
        provider: where it ran.
    """

    status: Status
    checks: tuple[OutputCheck, ...]
    notes: tuple[str, ...]
    seed: int
    runtime: str
    provider: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are valid JSON."""
        return {
            "status": self.status,
            "checks": [check.to_dict() for check in self.checks],
            "notes": list(self.notes),
            "seed": self.seed,
            "runtime": self.runtime,
            "provider": self.provider,
        }


def overall(checks: Collection[OutputCheck]) -> Status:
    """Combine the verdicts of all outputs on all input sets into one."""
    if any(check.status == "fail" for check in checks):
        return "fail"
    outputs = {check.output for check in checks}
    seen = {check.output for check in checks if check.status == "pass"}
    return "pass" if outputs and seen == outputs else "inconclusive"


def _plain(value: str | float | None) -> str | float | None:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
