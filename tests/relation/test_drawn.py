"""Drawn graphs: right folds are never refuted, and no model is proved equal to another function."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
from onnx import numpy_helper

import bnfold

from ..carry.drawing import drawn
from ..verify.test_kills import bugs, every_structure
from .pairs import apart, proof

SEEDS = 40


def planted(made, source):
    """A model with one stored number, or two that are swapped, changed; None if nothing changed."""
    made = copy.deepcopy(made)
    floats = [t for t in made.graph.initializer if t.data_type == 1 and np.prod(t.dims)]
    if not floats:
        return None
    tensor = source.choice(floats)
    was = numpy_helper.to_array(tensor)
    values = was.copy()
    kind = source.choice(["channel", "weight", "swap", "sign"]) if values.ndim else "weight"
    at = source.randrange(values.size)
    if kind == "channel":
        values[source.randrange(len(values))] *= np.float32(1 + 1e-4)
    elif kind == "swap":
        values[[0, -1]] = values[[-1, 0]]
    elif kind == "sign":
        values.reshape(-1)[at] *= -1
    else:
        values.reshape(-1)[at] += np.float32(1e-3)
    if np.array_equal(values, was):
        return None
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return made


def search(seeds, tries):
    """How many right folds were proved, of how many, and how many wrong ones were seen."""
    right = proved = wrong = 0
    for seed in seeds:
        source = random.Random(seed)
        made, data = drawn(source, 4, 24)
        folded = bnfold.fold(made)
        status = proof(made, folded).status
        assert status != "refuted", seed
        right, proved = right + 1, proved + (status == "proved")
        for _ in range(tries):
            other = planted(folded, source)
            if other is None:
                continue
            if proof(made, other).status == "proved":
                assert apart(folded, other, data) < 3e-6, seed
            wrong += 1
    return right, proved, wrong


def test_drawn_graphs():
    right, proved, wrong = search(range(SEEDS), 2)
    assert proved >= 0.6 * right and wrong > SEEDS


@pytest.mark.parametrize("most", [24, 30])
@pytest.mark.parametrize("seed", [2371, 3456, 3542, 4022, 7018, 50255, 50659, 60173])
def test_channels_that_do_not_depend_on_data_are_not_refuted(seed, most):
    """What is left of a sum that cancels is rounding, and a constant is related in many ways."""
    made, _ = drawn(random.Random(seed), 4, most)
    assert proof(made, bnfold.fold(made)).status != "refuted"


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 8000, 1000))
def test_many_drawn_graphs(start):
    """Two thousand pairs of a graph and a bug, and more."""
    right, proved, wrong = search(range(start, start + 100), 4)
    assert proved >= 0.6 * right and wrong > 300


def test_bugs_of_other_tools():
    """What a tool with each bug makes of a model. Numbers through bfloat16 are a bug as well."""
    made = every_structure()
    assert proof(made, bnfold.fold(made)).status == "proved"
    found = {name: proof(made, wrong).status for name, wrong in bugs.wrong_folds(made)}
    assert len(found) > 10 and "proved" not in found.values(), found
    assert list(found.values()).count("refuted") >= len(found) // 4, found
