"""What a check found: one verdict per output and input set, and one for the model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from bnfold._core.result import counted
from bnfold._judge.difference import Spread
from bnfold._judge.proof_text import proof_lines
from bnfold._run.flavours import FLAVOURS

if TYPE_CHECKING:
    from bnfold._judge.timing import Timing
    from bnfold._relation.proof import Proof

Status = Literal["pass", "fail", "inconclusive"]
_SUSPECTS = 5
_PICTURED = 12
"""So many outputs are in the picture for notebooks, the farthest ones."""


class Cause(Enum):
    """Why an output was judged as it was, where its figures do not say it.

    The value is the text for the user; `OutputCheck.about` fills its gaps.
    """

    RANDOM = "it depends on random numbers that the model draws"
    NOT_A_TENSOR = "not a tensor"
    MISMATCH = "{}"
    MISMATCH_BY_ROUNDING = "{}, as rounding alone causes"
    EMPTY = "empty"
    ALWAYS_EMPTY = "empty on all inputs of these sizes"
    NOT_FINITE = "no finite value"
    ROUNDING_ALONE = "rounding alone changes it"
    CONSTANT = "constant"
    POWER_UNKNOWN = "power not known"
    NOT_REACHED = "no folded layer reaches this output"
    AS_ASKED_FOR = "within what was asked for, as a planted error in some layers would be"
    HIDDEN_ERRORS = "a planted error in some folded layers does not show here; pass real inputs"
    SEEN_AHEAD = "compared ahead of its {}"
    DIFFERS_AHEAD = "ahead of its {} the two differ by {:.2e}, and {:.2e} is allowed there"
    SAME_BEHIND = "compared at {}, from where on both models are the same"
    SAME = "both models compute it with the same operators and numbers"
    DIFFERS_AT = "the two differ ahead of it, at {}"
    NEXT_TO_FLOAT64 = "next to float64 the original is off by {:.2e}, the folded model by {:.2e}"
    ORIGINAL_INACCURATE = (
        "the original is the inaccurate one: "
        "next to float64 the original is off by {:.2e}, the folded model by {:.2e}"
    )
    ARITHMETIC = (
        "in float64 the two agree: "
        "next to float64 the original is off by {:.2e}, the folded model by {:.2e}"
    )
    TIED = "other indices where the values tie"
    TIED_AND = "other indices where the values tie; {}"
    IN_FLOAT64 = "in float64"
    BY_STEPS = (
        "between the quantizers the two agree; a number at the border of two integers is rounded "
        "to the other one"
    )
    BETWEEN_QUANTIZERS = "between the quantizers: {}"
    PROVED = "proved"
    PROVED_THOUGH = "proved; {}"
    STEPS_MOVE = "steps of its quantizers move it by {:.2e}"

    def words(self, about: tuple[Any, ...]) -> str:
        """The cause in words."""
        return str(self.value).format(*about)


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
        power: how far the original moves when one channel of each folded layer is wrong by 1 %
            (10 % in float16), in that part of the graph where it shows least; None where another
            input set has shown it already.
        cause: why, where the figures do not say it, or None.
        about: the numbers and names that fill the gaps in the cause's text.
        contested: whether the two models differ here. Something else may explain it, but agreement
            on another input set does not.
        spread: how many elements differ by how much, where that was asked for.
    """

    output: str
    inputs: str
    status: Status
    difference: float | None = None
    tolerance: float | None = None
    ratio: float | None = None
    rounding: float | None = None
    power: float | None = None
    cause: Cause | None = None
    about: tuple[Any, ...] = ()
    contested: bool = False
    spread: Spread | None = None

    @property
    def note(self) -> str:
        """The cause in words, or nothing."""
        return "" if self.cause is None else self.cause.words(self.about)

    @property
    def was_drawn(self) -> bool:
        """Whether the inputs were drawn at random."""
        return self.inputs.partition(" ")[0] in FLAVOURS

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are valid JSON."""
        values = {key: _plain(value) for key, value in asdict(self).items()}
        for key in ("cause", "about", "contested", "spread"):  # the note says so; the page shows it
            del values[key]
        return {**values, "note": self.note}


def labelled_in_float64(check: OutputCheck) -> OutputCheck:
    """The same check; its cause says that it was made in float64, if it has no other."""
    return check if check.cause is not None else replace(check, cause=Cause.IN_FLOAT64)


@dataclass(frozen=True)
class Divergence:
    """The first tensor at which two models differ.

    Attributes:
        tensor: its name in both models.
        inputs: label of the input set on which it does.
        difference: largest absolute difference there, None where the two cannot be subtracted.
        tolerance: largest difference that rounding of the weights explains.
        note: why, where the figures do not say it.
        original: the operator that writes it in the original.
        suspects: the operators of the folded model between what agrees and this tensor.
        agrees: the tensors that the suspects read; they are as in the original.
    """

    tensor: str
    inputs: str
    difference: float | None
    tolerance: float | None
    note: str
    original: str
    suspects: tuple[str, ...]
    agrees: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are valid JSON."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Planted:
    """An error in one channel of each of some layers, all at once.

    Attributes:
        layers: the operators of the original in which it was planted.
        ratio: how far it moved an output at most, in units of the tolerance.
        noticed: whether a comparison would have noticed it.
        size: how large it was, as a part of the weights: 0.01, in float16 and bfloat16 0.1.
    """

    layers: tuple[str, ...]
    ratio: float
    noticed: bool
    size: float = 0.01

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are valid JSON."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ProviderCheck:
    """What a provider of onnxruntime makes of the folded model, next to the original on the CPU.

    Attributes:
        provider: its short name.
        status: the verdict.
        note: why; on a pass what else is to be said.
    """

    provider: str
    status: Status
    note: str = ""


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
        provider: where the reference ran.
        providers: what became of the folded model on each provider that was asked for.
        divergence: where the two begin to differ, if that was looked for and found.
        power: the errors that were planted, and whether they showed.
        proof: what the weights prove, or None where no proof was tried.
        timing: how much faster the folded model is, or None where nobody asked for it.
    """

    status: Status
    checks: tuple[OutputCheck, ...]
    notes: tuple[str, ...]
    seed: int
    runtime: str
    provider: str
    providers: tuple[ProviderCheck, ...] = ()
    divergence: Divergence | None = None
    power: tuple[Planted, ...] = ()
    proof: Proof | None = None
    timing: Timing | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are valid JSON. ``timing`` is there only where it was made."""
        timing = {"timing": self.timing.to_dict()} if self.timing is not None else {}
        return {
            **timing,
            "status": self.status,
            "checks": [check.to_dict() for check in self.checks],
            "notes": list(self.notes),
            "seed": self.seed,
            "runtime": self.runtime,
            "provider": self.provider,
            "providers": [asdict(check) for check in self.providers],
            "divergence": self.divergence.to_dict() if self.divergence is not None else None,
            "power": [planted.to_dict() for planted in self.power],
            "proof": self.proof.to_dict() if self.proof is not None else None,
        }

    def __str__(self) -> str:
        """The largest difference of each output and the verdict, as the command tells them."""
        return "\n".join((*end_to_end_lines(self, verbose=False), f"verification: {self.status}"))

    def _repr_html_(self) -> str:
        """The same for notebooks, with every check, and how far outputs and layers are off."""
        from html import escape

        from bnfold._core import sketch
        from bnfold._core.result import html_table

        header = ("output", "inputs", "verdict", "difference", "tolerance", "note")
        rows = [
            (c.output, c.inputs, c.status, _number(c.difference), _number(c.tolerance), c.note)
            for c in self.checks
        ]
        proved = [*proof_lines(self.proof, False)] if self.proof is not None else []
        said = [*proved, *located(self), *self.notes]
        far = sorted(self.checks, key=lambda check: -(check.ratio or 0.0))[:_PICTURED]
        told = [(f"{c.output} on {c.inputs} inputs", c.ratio, c.status) for c in far]
        measured = [(name, ratio, status) for name, ratio, status in told if ratio is not None]
        layers = [layer.distance for layer in self.proof.layers] if self.proof else []
        picture = sketch.bars(measured, layers)
        table = html_table(header, rows) if rows else ""
        return f"<p>verification: <b>{self.status}</b></p>{picture}{table}" + "".join(
            f"<p>{escape(line)}</p>" for line in said
        )


def overall(checks: Collection[OutputCheck]) -> Status:
    """One status for the model, from the checks of all outputs on all input sets.

    An output passes if it passes on one input set and is contested on none.
    """
    if any(check.status == "fail" for check in checks):
        return "fail"
    if any(check.status == "inconclusive" and check.contested for check in checks):
        return "inconclusive"
    outputs = {check.output for check in checks}
    seen = {check.output for check in checks if check.status == "pass"}
    return "pass" if outputs and seen == outputs else "inconclusive"


def combined(status: Status, others: Collection[Status]) -> Status:
    """The worst of several statuses: "fail", then "inconclusive", then "pass"."""
    found = {status, *others}
    order: tuple[Status, ...] = ("fail", "inconclusive", "pass")
    return next(each for each in order if each in found)


def end_to_end_lines(result: EndToEnd, verbose: bool, power: bool = False) -> Iterator[str]:
    """Yield what was proved, and the largest difference of each output and its tolerance.

    With ``verbose`` there is a line for each input set. With ``power`` the lines always say what
    planted errors showed.
    """
    if result.proof is not None:
        yield from proof_lines(result.proof, verbose)
    shown: dict[str, OutputCheck] = {}
    for check in result.checks:
        known = shown.get(check.output)
        worse = known is None or _rank(check) > _rank(known)
        if worse:
            shown[check.output] = check
    checks = result.checks if verbose or result.status == "fail" else shown.values()
    for check in checks:
        yield f"  {check.output} on {check.inputs} inputs: {check.status}, {figures(check)}"
    if (verbose or result.status != "pass") and any(check.was_drawn for check in result.checks):
        yield f"  inputs drawn with seed {result.seed}"
    for number, line in enumerate(located(result)):
        yield f"    {line}" if number else f"  {line}"
    if verbose or power or not all(planted.noticed for planted in result.power):
        yield from _power_lines(result)
    for deployed in result.providers:
        if deployed.note or deployed.provider != "cpu":
            note = f", {deployed.note}" if deployed.note else ""
            yield f"  on {deployed.provider}: {deployed.status}{note}"
    for note in result.notes:
        yield f"  note: {note}"
    if result.timing is not None:
        yield f"  time of a run: {result.timing}"


def _power_lines(result: EndToEnd) -> Iterator[str]:
    """Yield lines about planted errors, for each layer or each part of the graph."""
    if not result.power:
        return
    hidden = [planted for planted in result.power if not planted.noticed]
    each = all(len(planted.layers) == 1 for planted in result.power)
    what = "layers" if each else "parts of the graph"
    count = len(result.power)
    sizes = " or ".join(f"{size:.0%}" for size in sorted({each.size for each in result.power}))
    size = sizes.replace("%", " %")
    yield f"  planted errors of {size} show in {count - len(hidden)} of {count} {what}"
    for planted in hidden:
        first, *others = planted.layers
        more = f" and {counted(len(others), 'layer')} more" if others else ""
        yield f"    not in {first}{more}: {planted.ratio:.2g} of the tolerance"


def _rank(check: OutputCheck) -> tuple[int, float]:
    order = {"inconclusive": 2 if check.contested else 0, "pass": 1, "fail": 3}
    return order[check.status], check.ratio if check.ratio is not None else 0.0


def figures(check: OutputCheck) -> str:
    """The difference of two outputs and their tolerance, as text."""
    said = "not compared"
    if check.difference is not None and check.tolerance is not None:
        said = f"difference {check.difference:.2e}, tolerance {check.tolerance:.2e}"
    return f"{said} ({check.note})" if check.note else said


def located(result: EndToEnd) -> list[str]:
    """Lines that say where two models begin to differ, and which operators may cause it."""
    found = result.divergence
    if found is None:
        return []
    many = len(found.suspects) > _SUSPECTS
    suspects = f"{len(found.suspects)} operators, the last of them " if many else ""
    suspects += ", ".join(found.suspects[-_SUSPECTS:])
    agrees = ", ".join(found.agrees[:_SUSPECTS]) or "nothing that varies"
    return [
        f"the first tensor that differs: {found.tensor}, in the original from {found.original}",
        f"at fault: {suspects}; what is read there agrees: {agrees}",
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
