"""Sessions load in the background only where that is asked for, and never twice by mistake."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold._run import session
from bnfold._run.bounds import Bounds
from bnfold._run.session import BackgroundLoad, OnnxRuntime, background
from bnfold._system import memory

from .. import zoo
from .folding import fold


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(1000))
    return path


def test_it_loads_at_once_and_anew_when_asked_again(file: Path) -> None:
    names = []
    with background([file], [], Bounds()) as executor:
        early = BackgroundLoad(lambda: names.append(threading.current_thread().name), executor)
        early.get()
        early.get()
    assert names[0].startswith("bnfold") and names[1] == threading.current_thread().name


def test_an_error_is_raised_where_what_was_loaded_is_asked_for(file: Path) -> None:
    def load() -> None:
        raise KeyError("broken")

    with background([file], [], Bounds()) as executor:
        early = BackgroundLoad(load, executor)
        with pytest.raises(KeyError):
            early.get()


def test_what_nobody_asks_for_is_not_waited_for(file: Path) -> None:
    begun, stopped = threading.Event(), []
    with background([file], [], Bounds()) as executor:
        BackgroundLoad(lambda: begun.wait(5), executor)
        waiting = [BackgroundLoad(lambda: stopped.append(1), executor) for _ in range(3)]
        threading.Timer(0.05, begun.set).start()
    assert len(waiting) == 3 and not stopped


def test_one_thread_small_memory_and_large_models_load_one_after_the_other(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def executors(paths: list[Path], arrays: list[np.ndarray], bounds: Bounds) -> bool:
        with background(paths, arrays, bounds) as executor:
            return executor is not None

    few = [np.zeros(10)]
    assert executors([file], few, Bounds(threads=2))
    assert executors([file.with_name("missing")], few, Bounds())
    assert not executors([file], few, Bounds(threads=1))
    monkeypatch.setattr(session, "_LARGEST_IN_BACKGROUND", 999)
    assert not executors([file], few, Bounds())
    monkeypatch.setattr(session, "_LARGEST_IN_BACKGROUND", 1000)
    assert executors([file], few, Bounds())
    assert not executors([file], [np.zeros(126)], Bounds())
    monkeypatch.setattr(memory, "is_bounded", lambda: True)
    assert not executors([file], few, Bounds())


@pytest.mark.skipif(sys.platform == "win32", reason="bounds are those of Unix")
def test_a_bound_of_memory_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    assert not memory.is_bounded()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**9, resource.RLIM_INFINITY))
    assert memory.is_bounded()


@pytest.mark.parametrize("threads", [0, 1])
def test_each_model_is_loaded_once_for_each_purpose(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = zoo.path("digits"), tmp_path / "folded.onnx"
    fold(source, target)
    loaded = []
    init = OnnxRuntime.__init__

    def counted(self: OnnxRuntime, *args: object, **kwargs: object) -> None:
        loaded.append((bool(kwargs.get("optimized")), threading.current_thread().name))
        init(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxRuntime, "__init__", counted)
    assert bnfold.verify(source, target, threads=threads).status == "pass"
    assert sorted(optimized for optimized, _ in loaded) == [False, False, True]
    behind = [name.startswith("bnfold") for _, name in loaded]
    assert sum(behind) == (0 if threads == 1 else 2)
