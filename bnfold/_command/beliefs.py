"""Options that say what may be believed of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bnfold._command.options import Command

if TYPE_CHECKING:
    from bnfold._judge.settings import Settings


TRUST = ("trust", "follow_links")
"""The options that trust whoever made a file."""


def freezing(command: Command) -> Command:
    """Give a command the option that says that nobody overrides initializers."""
    return click.option(
        "--freeze-initializers",
        "frozen",
        is_flag=True,
        help="Initializers that are listed as inputs, too, are fixed: nobody overrides them.",
    )(command)


def equating(command: Command) -> Command:
    """Give a command the option that believes the names of sizes."""
    return click.option(
        "--assume-equal-dims",
        "equal_dims",
        is_flag=True,
        help="Sizes of inputs that have one name (dim_param) are equal in every run.",
    )(command)


def trusting(command: Command) -> Command:
    """Give a command the options that trust whoever made a file.

    A project's configuration cannot give them: it may come with the file.
    """
    command = click.option(
        "--follow-links",
        is_flag=True,
        help="Read external data through links that lead out of the model's folder.",
    )(command)
    return click.option(
        "--trust", is_flag=True, help="Load a .pt2 file even if code in it is run then."
    )(command)


def settings(
    frozen: bool = False,
    equal_dims: bool = False,
    trust: bool = False,
    follow_links: bool = False,
) -> Settings:
    """The settings that say what may be believed of a file."""
    from bnfold._judge.settings import Settings

    return Settings(frozen=frozen, equal_dims=equal_dims, trust=trust, follow_links=follow_links)
