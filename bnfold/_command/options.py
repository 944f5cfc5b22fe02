"""The options of a comparison. Both commands have them; some exclude each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from bnfold._command import terminal
from bnfold._core.preprocessing import WORDS
from bnfold._errors import UsageError
from bnfold._system import time_limit

if TYPE_CHECKING:
    from bnfold._judge.settings import Settings
    from bnfold._run.input_sets import InputSet

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path, readable=False)  # reading tells whether it can be read
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def _words(given: Any) -> tuple[str, ...]:
    """The words of a text with commas between them, or of a list in a configuration file."""
    words = given.split(",") if isinstance(given, str) else given
    return tuple(word.strip() for word in words)


def _sizes(given: Any) -> tuple[str, tuple[int, ...]]:
    """A dimension and its sizes, from ``batch=1,4`` or from a pair in a configuration file."""
    if isinstance(given, tuple):
        return given
    name, _, listed = given.rpartition("=")
    try:
        sizes = tuple(int(size) for size in listed.split(","))
    except ValueError:
        sizes = ()
    if not name or not sizes:
        raise UsageError(f"--dim {given}: say NAME=SIZE, such as batch=4 or batch=1,4")
    return name, sizes


def amount(given: str) -> int:
    """The number of bytes in an amount of memory such as ``4GB``."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kMG]?)B?", given.strip())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if not size:
        raise UsageError(f"--memory {given}: say an amount of memory, such as 4GB or 500MB")
    return size


_COMPARISON = (
    click.option(
        "--inputs",
        type=PATH,
        metavar="FILE.npz",
        help="Run the models on these inputs, by input name, instead of random ones; or an .npy "
        "file for the only input, or a folder of such files.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Seed of the random inputs.",
    ),
    click.option(
        "--draw",
        type=_words,
        metavar="KIND,…",
        help="Kinds of random inputs: signed, unsigned, structured, large. "
        "[default: signed,unsigned,structured]",
    ),
    click.option(
        "--dim",
        type=_sizes,
        multiple=True,
        metavar="NAME=SIZE,…",
        help="The size of a free dimension, or several to take in turn.",
    ),
    click.option(
        "--provider",
        type=_words,
        default="cpu",
        show_default=True,
        metavar="NAME,…",
        help="Run the folded model there as deployed: cpu, cuda, tensorrt, openvino, dml, coreml.",
    ),
    click.option(
        "--power",
        is_flag=True,
        help="Plant an error in every folded layer by itself, and say which would be noticed.",
    ),
    click.option(
        "--time",
        "timed",
        is_flag=True,
        help="Measure how much faster the folded model is, by turns, in onnxruntime with all "
        "optimizations, on one thread unless --threads says otherwise.",
    ),
    click.option(
        "--rtol",
        type=float,
        metavar="R",
        help="Allow |difference| <= A + R*|output| instead of what is measured.",
    ),
    click.option("--atol", type=float, metavar="A", help="See --rtol."),
    click.option(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="Threads that a session computes with. [default: as many as there are cores]",
    ),
    click.option(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="Stop after this time: a comparison is inconclusive then; where there is none yet, "
        "nothing is written.",
    ),
    click.option(
        "--ops-library",
        type=PATH,
        multiple=True,
        metavar="FILE",
        help="A library of custom operators for onnxruntime. It is loaded: it is code.",
    ),
    click.option(
        "--memory",
        type=amount,
        metavar="SIZE",
        help="Take no more memory than this, such as 4GB (Linux and macOS).",
    ),
)
_UNSET: dict[str, Any] = {
    "inputs": None,
    "seed": 0,
    "draw": None,
    "dim": (),
    "provider": ("cpu",),
    "power": False,
    "timed": False,
    "rtol": None,
    "atol": None,
    "threads": 0,
    "timeout": None,
    "ops_library": (),
}
_OF_EVERY_RUN = ("timeout",)
NAMES = tuple(name for name in _UNSET if name not in _OF_EVERY_RUN)
"""The options of a comparison. Bounds on time and memory are for every run: not among them."""

BOUNDS = ("threads", "timeout", "memory")
COMPARED = tuple(name for name in NAMES if name not in BOUNDS)
"""The options that bound a run, and those of a comparison that do not."""

_CONFIGURABLE = {
    "inputs": "path",
    "seed": "integer",
    "draw": "words",
    "dim": "sizes",
    "provider": "words",
    "power": "flag",
    "time": "flag",
    "rtol": "number",
    "atol": "number",
    "threads": "integer",
    "timeout": "number",
    "memory": "text",
    **{f"input-{word}": "by input" for word in WORDS},
    "freeze-initializers": "flag",
    "assume-equal-dims": "flag",
    "output-format": "text",
    "verbose": "flag",
    "quiet": "flag",
}
"""The options that a project may set, and the kind of each."""


def comparison(command: Command) -> Command:
    """Give a command the options of a comparison."""
    for option in reversed(_COMPARISON):
        command = option(command)
    return command


def _configure(context: click.Context, _: click.Parameter, ignored: bool) -> None:
    """Take defaults from the project's configuration, each checked by its option.

    Raises:
        UsageError: a file cannot be read, or an option does not take a value.
    """
    if ignored:
        return
    from bnfold._command import config

    project = config.project(_CONFIGURABLE)
    if project is None:
        return
    values, read = {}, {}
    for key, value in project.values.items():
        option = next(p for p in context.command.params if f"--{key}" in p.opts)
        assert option.name is not None
        values[option.name] = value
        try:
            read[option.name] = option.type_cast_value(context, value)
            if option.name in _UNSET:
                settings({**_UNSET, option.name: read[option.name]})
        except click.BadParameter as error:
            raise project.trouble(key, error.message.rstrip(".")) from error
        except (ValueError, OverflowError) as error:  # click does not expect every value
            raise project.trouble(key, str(error)) from error
        except UsageError as error:
            raise project.trouble(key, error) from error
    try:
        _refuse_both({**_UNSET, **read})
    except UsageError as error:
        raise UsageError(f"{project.path}: {error}") from error
    context.default_map = values
    context.meta[_PROJECT] = project


