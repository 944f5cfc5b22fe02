"""The options for many models, and what is said about the work on each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bnfold._command import preprocessing
from bnfold._command.options import NAMES, PATH, Command

if TYPE_CHECKING:
    from bnfold._registry.fingerprint import Option

_OWN = frozenset(
    (
        *("models", "output", "in_place", "check", "report", "form", "verbose", "quiet", "page"),
        *("output_dir", "jobs", "resume", "no_config", "colour", "help"),
    )
)
"""What is about the run as a whole; all other options go to the work on each model."""


def many(command: Command) -> Command:
    """Give a command the options for many models."""
    command = click.option(
        "--pages",
        "drawn",
        is_flag=True,
        help="With --output-dir: write a page for each model, too, as --html does for one.",
    )(command)
    command = click.option(
        "--resume",
        is_flag=True,
        help="With --output-dir: skip models that are done and have not changed.",
    )(command)
    command = click.option(
        "--jobs",
        type=click.IntRange(1, 1024),
        default=1,
        show_default=True,
        metavar="N",
        help="With --output-dir: how many models to fold at a time, each in a process of its own.",
    )(command)
    return click.option(
        "--output-dir",
        type=PATH,
        metavar="FOLDER",
        help="Fold many models: write them here, in the tree that they lie in, with an index.",
    )(command)


def options_of(context: click.Context) -> tuple[Option, ...]:
    """What the command line and the project's configuration say about the work on a model."""
    left_out = _OWN | _replaced(context)
    return tuple(
        option
        for parameter in context.command.params
        if parameter.name not in left_out
        and context.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT
        for option in _options(parameter, context.params.get(parameter.name or ""))
    )


def words_of(context: click.Context) -> list[str]:
    """What the command line says about the work on a model, as words of another command line."""
    line = ParameterSource.COMMANDLINE
    words = ["--no-config"] * (context.get_parameter_source("no_config") is line)
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in _OWN and context.get_parameter_source(name) is line:
            given = _options(parameter, context.params[name])
            words += [word for option in given for word in option if word is not None]
    return words


def _replaced(context: click.Context) -> set[str]:
    """Options of the configuration that the command line leaves no use for.

    All is as on the command line in the process of a model, where such options would be refused.
    """
    line = ParameterSource.COMMANDLINE
    said = {name for name in context.params if context.get_parameter_source(name) is line}
    left_out = set[str]()
    if context.params["no_verify"]:
        left_out.update(NAMES)
    if "inputs" in said:
        left_out.update(("draw", "dim"))
    elif said & {"draw", "dim"}:
        left_out.add("inputs")
    if context.params["expose_normalization"]:
        left_out.update(preprocessing.NAMES)
    return left_out - said


def _options(parameter: click.Parameter, value: Any) -> Iterator[Option]:
    """A parameter as it would be given on a command line, once for each of its values."""
    name = next(each for each in parameter.opts if each.startswith("--"))
    if getattr(parameter, "is_flag", False):
        if value:
            yield name, None
        return
    for each in value if parameter.multiple else (value,):
        if each is not None:
            yield name, _text(each)


def _text(value: Any) -> str:
    """A value in words: sizes as ``batch=1,4``, several words with commas, paths as absolute."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], tuple):
        return f"{value[0]}={_text(value[1])}"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return os.path.abspath(value) if isinstance(value, Path) else str(value)
