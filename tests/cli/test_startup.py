"""The command starts at once: nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from . import examples
from .command import environment, process

HEAVY = {"numpy", "onnx", "onnxruntime", "torch", "onnx_graphsurgeon", "google", "ml_dtypes"}


def modules(*args: str) -> set[str]:
    """The modules that a run of the command imports."""
    code = "import sys; from bnfold._command.cli import main; main(sys.argv[1:], 'bnfold')"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *args],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines}


def imported(*args: str) -> set[str]:
    """The top-level ones among them."""
    return {name.split(".")[0] for name in modules(*args)}


@pytest.mark.parametrize(
    "args", [["--help"], ["-h"], ["--version"], ["fold", "--help"], ["explain", "no-gain"]]
)
def test_help_imports_nothing_heavy(args):
    found = imported(*args)
    assert {"bnfold", "click"} <= found
    assert not found & HEAVY


def test_a_wrong_path_for_the_report_is_said_before_anything_heavy(tmp_path):
    assert not imported("m.onnx", "--report", str(tmp_path / "none" / "r.json")) & HEAVY


def test_folding_does_not_need_torch(tmp_path):
    path = examples.save(examples.foldable(), tmp_path / "m.onnx")
    found = imported(str(path))
    assert {"onnx", "onnxruntime"} <= found
    assert not found & {"torch", "onnx_graphsurgeon"}


def test_the_runtime_is_not_imported_for_nothing(tmp_path):
    path = examples.save(examples.settled(), tmp_path / "m.onnx")
    assert "onnxruntime" not in imported(str(path))


def test_a_comparison_does_not_import_what_folds(tmp_path):
    path = str(examples.save(examples.foldable(), tmp_path / "m.onnx"))
    found = modules("verify", path, path)
    assert "bnfold._judge.second_opinion" in found
    assert not found & {"bnfold._judge.end_to_end", "bnfold._judge.power", "bnfold._run.reference"}
    assert not found & {"bnfold._plan.planner", "bnfold._merge.merging", "onnx.reference"}
    # NumPy imports its masked arrays by itself, for np.unique: longer than the proof takes.
    assert not found & {"numpy.ma", "xml.etree.ElementTree", "bnfold._registry.finding"}
    assert not found & {"bnfold._proof.checked_model", "bnfold._judge.rounded_pair"}


def test_the_package_itself_imports_nothing():
    code = "import sys, bnfold; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert not set(done.stdout.split()) & (HEAVY | {"click"})


def test_version():
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("bnfold")
    except PackageNotFoundError:
        number = "0+checkout"
    run = process("--version")
    assert (run.code, run.out, run.err) == (0, f"bnfold {number}\n", "")
