"""Mutated models, see `tests.fuzz`: what no table of damages names, a few of them in each run."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
from onnx import ModelProto

from bnfold._core import channels
from bnfold._onnx.files import save

from .cli import examples
from .fuzz import command, coverage, library, mutation
from .fuzz.cases import Case


@pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_models(count):
    ends, wrong = library.search(0, count)
    assert not wrong
    assert sum(ends.values()) == count
    assert {"refused", "checked"} <= ends.keys()  # not all are refused, and some are compared


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_files_through_the_command(count):
    """Exit codes, lines, what is left on disk: what a call of the library does not show."""
    ends, wrong = command.search(0, count)
    assert not wrong
    assert sum(ends.values()) == count
    assert {"code-0-compared", "code-2"} <= ends.keys()


def test_the_search_by_what_bytes_reach(tmp_path, capsys):
    """It ends after its time without a finding, or says that it cannot be done here."""
    if find_spec("atheris") is None:
        assert coverage.main(["1"]) == 0
        assert "atheris is not installed" in capsys.readouterr().out
        return
    asked = [sys.executable, "-m", "tests.fuzz.coverage", "5", "--folder", str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [path.name for path in tmp_path.iterdir() if path.name != "corpus"]


def off(folded):
    for tensor in folded.graph.initializer:
        if tensor.data_type == 1 and tensor.raw_data:
            values = np.frombuffer(tensor.raw_data, np.float32)
            tensor.raw_data = (values * np.float32(1.1)).tobytes()


def cut(folded):
    del folded.graph.node[-1]


@pytest.mark.parametrize(("spoil", "least"), [(off, 0.5), (cut, 1.0)])
def test_a_wrong_fold_is_found(spoil, least, monkeypatch):
    """The oracle looks: a fold that is 10 % off is wrong, and so is one that does not run."""
    real = library.bnfold.fold

    def spoilt(made):
        folded = real(made)
        spoil(folded)
        return folded

    bases = mutation.corpus()[::25]
    models = [ModelProto.FromString(base) for base in bases]
    right = [model for model in models if library.check(model) == "checked"]
    assert len(right) > 20
    monkeypatch.setattr(library.bnfold, "fold", spoilt)
    found = 0
    for model in right:
        try:
            library.check(model)
        except library.Wrong:
            found += 1
    assert found >= least * len(right)


def test_what_ends_the_process(capfd):
    """Behind the original it is onnxruntime, behind the folded model the fold."""
    base = next(
        base
        for base in mutation.corpus()
        if library.check(ModelProto.FromString(base)) == "checked"
    )
    capfd.readouterr()
    library.check(ModelProto.FromString(base))
    before, folded = capfd.readouterr().out.split()
    ends, wrong = Counter(), {}
    lines = ["1 refused", f"2 {before} folded", f"3 {before} {folded} checked", "4 WRONG so"]
    assert library.count_ends([*lines, f"5 {before} "], -6, ends, wrong) == 5
    assert library.count_ends([f"6 {before} {folded} "], -11, ends, wrong) == 6
    assert library.count_ends(["7 "], -11, ends, wrong) == 7
    assert library.count_ends([], 1, ends, wrong) is None
    assert set(ends) == {"refused", "folded", "checked", "crashes onnxruntime"}
    assert wrong.keys() == {4, 6, 7}


def shouting(*_):
    print("\x1b[31m")


def raising(*_):
    raise KeyError(0)


def littering(draft):
    (draft.destination.parent / "more").write_text("x")


def wasteful(*_):
    np.ones(1200 << 20, np.int8)


def spoiling(draft):
    draft.finished.write_bytes(draft.finished.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (None, None),
        ((channels, "scaled", lambda w, s, layout, dtype: w.astype(dtype)), "differs by"),
        ((save.PendingFile, "commit", shouting), "it prints"),
        ((save.PendingFile, "commit", raising), "defect of bnfold"),
        ((save.PendingFile, "commit", lambda *_: None), "there is no o.onnx"),
        ((save.PendingFile, "commit", wasteful), "it takes [0-9]+ MB"),
        ((save.PendingFile, "commit", littering), "new"),
        ((save.PendingFile, "commit", spoiling), "cannot be loaded|is not valid|does not"),
    ],
)
def test_what_the_command_may_not_do_is_found(plant, words, monkeypatch):
    """One plant of each kind; without one nothing is found."""
    if plant is not None:
        where, name, wrong = plant
        right = getattr(where, name)

        def both(*args):
            found = wrong(*args)
            return right(*args) if name == "commit" and wrong in _ASIDE else found

        monkeypatch.setattr(where, name, both)
    case = Case({"m.onnx": examples.foldable().SerializeToString()}, {}, _ARGUMENTS)
    if words is None:
        assert command.judge(case, 1 << 31) == "code-0-compared"
        return
    with pytest.raises(library.Wrong, match=words):
        command.judge(case, 300 << 20)


_ASIDE = (shouting, littering, wasteful, spoiling)
_ARGUMENTS = ("fold", "m.onnx", "-o", "o.onnx", "--no-verify")
