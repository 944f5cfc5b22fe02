"""`examples/storage.py`, with a storage in memory: no worker sees a path of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..cli import examples
from ..cli.command import bnfold
from . import registry

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")


@pytest.fixture
def storage(tmp_path: Path):
    """A storage that holds a model with data in two files, and one that is none."""
    system = fsspec.filesystem("memory")
    data = {"conv1_w": "one.bin", "conv2_w": "two.bin"}
    examples.save(examples.foldable(), tmp_path / "in" / "deep" / "m.onnx", **data)
    (tmp_path / "in" / "broken.onnx").write_text("no model")
    system.put(f"{tmp_path}/in/", "/models/", recursive=True)
    yield system
    system.rm("/", recursive=True)


def put(system, root: str) -> dict[str, bytes]:
    return {path.removeprefix(root): system.cat_file(path) for path in system.find(root)}


def test_fetched_folded_and_put_back(storage, tmp_path):
    """The bytes of the command, and nothing twice until the data change."""
    script = registry.example("storage")
    source, target = "memory://models", "memory://fused"
    assert list(script.models(source)) == ["broken.onnx", "deep/m.onnx"]

    def fold():
        return {n: script.fold_one(source, target, n, threads=1) for n in script.models(source)}

    first = fold()
    assert (first["deep/m.onnx"].verdict, first["broken.onnx"].status) == ("pass", "error")
    single = tmp_path / "single" / "m.onnx"
    single.parent.mkdir()
    assert bnfold(tmp_path / "in" / "deep" / "m.onnx", "-o", single).code == 0
    wanted = {f"/deep/m.onnx/{path.name}": path.read_bytes() for path in single.parent.iterdir()}
    found = put(storage, "/fused")
    reports = {"/deep/m.onnx/report.json", "/broken.onnx/report.json"}
    assert {name: data for name, data in found.items() if name not in reports} == wanted
    assert reports <= found.keys()
    assert all(report.resumed for report in fold().values())
    assert put(storage, "/fused") == found
    changed = b"\0\0\0\0" + storage.cat_file("/models/deep/two.bin")[4:]
    storage.pipe_file("/models/deep/two.bin", changed)
    again = fold()
    assert again["broken.onnx"].resumed and not again["deep/m.onnx"].resumed
    left = put(storage, "/fused")
    assert len(left) == len(found) and changed in left.values()
    assert all(report.resumed for report in fold().values())


def test_a_key_leads_nowhere_else(monkeypatch):
    """Keys of object storage are no paths: one with ".." would be written outside of a folder."""
    script = registry.example("storage")

    class System:
        def find(self, root: str) -> list[str]:
            return [f"{root}/s.onnx", f"{root}/../../evil.onnx"]

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (System(), url))
    assert list(script.models("s3://models")) == ["s.onnx"]
