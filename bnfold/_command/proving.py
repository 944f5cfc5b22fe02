"""What ``bnfold verify --prove`` does."""

from __future__ import annotations

import time
from pathlib import Path

from bnfold._command import terminal
from bnfold._command.pages import Draw
from bnfold._command.telling import show_lines, tell_findings
from bnfold._core.preprocessing import Pairs
from bnfold._judge.proof_text import proof_lines, status_of
from bnfold._pipeline.proving import prove_models
from bnfold._report import ci, markdown
from bnfold._report.findings import of_proof
from bnfold._report.lines import VERDICTS, concluding
from bnfold._report.text import json_text, proof_document
from bnfold._system import paths


def show_proof(
    original: Path,
    folded: Path,
    frozen: bool,
    follow_links: bool,
    trust: bool,
    form: str,
    verbose: bool,
    begun: float,
    quiet: bool = False,
    report: Path | None = None,
    draw: Draw | None = None,
    preprocessing: Pairs = (),
) -> int:
    """Prove from the weights that two files are one function; the exit code tells.

    The first one stands behind its preprocessing. ``draw`` makes a page of the proof.
    """
    with terminal.Progress() as progress:
        progress("proving")
        proof = prove_models(
            original,
            folded,
            frozen=frozen,
            follow_links=follow_links,
            trust=trust,
            preprocessing=preprocessing,
        )
        if draw is not None:
            draw(proof, progress)
    status = status_of(proof)
    document = proof_document(str(original), str(folded), proof)
    if report is not None:
        paths.write_text(report, json_text(document))
    if form == "text":
        if not (quiet and status == "pass"):
            terminal.show(concluding(proof_lines(proof, verbose), VERDICTS[status]))
    elif form == "json":
        terminal.show_whole(json_text(document, ascii_only=True))
    elif form == "markdown":
        show_lines(list(markdown.of_proof(str(original), str(folded), proof)))
    else:
        findings, seconds = list(of_proof(proof)), time.monotonic() - begun
        if form == "github":
            lines = markdown.of_proof(str(original), str(folded), proof)
            ci.summarize_step([*lines, *markdown.of_findings(findings)])
        tell_findings(form, str(folded), status, findings, seconds)
    return terminal.EXIT_CODES[status]
