"""Many models from a stranger: folders that lead round or out, data and reports that lie."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bnfold
import bnfold.registry

from . import examples
from .command import bnfold as command
from .command import refused, tree

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes are not everybody's there")


def found(registry: bnfold.registry.Registry) -> list[str]:
    return sorted(item.name for task in registry.tasks for item in task.items)


def test_a_pattern_follows_no_link_to_a_folder(tmp_path, monkeypatch):
    """Two links of a folder to itself are 2**40 paths to whoever follows them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private").mkdir()
    examples.save(examples.settled(), tmp_path / "private" / "p.onnx")
    examples.save(examples.settled(), tmp_path / "in" / "deep" / "m.onnx")
    for name, target in (("a", "."), ("b", "."), ("c", "../private")):
        (tmp_path / "in" / name).symlink_to(target)
    for pattern in ("in/**/*.onnx", "in/**", "in/*/*.onnx", "in/**/deep/*.onnx"):
        registry = bnfold.registry.find(pattern, tmp_path / "out")
        assert found(registry) == ["deep/m.onnx"], pattern
        assert registry.passed_over["linked folder"] == 3
    # What a pattern names without a wildcard is meant.
    assert found(bnfold.registry.find("in/c/*.onnx", tmp_path / "out")) == ["p.onnx"]


def test_a_tree_deeper_than_the_stack(settled, tmp_path):
    top = tmp_path / "models"
    top.mkdir()
    settled.rename(top / "m.onnx")
    here = os.open(top, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        assert command(top, "--check").code == 0
        for given in (top, f"{top}/**/*.onnx"):
            assert found(bnfold.registry.find(given, tmp_path / "out")) == ["m.onnx"]
    finally:  # pytest, too, would go as deep as the tree.
        subprocess.run(["rm", "-r", top], check=True)


def _value_first(path: Path, location: str) -> None:
    """Write the same model with the name of its data ahead of what that is the name of."""
    name = location.encode()
    usual = b"\n\x08location\x12" + bytes([len(name)]) + name
    data = path.read_bytes()
    assert usual in data
    path.write_bytes(data.replace(usual, b"\x12" + bytes([len(name)]) + name + b"\n\x08location"))


@pytest.mark.parametrize("location", ["m.onnx.report.json", "index.html", "index.json", "n.onnx"])
@pytest.mark.parametrize("order", ["usual", "value first"])
def test_data_that_a_file_of_the_run_would_replace(order, location, tmp_path):
    """Their model was judged with them, and would be read with something else."""
    folder, out = tmp_path / "in", tmp_path / "out"
    path = examples.save(examples.foldable(), folder / "m.onnx", conv1_w=location)
    if order != "usual":
        _value_first(path, location)
    run = command(folder, "--output-dir", out, "--no-verify")
    entry = next(e for e in json.loads((out / "index.json").read_bytes())["models"])
    assert (run.code, entry["name"], entry["status"]) == (2, "m.onnx", "error")
    assert not (out / "m.onnx").exists() and "index.html" in tree(out)


def test_nothing_is_written_outside_of_the_output_folder(tmp_path):
    """The output folder may have come with the models: a link in it is no place of the user's."""
    folder, out, elsewhere = (tmp_path / name for name in ("in", "out", "elsewhere"))
    examples.save(examples.foldable(), folder / "sub" / "m.onnx")
    examples.save(examples.foldable(), folder / "x.onnx")
    (folder / "data").mkdir()
    examples.save(examples.foldable(), folder / "y.onnx", conv1_w="data/w.bin")
    for place in (out, elsewhere):
        place.mkdir()
    for name in ("sub", "data"):
        (out / name).symlink_to(elsewhere)
    run = command(folder, "--output-dir", out, "--no-verify")
    told = [line for line in run.lines if ": error: " in line]
    assert run.code == 2 and [line.partition(":")[0] for line in told] == ["sub/m.onnx", "y.onnx"]
    assert "leads out of" in told[0] and "outside of" in told[1]
    assert not [*elsewhere.iterdir()] and (out / "x.onnx").is_file()


def test_a_report_that_is_a_pipe(model, tmp_path):
    """Whoever reads it waits for ever, and so does whoever writes it."""
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / "m.onnx.report.json")
    run = command(model.rename(tmp_path / "m.onnx"), "--output-dir", out, "--resume")
    assert run.code == 2 and "it is not a regular file" in run.lines[0]
    assert not (out / "m.onnx").exists()


