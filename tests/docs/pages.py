"""The code of the documentation, block by block: README.md and every page of docs/.

A block is fenced. In front of one may stand a comment that no reader sees::

    <!-- not run: network -->     it is not run; `NOT_RUN` says why
    <!-- needs: timm -->          the page ends here where this package is missing
    <!-- output -->               the text block is what the Python block before it printed
    <!-- setup                    Python that is run first, on the following lines
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

NOT_RUN = {
    "network": "it downloads or installs something",
    "server": "a CI server, a documentation server or PyPI runs it",
    "once": "whoever has the repository types it once; tests/test_project.py does, in a copy",
    "own-ci": ".ci/run runs it, in a fresh environment",
    "long": "it takes minutes",
    "ultralytics": "ultralytics needs OpenCV and downloads its weights",
    "olive": "Olive's passes bring a whole environment of their own",
    "optimum": "the export downloads a model from a hub",
    "paddle": "paddle2onnx and its models come from elsewhere",
    "hardware": "it needs an accelerator",
    "report": "it needs bnfold[report]; tests/report run it where that is installed",
    "layout": "it shows folders or a picture, not code",
}
"""Why a block is not run, by the word that its comment has."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line in the file, and the comment before it."""

    language: str
    text: str
    line: int
    comment: str


def pages() -> list[Path]:
    """README and the pages of docs/, in order. What the build generates is not among them."""
    pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    found = sorted((ROOT / "docs").rglob("*.md"))
    return [ROOT / "README.md", *(p for p in found if "generated" not in p.parts)]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page. A setup comment is a block of the language ``setup``."""
    from markdown_it import MarkdownIt

    comment = ""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        line = (token.map or [0])[0] + 1
        if token.type == "html_block":
            comment = token.content.strip().removeprefix("<!--").removesuffix("-->").strip()
            if comment.startswith("setup"):
                yield Block("setup", comment.removeprefix("setup"), line + 1, "")
                comment = ""
        elif token.type == "fence":
            language = (token.info.split() or [""])[0]
            if not language.startswith("{"):
                yield Block(language, token.content, line, comment)
            comment = ""
        elif token.type != "inline":
            comment = ""
