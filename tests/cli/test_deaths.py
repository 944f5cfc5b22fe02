"""Many models with one command, some of which end the process that folds them."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import bnfold
import bnfold.registry

from . import examples
from .command import bnfold as command
from .command import process
from .registries import listed

DEATHS = {"poison": signal.SIGKILL, "broken-library": signal.SIGSEGV}
SITE = f"""
import importlib.util, os, sys
class Planted:
    def find_spec(self, name, *more):
        if name != "bnfold._pipeline.models":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        right = spec.loader.exec_module
        def exec_module(module):
            right(module)
            fold_file = module.fold_file
            def deadly(path, *args, **kwargs):
                for word, number in { ({w: int(n) for w, n in DEATHS.items()})!r}.items():
                    if word in path.name:
                        os.kill(os.getpid(), number)
                return fold_file(path, *args, **kwargs)
            module.fold_file = deadly
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Planted())
"""
"""Models of some names end the process that folds them."""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch) -> Iterator[dict[str, str]]:
    """Processes that models of some names end; none that was there before is used."""
    from bnfold._registry import worker

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    started: list[worker.Worker] = []
    monkeypatch.setattr(worker, "_idle", started)
    yield {"PYTHONPATH": str(tmp_path / "site")}
    for each in started:
        each.close()


def test_a_model_that_ends_its_process_ends_nothing_else(models, planted, tmp_path):
    out = tmp_path / "out"
    for name in ("poison.onnx", "broken-library.onnx"):
        shutil.copy(models / "m.onnx", models / name)
    run = command(models, "--output-dir", out, "--jobs", 2, env=planted)
    told = listed(out)
    assert run.code == 3
    assert (told["poison.onnx"]["status"], told["poison.onnx"]["code"]) == ("killed", 3)
    assert "memory may have run out" in told["poison.onnx"]["message"]
    crashed = told["broken-library.onnx"]
    assert (crashed["status"], crashed["verdict"], crashed["code"]) == ("crashed", None, 2)
    assert "SIGSEGV" in crashed["message"]
    assert told["m.onnx"]["verdict"] == told["deep/x.onnx"]["verdict"] == "pass"
    assert not (out / "poison.onnx").exists() and not list(out.rglob(".bnfold-*"))
    again = process(models, "--output-dir", out, "--resume")  # by processes that live
    assert again.code == 2
    assert "4 of them were done before and have not changed" in again.lines
    assert listed(out)["poison.onnx"]["verdict"] == "pass"


def test_memory_and_time_that_are_not_enough(models, tmp_path):
    out = tmp_path / "out"
    examples.save(examples.endless(), models / "endless.onnx")
    bounded = (models, "--output-dir", out, "--timeout", "2", "--memory", "2GB", "--no-prove")
    run = command(*bounded)
    assert run.code == 3
    told = listed(out)
    assert (told["endless.onnx"]["status"], told["endless.onnx"]["verdict"]) == (
        "done",
        "inconclusive",
    )
    assert told["m.onnx"]["verdict"] == "pass"
    same = command(*bounded, "--resume")
    assert "5 of them were done before and have not changed" in same.lines


def test_what_is_read_ahead_of_the_command_has_bounds_as_well(model, tmp_path, monkeypatch):
    """A result depends on what a disk may take its time to give, and on files that are large."""
    from bnfold._registry import worker

    slow = "import sys, time\nimport bnfold._registry.fingerprint as found\n"
    slow += "found.of_model = lambda path: time.sleep(60)\n"
    monkeypatch.setattr(
        worker,
        "_SERVE",
        f"{worker._SERVE.partition('; from')[0]}\n{slow}"
        "from bnfold._command.warm import serve; serve()",
    )
    monkeypatch.setattr(worker, "_idle", [])
    told = bnfold.run(model, timeout=1)
    assert (told.status, told.code) == ("timeout", 3)
    assert "time is up after 1 s" in told.message


def test_the_process_that_serves_dies_itself(model, tmp_path, monkeypatch):
    """It is a status, and the next model has another one."""
    from bnfold._registry import worker

    class Dying(worker.Worker):
        def ask(self, request):
            self._process.kill()
            self._process.wait()
            return super().ask(request)

    monkeypatch.setattr(worker, "_idle", [])
    monkeypatch.setattr(worker, "Worker", Dying)
    told = bnfold.run(model, tmp_path / "o.onnx", report=tmp_path / "r.json")
    assert (told.status, told.code, told.output) == ("killed", 3, None)
    assert json.loads((tmp_path / "r.json").read_bytes())["status"] == "killed"
    monkeypatch.undo()
    again = bnfold.run(model, tmp_path / "o.onnx", report=tmp_path / "r.json", resume=True)
    assert (again.status, again.verdict) == ("done", "pass")
