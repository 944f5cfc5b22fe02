"""The options that put an input's preprocessing into the model, or take it out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bnfold._command import options, terminal
from bnfold._command.options import Command
from bnfold._core.preprocessing import WORDS, Pairs, Preprocessing, doubtful
from bnfold._errors import UsageError

NAMES = tuple(f"input_{name}" for name in WORDS)
"""The options as click calls them."""
_OF_NUMBERS = ("mean", "std", "scale")


def _number(option: str, word: str) -> float:
    """A number such as ``0.5`` or ``1/255``."""
    above, slash, below = word.partition("/")
    try:
        value = float(above)
        return value / float(below) if slash else value
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise UsageError(
            f"{option}: {word!r} is no number; say numbers such as 0.485,0.456,0.406 or 1/255"
        ) from error


def _of(name: str) -> Any:
    """What reads the words of an option: ``[INPUT=]VALUE`` as the input's name and the value."""
    option = f"--input-{name}"

    def read(given: Any) -> tuple[str, tuple[Any, ...]]:
        if isinstance(given, tuple):
            return given
        port, _, words = str(given).rpartition("=")
        if not words.strip():
            raise UsageError(f"{option}: give a value, or INPUT=VALUE")
        values: tuple[Any, ...] = (words.strip(),)
        if name in _OF_NUMBERS:
            values = tuple(_number(option, word.strip()) for word in words.split(","))
        try:
            Preprocessing(**{WORDS[name]: _value(name, values)})
        except UsageError as error:
            raise UsageError(f"{option}: {error}") from error
        return port, values

    return read


def _value(name: str, values: tuple[Any, ...]) -> Any:
    """What an option says, out of its words."""
    return values if name in _OF_NUMBERS else values[0].replace(",", "")


_OPTIONS = (
    (
        "mean",
        "[INPUT=]M,…",
        "Let the model take the input as the camera gives it. First type, layout and order of "
        "channels, then (x*scale - mean) / std go into the model; the mean is one number, or one "
        "for each channel in the model's order.",
    ),
    ("std", "[INPUT=]S,…", "What the input is divided by, likewise."),
    ("scale", "[INPUT=]K", "What the input is multiplied with first, such as 1/255."),
    (
        "channels",
        "[INPUT=]ORDER",
        "The order of the input's channels, such as bgr for a model that takes rgb; rgb:bgr names "
        "both, the input's first.",
    ),
    (
        "layout",
        "[INPUT=]AXES",
        "The input's axes, such as nhwc for a model that takes nchw; nhwc:nhwc names both.",
    ),
    ("type", "[INPUT=]TYPE", "The type of the input's numbers, such as uint8."),
)


def preprocessing(command: Command) -> Command:
    """Give a command the options of preprocessing."""
    for name, metavar, told in reversed(_OPTIONS):
        command = click.option(
            f"--input-{name}", type=_of(name), multiple=True, metavar=metavar, help=told
        )(command)
    return command


def exposing(command: Command) -> Command:
    """Give a command the option that takes the normalization out of the model."""
    return click.option(
        "--expose-normalization",
        is_flag=True,
        help="Take the (x - mean) / std that the model begins with out of it, and print its "
        "numbers: the caller does it from now on.",
    )(command)


def tidying(command: Command) -> Command:
    """Give a command the option that takes out what does nothing."""
    return click.option(
        "--tidy",
        is_flag=True,
        help="Take out operators that do nothing: Identity, Dropout, Cast to the same type. "
        "Outputs keep their names.",
    )(command)


def of_files(
    context: click.Context,
    given: dict[str, Any],
    files: Sequence[Path],
    form: str,
    exposed: bool = False,
) -> Pairs:
    """The preprocessing of each input, out of the options; they leave ``given``.

    Only files of ONNX get any, and none whose normalization is taken out: there the options of a
    configuration are ignored. Numbers that look as if they were in two units are told at once.
    Raises `UsageError` where options exclude each other.
    """
    applies = not exposed and all(path.suffix != ".pt2" for path in files)
    if exposed:
        options.refuse(context, NAMES, "--expose-normalization takes it out")
    if any(path.suffix == ".pt2" for path in files):
        options.refuse(context, ["tidy"], "only files of ONNX are tidied")
        only = (*NAMES, "expose_normalization")
        options.refuse(context, only, "preprocessing goes into files of ONNX")
    wanted = _taken(given, applies)
    for port, each in wanted if form == "text" else ():
        if told := doubtful(each):
            terminal.complain(f"note: {port or 'the input'}: {told}")
    return wanted


def _taken(given: dict[str, Any], applies: bool) -> Pairs:
    found: dict[str, dict[str, Any]] = {}
    for name, field in WORDS.items():
        for port, values in given.pop(f"input_{name}"):
            held = found.setdefault(port, {})
            if field in held:
                twice = f" for {port}" if port else ""
                raise UsageError(f"--input-{name} is given twice{twice}; leave one of them out")
            held[field] = _value(name, values)
    if not applies:
        return ()
    if "" in found and len(found) > 1:
        raise UsageError("some --input options name an input and some do not; name it in all")
    made = {port: Preprocessing(**held) for port, held in found.items()}
    return tuple((port, each) for port, each in made.items() if not each.is_nothing)
