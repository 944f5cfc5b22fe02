"""Nothing is written unasked; what is written appears whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import time

import numpy as np
import onnx
import pytest

from ..graphs import DOUBLE, assert_same, bn, conv, op, rand
from ..graphs import model as build
from . import examples
from .command import TOO_LARGE, bnfold, files_end_at, refused, start, tree


def test_without_an_output_nothing_is_written(external, tmp_path, tmp_path_factory):
    before, temporary = tree(tmp_path), tmp_path_factory.mktemp("temporary")
    run = bnfold(external, cwd=tmp_path, env={"TMPDIR": str(temporary)})
    assert run.code == 0
    assert "wrote" not in run.out
    assert tree(tmp_path) == before
    assert not list(temporary.glob("*bnfold*"))


def test_the_output_is_the_only_new_file(model, tmp_path):
    before = tree(tmp_path)
    assert bnfold("m.onnx", "-o", "out.onnx", cwd=tmp_path).code == 0
    after = tree(tmp_path)
    assert after.keys() - before.keys() == {"out.onnx"}
    assert {name: after[name] for name in before} == before
    assert_same(onnx.load(model), onnx.load(tmp_path / "out.onnx"))


def test_with_nothing_to_fold_the_output_is_the_input(settled, tmp_path):
    run = bnfold(settled, "-o", tmp_path / "out.onnx")
    assert run.lines == ["nothing to fold", f"wrote {tmp_path / 'out.onnx'}"]
    assert (tmp_path / "out.onnx").read_bytes() == settled.read_bytes()


def test_the_output_appears_whole(tmp_path):
    """Seen from outside, again and again: not there, then there and complete."""
    made = build(
        conv("conv1", "x", "c", (8, 3, 3, 3)),
        bn("bn", "c", "y", 8),
        weights={f"spare{k}": rand(1_000_000) for k in range(5)},
    )
    examples.save(made, tmp_path / "m.onnx")
    target = tmp_path / "out.onnx"
    process = start(tmp_path / "m.onnx", "-o", target, "--no-verify")
    sizes, names = set(), set()
    while process.poll() is None:
        names.update(os.listdir(tmp_path))
        with contextlib.suppress(FileNotFoundError):
            sizes.add(target.stat().st_size)
        time.sleep(0.0005)
    process.communicate()
    assert process.returncode == 0
    assert sizes <= {target.stat().st_size}
    assert {name for name in names if not name.startswith(".bnfold-")} <= {"m.onnx", "out.onnx"}
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "out.onnx"]


# --- an output that is there already -----------------------------------------------------------


def test_an_existing_output_is_replaced_with_its_data(external, tmp_path):
    target = examples.older(tmp_path)
    assert bnfold(external, "-o", target).code == 0
    files = ["m.onnx", "one.bin", "out.onnx", "out.onnx.data.1", "two.bin"]
    assert sorted(tree(tmp_path)) == files  # a new name, so that the old model had its data
    assert_same(onnx.load(external), onnx.load(target))


@pytest.mark.parametrize("trouble", ["a wrong fold", "wrong inputs", "a full disk"])
def test_an_existing_output_survives_a_run_that_fails(trouble, external, tmp_path):
    target = examples.older(tmp_path)
    np.savez(tmp_path / "in.npz", y=np.zeros(1))
    before = tree(tmp_path)
    if trouble == "a wrong fold":
        assert bnfold(external, "-o", target, factor=TOO_LARGE).code == 1
    elif trouble == "wrong inputs":
        refused(bnfold(external, "-o", target, "--inputs", tmp_path / "in.npz"), "in.npz")
    else:
        with files_end_at(700):
            run = bnfold(external, "-o", target)
        refused(run, "out.onnx")
    assert tree(tmp_path) == before


def test_an_existing_output_survives_a_rename_that_fails(external, tmp_path, monkeypatch):
    """The data file is in its place already when the model's turn comes."""
    right = os.replace

    def wrong(source, target):
        if str(target).endswith("out.onnx"):
            raise OSError(5, "the disk is gone")
        right(source, target)

    monkeypatch.setattr(os, "replace", wrong)
    target = examples.older(tmp_path)
    before = tree(tmp_path)
    refused(bnfold(external, "-o", target), "out.onnx", "the disk is gone")
    assert tree(tmp_path) == before
    target.unlink()
    (tmp_path / "out.onnx.data").unlink()
    before = tree(tmp_path)
    refused(bnfold(external, "-o", target), "the disk is gone")
    assert tree(tmp_path) == before


