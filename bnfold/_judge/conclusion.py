"""The last stage: one status from all that the other stages found, with its notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bnfold._judge.untaken_branches import IfBranch
from bnfold._judge.verdict import (
    Cause,
    Divergence,
    OutputCheck,
    Planted,
    ProviderCheck,
    Status,
    combined,
    overall,
)
from bnfold._system.records import record

USUAL = 0.01
"""The size of a planted error where weights are of single or double precision."""
HALF = (
    "the weights are of half precision, and errors of 10 % were planted: an error of 1 % in a "
    "channel may not show beside the rounding of right weights"
)


@record(frozen=True)
class Evidence:
    """What the stages of a comparison found.

    Attributes:
        checks: one for each output and input set.
        planted: the errors that were planted, and whether they showed.
        every_layer: whether the user asked for an error in every layer by itself.
        certified: whether every fold has a certificate that holds.
        proved: whether the weights have proved all outputs.
        unnoticed: the folds that rest on the comparison alone, where the comparison would not have
            noticed an error.
        untaken: the branches that no input took.
        drawn: whether inputs were drawn.
        providers: one check for each provider that the folded model ran on as deployed.
        divergence: where the two models begin to differ, or None.
    """

    checks: Sequence[OutputCheck]
    planted: Sequence[Planted] = ()
    every_layer: bool = False
    certified: bool = False
    proved: bool = False
    unnoticed: Sequence[str] = ()
    untaken: Sequence[IfBranch] = ()
    drawn: bool = True
    providers: Sequence[ProviderCheck] = ()
    divergence: Divergence | None = None


class Conclusion(NamedTuple):
    """The status of a comparison, and the notes for the user."""

    status: Status
    notes: tuple[str, ...]


def conclude(found: Evidence) -> Conclusion:
    """The status and the notes that follow from the evidence.

    Three things need certificates that hold, or a proof: a layer where the comparison would not
    have noticed an error, a branch that no input took, and a tolerance of the user that hides every
    error. An unchecked certificate counts as missing there, and the status is "inconclusive".
    """
    status, notes = overall(found.checks), list[str]()
    is_sure = found.certified or found.proved
    if found.every_layer and not all(part.noticed for part in found.planted):
        rests = "rests on its certificate" if found.certified else "is not proved"
        rests = "rests on the proof" if found.proved else rests
        notes.append(f"an error in a layer that would not have been noticed here {rests}")
        status = status if is_sure else combined(status, ["inconclusive"])
    asked = any(check.cause is Cause.AS_ASKED_FOR for check in found.checks)
    if asked and found.planted and not any(part.noticed for part in found.planted):
        rests = ", so all rests on certificates" if found.certified else ""
        rests = ", so all rests on the proof" if found.proved else rests
        notes.append(f"the tolerance that was asked for hides every planted error{rests}")
        status = status if is_sure else combined(status, ["inconclusive"])
    for into in () if found.proved else found.unnoticed:
        notes.append(
            f"the certificate of {into} is unchecked, and an error in its fold would not have been "
            "noticed here"
        )
        status = combined(status, ["inconclusive"])
    if found.untaken:
        rests = ", but rests on certificates" if found.certified else ""
        rests = ", but is proved" if found.proved else rests
        labels = ", ".join(branch.label for branch in found.untaken)
        notes.append(f"no input took {labels}: what is there was not compared{rests}")
        own = any(branch.owns_weights for branch in found.untaken)
        if found.drawn and own and not is_sure:
            status = combined(status, ["inconclusive"])
    status = combined(status, [check.status for check in found.providers])
    if found.divergence is not None and status == "pass":
        status = "inconclusive"
        notes.append("a tensor on the way differs, which no output shows on these inputs")
    if status == "pass" and not is_sure and any(part.size > USUAL for part in found.planted):
        notes.append(HALF)
    return Conclusion(status, tuple(notes))
