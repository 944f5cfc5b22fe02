"""Where the children of each group stand: in which layer, and where in it.

Layers and the order in them come from fast-sugiyama (the method of Sugiyama, Tagawa and Toda,
1981). Each group is laid out by itself, so that the page can open and close it: it only has to move
layers apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bnfold._errors import UsageError

_BESIDE = 6
"""So many operators that nothing links stand side by side."""


@dataclass(frozen=True)
class Level:
    """The inside of one group.

    ``places`` has for each child its layer, from 0 on, and where it stands in it, in units of one
    operator's width. ``routes`` has for each edge over several layers the places that it passes.
    """

    places: Sequence[tuple[int, float]]
    routes: Sequence[tuple[int, int, Sequence[tuple[int, float]]]]


def layout_library() -> Any:
    """The library. Raises `UsageError` where it is not installed."""
    try:
        import fast_sugiyama
    except ImportError as error:
        raise UsageError(
            "a page needs a library that lays out the picture: pip install 'bnfold[report]' "
            "(Python 3.11 or newer)"
        ) from error
    return fast_sugiyama


def laid_out(children: Sequence[int], edges: Sequence[tuple[int, int]]) -> Level:
    """Lay out the children of a group; ``edges`` are between them.

    Children are in the order of the data, so an edge backwards is turned round while it is laid
    out: no cycle is left.
    """
    order = {child: place for place, child in enumerate(children)}
    pairs = [(order[a], order[b]) for a, b in edges]
    forward = sorted({(min(pair), max(pair)) for pair in pairs})
    linked = sorted({end for pair in forward for end in pair})
    number = {k: at for at, k in enumerate(linked)}
    places: dict[int, tuple[int, float]] = {}
    routes: dict[tuple[int, int], list[tuple[int, float]]] = {}
    right = 0.0
    if forward:
        found = layout_library().from_edges(
            [(number[a], number[b]) for a, b in forward],
            vertex_spacing=1.0,
            dummy_vertices=True,
            dummy_size=0.5,
            ranking_type="minimize",
            crossing_minimization="barycenter",
        )
        for positions, _, _, steps in found:
            right = _take_in(positions, steps, linked, right, places, routes)
    alone = [k for k in range(len(children)) if k not in places]
    for at, k in enumerate(alone):
        places[k] = (at // _BESIDE, right + at % _BESIDE)
    return Level(
        [places[k] for k in range(len(children))],
        [
            (a, b, routes[min(a, b), max(a, b)][:: 1 if a < b else -1])
            for a, b in sorted(set(pairs))
            if routes.get((min(a, b), max(a, b)))
        ],
    )


def _take_in(
    positions: Sequence[tuple[int, tuple[float, float]]],
    steps: Sequence[tuple[int, int]] | None,
    linked: Sequence[int],
    right: float,
    places: dict[int, tuple[int, float]],
    routes: dict[tuple[int, int], list[tuple[int, float]]],
) -> float:
    """Take in one connected part, to the right of the parts before; gives where it ends.

    ``linked`` are the children that the library knows, by its numbers. What has a larger number is
    a place that an edge passes.
    """
    rows = sorted({y for _, (_, y) in positions}, reverse=True)
    row = {y: at for at, y in enumerate(rows)}
    left = min(x for _, (x, _) in positions)
    places_of = {k: (row[y], right + x - left) for k, (x, y) in positions}
    places.update((linked[k], place) for k, place in places_of.items() if k < len(linked))
    following: dict[int, list[int]] = {}
    for a, b in steps or ():
        following.setdefault(a, []).append(b)
    for start in (k for k in places_of if k < len(linked)):
        for step in following.get(start, ()):
            way = []
            while step >= len(linked):
                way.append(places_of[step])
                step = following[step][0]
            if way:
                routes[linked[start], linked[step]] = way
    return right + max(x for _, (x, _) in positions) - left + 1.5