def test_an_existing_output_keeps_its_permissions(model, tmp_path):
    target = examples.save(examples.settled(), tmp_path / "out.onnx")
    target.chmod(0o640)
    assert bnfold(model, "-o", target).code == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_data_that_another_model_reads_is_not_replaced(external, tmp_path):
    """A decoder and its twin share one data file, in the copy of their folder as well."""
    folder = tmp_path / "copy"
    target = examples.save(examples.settled(), folder / "m.onnx", conv_w="one.bin")
    (folder / "twin.onnx").write_bytes(target.read_bytes())
    before = tree(folder)
    assert bnfold(external, "-o", target, "--no-verify").code == 0
    after = tree(folder)
    assert after["one.bin"] == before["one.bin"]
    assert after["twin.onnx"] == before["twin.onnx"]
    assert_same(onnx.load(external), onnx.load(target))


def test_two_data_files_do_not_take_the_same_name(tmp_path):
    """One of them is called what the other would have been renamed to."""
    source = examples.save(
        examples.foldable(), tmp_path / "m.onnx", conv1_w="a.bin", conv2_w="out.onnx.data"
    )
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"somebody else's")
    assert bnfold(source, "-o", folder / "out.onnx").code == 0
    assert (folder / "a.bin").read_bytes() == b"somebody else's"
    assert_same(onnx.load(source), onnx.load(folder / "out.onnx"))


# --- over the input ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["as given", "relative", "symbolic link", "hard link", "detour"])
def test_over_the_input_only_when_asked(way, model, tmp_path):
    paths = {
        "as given": str(model),
        "relative": "m.onnx",
        "symbolic link": "link.onnx",
        "hard link": "link.onnx",
        "detour": "../" + tmp_path.name + "/m.onnx",
    }
    if way == "symbolic link":
        (tmp_path / "link.onnx").symlink_to("m.onnx")
    elif way == "hard link":
        (tmp_path / "link.onnx").hardlink_to(model)
    before = tree(tmp_path)
    run = bnfold(model, "-o", paths[way], cwd=tmp_path)
    refused(run, f"{paths[way]} is the input itself; say --in-place")
    assert tree(tmp_path) == before


def test_in_place(model, tmp_path):
    made = onnx.load(model)
    run = bnfold(model, "--in-place")
    assert (run.code, run.lines[-1]) == (0, f"wrote {model}")
    assert list(tree(tmp_path)) == ["m.onnx"]
    assert_same(made, onnx.load(model))
    again = bnfold(model, "--in-place")
    assert again.lines[0] == "nothing to fold"
    assert "wrote" not in again.out


def test_in_place_with_nothing_to_fold_the_file_is_not_touched(settled):
    before = settled.stat()
    assert bnfold(settled, "--in-place").out == "nothing to fold\n"
    after = settled.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_in_place_with_external_data(external, tmp_path):
    """The old data may be another model's too: it stays, and that is said."""
    made, before = onnx.load(external), tree(tmp_path)
    run = bnfold(external, "--in-place")
    assert run.code == 0
    assert run.lines[-2] == f"wrote {external}"
    assert run.lines[-1].startswith(f"{tmp_path / 'one.bin'} is not read by it any more")
    after = tree(tmp_path)
    assert sorted(after) == ["m.onnx", "m.onnx.data", "one.bin", "two.bin"]
    assert (after["one.bin"], after["two.bin"]) == (before["one.bin"], before["two.bin"])
    assert_same(made, onnx.load(external))


def test_in_place_fails_and_nothing_changes(external, tmp_path):
    before = tree(tmp_path)
    assert bnfold(external, "--in-place", factor=TOO_LARGE).code == 1
    assert tree(tmp_path) == before


