"""Mutated models for the library, which is held to this:

- planning and folding end, and raise `UsageError` or nothing;
- neither takes long or much memory, and neither ends the process;
- a model that onnxruntime runs, folded, runs and gives the same.
"""

from __future__ import annotations

import math
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

import bnfold

from ..graphs import feeds
from .mutation import corpus, mutated

SECONDS = 20
MEMORY = 3 << 30
BATCH = 250
_RUNS, _RUNS_FOLDED = "runs", "runs-folded"


class Wrong(Exception):
    """What bnfold may not do with any model; the text says what."""


def check(made: ModelProto) -> str:
    """What became of a model: "refused", "folded", "same" or "checked". Raises `Wrong`.

    Prints a word before the model is run, and another before the folded one is. What ends the
    process behind the first is onnxruntime; behind the second it is the fold.
    """
    raw = made.SerializeToString()
    try:
        plan = bnfold.plan(made)
        folded = bnfold.fold(made)
    except bnfold.UsageError:
        return "refused"
    if made.SerializeToString() != raw:
        raise Wrong("the model that was given is changed")
    if not plan.folds:
        return "same"
    print(_RUNS, end=" ", flush=True)
    compared = same(made, folded, lambda: print(_RUNS_FOLDED, end=" ", flush=True))
    return "checked" if compared else "folded"


def same(made: ModelProto, folded: ModelProto, begun: Callable[[], None]) -> bool:
    """Whether a model runs in onnxruntime. Raises `Wrong` unless its folded form gives the same.

    ``begun`` is called ahead of the folded one.
    """
    given = _given(made)
    before = _outputs(made.SerializeToString(), given)
    if before is None:
        return False
    begun()
    after = _outputs(folded.SerializeToString(), given)
    if after is None:
        raise Wrong("the model runs in onnxruntime, and the folded one does not")
    for name, one, other in zip([o.name for o in made.graph.output], before, after, strict=True):
        _compare(name, one, other)
    return True


def _given(made: ModelProto) -> dict[str, Any]:
    try:
        return feeds(made, sizes=2)
    except Exception:  # Nothing can be drawn for these types or sizes.
        return {}


def _outputs(raw: bytes, given: dict[str, Any]) -> list[Any] | None:
    """The outputs of a model without optimizations; None where onnxruntime does not run it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        wanted = {value.name for value in session.get_inputs()}
        run = ort.RunOptions()
        run.log_severity_level = 4
        kept = {name: array for name, array in given.items() if name in wanted}
        return list(session.run(None, kept, run))
    except Exception:  # onnxruntime raises many classes.
        return None


def _compare(name: str, one: Any, other: Any) -> None:
    """Raise `Wrong` where floats differ by more than the arithmetic of float16 explains.

    Outputs of other types are not compared.
    """
    if not isinstance(one, np.ndarray) or one.dtype.kind != "f":
        return
    if one.shape != np.shape(other):
        raise Wrong(f"{name} has the shape {np.shape(other)}, not {one.shape}")
    left, right = one.astype(np.float64), np.asarray(other).astype(np.float64)
    if not np.isfinite(left).all():
        return  # What is infinite on the way depends on the order of operations.
    size = np.abs(left).max(initial=0.0)
    if size > 1e30 or (size and size < 1e-30):
        return
    worst = np.abs(left - right).max(initial=0.0)
    if not worst <= 2e-2 * size + 1e-6:
        raise Wrong(f"{name} differs by {worst:.3g} of {size:.3g}")


def work(bases: Sequence[bytes], first: int, count: int) -> None:
    """Run some cases, and print a line for each: its number ahead of it, then what became of it."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _late)
    for number in range(first, first + count):
        print(number, end=" ", flush=True)
        made = mutated(bases, number)
        begun = time.monotonic()
        signal.alarm(SECONDS)
        try:
            print("no-model" if made is None else check(made), flush=True)
        except Wrong as error:
            print(f"WRONG {error}", flush=True)
        except MemoryError:
            print("WRONG out of memory", flush=True)
        except _Late:
            print(f"WRONG more than {SECONDS} s, {time.monotonic() - begun:.0f}", flush=True)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = str(error).partition("\n")[0][:120]
            line = f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"
            print(f"WRONG {line}", flush=True)
        finally:
            signal.alarm(0)


class _Late(BaseException):
    """A case takes too long."""


def _late(*_: object) -> None:
    raise _Late


def search(
    first: int, count: int, seconds: float | None = None, *more: str, each: float = SECONDS
) -> tuple[Counter[str], dict[int, str]]:
    """Run cases in processes of their own. Gives what became of them, and what is wrong.

    None begins after so many ``seconds``. ``more`` are options of the processes, whose cases take
    up to ``each`` seconds.
    """
    end = time.monotonic() + (math.inf if seconds is None else seconds)
    ends, wrong = Counter[str](), dict[int, str]()
    number, last = first, first + count
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "corpus"
        stored.write_bytes(pickle.dumps(corpus()))
        while number < last and time.monotonic() < end:
            size = min(BATCH, last - number)
            asked = [*more, "--work", str(stored), str(number), str(size)]
            command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", *asked]
            with tempfile.TemporaryFile("w+") as out:
                process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
                try:
                    process.wait(min(60 + each * size, max(end - time.monotonic(), 1)))
                    late = False
                except subprocess.TimeoutExpired:
                    late = time.monotonic() >= end
                    process.kill()
                    process.wait()
                out.seek(0)
                lines = out.read().splitlines()
            if late and lines and lines[-1].rstrip().isdigit():
                del lines[-1]  # It is not over.
            done = count_ends(lines, process.returncode, ends, wrong)
            if done is None and not late:
                raise SystemExit(f"no case ran: {' '.join(command)}")
            number = last if done is None else done + 1
    return ends, wrong


def count_ends(
    lines: Sequence[str], code: int, ends: Counter[str], wrong: dict[int, str]
) -> int | None:
    """Count what a process that ended with `code` has printed. Gives its last case, or None."""
    done = None
    for line in lines:
        head, _, end = line.partition(" ")
        if not head.isdigit():
            continue
        done = int(head)
        if "WRONG " in end:
            wrong[done] = end.partition("WRONG ")[2]
        elif not end.strip():
            wrong[done] = f"the process ended ({code})"
        elif end.split()[-1] == _RUNS_FOLDED:
            wrong[done] = f"the folded model ends the process ({code}), the original does not"
        elif end.split()[-1] == _RUNS:
            ends["crashes onnxruntime"] += 1
        else:
            ends[end.split()[-1]] += 1
    return done
