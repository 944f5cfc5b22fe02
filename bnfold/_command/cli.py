"""The command line: ``bnfold MODEL``, ``bnfold verify A B``, ``bnfold explain CODE``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bnfold._command import beliefs, options, terminal
from bnfold._command.checking import check_each
from bnfold._command.options import PATH
from bnfold._command.terminal import EXIT_CODES, PASSED, SIGNALLED, UNDECIDED, code_of, in_one_line
from bnfold._errors import UsageError
from bnfold._system import paths, time_limit


class _Command(click.Group):
    """A group of commands where the word ``fold`` may be left out, with its own exit codes.

    A first argument that names no command is a model to fold.
    """

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, "--help", "-h", "--version"}
        if args and args[0] not in known:
            args = ["fold", *args]
        return super().parse_args(context, args)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> None:
        """Run the command and exit. An error prints one line and leaves no file behind."""
        extra["standalone_mode"] = False
        with _interruptible() as signals:
            try:
                sys.exit(super().main(args, prog_name, **extra) or PASSED)
            except time_limit.TimeUp as error:
                terminal.complain(f"error: {error}")
                sys.exit(UNDECIDED)
            except (Exception, KeyboardInterrupt) as error:
                # An interrupt during the import of a compiled module raises another error.
                if signals or isinstance(error, (click.Abort, KeyboardInterrupt)):
                    terminal.complain("interrupted")
                    sys.exit(SIGNALLED + (signals[0] if signals else signal.SIGINT))
                if isinstance(error, click.ClickException):
                    error.show()
                elif "BNFOLD_TRACEBACK" in os.environ and not isinstance(error, UsageError):
                    raise
                else:
                    terminal.complain(f"error: {in_one_line(error)}")
                sys.exit(code_of(error))

    def invoke(self, context: click.Context) -> Any:
        """Run the subcommand. The user does not see the warnings of libraries."""
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        return super().invoke(context)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Turn a request to end into an error, so that temporary files are removed.

    Yields a list of the signals that come. A signal that the parent process ignores stays ignored.
    """
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    previous = {number: signal.getsignal(number) for number in numbers}
    taken = [n for n in numbers if previous[n] in (signal.SIG_DFL, signal.default_int_handler)]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number in taken:
            signal.signal(number, previous[number])


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import bnfold

        click.echo(f"bnfold {bnfold.__version__}")
        context.exit()


