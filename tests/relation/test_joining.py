"""Parts of a Concat that are taken again, and SpaceToDepth: told by onnxruntime.

Every axis has four numbers, and so have the parts' places: what is taken along another axis, in
another order or in part has the same sizes.
"""

from __future__ import annotations

import itertools

import pytest

from ..graphs import model, op, rand
from .pairs import differ, ints, proof

X = (4, 4, 4, 4)
WEIGHT = rand(5, 16, 1, 1)
ORDER = [(0, 0), (1, 0), (0, 1), (1, 1)]


def made(*nodes, **weights):
    whole = model(*nodes, x={"x": X, "z": X}, weights={"w": WEIGHT, **weights}, opset=17)
    whole.graph.output[0].type.tensor_type.ClearField("shape")
    return whole


def part(place):
    """Every second number, from a row and a column on, in two steps as exporters write it."""
    (row, column), name = place, f"p{place[0]}{place[1]}"
    return [
        op("Slice", f"x s{row} end rows two", f"{name}r"),
        op("Slice", f"{name}r s{column} end columns two", name),
    ]


BOUNDS = {
    "s0": ints(0),
    "s1": ints(1),
    "end": ints(2**63 - 1),
    "rows": ints(2),
    "columns": ints(3),
    "two": ints(2),
}


def focus(order):
    """Four parts of an image on the channels of one of a quarter of its size."""
    names = " ".join(f"p{row}{column}" for row, column in order)
    parts = itertools.chain.from_iterable(part(place) for place in ORDER)
    return made(*parts, op("Concat", names, "c", axis=1), op("Conv", "c w", "y"), **BOUNDS)


def blocks(order, kind="SpaceToDepth", size=2):
    """The same with SpaceToDepth, whose parts are put into an order."""
    indices = [4 * (2 * row + column) + channel for row, column in order for channel in range(4)]
    gather = op("Gather", "c at", "g", axis=1)
    conv = op("Conv", "g w", "y")
    return made(op(kind, "x", "c", blocksize=size), gather, conv, at=ints(*indices))


FEEDS = {"x": rand(*X), "z": rand(*X)}


def test_space_to_depth_is_its_parts():
    orders = [[ORDER[k] for k in each] for each in ((0, 1, 2, 3), (0, 2, 1, 3), (3, 1, 2, 0))]
    for one, other in itertools.product(orders, repeat=2):
        found = proof(focus(one), blocks(other)).status
        assert found == "proved" if one == other else found != "proved"
    assert proof(blocks(ORDER), focus(ORDER)).status == "proved"
    assert not differ(focus(ORDER), blocks(ORDER), FEEDS)
    assert differ(focus(ORDER), blocks([ORDER[k] for k in (0, 2, 1, 3)]), FEEDS)


JOIN = op("Concat", "x z u", "c", axis=1)
NEGATED = op("Neg", "x", "u")


@pytest.mark.parametrize(
    ("taker", "axis", "taken", "names"),
    [
        ("Gather", 1, [4, 5, 6, 7, 0, 1, 2, 3], "z x"),
        ("Gather", 1, [-4, -3, -2, -1], "u"),
        ("Gather", -3, [*range(8, 12), *range(8, 12)], "u u"),
        ("Gather", 1, [5, 4, 6, 7], ""),
        ("Gather", 1, [4, 5, 7, 6], ""),
        ("Gather", 1, [4, 5, 6], ""),
        ("Gather", 1, [2, 3, 4, 5], ""),
        ("Gather", 2, [0, 1, 2, 3], ""),
        ("Slice", 1, (4, 12, 1), "z u"),
        ("Slice", 1, (-4, 2**63 - 1, 1), "u"),
        ("Slice", 1, (0, 12, 1), "x z u"),
        ("Slice", 1, (3, 8, 1), ""),
        ("Slice", 1, (4, 8, 2), ""),
        ("Slice", 2, (0, 4, 1), "x z u"),
        ("Slice", 2, (0, 2, 1), ""),
    ],
)
def test_whole_parts_of_a_concat_are_these(taker, axis, taken, names):
    """Told by onnxruntime: each is that Concat of parts and no other; or of none."""
    last = op("Relu", "g", "y")
    if taker == "Gather":
        whole = made(NEGATED, JOIN, op("Gather", "c at", "g", axis=axis), last, at=ints(*taken))
    else:
        held = dict(zip("stej", (*map(ints, taken), ints(axis)), strict=True))
        whole = made(NEGATED, JOIN, op("Slice", "c s t j e", "g"), last, **held)
    others = [*"xzu", *(" ".join(pair) for pair in itertools.product("xzu", repeat=2)), "x z u"]
    for chosen in others:
        kind, given = ("Concat", {"axis": 1}) if " " in chosen else ("Identity", {})
        join = op(kind, chosen, "g", **given)
        other = made(NEGATED, join, last)
        found = proof(whole, other).status
        if chosen == names:
            assert not differ(whole, other, FEEDS)
            assert found == proof(other, whole).status == "proved", chosen
        else:
            assert found != "proved", chosen
