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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold import _paths, _terminal
from bnfold._errors import UsageError

if TYPE_CHECKING:
    from bnfold._findings import Finding
    from bnfold._result import Plan
    from bnfold._verify._inputs import InputSet, Wanted

PASSED, FAILED, UNUSABLE, UNDECIDED = range(4)
SIGNALLED = 128
_PATH = click.Path(path_type=Path, readable=False)  # whether it can be read is said by reading
EXIT_CODES = {
    "pass": PASSED,
    "unchanged": PASSED,
    "skipped": PASSED,
    "fail": FAILED,
    "inconclusive": UNDECIDED,
}


class _Command(click.Group):
    """A group whose first argument may be left out, and whose exit codes mean what they say.

    What is no command is a model to fold.
    """

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, "--help", "-h", "--version"}
        if args and args[0] not in known:
            args = ["fold", *args]
        return super().parse_args(context, args)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> None:
        """Run the command and exit; an error is one line, and nothing is left behind."""
        extra["standalone_mode"] = False
        with _interruptible() as signals:
            try:
                sys.exit(super().main(args, prog_name, **extra) or PASSED)
            except (Exception, KeyboardInterrupt) as error:
                # An interrupt that hits the import of a compiled module comes out as another error.
                if signals or isinstance(error, (click.Abort, KeyboardInterrupt)):
                    _terminal.complain("interrupted")
                    sys.exit(SIGNALLED + (signals[0] if signals else signal.SIGINT))
                if isinstance(error, click.ClickException):
                    error.show()
                elif "BNFOLD_TRACEBACK" in os.environ and not isinstance(error, UsageError):
                    raise
                else:
                    _terminal.complain(f"error: {_in_one_line(error)}")
                sys.exit(UNUSABLE)

    def invoke(self, context: click.Context) -> Any:
        """Run the subcommand; warnings of libraries are not for whoever runs it."""
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        return super().invoke(context)


