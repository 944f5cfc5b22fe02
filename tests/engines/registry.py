"""A small registry, what the command makes of it, and a worker that is killed at work."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from .. import graphs
from ..cli import examples
from ..cli.command import CHECKOUT, process, tree, wait_for

MEMORY = "250MB"
"""Enough for each model but one."""
LARGEST = (512, 512, 5, 5)
TIMES = ("seconds",)


def example(name: str) -> ModuleType:
    """A script of examples/, as a module that no worker can import: its functions go whole."""
    path = CHECKOUT / "examples" / f"{name}.py"
    if not path.is_file():
        pytest.skip(f"there is no examples/{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(folder: Path) -> Path:
    """Two that fold, two whose data have one name, one settled, one broken, one that is slow, and
    one that runs out of memory.
    """
    for name in ("a", "b"):
        examples.save(examples.foldable(), folder / "plain" / f"{name}.onnx")
        examples.save(examples.foldable(), folder / "data" / f"{name}.onnx", conv1_w="shared.bin")
    examples.save(examples.settled(), folder / "settled.onnx")
    (folder / "broken.onnx").write_text("no model")
    examples.save(deep(24, (16, 16, 3, 3), 200), folder / "slow" / "slow.onnx")
    examples.save(deep(6, LARGEST, 4), folder / "poison.onnx")
    return folder


def deep(count: int, weight: tuple[int, int, int, int], size: int) -> onnx.ModelProto:
    """So many convolutions one behind the other, each with a norm, on images of a size."""
    pieces, source = [], "x"
    for k in range(count):
        pads = [weight[2] // 2] * 4
        pieces += [
            graphs.conv(f"conv{k}", source, f"c{k}", weight, pads=pads),
            graphs.bn(f"bn{k}", f"c{k}", f"b{k}", weight[0]),
            graphs.op("Relu", f"b{k}", f"r{k}"),
        ]
        source = f"r{k}"
    return graphs.model(*pieces, x=(1, weight[1], size, size), y=source)


def index(folder: Path) -> dict[str, Any]:
    """An index without times."""
    data: dict[str, Any] = json.loads((folder / "index.json").read_bytes())
    for model in data["models"]:
        for name in TIMES:
            del model[name]
    return data


def models(folder: Path) -> dict[str, bytes]:
    """What was written besides reports and the index."""
    left_out = (".report.json", "index.json", "index.html")
    return {name: data for name, data in tree(folder).items() if not name.endswith(left_out)}


def files(folder: Path) -> dict[str, int]:
    """Which file each one is: who writes it anew changes that."""
    return {
        str(path.relative_to(folder)): path.stat().st_ino
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("index.")
    }


def kill_worker(out: Path) -> int:
    """Wait until the slow model is at work, and kill the engine's worker that waits for it."""
    import psutil

    wait_for(lambda: list((out / "slow").glob(".bnfold-*/slow.onnx")))
    (draft,) = (out / "slow").glob(".bnfold-*")
    child = psutil.Process(int(draft.name.split("-")[1]))
    server = child.parent()
    assert server is not None and "bnfold._command.warm" in " ".join(server.cmdline())
    worker = server.parent()
    assert worker is not None and worker.pid != os.getpid()
    worker.send_signal(signal.SIGKILL)
    return int(worker.pid)


def check(tmp_path: Path, fold_all: Callable[..., list[Any]]) -> None:
    """Fold with a worker that is killed at work, then again: as the command does, nothing twice."""
    registry, out, by_command = make(tmp_path / "in"), tmp_path / "out", tmp_path / "command"
    words = ("--jobs", 2, "--memory", MEMORY, "--threads", 1)
    assert process(registry, "--output-dir", by_command, *words).code == 3
    killed: list[int] = []
    killer = threading.Thread(target=lambda: killed.append(kill_worker(out)))
    killer.start()
    reports = fold_all([str(registry)], str(out), memory=MEMORY, threads=1)
    killer.join()
    assert killed
    told = {report.name: report for report in reports}
    assert told["poison.onnx"].status == "out of memory"
    assert told["slow/slow.onnx"].verdict == "pass"
    assert told["broken.onnx"].status == "error"
    assert models(out) == models(by_command)
    assert index(out) == index(by_command)
    before = files(out)
    again = fold_all([str(registry)], str(out), memory=MEMORY, threads=1)
    assert {report.name for report in again if not report.resumed} == {"poison.onnx"}
    del before["poison.onnx.report.json"]
    assert {name: file for name, file in files(out).items() if name in before} == before
    assert index(out) == index(by_command)
