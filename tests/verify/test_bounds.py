"""A comparison that may take only so much time, threads and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold._system.memory import ran_out

from ..graphs import model, op, rand


def slow() -> onnx.ModelProto:
    """Two hundred products of large matrices: far more than a second."""
    weight = rand(1500, 1500) / 1500
    products = [op("MatMul", f"t{n} w", f"t{n + 1}") for n in range(200)]
    first = (products[0], {"w": weight})
    return model(
        op("Identity", "x", "t0"), first, *products[1:], op("Identity", "t200", "y"), x=(1500, 1500)
    )


def test_a_run_is_ended_when_time_is_up() -> None:
    made = slow()
    start = time.monotonic()
    result = bnfold.verify(made, made, timeout=1.0)
    assert result.status == "inconclusive"
    assert result.notes == ("time is up after 1 s (--timeout)",)
    assert time.monotonic() - start < 10  # the whole would take some minutes


@pytest.mark.parametrize("options", [{"threads": -1}, {"timeout": 0.0}, {"timeout": -3.0}])
def test_bounds_that_mean_nothing(options: dict[str, float]) -> None:
    made = model(op("Abs", "x", "y"))
    with pytest.raises(bnfold.UsageError):
        bnfold.verify(made, made, **options)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_a_session_has_as_many_threads_as_asked_for(tmp_path: Path) -> None:
    """The thread that runs a session is one of them."""
    onnx.save(model(op("Abs", "x", "y")), tmp_path / "m.onnx")
    code = """if True:
        import os, sys
        from pathlib import Path
        from bnfold._run.bounds import Bounds
        from bnfold._run.session import OnnxRuntime
        for threads in (1, 5):
            before = len(os.listdir("/proc/self/task"))
            engine = OnnxRuntime(Path(sys.argv[1]), bounds=Bounds(threads))
            print(len(os.listdir("/proc/self/task")) - before)
            del engine
    """
    command = [sys.executable, "-c", code, str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "4"]


@pytest.mark.parametrize(
    "error, said",
    [
        (MemoryError(), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("Failed to allocate memory for requested buffer of size 17"), True),
        (RuntimeError("Non-zero status code returned while running Conv node"), False),
    ],
)
def test_which_errors_mean_that_memory_has_run_out(error: Exception, said: bool) -> None:
    assert ran_out(error) is said