@click.group(
    cls=_Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="MODEL | COMMAND [ARGS]...",
    no_args_is_help=True,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Fold BatchNorm and per-channel affine operators into the layers around them, and prove it.

    \b
    bnfold model.onnx                  what would fold, and why the rest stays
    bnfold model.onnx -o fused.onnx    fold, verify, and write the file
    bnfold model.onnx --check          fail if anything is left to fold
    bnfold fold --help                 all options of folding

    Exit codes: 0 done and verified (or nothing to fold), 1 verification failed and no file was
    written (or --check found something to fold), 2 wrong usage or unreadable input, 3 could not be
    judged: then the file was written, unless the run was ended.
    """  # noqa: D301


_format = click.option(
    "--output-format",
    "form",
    type=click.Choice(["text", "json", "github", "junit"]),
    default="text",
    show_default=True,
    help="What to print; github also adds to the summary of the step.",
)


@main.command(short_help="Fold a model; the default.")
@click.argument("models", type=PATH, metavar="MODEL", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Write the folded model here: as JSON or protobuf's text form if it is named .json or "
    ".textproto.",
)
@click.option("--in-place", is_flag=True, help="Write over MODEL.")
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; exit with 1 if anything is left to fold. Takes several models, "
    "and folders of them.",
)
@click.option("--no-verify", is_flag=True, help="Do not check the result.")
@click.option("--no-prove", is_flag=True, help="Check it by certificates and a run alone.")
@beliefs.freezing
@beliefs.equating
@beliefs.trusting
@options.depthwise
@options.comparison
@click.option(
    "--report",
    type=PATH,
    metavar="FILE.json",
    help="Write everything known about this run as JSON.",
)
@_format
@click.option("-v", "--verbose", is_flag=True, help="List every fold and every kept map.")
@options.configured
@click.pass_context
def fold(
    context: click.Context,
    /,
    models: tuple[Path, ...],
    output: Path | None,
    in_place: bool,
    check: bool,
    no_verify: bool,
    no_prove: bool,
    frozen: bool,
    equal_dims: bool,
    trust: bool,
    follow_links: bool,
    depthwise: bool,
    report: Path | None,
    form: str,
    verbose: bool,
    memory: int | None,
    **comparison: Any,
) -> int:
    """Fold MODEL. Without -o or --in-place, say what would happen and write nothing."""
    believed = {
        "frozen": frozen,
        "equal_dims": equal_dims,
        "trust": trust,
        "follow_links": follow_links,
    }
    options.refuse_stream("-o", output)
    options.refuse_stream("--report", report)
    if in_place and output is not None:
        raise UsageError("give either -o or --in-place, not both")
    if check:
        unused = ("output", "in_place", "report", "no_prove", *options.NAMES)
        options.refuse(context, unused, "--check writes nothing and runs no model")
        options.bound(context, memory, comparison["timeout"])
        return check_each(models, form, verbose, beliefs.settings(**believed), depthwise)
    if len(models) > 1:
        raise UsageError(f"one model at a time, not also {models[1]}; --check alone takes several")
    (model,) = models
    if no_verify:
        options.refuse(context, options.NAMES, "nothing is compared with --no-verify")
    if output is not None and paths.is_same(output, model):
        raise UsageError(f"{output} is the input itself; say --in-place to write over it")
    if model.suffix == ".pt2":
        options.refuse(context, ["frozen"], "a .pt2 file has no initializers to freeze")
        options.refuse(context, ["equal_dims"], "a .pt2 file gives its sizes no names")
        options.refuse(context, ["follow_links"], "a .pt2 file has no external data")
        believed.update(frozen=False, equal_dims=False, follow_links=False)
    else:
        options.refuse(context, ["trust"], "an ONNX file runs no code when it is loaded")
    usable = ("seed",) if model.suffix == ".pt2" else options.NAMES
    comparison = options.applicable(context, comparison, usable)
    inputs = None if no_verify else comparison["inputs"]
    if report is not None:
        for other in filter(None, (model, output, inputs)):
            if paths.is_same(report, other):
                raise UsageError(f"the report would overwrite {other}; give it another name")
        paths.check_writable(report, device=True)

    from bnfold._pipeline.models import fold_file
    from bnfold._report.findings import of_fold
    from bnfold._report.text import json_text, outcome_document, outcome_lines

    begun = time.monotonic()
    options.bound(context, memory, comparison["timeout"])
    settings = beliefs.settings(**believed)
    if not no_verify:
        source = options.tolerance_source(context)
        settings = options.settings(comparison, settings, source=source)
        settings = replace(settings, prove=not no_prove)
    options.tell_missing(settings, form)
    with terminal.Progress() as progress:
        outcome = fold_file(
            model,
            model if in_place else output,
            verify=not no_verify,
            inputs=options.inputs(inputs),
            settings=settings,
            progress=progress,
            report=report,
            depthwise=depthwise,
        )
        if report is not None:
            try:
                paths.write_text(report, json_text(outcome_document(outcome)))
            except UsageError as error:
                fate = f"; {outcome.output} was written" if outcome.output else ""
                raise UsageError(f"{error}{fate}") from error
    if form == "text":
        terminal.show(outcome_lines(outcome, verbose, comparison["power"]))
    elif form == "json":
        terminal.show_whole(json_text(outcome_document(outcome), ascii_only=True))
    else:
        findings, seconds = list(of_fold(outcome)), time.monotonic() - begun
        status, plan = outcome.verdict.status, outcome.plan
        terminal.show_findings(form, str(model), status, plan, findings, seconds)
    return EXIT_CODES[outcome.verdict.status]


@main.command(short_help="Compare two models.")
@click.argument("original", type=PATH)
@click.argument("folded", type=PATH)
@beliefs.freezing
@beliefs.trusting
@options.comparison
@click.option(
    "--bisect",
    is_flag=True,
    help="Look for the first tensor that differs even where no output does.",
)
@click.option(
    "--prove/--no-prove",
    default=None,
    help="Run nothing, and prove from the weights alone that the two are one function, or that "
    "not; exit code 3 where neither is seen. Or only run them. [default: both]",
)
@_format
@click.option("-v", "--verbose", is_flag=True, help="Show every output on every input set.")
@options.configured
@click.pass_context
def verify(
    context: click.Context,
    /,
    original: Path,
    folded: Path,
    frozen: bool,
    trust: bool,
    follow_links: bool,
    bisect: bool,
    prove: bool | None,
    form: str,
    verbose: bool,
    memory: int | None,
    **comparison: Any,
) -> int:
    """Are ORIGINAL and FOLDED the same function? Compares both by weights, and runs both.

    A proof from the weights, operator by operator, settles what it can. Then onnxruntime runs both.

    A program of PyTorch (.pt2) is run by PyTorch, on the example inputs that it carries, and
    compared with another one or with a file of ONNX.
    """
    begun = time.monotonic()
    options.bound(context, memory, comparison["timeout"])
    if prove:
        from bnfold._command.proving import show_proof

        options.refuse(context, (*options.NAMES, "bisect", "trust"), "--prove runs nothing")
        return show_proof(original, folded, frozen, follow_links, form, verbose, begun)
    from bnfold._judge.end_to_end import compare_files
    from bnfold._judge.verdict import end_to_end_lines
    from bnfold._report.findings import of_verify
    from bnfold._report.text import comparison_document, json_text
    from bnfold._run.session import hush

    hush()
    comparison = options.applicable(context, comparison)
    programs = {path.suffix == ".pt2" for path in (original, folded)}
    if programs == {True}:
        options.refuse(context, ["follow_links"], "a .pt2 file has no external data")
    elif programs == {False}:
        options.refuse(context, ["trust"], "an ONNX file runs no code when it is loaded")
    believed = beliefs.settings(frozen=frozen, trust=trust, follow_links=follow_links)
    source = options.tolerance_source(context)
    settings = options.settings(comparison, believed, bisect, source)
    settings = replace(settings, prove=prove is None)
    options.tell_missing(settings, form)
    with terminal.Progress() as progress:
        if True in programs:
            from bnfold._pipeline.any_kind import compare_models
            from bnfold._pipeline.module_options import ModuleOptions

            given = comparison["inputs"]
            if programs == {True}:  # PyTorch looks at no clock; that of the process holds.
                settings = replace(settings, seconds=None)
            result = compare_models(original, folded, given, settings, None, ModuleOptions())
        else:
            inputs = options.inputs(comparison["inputs"])
            result = compare_files(original, folded, inputs, settings, progress)
    if form == "text":
        lines = end_to_end_lines(result, verbose, comparison["power"])
        terminal.show([*lines, f"verification: {result.status}"])
    elif form == "json":
        told = comparison_document(str(original), str(folded), result)
        terminal.show_whole(json_text(told, ascii_only=True))
    else:
        findings = list(of_verify(result))
        seconds = time.monotonic() - begun
        terminal.show_findings(form, str(folded), result.status, None, findings, seconds)
    return EXIT_CODES[result.status]


@main.command(short_help="Say what a reason code means.")
@click.argument("code", required=False)
def explain(code: str | None) -> None:
    """What a reason CODE means and what to do about it; without one, list them all."""
    from bnfold._core.reasons import CODES

    if code is None:
        terminal.show(CODES)
        return
    if code not in CODES:
        raise UsageError(f"there is no reason code {code!r}; 'bnfold explain' lists them")
    terminal.show([f"{code}: {CODES[code].meaning}", CODES[code].advice])
