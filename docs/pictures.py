"""Draws the pictures of the laws: ``python docs/pictures.py`` writes docs/images/*.svg.

A picture is a few panels side by side. A panel is a title and rows of boxes, from input to output.
A box is a text; ``-`` in front means that a fold takes it away, ``+`` that it takes something in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "images"
Panel = tuple[str, Sequence[Sequence[str]]]

PICTURES: dict[str, Sequence[Panel]] = {
    "fold": (
        (
            "before",
            (("image",), ("Sub mean",), ("-Div std",), ("+Conv",), ("-BatchNorm",), ("Relu",)),
        ),
        ("after", (("image",), ("Sub mean",), ("+Conv, new weights",), ("Relu",))),
    ),
    "behind": (
        ("before", (("x",), ("+Conv  W, b",), ("-y = s·x + t",))),
        ("after", (("x",), ("+Conv  s·W, s·b + t",))),
    ),
    "ahead": (
        ("before", (("x",), ("-y = s·x + t",), ("+Conv  W, b",))),
        ("after", (("x",), ("+Conv  W·s, b + Σ W·t",))),
        ("but not where zeros are padded", (("x",), ("y = s·x + t",), ("Conv, pads 1",))),
    ),
    "carry": (
        ("before", (("+Conv",), ("MaxPool",), ("-y = s·x + t",))),
        ("where no s is negative", (("+Conv",), ("-y = s·x + t",), ("MaxPool",))),
        ("after", (("+Conv, new weights",), ("MaxPool",))),
    ),
    "join": (
        ("before", (("+Conv A", "+Conv B"), ("Concat",), ("-y = s·x + t",))),
        ("each part its own", (("+Conv A", "+Conv B"), ("-s, t of A", "-s, t of B"), ("Concat",))),
        ("after", (("+Conv A'", "+Conv B'"), ("Concat",))),
    ),
    "merge": (
        ("before", (("x",), ("-Conv 3×3", "-Conv 1×1", "-BatchNorm"), ("-Add",))),
        ("after", (("x",), ("+Conv 3×3, the sum of three kernels",))),
    ),
}
"""What each picture shows, by the name of its file."""

_HIGH, _GAP, _LETTER, _MARGIN = 34, 30, 7.4, 24
_COLOURS = {"-": ("#fbe3e1", "#b3372c"), "+": ("#dff2e3", "#23743a"), "": ("#eef1f5", "#5b6675")}


def drawn(panels: Sequence[Panel]) -> str:
    """A picture as SVG, readable on light and dark ground alike."""
    parts: list[str] = []
    left, tallest = float(_MARGIN), 0.0
    for number, (title, rows) in enumerate(panels):
        wide = max(*(_width(row) for row in rows), len(title) * _LETTER)
        if number:
            if not title.startswith("but"):
                parts.append(_text(left + 30, _MARGIN + 70, "→", size=22, colour="#5b6675"))
            left += 60
        parts.append(_text(left + wide / 2, _MARGIN + 6, title, size=13, colour="#5b6675"))
        parts += _panel(rows, left + wide / 2, _MARGIN + 24)
        tallest = max(tallest, len(rows) * (_HIGH + _GAP) - _GAP)
        left += wide
    width, height = left + _MARGIN, tallest + 2 * _MARGIN + 24
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif">',
            f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        )
    )


def _width(row: Sequence[str]) -> float:
    return sum(_box(text) for text in row) + 14 * (len(row) - 1)


def _box(text: str) -> float:
    return len(text.lstrip("+-")) * _LETTER + 26


def _panel(rows: Sequence[Sequence[str]], middle: float, top: float) -> Iterator[str]:
    """Boxes and, ahead of them, the lines between them."""
    above: list[float] = []
    for number, row in enumerate(rows):
        y = top + number * (_HIGH + _GAP)
        x = middle - _width(row) / 2
        centres = []
        for text in row:
            centres.append(x + _box(text) / 2)
            yield from _one(text, x, y)
            x += _box(text) + 14
        pairs = (
            zip(above, centres, strict=True)
            if len(above) == len(centres)
            else ((a, b) for a in above for b in centres)
        )
        for a, b in pairs:
            yield (
                f'<line x1="{a:.1f}" y1="{y - _GAP:.1f}" x2="{b:.1f}" y2="{y:.1f}" '
                'stroke="#5b6675" stroke-width="1.5"/>'
            )
        above = centres


def _one(text: str, x: float, y: float) -> Iterator[str]:
    mark = text[0] if text[0] in "+-" else ""
    fill, colour = _COLOURS[mark]
    dashes = ' stroke-dasharray="5 3"' if mark == "-" else ""
    yield (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{_box(text):.1f}" height="{_HIGH}" rx="6" '
        f'fill="{fill}" stroke="{colour}"{dashes}/>'
    )
    yield _text(x + _box(text) / 2, y + 22, text.lstrip("+-"), colour=colour)


def _text(x: float, y: float, text: str, size: int = 14, colour: str = "#000000") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" '
        f'text-anchor="middle" xml:space="preserve">{escape(text)}</text>'
    )


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, panels in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(drawn(panels), encoding="utf-8")


if __name__ == "__main__":
    main()
