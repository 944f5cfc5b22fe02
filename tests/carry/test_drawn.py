"""Whole drawn graphs: folding changes nothing that they compute, whatever is carried where."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st

from ..searches import ANEW, ONCE
from .drawing import drawn
from .holding import Unrunnable, holds

# As many graphs of many operators are drawn by --slow as this asks for.
GRAPHS = int(os.environ.get("BNFOLD_DRAWN_GRAPHS", "4000"))
SOURCES = st.randoms(use_true_random=False)


def hold(source: random.Random, least: int, most: int) -> int:
    """How many operators of a drawn graph are gone, and all that must hold of it."""
    made, data = drawn(source, least, most)
    return len(made.graph.node) - len(holds(made, data).graph.node)


@settings(ONCE, max_examples=60)
@given(SOURCES)
def test_drawn_graphs(source):
    try:
        event(f"operators gone: {hold(source, 2, 20)}")
    except Unrunnable:
        reject()


def test_graphs_of_many_operators():
    """By seed, not by Hypothesis, whose draws of large graphs are slow; and most of them fold."""
    gone = [hold(random.Random(seed), 10, 40) for seed in range(40)]
    assert sum(1 for n in gone if n) > 30


@pytest.mark.slow
@settings(ANEW, max_examples=3000)
@given(SOURCES)
def test_many_drawn_graphs(source):
    try:
        hold(source, 2, 30)
    except Unrunnable:
        reject()


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, GRAPHS, 1000))
def test_many_graphs_of_many_operators(start):
    for seed in range(start, start + 1000):
        try:
            hold(random.Random(seed), 10, 40)
        except Unrunnable:
            continue
