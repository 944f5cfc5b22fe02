"""What ``bnfold verify --prove`` does."""

from __future__ import annotations

import time
from pathlib import Path

from bnfold._command import terminal
from bnfold._judge.proof_text import proof_lines, status_of
from bnfold._pipeline.proving import prove_models
from bnfold._report.findings import of_proof
from bnfold._report.text import json_text, proof_document


def show_proof(
    original: Path,
    folded: Path,
    frozen: bool,
    follow_links: bool,
    form: str,
    verbose: bool,
    begun: float,
) -> int:
    """Prove from the weights that two files are one function; the exit code tells."""
    with terminal.Progress() as progress:
        progress("proving")
        proof = prove_models(original, folded, frozen=frozen, follow_links=follow_links)
    status = status_of(proof)
    if form == "text":
        terminal.show(proof_lines(proof, verbose))
    elif form == "json":
        told = proof_document(str(original), str(folded), proof)
        terminal.show_whole(json_text(told, ascii_only=True))
    else:
        findings, seconds = list(of_proof(proof)), time.monotonic() - begun
        terminal.show_findings(form, str(folded), status, None, findings, seconds)
    return terminal.EXIT_CODES[status]
