"""The command line: ``bnfold MODEL``, ``bnfold verify A B``, ``bnfold explain CODE``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bnfold._command import beliefs, help, options, pages, preprocessing, targets, terminal
from bnfold._command.entry import Commands
from bnfold._command.many import many, words_of
from bnfold._command.options import PATH
from bnfold._command.terminal import EXIT_CODES
from bnfold._errors import UsageError
from bnfold._system import paths


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import bnfold

        click.echo(f"bnfold {bnfold.__version__}")
        context.exit()


@click.group(
    cls=Commands,
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
    """Fold BatchNorm into the layers around it, and prove that the model stays the same function.

    Every other operator that multiplies each channel by a number, or adds one, folds likewise:
    Mul, Add, Sub and Div by constants. All of these are called affine operators.

    'bnfold fold --help' has all options of folding.

    Your shell completes commands, options and files after this (or with zsh_source, fish_source):

    \b
    eval "$(_BNFOLD_COMPLETE=bash_source bnfold)"
    """  # noqa: D301


@main.command(
    cls=help.Explained,
    short_help="Fold a model; the default.",
    examples=(
        ("bnfold model.onnx", "what would fold, and why the rest stays"),
        ("bnfold model.onnx -o fused.onnx", "fold, verify, and write the file"),
    ),
    groups={
        "What is written": ["output", "in_place", "check", "report", "page", "form"],
        "Many models": ["output_dir", "jobs", "resume", "drawn"],
        "What folds": ["frozen", "equal_dims", "depthwise", "equalize", "simplify", "tidy"],
        "What the input is": [*preprocessing.NAMES, "expose_normalization"],
        "How it is verified": ["no_verify", "no_prove", *options.COMPARED],
        "Bounds, and what is trusted": [*options.BOUNDS, *beliefs.TRUST],
        "What is printed": ["verbose", "quiet", "colour"],
    },
)
@click.argument("models", type=PATH, metavar="MODEL...", nargs=-1, required=True)
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
@click.option(
    "--equalize",
    is_flag=True,
    help="Move positive scales between layers, so that the channels of a weight have like ranges "
    "for an int8 scale in common; the function stays the same.",
)
@click.option(
    "--simplify",
    is_flag=True,
    help="Let onnxslim or onnxsim take away what is left over; taken where it is seen to change "
    "nothing. Needs bnfold[simplify].",
)
@preprocessing.preprocessing
@preprocessing.exposing
@preprocessing.tidying
@options.comparison
@targets.reporting
@pages.showing
@targets.forming
@help.spoken("List every fold, and every operator that stays.")
@many
@help.colour
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
    equalize: bool,
    simplify: bool,
    expose_normalization: bool,
    tidy: bool,
    report: Path | None,
    page: Path | None,
    form: str,
    verbose: bool,
    quiet: bool,
    memory: int | None,
    output_dir: Path | None,
    jobs: int,
    resume: bool,
    drawn: bool,
    **comparison: Any,
) -> int:
    """Fold MODEL. Without -o or --in-place, say what would happen and write nothing.

    With --output-dir it folds all models of folders, patterns ("models/**/*.onnx") and lists
    (@list.txt, a path in each line).
    """
    believed = {
        "frozen": frozen,
        "equal_dims": equal_dims,
        "trust": trust,
        "follow_links": follow_links,
    }
    verbose, quiet = help.loudness(context, verbose, quiet)
    targets.refuse_stream("-o", output)
    targets.refuse_stream("--report", report)
    if check:
        writing = ("output", "in_place", "page", "equalize", "simplify", "output_dir", "jobs")
        others = ("resume", "drawn", "expose_normalization", "tidy")
        unused = (*writing, *others, *options.NAMES, *preprocessing.NAMES)
        options.refuse(context, ("no_prove",), "--check writes nothing and runs no model")
        options.refuse(context, unused, "--check writes nothing and runs no model")
        options.bound(context, memory, comparison["timeout"])
        believed_ = beliefs.settings(**believed)
        from bnfold._command.checking import check_each

        given = (form, verbose, believed_, depthwise, quiet, report, words_of(context))
        return check_each(models, *given)
    if output_dir is not None:
        from bnfold._command.registry import fold_all

        single = ("output", "in_place", "report")
        options.refuse(context, single, "--output-dir writes many files")
        options.refuse(context, ("page",), "with --output-dir say --pages: a page for each model")
        if no_verify:
            options.refuse(context, options.NAMES, "nothing is compared with --no-verify")
        spoken = (form, verbose, quiet)
        return fold_all(context, models, output_dir, jobs, resume, drawn, spoken)
    options.refuse(context, ("jobs", "resume", "drawn"), "without --output-dir there is one model")
    if len(models) > 1:
        raise UsageError(
            f"one model at a time, not also {models[1]}; --output-dir and --check take several"
        )
    (model,) = models
    if no_verify:
        options.refuse(context, options.NAMES, "nothing is compared with --no-verify")
    targets.check_output(output, in_place, model)
    if model.suffix == ".pt2":
        options.refuse(context, ["frozen"], "a .pt2 file has no initializers to freeze")
        options.refuse(context, ["equal_dims"], "a .pt2 file gives its sizes no names")
        options.refuse(context, ["follow_links"], "a .pt2 file has no external data")
        options.refuse(context, ["equalize"], "only files of ONNX are equalized")
        options.refuse(context, ["simplify"], "only files of ONNX are simplified")
        believed.update(frozen=False, equal_dims=False, follow_links=False)
    else:
        options.refuse(context, ["trust"], "an ONNX file runs no code when it is loaded")
    wanted = preprocessing.of_files(context, comparison, (model,), form, expose_normalization)
    usable = ("seed",) if model.suffix == ".pt2" else options.NAMES
    comparison = options.applicable(context, comparison, usable)
    inputs = None if no_verify else comparison["inputs"]
    targets.check_report(report, model, output, inputs)
    pages.check(page, model, output, inputs, report)

    from bnfold._pipeline.models import fold_file
    from bnfold._report.text import json_text, outcome_document

    begun = time.monotonic()
    options.bound(context, memory, comparison["timeout"])
    settings = beliefs.settings(**believed)
    if not no_verify:
        source = options.tolerance_source(context)
        settings = options.settings(comparison, settings, source=source)
        settings = replace(settings, prove=not no_prove)
    settings = replace(settings, preprocessing=wanted)
    options.tell_missing(settings, form)
    seen = pages.witness(page, model if in_place else output)
    settings = replace(settings, spread=page is not None)
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
            equalize=equalize,
            simplify=simplify,
            exposing=expose_normalization,
            tidying=tidy,
            observer=seen,
        )
        if page is not None and seen is not None:
            progress("drawing the page")
            pages.of_fold(context, page, outcome, seen, begun)
        if report is not None:
            try:
                paths.write_text(report, json_text(outcome_document(outcome)))
            except UsageError as error:
                fate = f"; {outcome.output} was written" if outcome.output else ""
                raise UsageError(f"{error}{fate}") from error
    seconds = time.monotonic() - begun
    from bnfold._command.telling import tell_fold

    words = pages.words(context)
    tell_fold(outcome, form, seconds, verbose, comparison["power"], quiet, words)
    pages.tell(page, form, quiet)
    return EXIT_CODES[outcome.verdict.status]


@main.command(
    cls=help.Explained,
    short_help="Compare two models.",
    examples=(
        ("bnfold verify a.onnx b.onnx", "run both and compare what they put out"),
        ("bnfold verify a.onnx b.onnx --prove", "compare their weights; nothing is run"),
    ),
    groups={
        "What the input is": [*preprocessing.NAMES],
        "How they are compared": ["prove", "bisect", "frozen", *options.COMPARED],
        "Bounds, and what is trusted": [*options.BOUNDS, *beliefs.TRUST],
        "What is printed and written": ["report", "page", "form", "verbose", "quiet", "colour"],
    },
)
@click.argument("original", type=PATH)
@click.argument("folded", type=PATH)
@beliefs.freezing
@beliefs.trusting
@preprocessing.preprocessing
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
@targets.reporting
@pages.showing
@targets.forming
@help.spoken("Show every output on every input set.")
@help.colour
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
    report: Path | None,
    page: Path | None,
    form: str,
    verbose: bool,
    quiet: bool,
    memory: int | None,
    **comparison: Any,
) -> int:
    """Are ORIGINAL and FOLDED the same function? Compares both by weights, and runs both.

    A proof from the weights, operator by operator, settles what it can. Then onnxruntime runs both.

    A program of PyTorch (.pt2) is run by PyTorch, on the example inputs that it carries, and
    compared with another one or with a file of ONNX.
    """
    begun = time.monotonic()
    verbose, quiet = help.loudness(context, verbose, quiet)
    options.bound(context, memory, comparison["timeout"])
    wanted = preprocessing.of_files(context, comparison, (original, folded), form)
    targets.check_report(report, original, folded, comparison["inputs"])
    pages.check(page, original, folded, comparison["inputs"], report)
    draw = pages.of_comparison(context, page, original, folded, begun, follow_links)
    if prove:
        from bnfold._command.proving import show_proof

        trusting = [] if ".pt2" in (original.suffix, folded.suffix) else ["trust"]
        options.refuse(context, (*options.NAMES, "bisect", *trusting), "--prove runs nothing")
        given = (frozen, follow_links, trust, form, verbose, begun, quiet, report, draw, wanted)
        code = show_proof(original, folded, *given)
        pages.tell(page, form, quiet)
        return code
    from bnfold._judge.two_files import compare_files
    from bnfold._report.text import comparison_document, json_text
    from bnfold._run.session import hush

    hush()
    comparison = options.applicable(context, comparison)
    programs = {path.suffix == ".pt2" for path in (original, folded)}
    if True in programs:
        options.refuse(context, ["timed"], "PyTorch runs a .pt2 file, which is not timed")
    if programs == {True}:
        options.refuse(context, ["follow_links"], "a .pt2 file has no external data")
    elif programs == {False}:
        options.refuse(context, ["trust"], "an ONNX file runs no code when it is loaded")
    believed = beliefs.settings(frozen=frozen, trust=trust, follow_links=follow_links)
    source = options.tolerance_source(context)
    settings = options.settings(comparison, believed, bisect, source)
    settings = replace(settings, preprocessing=wanted, prove=prove is None)
    options.tell_missing(settings, form)
    settings = replace(settings, spread=page is not None)
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
            draw(result, progress)
    seconds = time.monotonic() - begun
    if report is not None:
        document = comparison_document(str(original), str(folded), result)
        paths.write_text(report, json_text(document))
    power = comparison["power"]
    from bnfold._command.telling import tell_comparison

    tell_comparison(original, folded, result, form, seconds, verbose, power, quiet)
    pages.tell(page, form, quiet)
    return EXIT_CODES[result.status]


@main.command(
    cls=help.Explained,
    short_help="Say what a reason code means.",
    examples=(
        ("bnfold explain", "all codes, each with what it means"),
        ("bnfold explain zero-padding", "one code, and what to do about it"),
    ),
)
@click.argument("code", required=False, shell_complete=help.complete_code)
@help.colour
def explain(code: str | None) -> None:
    """What a reason CODE means and what to do about it; without one, list them all."""
    terminal.show(help.explained(code))
