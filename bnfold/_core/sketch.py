"""Small pictures for notebooks: inline SVG of a bounded size, without script, link or style sheet.

What is told in them comes from a model, which may be a stranger's; it is text, and cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

_COLUMNS = 160
"""So many columns stand side by side; where there are more operators, one stands for several."""
_LONGEST = 90
"""So many characters of a name are told."""
_WIDTH, _LEFT, _BAR, _RISE = 720, 92, 22, 26
_COLOURS = {"gone": "#d9661f", "into": "#2b7fc0", "kept": "#a85690", "": "#9aa4af"}
"""What became of an operator; each colour can be read on a light and on a dark page."""
_WORDS = {"gone": "gone", "into": "took it in", "kept": "stay, with a reason"}
_GOOD, _BAD, _OPEN = "#2b7fc0", "#c8321f", "#b8860b"
_JUDGED = {"pass": _GOOD, "fail": _BAD, "inconclusive": _OPEN}

Cell = tuple[str, str]
"""What became of an operator, and what is told of it."""


def before_and_after(
    cells: Sequence[Cell], arcs: Sequence[tuple[int, int]], counts: tuple[int, int]
) -> str:
    """The operators of a network in the order of the data, before and after; those that are gone
    leave gaps, and arcs lead to what took them in. ``counts`` are those of all operators.
    """
    size = -(-len(cells) // _COLUMNS)
    columns = [cells[k : k + size] for k in range(0, len(cells), size)] if cells else []
    wide = min((_WIDTH - _LEFT) / max(len(columns), 1), 26.0)
    parts = list[str]()
    for is_after, count in enumerate(counts):
        top = _RISE + is_after * (_BAR + 6)
        parts.append(_text(0, top + 15, f"{('before', 'after')[is_after]} {count:,}"))
        for k, column in enumerate(columns):
            parts += _column(column, _LEFT + k * wide, top, wide, bool(is_after))
    drawn = dict.fromkeys((a // size, b // size) for a, b in arcs if a // size != b // size)
    for a, b in list(drawn)[:_COLUMNS]:
        ends = [_LEFT + (k + 0.5) * wide for k in (a, b)]
        rise = _RISE - min(abs(a - b) * 3 + 5, _RISE - 3)
        path = (
            f"M{ends[0]:.1f} {_RISE}Q{sum(ends) / 2:.1f} {2 * rise - _RISE} {ends[1]:.1f} {_RISE}"
        )
        parts.append(f'<path d="{path}" fill="none" stroke="{_COLOURS["gone"]}"/>')
    below = _RISE + 2 * _BAR + 24
    parts += _legend(cells, below)
    label = f"{counts[0]} operators before, {counts[1]} after"
    return _svg(parts, below + 6, label)


def _column(
    column: Sequence[Cell], left: float, top: float, wide: float, is_after: bool
) -> Iterator[str]:
    """Yield the parts of a column, one for each fate of its operators, in a share of its height."""
    told = column[0][1] if len(column) == 1 else f"{len(column)} operators"
    at = float(top)
    for kind, colour in _COLOURS.items():
        tall = _BAR * sum(each == kind for each, _ in column) / len(column)
        if not tall:
            continue
        place = f'x="{left:.1f}" y="{at:.1f}" width="{max(wide - 1, 0.8):.1f}" height="{tall:.1f}"'
        if not (is_after and kind == "gone"):
            said = f"<title>{_shown(told)}</title>" if not is_after else ""
            yield f'<rect {place} fill="{colour}">{said}</rect>'
        at += tall


def _legend(cells: Sequence[Cell], top: float) -> Iterator[str]:
    left = float(_LEFT)
    for kind, words in _WORDS.items():
        if count := sum(each == kind for each, _ in cells):
            place = f'x="{left:.0f}" y="{top - 10}" width="10" height="10"'
            yield f'<rect {place} fill="{_COLOURS[kind]}"/>'
            said = f"{count:,} {words}" if count > 1 else f"1 {words.replace('stay,', 'stays,')}"
            yield _text(left + 15, top, said)
            left += 50 + 6.5 * len(said)


def bars(rows: Sequence[tuple[str, float, str]], layers: Sequence[float]) -> str:
    """How far each output is off, as a part of its tolerance, and how far each layer is.

    ``rows`` have a name, that part and a status; what is beyond 1.5 tolerances ends there.
    ``layers`` are in units in the last place.
    """
    parts, top = list[str](), 0.0
    for name, ratio, status in rows:
        long = min(ratio, 1.5) / 1.5 * 300
        place = f'x="0" y="{top + 4:.0f}" width="{max(long, 1):.1f}" height="12"'
        parts.append(f'<rect {place} fill="{_JUDGED.get(status, _OPEN)}"/>')
        parts.append(_text(310, top + 14, f"{ratio:.2g} of the tolerance: {name}"))
        top += 20
    if rows:
        parts.append(
            f'<path d="M200 0V{top:.0f}" fill="none" stroke="{_BAD}" stroke-dasharray="3 3"/>'
        )
    if layers:
        size = -(-len(layers) // _COLUMNS)
        most = max(*layers, 1.0)
        tops = [max(layers[k : k + size]) for k in range(0, len(layers), size)]
        wide = min(300 / len(tops), 20.0)
        for k, far in enumerate(tops):
            tall = max(far / most * 26, 1)
            place = f'x="{k * wide:.1f}" y="{top + 30 - tall:.1f}" width="{max(wide - 1, 0.8):.1f}"'
            parts.append(f'<rect {place} height="{tall:.1f}" fill="{_COLOURS[""]}"/>')
        told = f"{len(layers)} layers, by proof: at most {max(layers):.2g} units in the last place"
        parts.append(_text(310, top + 26, told))
        top += 34
    return _svg(parts, top, "differences, as parts of their tolerances") if parts else ""


def _svg(parts: Sequence[str], tall: float, label: str) -> str:
    size = f'viewBox="0 0 {_WIDTH} {tall:.0f}" width="{_WIDTH}" height="{tall:.0f}"'
    look = 'style="max-width:100%;height:auto" font-family="sans-serif" font-size="12"'
    name = f'role="img" aria-label="{escape(label)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {look} {name}>{"".join(parts)}</svg>'


def _text(left: float, top: float, text: str) -> str:
    return f'<text x="{left:.0f}" y="{top:.0f}" fill="currentColor">{_shown(text)}</text>'


def _shown(text: str) -> str:
    text = "".join(c if c.isprintable() else "�" for c in text)
    return escape(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def fates(
    operators: Sequence[tuple[str, str, str]],
    folds: Sequence[tuple[str, tuple[str, ...], str, str]],
    kept: Mapping[tuple[str, str], str],
) -> tuple[list[Cell], list[tuple[int, int]]]:
    """What became of each operator, and from where to where maps went.

    ``operators`` are graph, name and type of each; ``folds`` graph, names of those that go, who
    takes them in, and by what law; ``kept`` has by graph and name why one stays. An operator that
    went before the rest was looked at stands ahead of the one that took it in.
    """
    known = {(graph, name) for graph, name, _ in operators}
    early = dict[tuple[str, str], list[str]]()
    went = dict[tuple[str, str], tuple[str, str]]()
    takers = {(graph, into) for graph, _, into, _ in folds}
    for graph, names, into, law in folds:
        for name in names:
            went[graph, name] = into, law
            if (graph, name) not in known:
                early.setdefault((graph, into), []).append(name)
    cells, places = list[Cell](), dict[tuple[str, str], int]()

    def place(graph: str, name: str, op: str) -> None:
        key = graph, name
        begin = f"{op} {name}".strip()
        if key in kept:
            cell = ("kept", f"{begin} stays: {kept[key]}")
        elif key in went and went[key][0] != name:
            cell = ("gone", f"{begin} → {went[key][0]} ({went[key][1]})")
        else:
            cell = ("into" if key in takers else "", begin)
        places[key] = len(cells)
        cells.append(cell)

    for graph, name, op in operators:
        for each in early.pop((graph, name), ()):
            place(graph, each, "")
        place(graph, name, op)
    arcs = [
        (places[key], places[key[0], into])
        for key, (into, _) in went.items()
        if key in places and (key[0], into) in places and key[1] != into
    ]
    return cells, arcs
