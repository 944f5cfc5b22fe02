"""The group of all commands: how a run begins and ends, and how it says what went wrong."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from bnfold._command import pages, terminal
from bnfold._command.terminal import PASSED, SIGNALLED, UNDECIDED, code_of, in_one_line
from bnfold._errors import UsageError
from bnfold._system import time_limit

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_EXIT_CODES = (
    ("0", "done and verified, or nothing to fold"),
    ("1", "verification failed, and no file was written; or --check found something to fold"),
    ("2", "wrong usage, or a file that cannot be read"),
    ("3", "could not be judged, and the file was written; or the run was ended, and none was"),
)
EXAMPLES = (
    ("bnfold model.onnx", "what would fold, and why the rest stays"),
    ("bnfold model.onnx -o fused.onnx", "fold, verify, and write the file"),
    ("bnfold models/ --output-dir fused/", "all models of a folder, and an index"),
    ("bnfold models/ --check", "fail if anything is left to fold"),
    ("bnfold verify a.onnx b.onnx", "are these two the same function?"),
)
_AGAIN_S = 0.05


class Commands(click.Group):
    """A group of commands where the word ``fold`` may be left out, with its own exit codes.

    A first argument that names no command is a model to fold.
    """

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, "--help", "-h", "--version"}
        if args and args[0] not in known:
            _refuse_misspelt(args[0], self.commands)
            args = ["fold", *args]
        pages.remember(context, args[1:] if args[:1] == ["fold"] else args)
        return super().parse_args(context, args)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> None:
        """Run the command and exit. An error prints one line and leaves no file behind; it is the
        cause of the exit.
        """
        extra["standalone_mode"] = False
        terminal.choose_colour("auto")
        with _interruptible() as signals:
            try:
                sys.exit(super().main(args, prog_name, **extra) or PASSED)
            except time_limit.TimeUp as error:
                terminal.complain(f"error: {error}")
                raise SystemExit(UNDECIDED) from error
            except (Exception, KeyboardInterrupt) as error:
                # An interrupt during the import of a compiled module raises another error.
                if signals or isinstance(error, (click.Abort, KeyboardInterrupt)):
                    terminal.complain("interrupted")
                    sys.exit(SIGNALLED + (signals[0] if signals else signal.SIGINT))
                if isinstance(error, click.ClickException):
                    _complain_of_usage(error)
                elif "BNFOLD_TRACEBACK" in os.environ and not isinstance(error, UsageError):
                    raise
                else:
                    terminal.complain(f"error: {in_one_line(error)}")
                raise SystemExit(code_of(error)) from error

    def invoke(self, context: click.Context) -> Any:
        """Run the subcommand. The user does not see the warnings of libraries."""
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        return super().invoke(context)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples ahead of the options and commands."""
        with formatter.section("Examples"):
            formatter.write_dl(EXAMPLES, col_max=39)
        super().format_options(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl(_EXIT_CODES)

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """What may come first: a command, or all that may follow ``fold``."""
        from click.shell_completion import CompletionItem

        fold = self.commands["fold"]
        own = {item.value: item for item in super().shell_complete(context, incomplete)}
        if incomplete.startswith("-"):
            inner = fold.make_context("fold", [], parent=context, resilient_parsing=True)
            found = fold.shell_complete(inner, incomplete)
            return [*own.values(), *(item for item in found if item.value not in own)]
        # Files first: bash forgets what came before them.
        return [CompletionItem(incomplete, type="file"), *own.values()]


def _refuse_misspelt(word: str, commands: Iterable[str]) -> None:
    """Raise `UsageError` for a word that is no file and nearly a command."""
    near = difflib.get_close_matches(word, commands, 1, 0.75)
    if near and not os.path.exists(word):
        raise UsageError(f"there is no command and no file {word!r}; did you mean {near[0]!r}?")


def _complain_of_usage(error: click.ClickException) -> None:
    """Tell what click found wrong with the command line, as any other error is told."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later: the help itself
        error.show()
        return
    said = error.format_message().strip().rstrip(".")
    said = said.replace("is not a valid integer range", "is not a whole number")
    if isinstance(error, click.NoSuchOption):
        near = " or ".join((error.possibilities or [])[:3])
        said = f"no such option {error.option_name}" + (f"; did you mean {near}?" if near else "")
    where = f"; see {context.command_path} --help" if context is not None else ""
    terminal.complain(f"error: {said[:1].lower()}{said[1:]}{where}")


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Turn a request to end into an error, so that temporary files are removed.

    Yields a list of the signals that come. A signal that the parent process ignores stays ignored.
    Where Python drops the error, as in a callback of the garbage collector, the signal comes again.
    """
    received: list[int] = []
    again: list[threading.Timer] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if received and issubclass(what.exc_type, KeyboardInterrupt):
            # Raised from here it would be dropped once more.
            again.append(threading.Timer(_AGAIN_S, os.kill, (os.getpid(), received[-1])))
            again[-1].start()
        else:
            told(what)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    previous = {number: signal.getsignal(number) for number in numbers}
    taken = [n for n in numbers if previous[n] in (signal.SIG_DFL, signal.default_int_handler)]
    for number in taken:
        signal.signal(number, stop)
    told, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield received
    finally:
        sys.unraisablehook = told
        for timer in again:
            timer.cancel()
        for number in taken:
            signal.signal(number, previous[number])