def test_inputs_that_are_a_pipe(model, tmp_path):
    """Whoever opens it waits for ever."""
    for place in (tmp_path / "x.npy", tmp_path / "x.npz"):
        os.mkfifo(place)
        refused(command(model, "-o", tmp_path / "o.onnx", "--inputs", place), "not a regular file")
    refused(command(model, "-o", tmp_path / "o.onnx", "--inputs", tmp_path), "not a regular file")


def changed(told: dict[str, Any], value: object, *keys: str) -> str:
    """A report that says something else at one place."""
    inner = told
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(told)


NO_REPORTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "an endless code": lambda told: changed(told, 1e999, "code"),
    "a negative code": lambda told: changed(told, -7, "code"),
    "no seconds": lambda told: changed(told, float("nan"), "seconds"),
    "another status": lambda told: changed(told, ["done"], "status"),
    "another verdict": lambda told: changed(told, ["pass"], "report", "verification", "status"),
    "markup": lambda told: changed(told, "<b>pass", "report", "verification", "status"),
    "no size": lambda told: changed(told, "many", "report", "bytes", "after"),
    "a large size": lambda told: changed(told, 10**400, "report", "bytes", "after"),
    "no number": lambda told: changed(told, {"Conv": "<b>"}, "report", "operators", "after"),
    "half a number": lambda told: changed(told, {"Conv": 0.5}, "report", "operators", "after"),
    "no bounds": lambda told: changed(told, "x", "bounds"),
    "no hash": lambda told: changed(told, {"a": 1}, "written"),
    "no distance": lambda told: changed(
        told, [{"ratio": float("nan")}], "report", "verification", "end_to_end", "checks"
    ),
    "deep": lambda told: "[" * 100_000,
    "zeros": lambda told: "\0" * 100,
}


def test_a_report_of_other_types_is_none(model, tmp_path):
    """It is written anew, and nothing breaks down where the index tells it."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    names = [*NO_REPORTS, "a hole", "as it was"]
    for name in names:
        shutil.copy(model, source / f"{name}.onnx")
    assert command(source, "--output-dir", out).code == 0
    for name, change in NO_REPORTS.items():
        path = out / f"{name}.onnx.report.json"
        path.write_text(change(json.loads(path.read_bytes())))
    with (out / "a hole.onnx.report.json").open("wb") as file:
        file.truncate(1 << 40)
    run = command(source, "--output-dir", out, "--resume")
    assert (run.code, run.err) == (0, "")
    assert run.lines[:2] == [
        f"{len(names)} models: {len(names)} pass",
        "1 of them were done before and have not changed",
    ]
    for name in names:
        told = json.loads((out / f"{name}.onnx.report.json").read_bytes())
        assert (told["verdict"], told["code"]) == ("pass", 0)


def test_a_hole_of_any_size(settled, tmp_path):
    """A file of zeros takes no room on the disk, and an hour to read."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    settled.rename(folder / "s.onnx")
    (folder / "note.txt").write_text("not a model")
    for name, start in (("zeros.onnx", b""), ("text.onnx", b'{"graph": '), ("odd.onnx", b"\xff")):
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(1 << 40)
        begun = time.monotonic()
        refused(command(folder / name), f"{name}")
        assert time.monotonic() - begun < 20
    run = command(folder, "--output-dir", out, "--timeout", "60")
    entries = json.loads((out / "index.json").read_bytes())["models"]
    assert run.code == 2
    assert [each["status"] for each in entries] == ["error", "done", "error", "error"]
