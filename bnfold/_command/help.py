"""What help looks like, and the options that say how much is printed and how it looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from bnfold._command import terminal
from bnfold._command.options import Command
from bnfold._errors import UsageError
from bnfold._report.lines import Line

COLUMN = 39
"""How wide the column of examples may be."""


class Explained(click.Command):
    """A command whose help has examples, and its options in groups.

    ``groups`` has the names of parameters under each title, in the order in which they are shown.
    An option that stands in no group comes last. ``examples`` are commands and what they do.
    """

    def __init__(
        self,
        *args: Any,
        groups: Mapping[str, Sequence[str]] | None = None,
        examples: Sequence[tuple[str, str]] = (),
        **extra: Any,
    ) -> None:
        super().__init__(*args, **extra)
        self.groups = groups or {}
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and one list of options for each group."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write_dl(list(self.examples), col_max=COLUMN)
        given = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        records = {option.name: option.get_help_record(ctx) for option in given}
        titles = {name: title for title, names in self.groups.items() for name in names}
        for title in (*self.groups, "Other options" if self.groups else "Options"):
            names = self.groups.get(title) or [name for name in records if name not in titles]
            rows = [record for record in map(records.get, names) if record is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def complete_code(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """The reason codes that begin with what is there."""
    from bnfold._core.reasons import CODES

    return [code for code in CODES if code.startswith(incomplete)]


def explained(code: str | None) -> Iterator[str]:
    """Yield what a reason code means and what helps, or every code with its meaning in short.

    Raises `UsageError` where there is no such code.
    """
    from bnfold._core.reasons import CODES

    if code is None:
        for name, known in CODES.items():
            yield Line(name, "head")
            yield f"  {known.meaning.partition('. ')[0].rstrip('.')}."
        return
    if code not in CODES:
        import difflib

        near = difflib.get_close_matches(code, CODES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no reason code {code!r}; {hint}'bnfold explain' lists them")
    yield Line(code, "head")
    yield f"  {CODES[code].meaning}"
    yield f"  What helps: {CODES[code].advice}"


def _coloured(context: click.Context, _: click.Parameter, when: str) -> None:
    terminal.choose_colour(when)


colour = click.option(
    "--color",
    "colour",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    is_eager=True,
    expose_value=False,
    callback=_coloured,
    help="Colours: auto looks at the terminal, NO_COLOR and FORCE_COLOR. [default: auto]",
)
"""Gives a command the option that says when there are colours."""


def spoken(all_of_it: str) -> Callable[[Command], Command]:
    """Give a command the options that say how much it prints; ``all_of_it`` is the help of -v."""

    def add(command: Command) -> Command:
        command = click.option(
            "-q", "--quiet", is_flag=True, help="Print nothing where all is well."
        )(command)
        return click.option("-v", "--verbose", is_flag=True, help=all_of_it)(command)

    return add


def loudness(context: click.Context, verbose: bool, quiet: bool) -> tuple[bool, bool]:
    """Whether more and whether less is printed. What the command line says goes first.

    Raises:
        UsageError: it says both.
    """
    if verbose and quiet:
        said = {name: context.get_parameter_source(name) for name in ("verbose", "quiet")}
        loud, still = (said[name] is ParameterSource.COMMANDLINE for name in said)
        if loud == still:
            raise UsageError("-v and -q exclude each other; leave one of them out")
        return loud, still
    return verbose, quiet
