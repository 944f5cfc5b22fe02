"""Measures how much a folded model should be equalized: at what strength int8 is nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from bnfold._judge.settings import DEFAULT, Settings
from bnfold._onnx.equalize import EqualizedModel, equalize_model
from bnfold._system.records import record

if TYPE_CHECKING:
    from bnfold._run.input_sets import InputSet

# The strengths that are tried, and what the best of them has to gain: less is noise.
_STRENGTHS = (1.0, 0.5)
_GAIN = 0.05


@record(frozen=True)
class Measured:
    """How much to equalize a model: the strength that `equalize_model` takes, 0 for not at all and
    then why. ``errors`` are those of int8 without and with it, where they were measured.
    """

    strength: float = 0.0
    why: str = ""
    errors: tuple[float, float] | None = None


def measured(
    model: ModelProto, folder: Path | None, inputs: list[InputSet] | None, settings: Settings
) -> Measured:
    """The strength at which int8 is nearest to the model, on ``inputs`` or drawn ones, see
    `_run/int8`; ``folder`` has its external data. The model is not changed.

    Of drawn inputs no kind may be worse off: nobody knows which of them is like the real ones.
    Raises `UsageError` as `equalize_model` does.
    """
    from bnfold._run.bounds import Bounds, Exhausted
    from bnfold._run.int8 import NotMeasured, drawn, int8_error
    from bnfold._run.session import hush

    hush()
    tried: dict[float, list[float]] = {}
    try:
        bounds = Bounds.beginning(settings.threads, settings.seconds, settings.libraries)
        kinds = [inputs] if inputs else drawn(model, settings.seed, settings.wanted)
        for strength in _STRENGTHS:
            copy = ModelProto()
            copy.CopyFrom(model)
            if not equalize_model(copy, folder, strength).lost:
                return Measured()
            tried[strength] = [int8_error(copy, folder, sets, bounds) for sets in kinds]
        before = [int8_error(model, folder, sets, bounds) for sets in kinds]
    except (NotMeasured, Exhausted) as error:
        return Measured(why=f"how far int8 is from the model cannot be measured: {error}")
    worst = {
        strength: max(_ratio(a, b) for a, b in zip(errors, before, strict=True))
        for strength, errors in tried.items()
    }
    from statistics import fmean  # It takes a while to import, and few runs need it.

    best = min(tried, key=lambda strength: (worst[strength] > 1, fmean(tried[strength])))
    told = fmean(before), fmean(tried[best])
    if worst[best] > 1 or told[1] > (1 - _GAIN) * told[0]:
        return Measured(why=_why_not(before, tried[best]), errors=told)
    return Measured(best, errors=told)


def _why_not(before: Sequence[float], after: Sequence[float]) -> str:
    """Why a model is not equalized, from how far int8 is off on each kind of input."""
    pairs = list(zip(after, before, strict=True))
    worse = [pair for pair in pairs if _ratio(*pair) > 1]
    if worse and len(pairs) > 1:
        said = "on some inputs int8 would be farther from it"
        told = max(worse, key=lambda pair: _ratio(*pair))
    else:
        told = sum(after) / len(pairs), sum(before) / len(pairs)
        said = f"int8 would {'hardly' if told[0] < told[1] else 'not'} be nearer to it"
    return f"{said}: off by {told[0]:.2%}, and by {told[1]:.2%} as it is"


def _ratio(after: float, before: float) -> float:
    return after / before if before > 0 else 1.0 + after


def equalized_model(model: ModelProto, folder: Path | None) -> EqualizedModel:
    """Equalize a folded model in place, where int8 is nearer to it so."""
    strength = measured(model, folder, None, DEFAULT).strength
    return equalize_model(model, folder, strength) if strength else EqualizedModel()
