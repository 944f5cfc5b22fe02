"""``--report``: everything that is printed, as strict JSON under one schema."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold as package

from .. import graphs
from . import examples
from .command import TOO_LARGE, bnfold, files_end_at, refused, tree


def no_such_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def report(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    return json.loads(text, parse_constant=no_such_constant)


def test_all_that_is_known_of_a_run(external, tmp_path):
    target = tmp_path / "to" / "out.onnx"
    target.parent.mkdir()
    run = bnfold(external, "-o", target, "--report", tmp_path / "r.json", "--seed", "7")
    assert run.code == 0
    told = report(tmp_path / "r.json")
    assert list(told) == [
        "schema",
        "bnfold",
        "model",
        "output",
        "left_behind",
        "bytes",
        "folds",
        "kept",
        "operators",
        "inputs",
        "tidied",
        "verification",
        "equalization",
        "simplification",
    ]
    assert told["schema"] == "bnfold.report/1"
    assert told["bnfold"] == package.__version__
    assert (told["model"], told["output"]) == (str(external), str(target))
    assert told["left_behind"] == []

    for side, path in (("before", external), ("after", target)):
        assert told["operators"][side] == Counter(examples.operators(path))
    before = sum((tmp_path / name).stat().st_size for name in ("m.onnx", "one.bin", "two.bin"))
    after = sum(path.stat().st_size for path in target.parent.iterdir())
    assert told["bytes"] == {"before": before, "after": after}

    (fold,) = told["folds"]
    assert fold == {
        "nodes": ["bn1"],
        "ops": ["BatchNormalization"],
        "into": "conv1",
        "laws": ["absorb behind Conv"],
        "graph": "",
    }
    assert [kept["node"] for kept in told["kept"]] == ["bn2", "bn3"]
    for kept in told["kept"]:
        assert kept["code"] == "no-linear-operator"
        assert kept["op"] == "BatchNormalization"
        assert kept["at"] in ("s_sigmoid", "t_sigmoid")
        assert kept["at"] in kept["message"]
        assert kept["advice"]
        assert kept["graph"] == ""

    verification = told["verification"]
    assert verification["status"] == "pass"
    (certificate,) = verification["certificates"]
    assert (certificate["into"], certificate["maps"]) == ("conv1", ["bn1"])
    assert certificate["holds"] is True
    assert certificate["ulps"] <= 1
    assert certificate["problem"] == ""
    end = verification["end_to_end"]
    assert (end["status"], end["seed"], end["provider"]) == ("pass", 7, "CPUExecutionProvider")
    assert end["runtime"].startswith("onnxruntime ")
    assert [(check["output"], check["inputs"]) for check in end["checks"]] == [
        ("y", "signed"),
        ("y", "unsigned"),
        ("y", "structured"),
    ]
    for check in end["checks"]:
        assert 0 <= check["difference"] <= check["tolerance"]
        assert check["ratio"] == pytest.approx(check["difference"] / check["tolerance"])


def test_what_is_printed_is_in_it(model, tmp_path):
    run = bnfold(model, "-v", "-o", tmp_path / "out.onnx", "--report", tmp_path / "r.json")
    told = report(tmp_path / "r.json")
    text = run.out
    for kept in told["kept"]:
        assert f"    {kept['node']} stays: " in text
        assert f"      in full: {kept['message']}" in text
        assert f"{kept['code']}: 2 {kept['op']}\n    what helps: {kept['advice']}\n" in text
    for check in told["verification"]["end_to_end"]["checks"]:
        line = f"difference {check['difference']:.2e}, tolerance {check['tolerance']:.2e}"
        assert f"{check['output']} on {check['inputs']} inputs: {check['status']}, {line}" in text
    assert f"wrote {told['output']}" in text
    counts = {side: told["operators"][side]["BatchNormalization"] for side in ("before", "after")}
    assert (
        run.lines[2].split()
        == ["BatchNormalization", "3", "2"]
        == [
            "BatchNormalization",
            *map(str, counts.values()),
        ]
    )
    sizes = [f"{told['bytes'][side] / 1000:.2f}" for side in ("before", "after")]
    assert run.lines[4].split() == ["file", "size", sizes[0], "kB", sizes[1], "kB"]


def test_of_a_run_with_nothing_to_fold(settled, tmp_path):
    assert bnfold(settled, "--report", tmp_path / "r.json").code == 0
    told = report(tmp_path / "r.json")
    size = settled.stat().st_size
    assert (told["output"], told["folds"], told["kept"]) == (None, [], [])
    assert told["bytes"] == {"before": size, "after": size}
    assert told["verification"] == {
        "status": "unchanged",
        "certificates": [],
        "end_to_end": None,
    }


def test_of_a_check_that_was_not_wanted(model, tmp_path):
    assert bnfold(model, "--no-verify", "--report", tmp_path / "r.json").code == 0
    assert report(tmp_path / "r.json")["verification"]["status"] == "skipped"


def test_of_a_check_that_failed(model, tmp_path):
    """It is needed most then: where, by how much, and that there is no file."""
    target = tmp_path / "out.onnx"
    run = bnfold(model, "-o", target, "--report", tmp_path / "r.json", factor=TOO_LARGE)
    assert run.code == 1
    assert sorted(tree(tmp_path)) == ["m.onnx", "r.json"]
    told = report(tmp_path / "r.json")
    assert told["output"] is None
    assert told["verification"]["status"] == "fail"
    (certificate,) = told["verification"]["certificates"]
    assert certificate["holds"] is False
    assert certificate["ulps"] > 1000
    assert any(
        check["difference"] > check["tolerance"]
        for check in told["verification"]["end_to_end"]["checks"]
    )


def test_of_what_could_not_be_run(strange, tmp_path):
    assert bnfold(strange, "-o", tmp_path / "o.onnx", "--report", tmp_path / "r.json").code == 0
    told = report(tmp_path / "r.json")
    assert told["output"] == str(tmp_path / "o.onnx")
    assert told["verification"]["status"] == "pass"
    assert told["verification"]["end_to_end"]["proof"]["status"] == "proved"
    assert "does not load" in told["verification"]["end_to_end"]["notes"][0]


def test_figures_that_json_has_no_number_for(model, tmp_path):
    """A fold gone to infinity, and outputs that are not a number."""
    run = bnfold(model, "--report", tmp_path / "r.json", factor=float("inf"))
    assert run.code == 1
    (certificate,) = report(tmp_path / "r.json")["verification"]["certificates"]
    assert certificate["ulps"] is None
    np.savez(tmp_path / "in.npz", x=np.full((2, 3, 8, 8), np.nan, np.float32))
    run = bnfold(model, "--inputs", tmp_path / "in.npz", "--report", tmp_path / "r.json")
    assert run.code == 0
    (check,) = report(tmp_path / "r.json")["verification"]["end_to_end"]["checks"]
    assert (check["status"], check["difference"]) == ("pass", None)


def test_data_left_behind(external, tmp_path):
    assert bnfold(external, "--in-place", "--report", tmp_path / "r.json").code == 0
    told = report(tmp_path / "r.json")
    assert told["left_behind"] == [str(tmp_path / "one.bin")]
    names = ("m.onnx", "m.onnx.data", "two.bin")
    assert told["bytes"]["after"] == sum((tmp_path / name).stat().st_size for name in names)


def test_it_is_written_whole(tmp_path):
    """An old one survives until the new one is complete: here it never is."""
    made = graphs.model(graphs.conv("conv", "x", "c", (2, 3, 1, 1)), graphs.bn("bn", "c", "y", 2))
    path = examples.save(made, tmp_path / "m.onnx")
    (tmp_path / "r.json").write_text("old")
    before = tree(tmp_path)
    with files_end_at(path.stat().st_size):
        run = bnfold(path, "--report", tmp_path / "r.json")
    refused(run, f"cannot write {tmp_path / 'r.json'}")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", ["none/r.json", "m.onnx/r.json", "folder"])
def test_a_place_where_it_cannot_go(place, model, tmp_path):
    """Seen before any work is done: neither a report nor a model is left."""
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    run = bnfold(model, "-o", tmp_path / "out.onnx", "--report", tmp_path / place)
    refused(run, f"cannot write {tmp_path / place}")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("other", ["m.onnx", "out.onnx", "in.npz"])
def test_it_does_not_overwrite_another_file_of_the_run(other, model, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    before = tree(tmp_path)
    args = ("-o", tmp_path / "out.onnx", "--inputs", tmp_path / "in.npz")
    refused(bnfold(model, *args, "--report", tmp_path / other), f"overwrite {tmp_path / other}")
    assert tree(tmp_path) == before


def test_it_does_not_overwrite_weights_of_the_model_that_is_written(external, tmp_path):
    """They lie in a file of their own, whose name is known only once it is made."""
    folder = tmp_path / "to"
    folder.mkdir()
    assert bnfold(external, "-o", folder / "out.onnx").code == 0
    data = [path for path in folder.iterdir() if path.name != "out.onnx"]
    for path in folder.iterdir():
        path.unlink()
    for path in data:
        run = bnfold(external, "-o", folder / "out.onnx", "--report", path)
        refused(run, f"{path} holds the model's own weights")
        assert not list(folder.iterdir())


@pytest.fixture
def full(tmp_path):
    """A device that is always full; by a link, which is all that a mistake could replace."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    return link


def test_a_device_is_written_to_and_not_replaced(full, model):
    refused(bnfold(model, "--report", full), str(full), "no space left on the device")
    assert full.is_symlink()


def test_into_a_pipe(model):
    """What a shell passes for ``--report >(jq .)``."""
    read, write = os.pipe()
    assert bnfold(model, "--report", f"/dev/fd/{write}").code == 0
    os.close(write)
    with os.fdopen(read) as file:
        assert json.load(file)["schema"] == "bnfold.report/1"


def test_when_it_alone_cannot_be_written_the_model_is_named(full, model, tmp_path):
    target = tmp_path / "out.onnx"
    run = bnfold(model, "-o", target, "--report", full)
    refused(run, str(full), f"; {target} was written")
    onnx.checker.check_model(onnx.load(target), full_check=True)
