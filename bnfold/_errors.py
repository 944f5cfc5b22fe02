"""The errors that bnfold raises for what a caller can set right."""

from __future__ import annotations


class BnfoldError(Exception):
    """Base of every error that bnfold raises on purpose; its message is meant for people."""


class UsageError(BnfoldError):
    """What was asked cannot be done as given: an unreadable model, a wrong path, wrong inputs."""
