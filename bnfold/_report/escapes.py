"""Escapes for where a text is read: a terminal, XML, GitHub's commands, Markdown.

Names come from a model file, which may be a stranger's, and may hold anything: escape codes of a
terminal, marks that turn the direction of writing, line ends that begin a command of a CI server,
links.
"""

from __future__ import annotations

import re

# Patterns are compiled where they are used: most runs use few of them.
_UNWRITABLE = "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
"""What XML 1.0 has no way to write."""
COMMANDS = r"##(?=\w*\[)"
"""Where a CI server sees a command, wherever that stands in a line: ``##[…]``, ``##vso[…]``."""
_FIRST = r"(\s*):(?=:)"
"""How a line begins that is a workflow command of GitHub Actions."""
_MEANING = r"(?i:[\\`*_\[\]<>&|~$:@#]|(?<=www)\.)"
"""Characters that mean something in Markdown, or make a link, a mention or a reference."""


def visible(text: str) -> str:
    """The text on one line: what cannot be seen is escaped as Python does it.

    So are line ends, control characters, and marks for the direction of writing.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def said(line: str) -> str:
    """A visible line for people that no CI server takes for a command to itself.

    Sources: GitHub Actions and its runner, workflow commands; Azure Pipelines, logging commands.
    """
    begun = re.match(_FIRST, line)
    if begun:
        line = f"{begun[1]}\\x3a{line[begun.end() :]}"
    return re.sub(COMMANDS, r"#\\x23", line)


def xml(text: str) -> str:
    """A visible text without the characters that XML cannot hold."""
    return re.sub(_UNWRITABLE, "�", visible(text))


def command_message(text: str) -> str:
    """The message of a workflow command of GitHub Actions."""
    return visible(text).replace("%", "%25")


def command_property(text: str) -> str:
    """A property of a workflow command, where ``:`` and ``,`` have a meaning, too."""
    return command_message(text).replace(":", "%3A").replace(",", "%2C")


def cell(text: str) -> str:
    """The text for a cell of a Markdown table, with all special characters escaped.

    Source: GitHub Flavored Markdown, backslash escapes and autolinks; ``$`` begins a formula.
    """
    return " ".join(re.sub(_MEANING, r"\\\g<0>", visible(text)).split())
