"""Runs that are interrupted or killed: what they say, and what they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from .. import kills
from ..graphs import assert_same
from . import examples
from .command import bnfold, process, start, tree, wait_for


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
        _, told = process.communicate()
        kills.check_ending(signal.SIGINT, False, process.returncode, told.decode())
        if target.exists():
            assert_same(onnx.load(external), onnx.load(target))
            assert sorted(os.listdir(target.parent)) == ["o.onnx", "one.bin", "two.bin"]
            break
        assert process.returncode != 0
        assert tree(tmp_path) == before


def test_interrupted_once_the_new_model_is_in_place(external, tmp_path, monkeypatch):
    """The old data, which nobody reads any more, go all the same."""
    target = examples.older(tmp_path)
    right = os.replace

    def interrupted(source, place):
        right(source, place)
        if str(place).endswith("out.onnx"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    assert bnfold(external, "-o", target, "--no-verify").code == 130
    assert sorted(tree(tmp_path)) == ["m.onnx", "one.bin", "out.onnx", "out.onnx.data.1", "two.bin"]
    assert_same(onnx.load(external), onnx.load(target))


IMPORTED = """
import os, signal, sys, time
parent = os.getpid()
class Interrupted:
    def find_spec(self, name, *more):
        if name == {name!r} and os.getpid() != parent:
            os.kill({process}, signal.SIGINT)
            time.sleep(20)
sys.meta_path.insert(0, Interrupted())
from bnfold._command.guard import main
main()
"""


@pytest.mark.parametrize("name", ["bnfold._system.time_limit", "click", "bnfold._pipeline.models"])
@pytest.mark.parametrize("whom", ["parent", "os.getpid()"])
def test_interrupted_while_it_is_imported(whom, name, model, tmp_path):
    """Before the command has anything to catch it with, and as it imports what it needs."""
    before = tree(tmp_path)
    run = process(
        model,
        *("-o", tmp_path / "o.onnx"),
        command=(sys.executable, "-c", IMPORTED.format(name=name, process=whom)),
        before=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (run.code, run.out, run.err.strip()) == (130, "", "interrupted")
    assert tree(tmp_path) == before


BEGINNING = """
import os, signal, sys, time
class Interrupted:
    def find_spec(self, name, *more):
        if name == "tempfile":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)
sys.meta_path.insert(0, Interrupted())
from bnfold._command.guard import main
left = {"re", "typing", "contextlib", "tempfile", "click"} & set(sys.modules) - before
print(*sorted(left), flush=True)
main()
"""


def test_interrupted_ahead_of_all_imports(model, tmp_path):
    """What ends it has to be there first, and takes no time to come: there is nothing else."""
    script = "import sys\nbefore = set(sys.modules)\n" + BEGINNING
    command = sys.executable, "-c", script
    run = process(model, "-o", tmp_path / "o.onnx", command=command)
    assert (run.code, run.out.strip(), run.err.strip()) == (130, "", "interrupted")


TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 8, in {}\nKeyboardInterrupt\n'


@pytest.mark.parametrize(
    ("number", "worker", "code", "told", "right"),
    [
        (signal.SIGINT, False, 130, "interrupted\n", True),
        (signal.SIGTERM, True, 143, "interrupted\n", True),
        (signal.SIGTERM, False, 143, "interrupted\ninterrupted\n", False),
        (signal.SIGTERM, False, 130, "interrupted\n", False),
        (signal.SIGTERM, False, 3, kills.KILLED, False),
        (signal.SIGINT, False, -signal.SIGINT, TRACEBACK.format("<module>"), True),
        (signal.SIGINT, False, 130, TRACEBACK.format("main"), False),
        (signal.SIGINT, True, 130, TRACEBACK.format("<module>"), False),
        (signal.SIGTERM, False, 1, TRACEBACK.format("<module>"), False),
        (signal.SIGKILL, True, 3, kills.KILLED, True),
        (signal.SIGKILL, True, 3, "error: something else\n", False),
        (signal.SIGKILL, True, 2, kills.KILLED, False),
        (signal.SIGKILL, False, -signal.SIGKILL, "", True),
        (signal.SIGKILL, False, 3, kills.KILLED, False),
        (signal.SIGINT, True, 2, f"{kills.CRASHED}…)", True),
        (signal.SIGINT, True, 2, f"Traceback\n{kills.CRASHED}…)", False),
        (signal.SIGINT, False, 2, f"{kills.CRASHED}…)", False),
        (signal.SIGKILL, True, 2, f"{kills.CRASHED}…)", False),
        (signal.SIGINT, True, 0, "", True),
        (signal.SIGINT, True, 0, "interrupted\n", False),
    ],
)
def test_what_a_run_that_was_ended_may_say(number, worker, code, told, right):
    with contextlib.nullcontext() if right else pytest.raises(kills.Wrong):
        kills.check_ending(number, worker, code, told)


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


def test_an_interrupt_that_python_drops_comes_again(model, tmp_path, monkeypatch, capsys):
    """What a callback of the garbage collector raises is shown, and forgotten."""
    import bnfold._pipeline.models as pipeline

    went_on = []

    class Dropping:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def slow(*_, **__):
        Dropping()
        time.sleep(5)
        went_on.append(True)

    monkeypatch.setattr(pipeline, "fold_file", slow)
    done = bnfold(model, "-o", tmp_path / "out.onnx")
    assert (done.code, done.err.strip()) == (143, "interrupted")
    assert not went_on and not (tmp_path / "out.onnx").exists()


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


KILLED = """
import os, signal, sys
at, done = int(sys.argv[1]), [0]
def killing(real, after):
    def rename(*args, **kwargs):
        if ".bnfold-" in str(args[1]):
            return real(*args, **kwargs)
        done[0] += 1
        if not after and done[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if after and done[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return rename
after = sys.argv[2] == "after"
os.replace, os.rename, os.link = (killing(f, after) for f in (os.replace, os.rename, os.link))
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


@pytest.mark.parametrize("what", ["nothing", "a lock", "more", "a process that nobody waits for"])
def test_a_folder_without_a_lock(what, model, tmp_path):
    """Its process may have been killed before it locked it; then there is nothing in it."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    if what != "a process that nobody waits for":
        ended.wait()
    dead, alive = (tmp_path / f".bnfold-{pid}-{'0' * 16}" for pid in (ended.pid, os.getpid()))
    for folder in (dead, alive):
        folder.mkdir()
        if what != "nothing":
            (folder / ("one.bin" if what == "more" else ".locking")).write_bytes(b"")
    assert bnfold(model, "-o", tmp_path / "o.onnx", "--no-verify").code == 0
    assert (dead.exists(), alive.exists()) == (what == "more", True)
    ended.wait()


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
