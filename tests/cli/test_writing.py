"""Nothing is written unasked; what is written appears whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold as library

from .. import kills
from ..graphs import DOUBLE, assert_same, bn, conv, op, rand
from ..graphs import model as build
from . import examples
from .command import TOO_LARGE, bnfold, files_end_at, process, refused, start, tree, wait_for


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(number, slow, tmp_path):
    """Once the draft is there, with a check under way that would take seconds."""
    target = examples.save(examples.settled(), tmp_path / "out.onnx")
    before = tree(tmp_path)
    process = start(slow, "-o", target)
    wait_for(lambda: list(tmp_path.glob(".bnfold-*/out.onnx")))
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (128 + number, b"")
    assert err.decode().strip() == "interrupted"
    assert tree(tmp_path) == before


@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_interrupted_at_any_moment(step, external, tmp_path):
    """All or nothing, from the start of Python to the end of the run."""
    target = tmp_path / "out" / "o.onnx"
    target.parent.mkdir()
    before = tree(tmp_path)
    for delay in range(0, 10, step):
        process = start(external, "-o", target)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1 + 0.03 * delay)
        process.send_signal(signal.SIGINT)
        process.communicate()
        if target.exists():
            assert_same(onnx.load(external), onnx.load(target))
            assert sorted(os.listdir(target.parent)) == ["o.onnx", "one.bin", "two.bin"]
            break
        assert process.returncode != 0
        assert tree(tmp_path) == before


# --- an output that is there already -----------------------------------------------------------


def older(folder: Path) -> Path:
    """An older output with a data file of its own."""
    return examples.save(examples.settled(), folder / "out.onnx", conv_w="out.onnx.data")


def test_an_existing_output_is_replaced_with_its_data(external, tmp_path):
    target = older(tmp_path)
    assert bnfold(external, "-o", target).code == 0
    files = ["m.onnx", "one.bin", "out.onnx", "out.onnx.data.1", "two.bin"]
    assert sorted(tree(tmp_path)) == files  # a new name, so that the old model had its data
    assert_same(onnx.load(external), onnx.load(target))


@pytest.mark.parametrize("trouble", ["a wrong fold", "wrong inputs", "a full disk"])
def test_an_existing_output_survives_a_run_that_fails(trouble, external, tmp_path):
    target = older(tmp_path)
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
    target = older(tmp_path)
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


@pytest.mark.parametrize("option, name", [("-o", "one.bin"), ("--report", "two.bin")])
def test_the_model_s_own_weights_are_not_overwritten(option, name, external, tmp_path):
    before = tree(tmp_path)
    refused(bnfold(external, option, tmp_path / name), f"{name} holds the model's own weights")
    assert tree(tmp_path) == before


def test_weights_in_a_file_with_the_name_of_the_draft(tmp_path):
    """The draft without a destination is a file too, beside links to the model's data."""
    source = examples.save(examples.foldable(), tmp_path / "net.onnx", conv2_w="model.onnx")
    before = tree(tmp_path)
    assert bnfold(source).code == 0
    assert tree(tmp_path) == before


# --- data files that are links -----------------------------------------------------------------


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
    target = older(tmp_path)
    (tmp_path / "other.pb").write_bytes(target.read_bytes())
    assert bnfold(external, "-o", target, "--no-verify").code == 0
    onnx.load(tmp_path / "other.pb")


@pytest.mark.parametrize("broken", ["no location", "no model"])
def test_a_broken_output_is_replaced(broken, external, tmp_path):
    """What is wrong with the old one is nobody's concern any more."""
    target = older(tmp_path)
    made = onnx.load(target, load_external_data=False)
    for tensor in made.graph.initializer:
        del tensor.external_data[:]
    target.write_bytes(made.SerializeToString() if broken == "no location" else b"no model")
    assert bnfold(external, "-o", target, "--no-verify").code == 0
    assert_same(onnx.load(external), onnx.load(target))


