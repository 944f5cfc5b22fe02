"""A proof by relation as text, as plain data, and as findings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import bnfold
from bnfold._core.result import counted
from bnfold._report.findings import Finding

if TYPE_CHECKING:
    from bnfold._relation.proof import Proof

SCHEMA = "bnfold.proof/1"
_STATUS: dict[str, Literal["pass", "fail", "inconclusive"]] = {
    "proved": "pass",
    "refuted": "fail",
    "not proved": "inconclusive",
}
"""What a CI server calls it."""


def status_of(proof: Proof) -> Literal["pass", "fail", "inconclusive"]:
    """The status whose exit code a proof has."""
    return _STATUS[proof.status]


def proof_lines(proof: Proof, verbose: bool) -> Iterator[str]:
    """Yield what was proved, or where that ends; with ``verbose`` every layer that agrees."""
    if verbose:
        for layer in proof.layers:
            yield f"  {layer.at}: {_units(layer.distance)}"
    count = len(proof.layers)
    if proof.status == "proved":
        if count:
            said = f"{counted(count, 'layer')} agree{'s' if count == 1 else ''} within "
            yield f"proved: {said}{_units(proof.distance)}"
        else:
            yield "proved: the two are the same, and have no linear layer"
        return
    place = f" at {proof.at}" if proof.at else ""
    yield f"{proof.status}{place}: {proof.why}"
    if count:
        yield f"  {counted(count, 'other layer')} agree{'s' if count == 1 else ''}"


def proof_document(original: str, folded: str, proof: Proof) -> dict[str, Any]:
    """The proof as plain data; its schema is schemas/proof-1.json."""
    return {
        "schema": SCHEMA,
        "bnfold": bnfold.__version__,
        "original": original,
        "folded": folded,
        **proof.to_dict(),
    }


def of_proof(proof: Proof) -> Iterator[Finding]:
    """Yield a finding for each layer that agrees, and one for the files."""
    for layer in proof.layers:
        yield Finding("layer", layer.at, "pass", _units(layer.distance))
    status = status_of(proof)
    if status == "pass":
        yield Finding("proof", "both models", status, next(proof_lines(proof, False)))
    else:
        yield Finding("proof", proof.at or "both models", status, proof.why)


def _units(distance: float) -> str:
    """A distance in words."""
    number = f"{distance:.1f}"
    return f"{number} unit{'' if number == '1.0' else 's'} in the last place"
