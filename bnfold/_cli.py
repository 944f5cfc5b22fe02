"""The command line: ``bnfold MODEL``, ``bnfold verify A B``, ``bnfold explain CODE``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold._errors import UsageError

if TYPE_CHECKING:
    from bnfold._judge import Outcome

PASSED, FAILED, UNUSABLE, UNDECIDED = range(4)
EXIT_CODES = {
    "pass": PASSED,
    "unchanged": PASSED,
    "skipped": PASSED,
    "fail": FAILED,
    "inconclusive": UNDECIDED,
}


class _DefaultGroup(click.Group):
    """A group whose first argument may be left out: what is no command is a model to fold."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, "--help", "-h", "--version"}
        if args and args[0] not in known:
            args = ["fold", *args]
        return super().parse_args(context, args)


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import bnfold

        click.echo(f"bnfold {bnfold.__version__}")
        context.exit()


@click.group(
    cls=_DefaultGroup,
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
    bnfold fold --help                 all options of folding

    Exit codes: 0 done and verified (or nothing to fold), 1 verification failed and no file was
    written, 2 wrong usage or unreadable input, 3 could not be judged.
    """  # noqa: D301


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the folded model here."
)
@click.option("--in-place", is_flag=True, help="Write over MODEL.")
@click.option("--no-verify", is_flag=True, help="Do not check the result.")
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Verify on these inputs, by input name, instead of random ones.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random inputs.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Write everything known about this run as JSON.",
)
@click.option("-v", "--verbose", is_flag=True, help="List every fold and every kept map.")
def fold(
    model: Path,
    output: Path | None,
    in_place: bool,
    no_verify: bool,
    inputs: Path | None,
    seed: int,
    report: Path | None,
    verbose: bool,
) -> None:
    """Fold MODEL. Without -o or --in-place, say what would happen and write nothing."""
    from bnfold import _judge, _report

    with _Errors(), _Progress() as progress:
        target = _destination(model, output, in_place)
        given = _load_inputs(inputs) if inputs is not None and not no_verify else None
        outcome = _judge.run(
            model, target, verify=not no_verify, inputs=given, seed=seed, progress=progress
        )
        if report is not None:
            _write_report(report, outcome)
        progress.clear()
    for line in _report.text(outcome, verbose):
        click.echo(line)
    sys.exit(EXIT_CODES[outcome.verdict.status])


@main.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("folded", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Compare on these inputs, by input name, instead of random ones.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random inputs.")
@click.option("-v", "--verbose", is_flag=True, help="Show every output on every input set.")
def verify(original: Path, folded: Path, inputs: Path | None, seed: int, verbose: bool) -> None:
    """Are ORIGINAL and FOLDED the same function? Runs both in onnxruntime."""
    import bnfold
    from bnfold import _report

    with _Errors(), _Progress() as progress:
        progress("running both models")
        result = bnfold.verify(original, folded, inputs=inputs, seed=seed)
        progress.clear()
    for line in _report.end_to_end_lines(result, verbose):
        click.echo(line)
    click.echo(f"verification: {result.status}")
    sys.exit(EXIT_CODES[result.status])


@main.command()
@click.argument("code", required=False)
def explain(code: str | None) -> None:
    """What a reason CODE means and what to do about it; without one, list them all."""
    from bnfold._plan._reasons import CODES

    if code is None:
        for name in CODES:
            click.echo(name)
        return
    if code not in CODES:
        raise click.UsageError(f"there is no reason code {code!r}; 'bnfold explain' lists them")
    click.echo(f"{code}: {CODES[code].meaning}\n{CODES[code].advice}")


class _Errors:
    """Turns bnfold's own errors, and an interrupt, into one line and an exit code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UsageError):
            click.echo(f"error: {error}", err=True)
            sys.exit(UNUSABLE)


class _Progress:
    """One line on a terminal that says what goes on, once a run takes longer than a moment."""

    _PATIENCE_S = 0.5

    def __init__(self) -> None:
        self._shown = False
        self._terminal = sys.stderr.isatty()
        self._start = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __call__(self, step: str) -> None:
        if self._terminal and time.monotonic() - self._start > self._PATIENCE_S:
            click.echo(f"\r\x1b[K{step} …", nl=False, err=True)
            self._shown = True

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._shown = False


def _destination(model: Path, output: Path | None, in_place: bool) -> Path | None:
    if in_place and output is not None:
        raise UsageError("give either -o or --in-place, not both")
    if in_place:
        return model
    if output is not None and output.exists() and model.exists() and output.samefile(model):
        raise UsageError(f"{output} is the input itself; say --in-place to write over it")
    return output


def _load_inputs(path: Path) -> list[Any]:
    from bnfold._verify._inputs import load_inputs

    return list(load_inputs(path))


def _write_report(path: Path, outcome: Outcome) -> None:
    """Write the report by rename, so that nobody reads half of it."""
    from bnfold import _report

    body = json.dumps(_report.document(outcome), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        with tempfile.TemporaryDirectory(prefix=".bnfold-", dir=path.parent) as folder:
            draft = Path(folder) / "report.json"
            draft.write_text(body + "\n", encoding="utf-8")
            os.replace(draft, path)
    except OSError as error:
        raise UsageError(f"cannot write the report {path}: {error.strerror}") from error
