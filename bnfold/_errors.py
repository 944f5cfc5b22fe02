"""The errors that bnfold raises for what a caller can set right, and what other errors say."""

from __future__ import annotations


class BnfoldError(Exception):
    """Base of every error that bnfold raises on purpose; its message is meant for people."""


class UsageError(BnfoldError):
    """What was asked cannot be done as given: an unreadable model, a wrong path, wrong inputs."""


class Unwritable(UsageError):
    """A file cannot be written where it is to lie: the disk is to blame, not the model."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something; the error's class if none does."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
