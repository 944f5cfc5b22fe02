"""Mutated models, see `tests.fuzz`: what no table of damages names, a few of them in each run."""

from __future__ import annotations

import pytest

from . import fuzz


@pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_models(count):
    ends, wrong = fuzz.search(0, count)
    assert not wrong
    assert sum(ends.values()) == count
    assert {"refused", "checked"} <= ends.keys()  # not all are refused, and some are compared


def test_a_wrong_fold_is_found(monkeypatch):
    """The oracle looks: a fold that is 10 % off is wrong, and so is one that does not run."""
    real = fuzz.bnfold.fold

    def off(made):
        folded = real(made)
        for tensor in folded.graph.initializer:
            if tensor.data_type == 1 and tensor.raw_data:
                values = fuzz.np.frombuffer(tensor.raw_data, fuzz.np.float32)
                tensor.raw_data = (values * fuzz.np.float32(1.1)).tobytes()
        return folded

    bases = fuzz.corpus()[::25]
    models = [fuzz.ModelProto.FromString(base) for base in bases]
    right = [model for model in models if fuzz.check(model) == "checked"]
    assert len(right) > 20
    monkeypatch.setattr(fuzz.bnfold, "fold", off)
    found = 0
    for model in right:
        try:
            fuzz.check(model)
        except fuzz.Wrong:
            found += 1
    assert found > len(right) // 2