_PROJECT = f"{__name__}.project"


def configured(command: Command) -> Command:
    """Let a command take defaults from the project's configuration.

    click processes eager options first, in the order in which they are given. So --help works even
    if the file is wrong. Before click 8.2, click's own --help option is found too late for that.
    """
    command = click.help_option("-h", "--help")(command)
    return click.option(
        "--no-config",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_configure,
        help="Take no defaults from [tool.bnfold] of a pyproject.toml.",
    )(command)


def refuse(context: click.Context, names: Iterable[str], why: str) -> None:
    """Raise `UsageError` if one of some options was given on the command line.

    An option in a configuration file is ignored where it does not apply.
    """
    for name in names:
        if _said(context, name):
            option = next(p for p in context.command.params if p.name == name)
            raise UsageError(f"{why}; leave out {option.opts[0]}")


def _said(context: click.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def applicable(
    context: click.Context, given: Mapping[str, Any], names: Collection[str] = NAMES
) -> dict[str, Any]:
    """The options that apply to a model, out of those given.

    An option of the file is left out if the model cannot use it. An option of the command line
    stays, to be refused later. Options of the command line that give inputs replace options of the
    file that draw them, and the other way round.
    """
    said = {name for name in _UNSET if _said(context, name)}
    unused = _UNSET.keys() - {*names, *_OF_EVERY_RUN} - said
    if "inputs" in said:
        unused |= {"draw", "dim"} - said
    elif not said.isdisjoint({"draw", "dim"}):
        unused |= {"inputs"}
    return {**given, **{name: _UNSET[name] for name in unused}}


def tolerance_source(context: click.Context) -> str:
    """The file that sets the tolerance; "" if the command line does, or nothing."""
    project = context.meta.get(_PROJECT)
    set_there = (ParameterSource.DEFAULT_MAP,)
    told = any(context.get_parameter_source(name) in set_there for name in ("rtol", "atol"))
    return str(project.path) if project is not None and told else ""


def depthwise(command: Command) -> Command:
    """Give a command the option that leaves no norm."""
    return click.option(
        "--no-batchnorm",
        "depthwise",
        is_flag=True,
        help="Write norms that nothing takes in as 1×1 depthwise convolutions, or Mul and Add.",
    )(command)


def settings(
    given: Mapping[str, Any],
    believed: Settings | None = None,
    bisect: bool = False,
    source: str = "",
) -> Settings:
    """The settings that the options of a comparison give.

    Raises:
        UsageError: an option has a value that means nothing, or two of them exclude each other.
    """
    from bnfold._judge.settings import Settings
    from bnfold._judge.tolerance import Fixed
    from bnfold._run.drawing import USUAL, WantedInputs
    from bnfold._run.providers import by_name

    _refuse_both(given)
    draw = USUAL.flavours if given["draw"] is None else given["draw"]
    return replace(
        believed or Settings(),
        seed=given["seed"],
        wanted=WantedInputs.of(draw, dict(given["dim"])),
        bisect=bisect,
        providers=by_name(given["provider"]),
        power=given["power"],
        timed=given["timed"],
        fixed=Fixed.of(given["rtol"], given["atol"], source),
        threads=given["threads"],
        seconds=given["timeout"],
        libraries=_libraries(given["ops_library"]),
    )


def _refuse_both(given: Mapping[str, Any]) -> None:
    """Raise `UsageError` if inputs are given and others are to be drawn."""
    if given["inputs"] is not None and (given["draw"] or given["dim"]):
        raise UsageError("--draw and --dim have no use with --inputs; leave one of them out")


def bound(context: click.Context, size: int | None, seconds: float | None) -> None:
    """Bound the memory and the time of this process, each if it is given.

    Raises:
        UsageError: the system cannot bound memory, or a bound is too small.
    """
    if seconds is not None:
        from bnfold._judge.settings import Settings

        Settings(seconds=seconds)
        time_limit.bound(seconds)
        context.call_on_close(time_limit.lift)
    if size is None:
        return
    from bnfold._system import memory

    try:
        memory.bound(size)
    except UsageError as error:
        if _said(context, "memory"):
            raise
        raise context.meta[_PROJECT].trouble("memory", error) from error


def tell_missing(settings: Settings, form: str) -> None:
    """Tell people at once of providers that are not there: they leave the verdict open."""
    if form != "text":
        return
    for provider in settings.providers:
        if provider.full_name != "CPUExecutionProvider" and not provider.is_there:
            terminal.complain(
                f"note: the installed onnxruntime has no provider {provider.name}, which leaves "
                f"the verdict open; install {provider.install}"
            )


def inputs(path: Path | None) -> list[InputSet] | None:
    """The input sets of a file or folder, None where none is given."""
    if path is None:
        return None
    from bnfold._run.input_sets import load_inputs

    return load_inputs(path)


def _libraries(paths: Sequence[str]) -> tuple[Path, ...]:
    """The libraries of operators; without any, onnxruntime is not imported for it."""
    if not paths:
        return ()
    from bnfold._run.libraries import checked

    return checked(paths)
