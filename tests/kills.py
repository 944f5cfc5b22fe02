"""Kills the command at random moments, and looks at what it leaves.

``python -m tests.kills 200 [--seed S]`` folds a model again and again, to a new file, over an older
one and over itself, with weights within and beside it, and sends SIGINT, SIGTERM or SIGKILL at a
random moment, to the command or to the process of its own that does the work. It holds bnfold to
this:

- it says in one line how it ended, with the exit code for that, and shows no traceback, but where
  Python itself was starting;
- each file is there whole, as it was or as a run to the end leaves it, a model with its data;
- what is read is what it was;
- nothing else is left, but for what SIGKILL leaves, and the next run removes that.

Half of the moments are drawn from the whole run, half from when its temporary folder is there.
Each case is made from its number and the seed. The folder of a case that went wrong stays, and is
named.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx

from .cli import examples
from .cli.command import COMMAND, PATIENCE_S, environment, tree

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
WAYS = ("new", "over", "in-place")
KILLED = "error: the system killed the process; memory may have run out (--memory sets a bound)"
OVER = "error: the system killed the process when the run was over; what it has written is whole"
CRASHED = "error: a library crashed on this file (SIGSEGV in "
_TEMPORARY = ".bnfold-"


class Wrong(Exception):
    """What a run that was killed may not leave; the text says what."""


@dataclass(frozen=True)
class Case:
    """A run, and when and how it is ended."""

    way: str
    external: bool
    verified: bool
    number: int
    worker: bool
    early: bool
    share: float

    @classmethod
    def drawn(cls, seed: int, at: int) -> Case:
        """Each combination of way, data and signal in turn; the rest by chance."""
        rng = random.Random(seed * 1_000_003 + at)
        kinds = list(itertools.product(WAYS, (False, True), SIGNALS))
        way, external, number = kinds[at % len(kinds)]
        verified, worker, early = (rng.random() < part for part in (0.5, 0.3, 0.5))
        return cls(way, external, verified, int(number), worker, early, rng.random())

    def command(self, folder: Path) -> list[str]:
        """The command that folds the model of a folder that `prepared` made."""
        source = folder / "m.onnx"
        where = ["--in-place"] if self.way == "in-place" else ["-o", str(folder / "out" / "o.onnx")]
        return [*COMMAND, str(source), *where, *([] if self.verified else ["--no-verify"])]


def prepared(folder: Path, case: Case) -> None:
    """Make the model of a case, and what is there already at its destination."""
    data = {"conv1_w": "one.bin", "conv2_w": "two.bin"} if case.external else {}
    examples.save(examples.foldable(), folder / "m.onnx", **data)
    (folder / "out").mkdir()
    if case.way == "over":
        more = {"conv_w": "o.onnx.data"} if case.external else {}
        examples.save(examples.settled(), folder / "out" / "o.onnx", **more)


def started(command: list[str], temporary: Path) -> subprocess.Popen[bytes]:
    """A run with a folder for temporary files."""
    return subprocess.Popen(
        command,
        env=environment(TMPDIR=str(temporary)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=_heed_interrupts,
    )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def whole(case: Case) -> tuple[dict[str, bytes], dict[str, bytes], float]:
    """The files ahead of a run and after it, and how long it takes, if nobody ends it."""
    with tempfile.TemporaryDirectory() as name:
        folder, temporary = Path(name, "files"), Path(name, "temporary")
        for each in (folder, temporary):
            each.mkdir()
        prepared(folder, case)
        before, begun = tree(folder), time.monotonic()
        run = started(case.command(folder), temporary)
        _, told = run.communicate(timeout=PATIENCE_S)
        if run.returncode:
            raise Wrong(f"a run that nobody ends ends with {run.returncode}: {told.decode()}")
        return before, tree(folder), time.monotonic() - begun


def killed(case: Case, before: dict[str, bytes], after: dict[str, bytes], seconds: float) -> str:
    """End a run; whether it was done, or had changed nothing. Raises `Wrong`."""
    name = Path(tempfile.mkdtemp())
    try:
        state = _killed(case, before, after, seconds, name)
    except Wrong as error:
        raise Wrong(f"{error}; it is left in {name}") from error
    shutil.rmtree(name)
    return state


def _killed(
    case: Case, before: dict[str, bytes], after: dict[str, bytes], seconds: float, name: Path
) -> str:
    folder, temporary = name / "files", name / "temporary"
    for each in (folder, temporary):
        each.mkdir()
    for path, held in before.items():
        if path.endswith("/"):
            (folder / path).mkdir()
        else:
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(held)
    run = started(case.command(folder), temporary)
    if case.early:
        time.sleep(seconds * case.share)
    else:
        _wait_for_folder(run, (folder, folder / "out"))
        time.sleep(0.3 * case.share**3 * seconds)
    target = (_worker(run.pid) if case.worker else None) or run.pid
    with suppress(ProcessLookupError):
        os.kill(target, case.number)
    _, told = run.communicate(timeout=PATIENCE_S)
    check_ending(case.number, target != run.pid, run.returncode, told.decode())
    state = _judged(case, run.returncode, folder, before, after)
    if left := _left(folder, temporary):
        if case.number != signal.SIGKILL or target != run.pid:
            raise Wrong(f"{left} is left")
        state += ", a folder is left for the next run"
    again = started(case.command(folder), temporary)
    _, told = again.communicate(timeout=PATIENCE_S)
    if again.returncode:
        raise Wrong(f"the next run ends with {again.returncode}: {told.decode()}")
    if left := _left(folder, temporary):
        raise Wrong(f"{left} is left after the next run")
    done, path = tree(folder), _destination(case)
    if _loaded(folder / path) != _of_tree(after, path):
        raise Wrong("the next run leaves another model")
    if done.keys() - before.keys() - _read(done, "m.onnx") - _read(done, "out/o.onnx"):
        state += ", a data file stays that no model names"
    return state


def _left(folder: Path, temporary: Path) -> str:
    """What bnfold has left lying about, as text; onnxruntime has temporary files, too."""
    return ", ".join(str(p) for each in (folder, temporary) for p in each.rglob(f"{_TEMPORARY}*"))


def check_ending(number: int, worker: bool, code: int, told: str) -> None:
    """Raise `Wrong` for an exit code or an error that does not belong to a signal.

    That came to the command, or to its ``worker``. It may have come when all was done. While Python
    starts, or imports what the command begins with, an interrupt is Python's to tell. An interrupt
    of the worker alone may crash a library that is being imported: nobody knows then why it did.
    """
    if worker:
        killed = {(3, KILLED), (3, OVER)}
        ends = killed if number == signal.SIGKILL else {(128 + number, "interrupted")}
    else:
        ends = {(-number, "")}
        ends |= {(128 + number, "interrupted")} if number != signal.SIGKILL else set()
    starting = (
        (number, worker) == (signal.SIGINT, False)
        and "KeyboardInterrupt" in told
        and ", in main\n" not in told
    )
    crashed = worker and number != signal.SIGKILL and code == 2 and told.startswith(CRASHED)
    one_line = told.strip().count("\n") == 0
    if starting or (crashed and one_line):
        return
    if (code, told.strip()) not in {(0, ""), *ends}:
        raise Wrong(f"exit code {code}: {told}")


def _judged(
    case: Case, code: int, folder: Path, before: dict[str, bytes], after: dict[str, bytes]
) -> str:
    found = {name: held for name, held in tree(folder).items() if _TEMPORARY not in name}
    if found == after:
        return "done"
    if found == before and code:
        return "nothing changed"
    if case.number != signal.SIGKILL:
        raise Wrong(f"exit code {code}, and the files are {_difference(found, before, after)}")
    path = _destination(case)
    model = found.get(path)
    side = after if model == after[path] else before
    if model not in (before.get(path), after[path]):
        raise Wrong("the model is neither the old one nor the new one")
    broken = [name for name, held in side.items() if name in before or side is after]
    broken = [
        name for name in broken if found.get(name) != side[name] and name in _read(side, path)
    ]
    inputs = () if case.way == "in-place" else [n for n in before if not n.startswith("out/")]
    broken += [name for name in inputs if found.get(name) != before[name]]
    if broken:
        raise Wrong(f"{', '.join(broken)} is not what the model goes with")
    return "between two renames"


def _destination(case: Case) -> str:
    return "m.onnx" if case.way == "in-place" else "out/o.onnx"


def _read(files: dict[str, bytes], path: str) -> set[str]:
    """The files that a model of a tree reads, itself one of them."""
    if path not in files:
        return set()
    model = onnx.load_model_from_string(files[path])
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return {path, *(str(Path(path).parent / location) for location in locations)}


def _loaded(path: Path) -> bytes:
    """A model with all its weights within."""
    content: bytes = onnx.load(path).SerializeToString(deterministic=True)
    return content


def _of_tree(files: dict[str, bytes], path: str) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        for each in _read(files, path):
            file = Path(name, each)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(files[each])
        return _loaded(Path(name, path))


def _difference(found: dict[str, bytes], *wanted: dict[str, bytes]) -> str:
    apart = [{n for n in {*found, *each} if found.get(n) != each.get(n)} for each in wanted]
    return f"{sorted(found)}; apart from those before {apart[0]}, after {apart[1]}"


def _wait_for_folder(run: subprocess.Popen[bytes], folders: tuple[Path, ...]) -> None:
    while run.poll() is None:
        if any(name.startswith(_TEMPORARY) for each in folders for name in os.listdir(each)):
            return
        time.sleep(0.0005)


def _worker(parent: int) -> int | None:
    """The process that a command has started to do the work, where the system tells."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])
    return None


def cases(count: int, seed: int) -> Iterator[tuple[Case, str]]:
    """End so many runs, and yield each case and how it went. Raises `Wrong`."""
    known: dict[tuple[str, bool, bool], tuple[dict[str, bytes], dict[str, bytes], float]] = {}
    for at in range(count):
        case = Case.drawn(seed, at)
        key = (case.way, case.external, case.verified)
        if key not in known:
            known[key] = whole(case)
        try:
            yield case, killed(case, *known[key])
        except Wrong as error:
            raise Wrong(f"case {at} of seed {seed}, {case}: {error}") from error


def main() -> None:
    """Tell how many runs were ended, and what they left; exit with 1 for what may not be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    try:
        for case, state in cases(given.count, given.seed):
            counts[signal.Signals(case.number).name, state] += 1
    except Wrong as error:
        sys.exit(f"WRONG: {error}")
    for (name, state), count in sorted(counts.items()):
        print(f"{count:5d}  {name:8s} {state}")
    print(f"{given.count} runs were ended, seed {given.seed}: each left what it may")


if __name__ == "__main__":
    main()
