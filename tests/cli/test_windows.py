"""The command where Python is as poor as on Windows: no fork, signals, locks; open files stay.

It catches what only a Windows user would have met: names that are not there, a file that is
replaced while it is mapped, a console that cannot show every letter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from . import windows

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits.onnx"
Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is open")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run Python so, in a folder of its own."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(windows.SITE, encoding="utf-8")

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        places = os.pathsep.join((str(site), *filter(None, sys.path)))
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONUTF8", "LC_ALL", "LANG")}
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**kept, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding=more.get("PYTHONIOENCODING", "utf-8"),
            check=False,
        )
        assert windows.LOCKED not in done.stderr
        return done

    return run


def norms(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def test_it_is_as_poor(run: Run, tmp_path: Path) -> None:
    """What is tested here would be seen: a fork, a signal, an open file that is replaced."""
    (tmp_path / "held").write_text("", encoding="utf-8")
    script = """
import os, signal
assert not hasattr(os, "fork") and not hasattr(signal, "SIGKILL")
try:
    import fcntl
except ImportError:
    pass
else:
    raise SystemExit("there are locks")
with open("held") as file:
    try:
        os.replace("held", "other")
    except PermissionError:
        raise SystemExit(7)
"""
    with pytest.raises(AssertionError, match="held"):
        run("-c", script)


def test_fold_on_an_old_console(run: Run, tmp_path: Path) -> None:
    """A console of code page 437 shows what it can; the path has letters that it lacks."""
    folder = tmp_path / "модели"
    folder.mkdir()
    shutil.copy(DIGITS, folder / "цифры.onnx")
    done = run(
        *("-m", "bnfold", "модели/цифры.onnx", "-o", "модели/готово.onnx", "-v"),
        PYTHONIOENCODING="cp437",
    )
    assert done.returncode == 0, done.stderr
    assert norms(folder / "готово.onnx") == 0
    assert "->" in done.stdout and "verification: pass" in done.stdout


def test_in_place_with_external_data(run: Run, tmp_path: Path) -> None:
    """Model and data are replaced while neither is open."""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load(DIGITS), path, save_as_external_data=True, location="d", size_threshold=0)
    done = run("-m", "bnfold", "model.onnx", "--in-place", "--timeout", "300")
    assert done.returncode == 0, done.stderr
    assert norms(path) == 0 and onnx.load(path).graph.initializer
    left = {entry.name for entry in tmp_path.iterdir()} - {"site"}
    assert left == {"model.onnx", "model.onnx.data", "d"}, "no temporary folder stays"


def test_many_models(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(DIGITS, tmp_path / "models")
    done = run("-m", "bnfold", "models", "--output-dir", "out", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert norms(tmp_path / "out" / "digits.onnx") == 0


def test_what_windows_cannot_do_is_said(run: Run, tmp_path: Path) -> None:
    shutil.copy(DIGITS, tmp_path)
    done = run("-m", "bnfold", "digits.onnx", "--memory", "4GB")
    assert done.returncode == 2 and done.stderr.startswith("error: this system cannot bound")
    assert len(done.stderr.splitlines()) == 1
