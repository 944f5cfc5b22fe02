"""Data files that are links: whose they are, and what else may stand in their place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

import bnfold as library

from ..graphs import assert_same
from .command import bnfold, refused, tree


def linked_hub(external: Path, names: Sequence[str], folder: Path) -> Path:
    """A folder whose files, or some of them, are links to those of a model elsewhere."""
    hub = folder / "hub"
    hub.mkdir()
    for name in ("m.onnx", "one.bin", "two.bin"):
        if name in names:
            (hub / name).symlink_to(external.parent / name)
        else:
            (hub / name).write_bytes((external.parent / name).read_bytes())
    return hub


def test_a_hub_cache(external, tmp_path):
    """Its files are links to blobs elsewhere, which onnxruntime by itself refuses to follow."""
    hub = linked_hub(external, ("m.onnx", "one.bin", "two.bin"), tmp_path)
    before = tree(hub)
    run = bnfold(hub / "m.onnx", "-o", hub / "out.onnx")
    assert (run.code, run.lines[-2]) == (0, "verification: pass")
    after = tree(hub)
    new = {"out.onnx", "out.onnx.data", "out.onnx.1.data"}
    assert after.keys() - before.keys() == new  # onnxruntime reads these without following links
    assert {name: after[name] for name in before} == before
    assert bnfold("verify", hub / "m.onnx", hub / "out.onnx").code == 0
    assert_same(onnx.load(external), onnx.load(hub / "out.onnx"))


def hard_link(path: Path, other: Path) -> None:
    path.unlink()
    os.link(other, path)


@pytest.mark.parametrize("how", ["symbolic", "hard"])
def test_data_from_elsewhere(how, external, tmp_path, monkeypatch):
    """A link in a model's folder may lead to a private file: it is followed only when asked."""
    hub = linked_hub(external, ("one.bin",) if how == "symbolic" else (), tmp_path)
    if how == "hard":
        hard_link(hub / "one.bin", external.parent / "one.bin")
    (external.parent / "one.bin").chmod(0o600)
    before = tree(hub)
    refused(bnfold(hub / "m.onnx", "-o", hub / "out.onnx"), "one.bin", "--follow-links")
    with pytest.raises(library.UsageError, match="follow_links"):
        library.plan(hub / "m.onnx")
    raw = onnx.load(hub / "m.onnx", load_external_data=False)
    with pytest.raises(library.UsageError, match="follow_links"):
        library.fold(raw, base_dir=hub)
    assert tree(hub) == before
    assert bnfold(hub / "m.onnx", "-o", hub / "out.onnx", "--follow-links").code == 0
    assert library.plan(hub / "m.onnx", follow_links=True).folds
    data = [hub / name for name in tree(hub).keys() - before.keys() if name.endswith(".data")]
    private = [path for path in data if path.stat().st_mode & 0o077 == 0]
    assert len(private) == 1  # the copy of the private file


def test_hard_links_of_another_run_are_not_from_elsewhere(external, tmp_path):
    """bnfold itself makes hard links to data, in folders of its own, while it runs."""
    own = tmp_path / ".bnfold-of-another-run"
    own.mkdir()
    os.link(external.parent / "one.bin", own / "one.bin")
    assert bnfold(external, "--check").code == 1


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_data_in_no_regular_file(what, external, tmp_path):
    """A pipe would wait for ever; a device may never end."""
    path = external.parent / "one.bin"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for more in ((), ("--follow-links",)):
        refused(bnfold(external, "-o", tmp_path / "out.onnx", *more), "not a regular file")