def test_in_place_through_a_symbolic_link(model, tmp_path):
    """What the link leads to may be a cache that others read: the link becomes a file."""
    link = tmp_path / "link.onnx"
    link.symlink_to("m.onnx")
    before = model.read_bytes()
    assert bnfold(link, "--in-place").code == 0
    assert not link.is_symlink()
    assert model.read_bytes() == before
    assert_same(onnx.load(model), onnx.load(link))


def test_in_place_and_an_output(model, tmp_path):
    before = tree(tmp_path)
    refused(bnfold(model, "-o", tmp_path / "out.onnx", "--in-place"), "not both")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "option, name, words",
    [("-o", "one.bin", "the model's own weights"), ("--report", "two.bin", "the weights of")],
)
def test_the_model_s_own_weights_are_not_overwritten(option, name, words, external, tmp_path):
    before = tree(tmp_path)
    refused(bnfold(external, option, tmp_path / name), f"{name} holds {words}")
    assert tree(tmp_path) == before


def test_weights_in_a_file_with_the_name_of_the_draft(tmp_path):
    """The draft without a destination is a file too, beside links to the model's data."""
    source = examples.save(examples.foldable(), tmp_path / "net.onnx", conv2_w="model.onnx")
    before = tree(tmp_path)
    assert bnfold(source).code == 0
    assert tree(tmp_path) == before


def test_an_output_is_no_more_public_than_its_input(external, tmp_path):
    external.chmod(0o640)
    (external.parent / "one.bin").chmod(0o600)
    (external.parent / "two.bin").chmod(0o444)
    folder = tmp_path / "out"
    folder.mkdir()
    assert bnfold(external, "-o", folder / "o.onnx").code == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    wanted = {"o.onnx": 0o660, "one.bin": 0o600, "two.bin": 0o666}
    assert modes == {name: mode & ~umask for name, mode in wanted.items()}


@pytest.mark.parametrize("name", ["../victim", "w.bin", "sub/w.bin", "o.onnx.data/../../victim"])
def test_replacing_a_model_removes_nothing_that_bnfold_has_not_made(name, model, tmp_path):
    """The old model at the destination may be anybody's, and name any file."""
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "o.onnx.data").mkdir()
    old = onnx.load(model)
    tensor = old.graph.initializer[0]
    raw = tensor.raw_data
    for path in (tmp_path / "victim", folder / "w.bin", folder / "sub" / "w.bin"):
        path.write_bytes(raw)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    (folder / "o.onnx").write_bytes(old.SerializeToString())
    before = tree(tmp_path)
    assert bnfold(model, "-o", folder / "o.onnx", "--no-verify").code == 0
    after = tree(tmp_path)
    assert before.keys() == after.keys()
    assert {n for n in before if before[n] != after[n]} == {"out/o.onnx"}


def test_data_that_a_model_under_another_suffix_reads_stays(external, tmp_path):
    target = examples.older(tmp_path)
    (tmp_path / "other.pb").write_bytes(target.read_bytes())
    assert bnfold(external, "-o", target, "--no-verify").code == 0
    onnx.load(tmp_path / "other.pb")


@pytest.mark.parametrize("broken", ["no location", "no model"])
def test_a_broken_output_is_replaced(broken, external, tmp_path):
    """What is wrong with the old one is nobody's concern any more."""
    target = examples.older(tmp_path)
    made = onnx.load(target, load_external_data=False)
    for tensor in made.graph.initializer:
        del tensor.external_data[:]
    target.write_bytes(made.SerializeToString() if broken == "no location" else b"no model")
    assert bnfold(external, "-o", target, "--no-verify").code == 0
    assert_same(onnx.load(external), onnx.load(target))


def test_data_that_only_the_reference_evaluator_can_use(tmp_path):
    """onnxruntime has no Conv in float64; the evaluator of onnx is fed the same data files."""
    made = build(
        conv("conv1", "x", "c1", (8, 3, 3, 3)),
        bn("bn", "c1", "b", 8),
        op("Relu", "b", "r"),
        conv("conv2", "r", "y", (8, 8, 3, 3)),
        elem=DOUBLE,
    )
    source = examples.save(made, tmp_path / "m.onnx", conv1_w="one.bin", conv2_w="two.bin")
    run = bnfold(source, "-o", tmp_path / "out.onnx")
    assert run.code == 0
    assert "onnx.reference did" in run.out
