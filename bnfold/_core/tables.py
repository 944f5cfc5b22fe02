"""Tables and counts, as people read them: lines of text, and HTML for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape


def table(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Yield the lines of a table of names and numbers."""
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    for name, before, after in rows:
        yield f"  {name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}".rstrip()


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML. Columns in which nothing stands are left out."""
    used = [k for k in range(len(header)) if any(row[k] for row in rows)]
    lines = [("th", header), *(("td", row) for row in rows)]
    body = (
        "<tr>" + "".join(f"<{tag}>{escape(row[k])}</{tag}>" for k in used) + "</tr>"
        for tag, row in lines
    )
    return f"<table>{''.join(body)}</table>"


def counted(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
