"""The options of a comparison, which both commands take, and what they mean together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from bnfold._errors import UsageError

if TYPE_CHECKING:
    from bnfold._verify._inputs import InputSet, Wanted
    from bnfold._verify._settings import Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path, readable=False)  # whether it can be read is said by reading
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def _words(_: click.Context, option: click.Parameter, given: Any) -> tuple[str, ...] | None:
    """Words with commas between them; a configuration file may have a list."""
    if given is None:
        return None
    words = given.split(",") if isinstance(given, str) else given
    return tuple(word.strip() for word in words)


def _sizes(
    _: click.Context, option: click.Parameter, given: Sequence[Any]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Dimensions and their sizes, such as ``batch=1,4``; a configuration file has both apart."""
    return tuple(one if isinstance(one, tuple) else _dimension(one) for one in given)


def _dimension(given: str) -> tuple[str, tuple[int, ...]]:
    name, _, listed = given.rpartition("=")
    try:
        sizes = tuple(int(size) for size in listed.split(","))
    except ValueError:
        sizes = ()
    if not name or not sizes:
        raise UsageError(f"--dim {given}: say NAME=SIZE, such as batch=4 or batch=1,4")
    return name, sizes


def _bytes(_: click.Context, option: click.Parameter, given: str | None) -> int | None:
    """An amount of memory, such as ``4GB``."""
    if given is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", given.strip())
    if found is None or not float(found[1]):
        raise UsageError(f"--memory {given}: say an amount of memory, such as 4GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


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
        help="Seed of the random inputs.",
    ),
    click.option(
        "--draw",
        type=click.UNPROCESSED,
        callback=_words,
        metavar="KIND,…",
        help="Kinds of random inputs: signed, unsigned, structured, large. "
        "[default: signed,unsigned,structured]",
    ),
    click.option(
        "--dim",
        type=click.UNPROCESSED,
        callback=_sizes,
        multiple=True,
        metavar="NAME=SIZE,…",
        help="The size of a free dimension, or several to take in turn.",
    ),
    click.option(
        "--provider",
        type=click.UNPROCESSED,
        callback=_words,
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
        help="Stop comparing after this time; the verdict is inconclusive then.",
    ),
    click.option(
        "--memory",
        callback=_bytes,
        metavar="SIZE",
        help="Take no more memory than this, such as 4GB (Linux and macOS).",
    ),
)
NAMES = (
    *("inputs", "seed", "draw", "dim", "provider", "power"),
    *("rtol", "atol", "threads", "timeout", "memory"),
)


def comparison(command: _Command) -> _Command:
    """Give a command the options of a comparison."""
    for option in reversed(_COMPARISON):
        command = option(command)
    return command


def refuse(context: click.Context, names: Iterable[str], why: str) -> None:
    """Raise `UsageError` where one of some options was given on the command line.

    What a configuration file says is for whoever can use it.
    """
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = next(p for p in context.command.params if p.name == name)
            raise UsageError(f"{why}; leave out {option.opts[0]}")


def settings(given: Mapping[str, Any], *, bisect: bool = False) -> Settings:
    """What the options of a comparison say."""
    from bnfold._verify._providers import by_name
    from bnfold._verify._settings import Settings
    from bnfold._verify._tolerance import Fixed

    return Settings(
        seed=given["seed"],
        wanted=_wanted(given["draw"], given["dim"], given["inputs"]),
        bisect=bisect,
        providers=by_name(given["provider"]),
        power=given["power"],
        fixed=Fixed.of(given["rtol"], given["atol"]),
        threads=given["threads"],
        seconds=given["timeout"],
    )


def inputs(path: Path | None) -> list[InputSet] | None:
    """The input sets of a file or folder, None where none is given."""
    if path is None:
        return None
    from bnfold._verify._inputs import load_inputs

    return load_inputs(path)


def _wanted(
    draw: Sequence[str] | None, dims: Sequence[tuple[str, tuple[int, ...]]], given: Path | None
) -> Wanted:
    """The inputs to draw."""
    from bnfold._verify._inputs import USUAL, Wanted

    if given is not None and (draw or dims):
        raise UsageError("--draw and --dim have no use with --inputs; leave one of them out")
    return Wanted.of(USUAL.flavours if draw is None else draw, dict(dims))
