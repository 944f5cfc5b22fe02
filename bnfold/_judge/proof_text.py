"""A proof by relation in words, and the status that it amounts to by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from bnfold._core.result import counted

if TYPE_CHECKING:
    from bnfold._relation.proof import OutputProof, Proof

_STATUS: dict[str, Literal["pass", "fail", "inconclusive"]] = {
    "proved": "pass",
    "refuted": "fail",
    "not proved": "inconclusive",
}
"""What a CI server calls it."""
_MOST_TOLD = 4


def status_of(proof: Proof | OutputProof) -> Literal["pass", "fail", "inconclusive"]:
    """The status whose exit code a proof has."""
    return _STATUS[proof.status]


def proof_lines(proof: Proof, verbose: bool) -> Iterator[str]:
    """Yield what was proved, or where that ends; with ``verbose`` every layer and output."""
    yield from _conclusion(proof)
    if verbose:
        for layer in proof.layers:
            yield f"  {layer.at}: {in_units(layer.distance)}"
    if proof.status != "proved":
        yield from _output_lines(proof, verbose)


def _conclusion(proof: Proof) -> Iterator[str]:
    """Yield what was proved, or where that ends and how many layers agree."""
    count = len(proof.layers)
    if proof.status == "proved":
        if count:
            verb = "agrees" if count == 1 else "agree"
            said = f"{count} of {counted(count, 'layer')} {verb} within "
            yield f"proved: {said}{in_units(proof.distance)}"
        else:
            yield "proved: the two are the same, and have no linear layer"
        return
    yield str(proof)
    if count:
        yield f"  {counted(count, 'other layer')} agree{'s' if count == 1 else ''}"


def _output_lines(proof: Proof, verbose: bool) -> Iterator[str]:
    """Yield which of several outputs are proved."""
    if len(proof.outputs) < 2:
        return
    if verbose:
        for output in proof.outputs:
            place = f" at {output.at}" if output.at else ""
            yield f"  output {output.name}: {output.status}{place}"
        return
    names = [output.name for output in proof.outputs if output.status == "proved"]
    if names:
        told = ", ".join([*names[:_MOST_TOLD], *["…"][: len(names) > _MOST_TOLD]])
        yield f"  {len(names)} of {counted(len(proof.outputs), 'output')} proved: {told}"


def in_units(distance: float) -> str:
    """A distance in words."""
    number = f"{distance:.1f}"
    return f"{number} unit{'' if number == '1.0' else 's'} in the last place"
