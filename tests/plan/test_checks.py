"""Each rule about views is the first to be red for one view that breaks it.

Tests ask these rules of every view that is read (`tests.conftest`); here they are asked themselves.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bnfold._core.affine import AffineMap
from bnfold._core.checks import RULES, check_view
from bnfold._core.index_maps import Permuted
from bnfold._core.joins import Aligned, Summed
from bnfold._core.laws import Mixed, Padded, Rearranged
from bnfold._core.parts import Concatenated, Picked
from bnfold._core.products import Gated, Multiplied
from bnfold._core.view import (
    OPAQUE,
    Absorber,
    Affine,
    Carrier,
    Crossing,
    InputSide,
    Node,
    Value,
    View,
)

SHAPE = (2, 4, 6, 6)
MAP = AffineMap.of(np.arange(1.0, 5.0), 0.0, 1)


def view():
    """Conv, a map, what carries it, and an Add of two: every rule has something to look at."""
    nodes = (
        Node("conv", "Conv", Absorber({1: 4}, ahead=InputSide(0, {1: 3})), (0, -1), (1,)),
        Node("mul", "Mul", Affine(MAP), (1,), (2,)),
        Node("identity", "Identity", Carrier(), (2,), (3,)),
        Node("shape", "Shape", OPAQUE, (2,), (4,)),
        Node(
            "add",
            "Add",
            Crossing(Summed((1, 1), Aligned((SHAPE, SHAPE), SHAPE)), (0, 1)),
            (2, 3),
            (5,),
        ),
    )
    values = (
        Value("x", None, (0,), shape=(2, 3, 8, 8)),
        Value("c", 0, (1,), shape=(2, 4, None, None)),
        Value("m", 1, (2, 4), shape=SHAPE),
        Value("i", 2, (4,), shape=SHAPE),
        Value("s", 3, (), shape=(4,)),
        Value("y", 4, (), shape=SHAPE),
    )
    return View(nodes, values)


def with_node(number, **changes):
    nodes = list(view().nodes)
    nodes[number] = replace(nodes[number], **changes)
    return replace(view(), nodes=tuple(nodes))


def with_value(number, **changes):
    values = list(view().values)
    values[number] = replace(values[number], **changes)
    return replace(view(), values=tuple(values))


def crossed(law, before, *after, data=(0,)):
    """A view of one operator that reads tensors of some shapes and puts out others."""
    before = before if isinstance(before, list) else [before]
    shapes = [*before, *after]
    outputs = range(len(before), len(shapes))
    node = Node("f", "F", Crossing(law, data), tuple(range(len(before))), tuple(outputs))
    values = [Value(str(n), 0 if n in outputs else None, (), shape=s) for n, s in enumerate(shapes)]
    return View(
        (node,),
        tuple(replace(v, readers=(0,)) if n not in outputs else v for n, v in enumerate(values)),
    )


def swapped():
    """The map reads what the carrier writes, which stands behind it."""
    nodes = list(view().nodes)
    nodes[1] = replace(nodes[1], inputs=(3,))
    values = list(view().values)
    values[1] = replace(values[1], readers=())
    values[3] = replace(values[3], readers=(1, 4))
    return View(tuple(nodes), tuple(values))


BROKEN = {
    "numbered": lambda: with_value(4, readers=(5,)),
    "order": swapped,
    "written-once": lambda: with_node(3, outputs=(4, 4)),
    "producers": lambda: with_value(4, producer=None),
    "readers": lambda: with_value(3, readers=()),
    "data": lambda: with_node(2, role=Carrier(1)),
    "same-shape": lambda: with_value(3, shape=(2, 4, 6)),
    "map-axes": lambda: with_node(1, role=Affine(replace(MAP, axis=0))),
    "absorber-axes": lambda: with_node(0, role=Absorber({4: 4})),
    "law-axes": lambda: crossed(Mixed({1: 2}, 1.0), SHAPE, (2, 4)),
}

BROKEN_LAWS = {
    "kept axis of another size": (Mixed({1: 2}, 1.0), SHAPE, SHAPE),
    "padded axis": (Padded(0.0, frozenset([4])), SHAPE, SHAPE),
    "index map of another rank": (Rearranged((Permuted((0, 2, 1)),)), SHAPE, (2, 6, 4)),
    "index map to another rank": (Rearranged((Permuted((0, 1, 3, 2)),)), SHAPE, (2, 6, 4)),
    "joined sizes": (Concatenated(1, (4, 3)), [SHAPE, SHAPE], (2, 7, 6, 6)),
    "joined tensors": (Concatenated(1, (4,)), [SHAPE, SHAPE], (2, 8, 6, 6)),
    "picked place": (Picked(1, 4, (np.array([4]),)), SHAPE, (2, 1, 6, 6)),
    "picked size": (Picked(1, 5, (np.array([4]),)), SHAPE, (2, 1, 6, 6)),
    "picked parts": (Picked(1, 4, (np.array([1]),)), SHAPE, (2, 1, 6, 6), (2, 3, 6, 6)),
    "axis that is gone": (Picked(1, 4, (np.array([1]),), gone=True), SHAPE, (2, 1, 6, 6)),
    "signs": (Summed((1,), Aligned((SHAPE, SHAPE), SHAPE)), [SHAPE, SHAPE], SHAPE),
    "aligned shape": (Gated(Aligned((SHAPE, (4,)), SHAPE)), [SHAPE, SHAPE], SHAPE),
    "factors": (Gated(Aligned((SHAPE,), SHAPE)), SHAPE, SHAPE),
    "rank of a factor": (Multiplied((4, 3)), [SHAPE, SHAPE], SHAPE),
}


def test_a_view_that_keeps_all_rules_passes():
    check_view(view())
    check_view(crossed(Picked(1, 4, (np.array([-1]),), gone=True), SHAPE, (2, 6, 6)))
    check_view(crossed(Mixed({0: 0, 1: 1}, 1.0), (2, 4, None, 6), (2, 4)))


def test_every_rule_is_broken_here():
    assert list(BROKEN) == list(RULES)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_told(name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        check_view(BROKEN[name]())


@pytest.mark.parametrize("name", BROKEN_LAWS)
def test_a_law_has_to_fit_its_tensors(name):
    law, before, *after = BROKEN_LAWS[name]
    count = len(before) if isinstance(before, list) else 1
    with pytest.raises(ValueError, match=r"^law-axes: "):
        check_view(crossed(law, before, *after, data=tuple(range(count))))
