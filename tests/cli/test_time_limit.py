"""``--timeout`` where nothing looks at a clock: reading, planning, writing, and what hangs."""

from __future__ import annotations

import pkgutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnfold._pipeline import models

from .. import graphs
from . import examples
from .command import Run, bnfold, process, tree

UP = "error: time is up after 0.05 s (--timeout); nothing was written\n"

HANGING = """
import sys, time
import {module} as module
from bnfold._system import time_limit
time_limit._GRACE_S = 0.2
right = module.{name}
def hang(*args, **kwargs):
    {how}
    return right(*args, **kwargs)
module.{name} = hang
from bnfold._command.guard import main
main()
"""
WITHOUT_PYTHON = "sum(range(10 ** 15))"
"""Holds the interpreter: no thread and no handler of Python runs any more."""


def hanging(place: str, how: str = WITHOUT_PYTHON) -> tuple[str, ...]:
    """The command, where a function hangs."""
    module, _, name = place.rpartition(".")
    return (sys.executable, "-c", HANGING.format(module=module, name=name, how=how))


def timed_out(run: Run) -> None:
    assert run.code == 3
    assert (run.out, run.err) == ("", UP)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A model whose planning takes much longer than the time that the test gives."""
    pieces, source = [], "x"
    for k in range(1500):
        pieces += [
            graphs.conv(f"conv{k}", source, f"c{k}", (2, 2, 1, 1)),
            graphs.bn(f"bn{k}", f"c{k}", f"b{k}", 2),
        ]
        source = f"b{k}"
    return examples.save(graphs.model(*pieces, x=(1, 2, 1, 1), y=source), tmp_path / "long.onnx")


@pytest.mark.parametrize("run", [bnfold, process])
@pytest.mark.parametrize("more", [("--check",), ("--no-verify", "-o", "o.onnx"), ("--in-place",)])
def test_planning_takes_longer(run: Callable[..., Run], more, long, tmp_path):
    before = tree(tmp_path)
    begun = time.monotonic()
    timed_out(run(long, *more, "--timeout", "0.05", cwd=tmp_path))
    assert time.monotonic() - begun < 10
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "place",
    [
        "bnfold._pipeline.models.load_model",
        "bnfold._pipeline.models.prepare",
        "bnfold._onnx.files.save._write_model",
    ],
)
def test_a_library_hangs(place, external, tmp_path):
    """Where it holds the interpreter, too; a temporary folder is there while it writes."""
    before = tree(tmp_path)
    target = tmp_path / "o.onnx"
    timed_out(process(external, "-o", target, "--timeout", "0.05", command=hanging(place)))
    assert tree(tmp_path) == before


def test_reading_for_a_comparison_hangs(model):
    command = hanging("bnfold._judge.two_files.load_model")
    timed_out(process("verify", model, model, "--timeout", "0.05", command=command))


def test_a_comparison_that_does_not_end_by_itself(model, tmp_path):
    """It has its time once more, and some seconds, to end with a verdict."""
    before = tree(tmp_path)
    command = hanging("bnfold._proof.certificate.certify")
    timed_out(process(model, "-o", "o.onnx", "--timeout", "0.05", command=command, cwd=tmp_path))
    assert tree(tmp_path) == before


def seen_at(place: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many seconds the alarm waits for, each time that a function is called."""
    right, seen = pkgutil.resolve_name(place), list[float]()

    def seeing(*args: Any, **kwargs: Any) -> Any:
        seen.append(signal.getitimer(signal.ITIMER_REAL)[0])
        return right(*args, **kwargs)

    monkeypatch.setattr(place, seeing)
    return seen


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_what_is_put_in_place_is_not_stopped(kind, external, tmp_path, monkeypatch):
    source = external if kind == "onnx" else saved_program(tmp_path)
    writing = {"onnx": "bnfold._pipeline.models.prepare", "pt2": "torch.export.save"}[kind]
    before = seen_at(writing, monkeypatch)
    placing = seen_at("bnfold._system.paths.set_mode", monkeypatch)
    target = tmp_path / f"o.{kind}"
    assert bnfold(source, "-o", target, "--timeout", "900", "--no-verify").code == 0
    assert before and all(0 < left <= 900 for left in before)
    assert placing and not any(placing)
    assert target.exists()


def test_a_comparison_has_time_to_end_by_itself(model, tmp_path, monkeypatch):
    """It looks at the clock. The alarm waits for as long again, and some seconds more."""
    before = seen_at("bnfold._pipeline.models.prepare", monkeypatch)
    within = seen_at("bnfold._proof.certificate.certify", monkeypatch)
    run = bnfold(model, "-o", tmp_path / "o.onnx", "--timeout", "900")
    assert (run.code, run.err) == (0, "")
    assert all(0 < left <= 900 for left in before) and before
    assert all(1800 < left <= 1810 for left in within) and within


def test_several_models_have_the_time_together(model, tmp_path, monkeypatch):
    """It is up while the second one is read, which is named."""
    last, right = tmp_path / "n.onnx", models.load_model
    last.write_bytes(model.read_bytes())

    def read(path: Path, *args: Any, **more: Any) -> Any:
        if path == last:
            assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 600
            signal.setitimer(signal.ITIMER_REAL, 1e-3)
            time.sleep(60)
        return right(path, *args, **more)

    monkeypatch.setattr(models, "load_model", read)
    run = bnfold(model, last, "--check", "--timeout", "600")
    assert run.code == 3
    assert run.err == UP.replace("0.05", "600").replace(";", f" at {last};")
    assert run.out.startswith(f"{model}:\n")


def test_time_enough_for_a_check(model):
    assert bnfold(model, "--check", "--timeout", "600").code == 1
    assert bnfold(model, "--no-verify", "--timeout", "1e300").code == 0


def saved_program(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    path = folder / "m.pt2"
    torch.export.save(torch.export.export(net, (torch.randn(1, 3, 8, 8),)), path)
    return path


def test_a_program_takes_longer(tmp_path):
    path = saved_program(tmp_path)
    timed_out(process(path, "--timeout", "0.05"))
    assert bnfold(path, "--timeout", "600").code == 0
    assert bnfold("verify", path, path, "--timeout", "600").code == 0
