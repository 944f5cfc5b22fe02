"""The option that writes a page, for both commands."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold._command import terminal
from bnfold._command.options import PATH, Command
from bnfold._command.targets import refuse_stream
from bnfold._errors import UsageError

if TYPE_CHECKING:
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Outcome
    from bnfold._relation.proof import Proof
    from bnfold._report.page.document import Run
    from bnfold._report.page.witness import Witness

Draw = Callable[[Any, Callable[[str], None]], None]
"""Makes a page of a result, and says that it does."""
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
    """Keep what the user has typed: a page says how it was made.

    Where the command is one of many, ``context.obj`` has what a user would type for this one.
    """
    context.meta[_TYPED] = list(context.obj or typed)


def words(context: click.Context) -> Sequence[str]:
    """What the user has typed, without the word ``fold``."""
    typed: Sequence[str] = context.meta.get(_TYPED, ())
    return typed


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


def witness(page: Path | None, output: Path | None) -> Witness | None:
    """Who watches a fold for a page; ``output`` is where the folded model goes."""
    if page is None:
        return None
    from bnfold._report.page.witness import Witness

    return Witness(page, output)


def tell(page: Path | None, form: str, quiet: bool) -> None:
    """Say where the page is: to people, or in the summary of GitHub's step."""
    if page is None:
        return
    if form == "text" and not quiet:
        terminal.show([f"wrote {page}: open it in a browser"])
    elif form == "github":
        from bnfold._report.ci import summarize_step
        from bnfold._report.escapes import cell

        how = "keep it with actions/upload-artifact and open it in a browser"
        summarize_step([f"The network before and after is in {cell(str(page))}: {how}."])


def of_fold(
    context: click.Context, page: Path, outcome: Outcome, seen: Witness, begun: float
) -> None:
    """Write the page of a fold. An error says that the model was written before it."""
    from bnfold._report.page.making import page_of_fold
    from bnfold._report.text import typed

    more = []
    if outcome.output is not None and outcome.output != outcome.model:
        pair = [typed(outcome.model), typed(outcome.output)]
        more = [["verify", *pair], ["verify", *pair, "--prove"]]
    try:
        page_of_fold(page, outcome, seen, _run(context, begun, more))
    except UsageError as error:
        fate = f"; {outcome.output} was written" if outcome.output else ""
        raise UsageError(f"{error}{fate}") from error


def of_comparison(
    context: click.Context,
    page: Path | None,
    original: Path,
    folded: Path,
    begun: float,
    follow_links: bool,
) -> Draw:
    """What writes the page of a comparison or a proof, if one is wanted."""

    def draw(result: EndToEnd | Proof, progress: Callable[[str], None]) -> None:
        if page is None:
            return
        from bnfold._report.page.making import page_of_comparison

        progress("drawing the page")
        run = _run(context, begun, [])
        page_of_comparison(page, original, folded, result, run, follow_links)

    return draw


def _run(context: click.Context, begun: float, more: Sequence[Sequence[str]]) -> Run:
    from bnfold._report.page.document import Run

    lines = [words(context), *more]
    return Run([shlex.join(["bnfold", *line]) for line in lines], time.monotonic() - begun)
