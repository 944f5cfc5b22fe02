"""Drawn sums of branches and drawn series, held to everything that holds for a fold."""

from __future__ import annotations

import pytest
from hypothesis import event, given, reject, settings
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

import bnfold

from ..graphs import fold, session
from ..searches import ANEW, ONCE
from .drawing import convolutions, products


def holds(case):
    made, data = case
    try:
        session(made).run(None, dict(data))
    except InvalidArgument:  # The last kernel may be larger than what is left of the image.
        reject()
    folded = fold(made, data)
    event(f"nodes gone: {len(made.graph.node) - len(folded.graph.node)}")
    return folded


def test_drawn_convolutions():
    """And a search whose graphs never merge would prove nothing; nor may merges be left for later,
    but for the rare ones that pay only once maps are gone: of these graphs none.
    """
    merged, kept, later = [], [], []

    @settings(ONCE, max_examples=40)
    @given(convolutions())
    def look(case):
        folded, plan = holds(case), bnfold.plan(case[0])
        merged.append(sum("merge" in fold.laws[0] for fold in plan.folds))
        kept.append(len(plan.kept))
        later.append(len(bnfold.plan(folded).folds))

    look()
    assert sum(1 for n in merged if n) >= len(merged) // 4
    assert any(kept)
    assert not any(later)


@settings(ONCE, max_examples=40)
@given(products())
def test_drawn_products(case):
    holds(case)


@pytest.mark.slow
@settings(ANEW, max_examples=1500)
@given(convolutions())
def test_many_drawn_convolutions(case):
    holds(case)


@pytest.mark.slow
@settings(ANEW, max_examples=1500)
@given(products())
def test_many_drawn_products(case):
    holds(case)
