"""Equalizes a folded file that is not in place yet, and judges the result; see `_onnx/equalize`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bnfold._judge.settings import Settings
from bnfold._onnx.equalize import equalize_model
from bnfold._onnx.files.load import load_model, understood
from bnfold._onnx.files.save import PendingFile, pending_file
from bnfold._pipeline.outcome import Progress

if TYPE_CHECKING:
    from bnfold._relation.proof import Proof
    from bnfold._run.input_sets import InputSet


@dataclass(frozen=True)
class Equalization:
    """What came of equalizing the channels of a model.

    Attributes:
        layers: the linear operators that changed, each with the bits of a common int8 scale that
            its channels lose on average, before and after.
        refused: why the equalized model was not taken, "" if it was or if nothing changed.
        proof: that the equalized model and the folded one are the same function.
    """

    layers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    refused: str = ""
    proof: Proof | None = None

    @property
    def applied(self) -> bool:
        """Whether the model that was written is equalized."""
        return bool(self.layers) and not self.refused

    @property
    def lost(self) -> tuple[float, float]:
        """The bits that the channels of all these layers lose on average, before and after."""
        before, after = zip(*self.layers.values(), strict=True)
        return fmean(before), fmean(after)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are valid JSON."""
        layers = [{"at": at, "before": a, "after": b} for at, (a, b) in self.layers.items()]
        return {
            "applied": self.applied,
            "refused": self.refused,
            "layers": layers,
            "proof": self.proof.status if self.proof is not None else None,
            "distance": self.proof.distance if self.proof is not None else 0.0,
        }


@contextmanager
def equalized(
    draft: PendingFile,
    original: Path,
    verify: bool,
    inputs: list[InputSet] | None,
    settings: Settings,
    progress: Progress,
) -> Iterator[tuple[PendingFile, Equalization]]:
    """The draft of a folded file with equalized channels, or the draft itself where that gains
    nothing or is not seen to be the same function.

    It is the same function if that is proved; or else, with ``verify``, if the comparison passes.
    ``original`` is the file that was folded. Raises `UsageError` as `pending_file` does.
    """
    progress("equalizing")
    model = load_model(draft.path, follow_links=True)
    with understood(model, original):
        done = equalize_model(model, draft.path.parent)
    if not done.lost:
        yield draft, Equalization()
        return
    with pending_file(
        model,
        done.rewritten,
        base_dir=draft.path.parent,
        destination=draft.destination,
        original=original,
    ) as new:
        del model
        refused, proof = _judged(draft, new, verify, inputs, settings, progress)
        yield draft if refused else new, Equalization(done.lost, refused, proof)


def _judged(
    folded: PendingFile,
    new: PendingFile,
    verify: bool,
    inputs: list[InputSet] | None,
    settings: Settings,
    progress: Progress,
) -> tuple[str, Proof]:
    """Why the new file is not taken, "" if it is, and the proof."""
    from bnfold._judge.end_to_end import compare_files
    from bnfold._pipeline.proving import prove_models

    progress("proving that equalizing changes nothing")
    proof = prove_models(folded.path, new.path, frozen=settings.frozen, follow_links=True)
    if proof.status == "proved":
        return "", proof
    if proof.status == "refuted" or not verify:
        return f"it is {proof}", proof
    result = compare_files(folded.path, new.path, inputs, settings, progress)
    if result.status == "pass":
        return "", proof
    return f"it is {proof}; and the comparison of both is {result.status}", proof