def _in_one_line(error: Exception) -> str:
    """What went wrong, in words for whoever runs the command."""
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{_paths.why(error)}"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (
        f"bnfold broke down ({text}). This is a defect of bnfold: please report it, with the "
        "output under BNFOLD_TRACEBACK=1"
    )


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Let a request to end unwind the stack, so that temporary files go; gives what signals came.

    A signal that the parent process chose to ignore stays ignored.
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
    judged, the file was written.
    """  # noqa: D301


_inputs = click.option(
    "--inputs",
    type=_PATH,
    metavar="FILE.npz",
    help="Run the models on these inputs, by input name, instead of random ones; or an .npy file "
    "for the only input, or a folder of such files.",
)
_draw = click.option(
    "--draw",
    "draws",
    metavar="KIND,…",
    help="Kinds of random inputs: signed, unsigned, structured, large. [default: signed,unsigned]",
)
_dim = click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=SIZE,…",
    help="The size of a free dimension, or several to take in turn.",
)
_seed = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the random inputs.",
)


_format = click.option(
    "--output-format",
    "form",
    type=click.Choice(["text", "json", "github", "junit"]),
    default="text",
    show_default=True,
    help="What to print; github also adds to the summary of the step.",
)


_provider = click.option(
    "--provider",
    "providers",
    default="cpu",
    show_default=True,
    metavar="NAME,…",
    help="Run the folded model there as deployed: cpu, cuda, tensorrt, openvino, dml, coreml.",
)


@main.command(short_help="Fold a model; the default.")
@click.argument("models", type=_PATH, metavar="MODEL", nargs=-1, required=True)
@click.option("-o", "--output", type=_PATH, help="Write the folded model here.")
@click.option("--in-place", is_flag=True, help="Write over MODEL.")
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; exit with 1 if anything is left to fold. Takes several models.",
)
@click.option("--no-verify", is_flag=True, help="Do not check the result.")
@_inputs
@_seed
@_draw
@_dim
@_provider
@click.option(
    "--report",
    type=_PATH,
    metavar="FILE.json",
    help="Write everything known about this run as JSON.",
)
@_format
@click.option("-v", "--verbose", is_flag=True, help="List every fold and every kept map.")
def fold(
    models: tuple[Path, ...],
    output: Path | None,
    in_place: bool,
    check: bool,
    no_verify: bool,
    inputs: Path | None,
    seed: int,
    draws: str | None,
    dims: tuple[str, ...],
    providers: str,
    report: Path | None,
    form: str,
    verbose: bool,
) -> int:
    """Fold MODEL. Without -o or --in-place, say what would happen and write nothing."""
    if in_place and output is not None:
        raise UsageError("give either -o or --in-place, not both")
    if check:
        given = {
            "--draw": draws,
            "--dim": dims,
            "-o": output,
            "--in-place": in_place,
            "--inputs": inputs,
            "--report": report,
            "--provider": providers != "cpu",
        }
        for option in (option for option, value in given.items() if value):
            raise UsageError(f"--check writes nothing and runs no model; leave out {option}")
        return _check(models, form, verbose)
    if len(models) > 1:
        raise UsageError(f"one model at a time, not also {models[1]}; --check alone takes several")
    (model,) = models
    unused = {"--inputs": inputs, "--draw": draws, "--dim": dims, "--provider": providers != "cpu"}
    for option, value in unused.items():
        if value and no_verify:
            raise UsageError(f"{option} has no use with --no-verify; leave one of them out")
    if output is not None and _paths.is_same(output, model):
        raise UsageError(f"{output} is the input itself; say --in-place to write over it")
    if report is not None:
        for other in filter(None, (model, output, inputs)):
            if _paths.is_same(report, other):
                raise UsageError(f"the report would overwrite {other}; give it another name")
        _paths.check_writable(report, device=True)

    from bnfold import _findings, _judge, _report
    from bnfold._verify._providers import by_name

    begun, asked = time.monotonic(), by_name(providers.split(","))
    wanted = _wanted(draws, dims, inputs) if draws or dims else None
    with _terminal.Progress() as progress:
        outcome = _judge.run(
            model,
            model if in_place else output,
            verify=not no_verify,
            inputs=_load_inputs(inputs),
            seed=seed,
            progress=progress,
            wanted=wanted,
            providers=asked,
            report=report,
        )
        if report is not None:
            try:
                _paths.write_text(report, _report.json_text(_report.document(outcome)))
            except UsageError as error:
                fate = f"; {outcome.output} was written" if outcome.output else ""
                raise UsageError(f"{error}{fate}") from error
    if form == "text":
        _terminal.show(_report.text(outcome, verbose))
    elif form == "json":
        _terminal.show_whole(_report.json_text(_report.document(outcome), ascii_only=True))
    else:
        findings, seconds = list(_findings.of_fold(outcome)), time.monotonic() - begun
        _show_findings(form, str(model), outcome.verdict.status, outcome.plan, findings, seconds)
    return EXIT_CODES[outcome.verdict.status]


def _check(models: Sequence[Path], form: str, verbose: bool) -> int:
    """Say of each model what is left to fold."""
    if form in ("json", "junit") and len(models) > 1:
        raise UsageError(f"--output-format {form} takes one model at a time")
    from bnfold import _findings, _judge, _report

    code = PASSED
    for model in models:
        begun = time.monotonic()
        with _terminal.Progress() as progress:
            outcome = _judge.run(model, None, verify=False, inputs=None, seed=0, progress=progress)
        left = bool(outcome.plan.folds)
        code = FAILED if left else code
        if form == "text":
            header = [f"{model}:"] if len(models) > 1 else []
            _terminal.show([*header, *_report.left_to_fold(outcome, verbose)])
        elif form == "json":
            _terminal.show_whole(_report.json_text(_report.document(outcome), ascii_only=True))
        else:
            status = "something is left to fold" if left else "nothing to fold"
            findings, seconds = list(_findings.of_check(outcome)), time.monotonic() - begun
            _show_findings(form, str(model), status, outcome.plan, findings, seconds)
    return code


@main.command(short_help="Compare two models.")
@click.argument("original", type=_PATH)
@click.argument("folded", type=_PATH)
@_inputs
@_seed
@_draw
@_dim
@_provider
@click.option(
    "--bisect",
    is_flag=True,
    help="Look for the first tensor that differs even where no output does.",
)
@_format
@click.option("-v", "--verbose", is_flag=True, help="Show every output on every input set.")
def verify(
    original: Path,
    folded: Path,
    inputs: Path | None,
    seed: int,
    draws: str | None,
    dims: tuple[str, ...],
    providers: str,
    bisect: bool,
    form: str,
    verbose: bool,
) -> int:
    """Are ORIGINAL and FOLDED the same function? Runs both in onnxruntime."""
    import bnfold
    from bnfold import _findings, _report

    begun, wanted = time.monotonic(), _wanted(draws, dims, inputs)
    with _terminal.Progress() as progress:
        progress("running both models")
        result = bnfold.verify(
            original,
            folded,
            inputs=inputs,
            seed=seed,
            draws=wanted.flavours,
            dims=wanted.dims,
            bisect=bisect,
            providers=providers.split(","),
        )
    if form == "text":
        lines = _report.end_to_end_lines(result, verbose)
        _terminal.show([*lines, f"verification: {result.status}"])
    elif form == "json":
        told = _report.comparison(str(original), str(folded), result)
        _terminal.show_whole(_report.json_text(told, ascii_only=True))
    else:
        findings = list(_findings.of_verify(result))
        seconds = time.monotonic() - begun
        _show_findings(form, str(folded), result.status, None, findings, seconds)
    return EXIT_CODES[result.status]


@main.command(short_help="Say what a reason code means.")
@click.argument("code", required=False)
def explain(code: str | None) -> None:
    """What a reason CODE means and what to do about it; without one, list them all."""
    from bnfold._plan._reasons import CODES

    if code is None:
        _terminal.show(CODES)
        return
    if code not in CODES:
        raise UsageError(f"there is no reason code {code!r}; 'bnfold explain' lists them")
    _terminal.show([f"{code}: {CODES[code].meaning}", CODES[code].advice])


def _show_findings(
    form: str,
    model: str,
    status: str,
    plan: Plan | None,
    findings: Sequence[Finding],
    seconds: float,
) -> None:
    """Print findings for a CI server."""
    if form == "junit":
        from bnfold._junit import junit

        _terminal.show_whole(junit(model, findings, seconds))
        return
    from bnfold import _github

    _terminal.show(_github.commands(model, findings))
    _github.summarize(model, status, plan, findings)


def _wanted(draws: str | None, dims: Sequence[str], inputs: Path | None) -> Wanted:
    """The inputs to draw, as the options have it."""
    from bnfold._verify._inputs import USUAL, Wanted

    if inputs is not None and (draws or dims):
        raise UsageError("--draw and --dim have no use with --inputs; leave one of them out")
    sizes: dict[str, list[int]] = {}
    for given in dims:
        name, _, listed = given.rpartition("=")
        try:
            sizes[name] = [int(size) for size in listed.split(",")]
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"--dim {given}: say NAME=SIZE, such as batch=4 or batch=1,4")
    return Wanted.of(draws.split(",") if draws else USUAL.flavours, sizes)


def _load_inputs(path: Path | None) -> list[InputSet] | None:
    if path is None:
        return None
    from bnfold._verify._inputs import load_inputs

    return load_inputs(path)
