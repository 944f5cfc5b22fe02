"""The kinds of networks of which norms stay, or merge: how many, by which law, in every way.

``benchmarks/zoo.py`` folds the zoos themselves, by hand. This holds a dozen of its rows, small.
"""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

import bnfold  # noqa: E402

from .folding import assert_close, fold, outputs, outputs_of, rand, ready, wide  # noqa: E402
from .merging import exported, ops  # noqa: E402
from .zoo_kinds import NETWORKS  # noqa: E402

X = rand(2, 3, 6, 6)
WITHIN = 1e-12
# By name: the norms that run at first; the codes of those that stay in the module, and with
# merge=True; how many stay as norms in the program.
ROWS = {
    "mixer": (5, {"zero-padding": 2, "no-linear-operator": 2}, None, 2),
    "dense": (6, {"shared-output": 3}, None, 3),
    "dual path": (6, {"shared-output": 3}, None, 3),
    "attention": (3, {"not-carried": 1}, None, 1),
    "lambdas": (4, {"not-carried": 1}, None, 1),
    "one": (6, {"shared-output": 2}, {}, 0),
    "tokens": (4, {"shared-output": 2}, {}, 0),
    "ghost": (6, {"shared-output": 2}, None, 0),
    "norm-free": (4, {"constant-norm": 3}, {}, 0),
    "norms ahead": (5, {"shared-output": 2}, None, 1),
    "separable": (8, {"shared-output": 1}, None, 0),
    "local": (3, {"zero-padding": 2}, None, 0),
}


def norms(module):
    """How many norms run."""
    return ops(exported(module, X)).count("batch_norm")


def codes(plan):
    return Counter(each.code for each in plan.kept if "norm" in each.op)


def test_every_kind_has_a_row():
    assert set(ROWS) == set(NETWORKS)


@pytest.mark.parametrize("name", ROWS)
def test_a_module_keeps_what_a_law_forbids(name):
    before, stay, merged, _ = ROWS[name]
    module = ready(NETWORKS[name]())
    assert norms(module) == before
    done = fold(module, X, within=WITHIN, others=((rand(3, 3, 6, 6, seed=4),),))
    assert codes(done.plan) == stay
    assert norms(done.module) == sum(stay.values())
    done = fold(module, X, within=WITHIN, merge=True)
    assert codes(done.plan) == (stay if merged is None else merged)
    assert norms(done.module) == sum((stay if merged is None else merged).values())


@pytest.mark.parametrize("name", ROWS)
def test_a_program_keeps_no_more(name):
    *_, left = ROWS[name]
    module = ready(NETWORKS[name]())
    folded = bnfold.fold(exported(module, X))
    assert ops(folded).count("batch_norm") == left
    assert_close(outputs(module, (X,), {}), outputs_of(wide(folded), (X,), {}), WITHIN)
