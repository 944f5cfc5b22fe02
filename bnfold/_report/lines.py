"""Lines for people: what they stand for, and how they wrap on a terminal.

A line is text, so that whoever reads no more than text may take it for a ``str``. What it stands
for decides its colour; the terminal chooses that. A line wraps between words, at its own
indentation and a little more. A word that is wider than the terminal, such as the name of an
operator, is broken behind a mark between its parts; a part that is wider yet loses its middle.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal

Style = Literal["plain", "head", "good", "bad", "open", "faint", "type"]
"""Plain text, a headline, what is as it should be, what is not, what is undecided, a hint, and what
can be typed."""
VERDICTS: dict[str, Style] = {"pass": "good", "fail": "bad", "inconclusive": "open"}
"""What a verdict stands for."""
NARROWEST = 40
"""Terminals that are narrower are taken for as wide as this."""
_HANG = 2
_PART = r"[^/;,]*[/;,]+|[^/;,]+"
"""The parts of a path or a name, each with the mark at its end."""
_WORDS = r"-\w (?:'[^']*'\S*|\S+)|'[^']*'\S*|\S+"
"""The words of a command; an option stays beside its value."""
_SMALLER = r"[^._:-]*[._:-]+|[^._:-]+"


class Line(str):
    """One line, and what it stands for. Whatever is done with its text makes a plain text of it.

    A ``type`` line is a command, there to be copied: it goes on behind a backslash. ``or_else`` is
    what is shown instead where one of its words alone is wider than the terminal.
    """

    style: Style
    or_else: str

    def __new__(cls, text: str, style: Style = "plain", or_else: str = "") -> Line:
        line = super().__new__(cls, text)
        line.style, line.or_else = style, or_else
        return line


def concluding(lines: Iterable[str], style: Style) -> Iterator[str]:
    """Lines of which those that are not indented say how it ended."""
    for line in lines:
        yield line if line.startswith(" ") else Line(line, style)


def style_of(line: str) -> Style:
    """What a line stands for."""
    return line.style if isinstance(line, Line) else "plain"


def wrapped(line: str, text: str, width: int) -> list[str]:
    """The lines that a line becomes on a terminal; ``text`` is its text as it is printed.

    None is wider than the terminal. Words stay whole where they fit.
    """
    width = max(width, NARROWEST)
    if cells(text) <= width:
        return [text]
    if style_of(line) == "type":
        return _command(line, text, width)
    indent = text[: len(text) - len(text.lstrip(" "))][: width // 2]
    hang = indent + " " * _HANG
    lines, current, empty = [], indent, True
    for word, glued in _pieces(text, width - len(hang)):
        space = "" if empty or glued else " "
        if cells(current) + len(space) + cells(word) > width and not empty:
            lines.append(current)
            current, space = hang, ""
        current, empty = current + space + word, False
    return [*lines, current]


def _command(line: str, text: str, width: int) -> list[str]:
    """The lines of a command that can be copied: no word of it is broken."""
    words = re.findall(_WORDS, text)
    if cells("    " + max(words, key=cells)) + 2 > width:
        return [line.or_else if isinstance(line, Line) else text]
    lines = [""]
    for word in words:
        indent = "  " if not lines[0] else "    "
        joined = f"{lines[-1]} {word}" if lines[-1] else indent + word
        if cells(joined) + 2 > width:
            lines[-1] += " \\"
            lines.append("    " + word)
        else:
            lines[-1] = joined
    return lines


def _pieces(text: str, room: int) -> Iterator[tuple[str, bool]]:
    """Yield the words of a text; of one that is too wide its parts. True stands for a part that
    goes on right behind the one before it.
    """
    for word in text.split():
        glued = False
        for part in _split(word, room, (_PART, _SMALLER)):
            yield part, glued
            glued = True


def _split(word: str, room: int, marks: tuple[str, ...]) -> Iterator[str]:
    """Yield the parts of a word, each no wider than the room."""
    if cells(word) <= room:
        yield word
    elif marks:
        for part in re.findall(marks[0], word):
            yield from _split(part, room, marks[1:])
    else:
        half = (room - 1) // 2
        yield f"{_first(word, half)}…{_first(word[::-1], half)[::-1]}"


def _first(word: str, room: int) -> str:
    """As much of the beginning of a word as there is room for."""
    taken = 0
    for count, character in enumerate(word):
        taken += cells(character)
        if taken > room:
            return word[:count]
    return word


def cells(text: str) -> int:
    """How many columns of a terminal a text takes: two for a wide character, none for an accent
    that goes onto the one before.
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
