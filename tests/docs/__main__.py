"""Refresh what commands print in README.md and docs/: ``python -m tests.docs --write [PAGE...]``.

Without ``--write`` it only says which pages are out of date, and exits with 1 if any is. Pages are
named by the ends of their paths. Look at the differences before committing them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pytest

from .pages import ROOT, blocks, pages
from .running import Page, Printed


def changed(page: Path) -> list[Printed]:
    """The blocks of a page that are not what they print."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        run = Page(Path(folder))
        try:
            for block in blocks(page):
                printed = run.run(block)
                if printed is not None and not printed.agrees:
                    found.append(printed)
        except pytest.skip.Exception as skipped:
            print(f"{page.relative_to(ROOT)}: the rest is left out: {skipped.msg}")
    return found


def write(page: Path, printed: list[Printed]) -> None:
    """Put what was printed in its place; from the end, so that lines keep their numbers."""
    lines = page.read_text(encoding="utf-8").split("\n")
    for one in reversed(printed):
        begin = one.block.line
        length = one.block.text.count("\n")
        lines[begin : begin + length] = one.got.removesuffix("\n").split("\n")
    page.write_text("\n".join(lines), encoding="utf-8")


def main() -> int:
    """Compare, and write if asked."""
    parser = argparse.ArgumentParser(description="Refresh the outputs in the documentation.")
    parser.add_argument("pages", nargs="*", help="ends of paths (default: all)")
    parser.add_argument("--write", action="store_true", help="write what was printed")
    arguments = parser.parse_args()
    stale = False
    for page in pages():
        if arguments.pages and not str(page).endswith(tuple(arguments.pages)):
            continue
        printed = changed(page)
        if printed and arguments.write:
            write(page, printed)
        stale |= bool(printed)
        for one in printed:
            print(f"{page.relative_to(ROOT)}:{one.block.line}")
    return int(stale and not arguments.write)


if __name__ == "__main__":
    sys.exit(main())
