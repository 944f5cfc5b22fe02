"""The options for many models, and what is said about the work on each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bnfold._command.options import PATH, Command

if TYPE_CHECKING:
    from bnfold._registry.fingerprint import Option

_OWN = frozenset(
    (
        *("models", "output", "in_place", "check", "report", "form", "verbose", "quiet"),
        *("output_dir", "jobs", "resume", "no_config", "colour", "help"),
    )
)
"""What is about the run as a whole; all other options go to the work on each model."""


def many(command: Command) -> Command:
    """Give a command the options for many models."""
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
    return tuple(
        option
        for parameter in context.command.params
        if parameter.name not in _OWN
        and context.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT
        for option in _options(parameter, context.params.get(parameter.name or ""))
    )


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