# --- killed ------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
at, done = int(sys.argv[1]), [0]
def killing(real, after):
    def rename(*args, **kwargs):
        if str(args[0]).endswith(".locking"):
            return real(*args, **kwargs)
        done[0] += 1
        if not after and done[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if after and done[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return rename
os.replace, os.rename = (killing(f, sys.argv[2] == "after") for f in (os.replace, os.rename))
from bnfold._command.guard import main
sys.argv[:] = ["bnfold", *sys.argv[3:]]
main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("when", ["ahead of", "after"])
def test_killed_at_a_rename(when, at, external, tmp_path):
    """The old model with the old data, or the new with the new, and nothing besides."""
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "o.onnx"
    old = examples.save(examples.settled(), target, conv_w="one.bin")
    before, files = onnx.load(old), tree(folder)
    command = [sys.executable, "-c", KILLED, str(at), when.split()[0]]
    ended = subprocess.run(
        [*command, external, "-o", target, "--no-verify"], capture_output=True, check=False
    )
    assert ended.returncode == 3
    if when == "after" and at == 3:
        assert_same(onnx.load(external), onnx.load(target))
        assert len(tree(folder)) == 4  # the old data, which the old model alone had read
    else:
        assert onnx.load(target) == before
        assert tree(folder) == files
    assert bnfold(external, "-o", target, "--no-verify").code == 0
    assert_same(onnx.load(external), onnx.load(target))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("when", ["ahead of", "after"])
@pytest.mark.parametrize("data", ["within", "beside"])
def test_killed_at_a_rename_over_the_input(data, when, at, tmp_path):
    """One rename for a model by itself, two for one with data of which one file changes."""
    beside = {"conv1_w": "one.bin", "conv2_w": "two.bin"} if data == "beside" else {}
    path = examples.save(examples.foldable(), tmp_path / "m.onnx", **beside)
    made, files = onnx.load(path), tree(tmp_path)
    last = 2 if data == "beside" else 1
    command = [sys.executable, "-c", KILLED, str(at), when.split()[0]]
    ended = subprocess.run(
        [*command, path, "--in-place", "--no-verify"], capture_output=True, check=False
    )
    assert ended.returncode == (3 if at <= last else 0)
    if at > last or (when, at) == ("after", last):
        assert_same(made, onnx.load(path))
        assert all(tree(tmp_path)[name] == files[name] for name in beside.values())
    else:
        assert tree(tmp_path) == files
    assert bnfold(path, "--in-place", "--no-verify").code == 0
    assert examples.operators(path).count("BatchNormalization") == 2
    assert_same(made, onnx.load(path))


def test_interrupted_once_the_new_model_is_in_place(external, tmp_path, monkeypatch):
    """The old data, which nobody reads any more, go all the same."""
    target = older(tmp_path)
    right = os.replace

    def interrupted(source, place):
        right(source, place)
        if str(place).endswith("out.onnx"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    assert bnfold(external, "-o", target, "--no-verify").code == 130
    assert sorted(tree(tmp_path)) == ["m.onnx", "one.bin", "out.onnx", "out.onnx.data.1", "two.bin"]
    assert_same(onnx.load(external), onnx.load(target))


TWICE = """
import os, signal, time
from bnfold._system import scratch
def slowly(*args, **kwargs):
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    right(*args, **kwargs)
right, parent, scratch.shutil.rmtree = scratch.shutil.rmtree, os.getpid(), slowly
import bnfold._onnx.files.save as save
def interrupted(*args):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
save._write_model = interrupted
from bnfold._command.guard import main
main()
"""


def test_interrupted_twice(model, tmp_path):
    """The second time while it removes what it has begun."""
    before = tree(tmp_path)
    run = process(
        model,
        *("-o", tmp_path / "o.onnx"),
        command=(sys.executable, "-c", TWICE),
        before=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (run.code, run.out, run.err.strip()) == (130, "", "interrupted")
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_killed_at_random_moments():
    """Whole or absent, with what is read as it was; see `kills`."""
    assert sum(1 for _ in kills.cases(54, 0)) == 54


def left_behind(folder: Path, held: bool) -> Path:
    """A folder as a run that was killed leaves it, or as another one has it in use."""
    import fcntl

    made = folder / ".bnfold-left"
    made.mkdir()
    (made / "m.onnx").write_bytes(b"x")
    lock = (made / ".lock").open("wb")
    if held:
        fcntl.flock(lock, fcntl.LOCK_EX)
        HELD.append(lock)
    return made


HELD: list[Any] = []


@pytest.mark.parametrize("held", [False, True])
def test_what_a_killed_run_left_is_removed(held, model, tmp_path):
    left = left_behind(tmp_path, held)
    assert bnfold(model, "-o", tmp_path / "o.onnx", "--no-verify").code == 0
    assert left.exists() == held


@pytest.mark.parametrize("what", ["nothing", "a lock", "more"])
def test_a_folder_without_a_lock(what, model, tmp_path):
    """Its process may have been killed before it locked it; then there is nothing in it."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = (tmp_path / f".bnfold-{pid}-{'0' * 16}" for pid in (ended.pid, os.getpid()))
    for folder in (dead, alive):
        folder.mkdir()
        if what != "nothing":
            (folder / ("one.bin" if what == "more" else ".locking")).write_bytes(b"")
    assert bnfold(model, "-o", tmp_path / "o.onnx", "--no-verify").code == 0
    assert (dead.exists(), alive.exists()) == (what == "more", True)


def test_nothing_that_lies_about_says_what_to_remove(model, tmp_path):
    """A folder of a stranger's archive: it may look as bnfold's own, with links and names in it."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keys").write_text("mine")
    left = left_behind(tmp_path, False)
    (left / "link").symlink_to(victim)
    (tmp_path / ".bnfold-link").symlink_to(victim)
    (victim / ".lock").write_bytes(b"")
    before = tree(victim)
    assert bnfold(model, "-o", tmp_path / "o.onnx", "--no-verify").code == 0
    assert tree(victim) == before
    assert (tmp_path / ".bnfold-link").is_symlink()
    assert not left.exists()


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
