"""The result of one run: the plan, the verdict, and the file if one was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bnfold._core.preprocessing import Preprocessing
from bnfold._core.result import Plan
from bnfold._system.records import record

if TYPE_CHECKING:
    from bnfold._judge.verdict import EndToEnd
    from bnfold._proof.evidence import Certificate
    from bnfold._relation.proof import Proof

RunStatus = Literal["pass", "fail", "inconclusive", "unchanged", "skipped"]
Progress = Callable[[str], None]


@record(frozen=True)
class Verdict:
    """The certificates of all folds, and the comparison of the two models.

    Attributes:
        status: the verdict; "unchanged" if nothing folded, "skipped" if the user wanted no check.
        certificates: one for each fold.
        end_to_end: the comparison, or None if there was none.
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


@record(frozen=True)
class InputChange:
    """What has become of one input.

    Attributes:
        name: the input's, before and after.
        before: its type and shape.
        after: those that it has now.
        values: the preprocessing that the model does now or, if ``exposed``, its caller has to do.
        exposed: whether operators were taken out of the model.
        operators: those of the preprocessing that stand in front of the model, or that were taken
            out, by type.
        why: why they are not in weights.
        reordered: operators whose weights have the order of channels in them.
    """

    name: str
    before: str
    after: str
    values: Preprocessing
    exposed: bool
    operators: tuple[str, ...]
    why: tuple[str, ...] = ()
    reordered: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are valid JSON."""
        return {
            "input": self.name,
            "before": self.before,
            "after": self.after,
            "exposed": self.exposed,
            **self.values.to_dict(),
            "operators": list(self.operators),
            "why": list(self.why),
            "reordered": list(self.reordered),
        }

    def __str__(self) -> str:
        """One line for people."""
        if self.exposed:
            given = {"mean": self.values.means, "std": self.values.stds}
            told = [f"{name} {','.join(map(repr, each))}" for name, each in given.items()]
            layout = f" (layout {self.values.layout})" if self.values.layout else ""
            took = ", ".join(self.operators)
            verb = "goes" if len(self.operators) == 1 else "go"
            return (
                f"input {self.name}: {took} {verb} out of the model; give it (x - mean) / std with "
                f"{' and '.join(told)}{layout}"
            )
        same = self.after == self.before
        other = "before its preprocessing" if same else f"in place of {self.before}"
        parts = [f"input {self.name}: takes {self.after} {other}"]
        if self.reordered:
            parts.append(f"the order of channels went into {', '.join(self.reordered)}")
        stays = ", ".join(self.operators) or "nothing"
        verb = "stays" if len(self.operators) < 2 else "stay"
        why = f": {', and '.join(self.why)}" if self.why else ""
        parts.append(f"in front of the model {stays} {verb}{why}")
        return "; ".join(parts)


@record(frozen=True)
class Equalization:
    """What came of equalizing the channels of a model.

    Attributes:
        layers: the linear operators that changed, each with the bits of a scale in common that its
            channels lose on average, before and after.
        refused: why the equalized model was not taken, "" if it was or if nothing would change.
        proof: that the equalized model and the folded one are the same function.
        errors: how far int8 is from the float model, before and after, where that was measured.
    """

    layers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    refused: str = ""
    proof: Proof | None = None
    errors: tuple[float, float] | None = None

    @property
    def applied(self) -> bool:
        """Whether the model that was written is equalized."""
        return bool(self.layers) and not self.refused

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are valid JSON."""
        errors = self.errors
        layers = [{"at": at, "before": a, "after": b} for at, (a, b) in self.layers.items()]
        return {
            "applied": self.applied,
            "refused": self.refused,
            "layers": layers,
            "proof": self.proof.status if self.proof is not None else None,
            "distance": self.proof.distance if self.proof is not None else 0.0,
            "int8_error": {"before": errors[0], "after": errors[1]} if errors else None,
        }


@record(frozen=True)
class Simplification:
    """What came of letting another tool simplify a folded model.

    Attributes:
        by: the tool and its version.
        before: how many operators the folded model has; 0 where there was no result.
        after: how many the simplified one has, folded again.
        refused: why the simplified model was not taken, "" if it was or if it is no smaller.
        proof: whether the simplified model and the folded one are the same function.
    """

    by: str
    before: int = 0
    after: int = 0
    refused: str = ""
    proof: Proof | None = None

    @property
    def applied(self) -> bool:
        """Whether the model that was written is simplified."""
        return self.after < self.before and not self.refused

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are valid JSON."""
        return {
            "by": self.by,
            "applied": self.applied,
            "refused": self.refused,
            "operators": {"before": self.before, "after": self.after},
            "proof": self.proof.status if self.proof is not None else None,
        }


@record(frozen=True)
class Outcome:
    """The result of one run.

    Attributes:
        model: the file that was read.
        plan: what folds, and why the rest stays.
        verdict: the verdict on the folded model.
        size_before: bytes of the model.
        size_after: bytes of the folded model.
        output: the file that was written, or None.
        left_behind: data files that a model no longer reads after it was written over. Other models
            may still read them.
        frozen: how many initializers are no inputs any more.
        hanging: how many maps stay because initializers that are listed as inputs may be
            overridden.
        equalization: what came of equalizing channels, or None where that was not asked for.
        inputs: what has become of inputs that got preprocessing, or lost it.
        simplification: what came of simplifying, or None where that was not asked for.
        tidied: how many operators that did nothing have gone, by type.
    """

    model: Path
    plan: Plan
    verdict: Verdict
    size_before: int
    size_after: int
    output: Path | None
    left_behind: tuple[Path, ...] = ()
    frozen: int = 0
    hanging: int = 0
    equalization: Equalization | None = None
    inputs: tuple[InputChange, ...] = ()
    simplification: Simplification | None = None
    tidied: Mapping[str, int] = field(default_factory=dict)
