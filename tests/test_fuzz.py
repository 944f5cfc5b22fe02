"""Mutated models, see `tests.fuzz`: what no table of damages names, a few of them in each run."""

from __future__ import annotations

from collections import Counter

import pytest

from . import fuzz


@pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_models(count):
    ends, wrong = fuzz.search(0, count)
    assert not wrong
    assert sum(ends.values()) == count
    assert {"refused", "checked"} <= ends.keys()  # not all are refused, and some are compared


def off(folded):
    for tensor in folded.graph.initializer:
        if tensor.data_type == 1 and tensor.raw_data:
            values = fuzz.np.frombuffer(tensor.raw_data, fuzz.np.float32)
            tensor.raw_data = (values * fuzz.np.float32(1.1)).tobytes()


def cut(folded):
    del folded.graph.node[-1]


@pytest.mark.parametrize(("spoil", "least"), [(off, 0.5), (cut, 1.0)])
def test_a_wrong_fold_is_found(spoil, least, monkeypatch):
    """The oracle looks: a fold that is 10 % off is wrong, and so is one that does not run."""
    real = fuzz.bnfold.fold

    def spoilt(made):
        folded = real(made)
        spoil(folded)
        return folded

    bases = fuzz.corpus()[::25]
    models = [fuzz.ModelProto.FromString(base) for base in bases]
    right = [model for model in models if fuzz.check(model) == "checked"]
    assert len(right) > 20
    monkeypatch.setattr(fuzz.bnfold, "fold", spoilt)
    found = 0
    for model in right:
        try:
            fuzz.check(model)
        except fuzz.Wrong:
            found += 1
    assert found >= least * len(right)


def test_what_ends_the_process(capfd):
    """Behind the original it is onnxruntime, behind the folded model the fold."""
    base = next(
        base for base in fuzz.corpus() if fuzz.check(fuzz.ModelProto.FromString(base)) == "checked"
    )
    capfd.readouterr()
    fuzz.check(fuzz.ModelProto.FromString(base))
    before, folded = capfd.readouterr().out.split()
    ends, wrong = Counter(), {}
    lines = ["1 refused", f"2 {before} folded", f"3 {before} {folded} checked", "4 WRONG so"]
    assert fuzz.count_ends([*lines, f"5 {before} "], -6, ends, wrong) == 5
    assert fuzz.count_ends([f"6 {before} {folded} "], -11, ends, wrong) == 6
    assert fuzz.count_ends(["7 "], -11, ends, wrong) == 7
    assert fuzz.count_ends([], 1, ends, wrong) is None
    assert set(ends) == {"refused", "folded", "checked", "crashes onnxruntime"}
    assert wrong.keys() == {4, 6, 7}
