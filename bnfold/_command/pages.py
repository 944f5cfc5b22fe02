"""The option that writes a page, for both commands."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold._command.options import PATH, Command, refuse_stream
from bnfold._errors import UsageError

if TYPE_CHECKING:
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Outcome
    from bnfold._relation.proof import Proof
    from bnfold._report.page.document import Run
    from bnfold._report.page.witness import Witness

_TYPED = f"{__name__}.typed"


def showing(command: Command) -> Command:
    """Give a command the option that writes a page."""
    return click.option(
        "--html",
        "page",
        type=PATH,
        metavar="FILE.html",
        help="Write a page that shows the network before and after, and the verdict. "
        "Needs bnfold[report].",
    )(command)


def remember(context: click.Context, typed: Sequence[str]) -> None:
    """Keep what the user has typed: a page says how it was made."""
    context.meta[_TYPED] = list(typed)


def check(page: Path | None, *others: Path | None) -> None:
    """Raise `UsageError` if a page cannot be made, or would replace a file of the run."""
    if page is None:
        return
    from bnfold._report.page.layout import layout_library
    from bnfold._report.page.writing import check_place

    refuse_stream("--html", page)
    for other in others:
        if other is not None and other.suffix == ".pt2":
            raise UsageError(f"a page shows files of ONNX, and {other} is a program of PyTorch")
    check_place(page, *others)
    layout_library()


def of_fold(
    context: click.Context, page: Path, outcome: Outcome, seen: Witness, begun: float
) -> None:
    """Write the page of a fold."""
    from bnfold._report.page.making import page_of_fold

    more = []
    if outcome.output is not None and outcome.output != outcome.model:
        pair = [str(outcome.model), str(outcome.output)]
        more = [["verify", *pair], ["verify", "--prove", *pair]]
    page_of_fold(page, outcome, seen, _run(context, begun, more))


def of_comparison(
    context: click.Context,
    page: Path,
    original: Path,
    folded: Path,
    result: EndToEnd | Proof,
    begun: float,
    follow_links: bool,
) -> None:
    """Write the page of a comparison."""
    from bnfold._report.page.making import page_of_comparison

    page_of_comparison(page, original, folded, result, _run(context, begun, []), follow_links)


def _run(context: click.Context, begun: float, more: Sequence[Sequence[str]]) -> Run:
    from bnfold._report.page.document import Run

    lines = [context.meta.get(_TYPED, []), *more]
    return Run([shlex.join(["bnfold", *line]) for line in lines], time.monotonic() - begun)
