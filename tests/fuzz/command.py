"""Mutated models for the command, as files: binary and text, with external data, among links.

It is held to this, whatever the file and the options:

- it ends in bounded time and memory, with an exit code of its own: 0 to 3;
- where it cannot do what was asked it says so in one line, with no traceback and no broken tool;
- it does not call its own fold wrong;
- what it prints has no character that a terminal, a CI server or a browser would obey;
- an output is there whole or not at all; it is valid where the input is, runs where the input runs,
  and gives the same; nothing else is left, and nothing else is changed.

A process imports bnfold once and makes a copy of itself for each file: that is the command from its
first line on, with the process of its own that it starts, and costs a tenth of a new interpreter.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import stat
import sys
import tempfile
import traceback
import weakref
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import onnx

from bnfold._command import guard, warm
from bnfold._errors import first_line

from ..cli.command import environment
from . import library
from .cases import LOCATIONS, Case
from .library import Wrong
from .mutation import corpus

SECONDS = 30
"""Of one core, for one run."""
PATIENCE_S = 180
MEMORY, RUNNING = 500 << 20, 1 << 30
"""Bytes that a run may take besides what the interpreter takes, and four times its files; and where
models are run, on inputs whose free sizes are drawn."""
_LARGEST_FILE = 1 << 28
_SPOKEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What nothing that is printed may hold as it is."""
_OWN_FOLD = {"-o", "--in-place"}


@dataclass
class Ended:
    """How a run ended: code, streams, seconds of a core, and the most memory it took."""

    code: int
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    peak: int = 0
    summary: str = field(default="", repr=False)


def run(arguments: Sequence[str], folder: Path) -> Ended:
    """Run the command in a copy of this process. Raises `Wrong` if it does not end."""
    own = folder.with_name("own")
    own.mkdir(exist_ok=True)
    streams = [own / "out", own / "err"]
    summary = own / "summary"
    summary.write_bytes(b"")
    before = _resident()
    child = _forked(lambda: _command(arguments, folder, streams, summary))
    status, usage = _waited(child)
    left = [path.name for path in own.iterdir() if path not in (*streams, summary)]
    if left:
        raise Wrong(f"{left} is left in the folder for temporary files")
    return Ended(
        os.waitstatus_to_exitcode(status),
        *(path.read_bytes().decode(errors="replace") for path in streams),
        seconds=usage.ru_utime + usage.ru_stime,
        peak=usage.ru_maxrss * 1024 - before,
        summary=summary.read_bytes().decode(errors="replace"),
    )


def _resident() -> int:
    """The bytes that this process holds, which a copy of it begins with."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _command(
    arguments: Sequence[str], folder: Path, streams: Sequence[Path], summary: Path
) -> NoReturn:
    os.setpgid(0, 0)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.detach()  # The folders of the process that was copied are not this one's.
    os.chdir(folder)
    for number, path in zip((1, 2), streams, strict=True):
        file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    given = environment(TMPDIR=str(summary.parent), GITHUB_STEP_SUMMARY=str(summary))
    os.environ.clear()
    os.environ.update(given)
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_DATA, (library.MEMORY, library.MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    code = 99
    try:
        guard.main(args=list(arguments), prog_name="bnfold")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _forked(work: Callable[[], None]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(98)
    return child


def _waited(child: int) -> tuple[int, resource.struct_rusage]:
    """Wait for a process. Raises `Wrong` if that takes too long."""

    def late(*_: object) -> None:
        raise Wrong(f"it does not end in {PATIENCE_S} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_S)
    try:
        _, status, usage = os.wait4(child, 0)
    except Wrong:
        os.kill(child, signal.SIGKILL)  # The process of its own goes with it.
        os.wait4(child, 0)
        raise
    finally:
        signal.alarm(0)
    return status, usage


def _tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that lies in a folder: what it is, and its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else b""
        content = os.fsencode(os.readlink(path)) if stat.S_ISLNK(mode) else content
        found[str(path.relative_to(folder))] = (stat.S_IFMT(mode), content)
    return found


def judge(case: Case, usual: int) -> str:
    """What became of a case, in a word. Raises `Wrong`. ``usual`` bytes are the interpreter's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "files")
        folder.mkdir()
        case.put(folder)
        before = _tree(folder)
        ended = run(case.arguments, folder)
        _check_ending(case, ended, usual)
        _check_words(case, ended)
        after = _tree(folder)
        _check_files(case, ended, before, after)
        page = folder / "page.html"
        if page.exists() and _SPOKEN.search(page.read_text(encoding="utf-8").replace("\r", "")):
            raise Wrong("the page has characters in it that nobody sees")
        output = case.output
        if output is None or ended.code in (1, 2) or after == before:
            return f"code-{ended.code}"
        twin = Path(name, "twin")  # The input as it was, which may have been written over.
        twin.mkdir()
        case.put(twin)
        prepared = "--input-mean" in case.arguments
        own = Path(name, "compared")
        child = _forked(lambda: _compared(twin / "m.onnx", folder / output, own, prepared))
        status, _ = _waited(child)
        return _told(own, status, ended.code)


def _told(own: Path, status: int, code: int) -> str:
    words = own.read_text().split("\n") if own.exists() else []
    if words and words[0] == "WRONG":
        raise Wrong(words[1])
    if status and words[-1:] == ["folded"]:
        raise Wrong(f"the folded model ends the process ({status}), the original does not")
    return f"code-{code}" + ("-compared" if words[-1:] == ["same"] else "")


def _compared(original: Path, folded: Path, told: Path, prepared: bool) -> None:
    """Write what a second look at an output says: a word in each line, the last one counts."""

    def say(*words: str) -> None:
        told.write_text("\n".join(words))

    resource.setrlimit(resource.RLIMIT_DATA, (library.MEMORY, library.MEMORY))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        given = onnx.load(original)
    except Exception:  # It is a text, or its data lie where onnx does not read them.
        say("not loaded")
        return
    try:
        made = onnx.load(folded)
    except Exception as error:
        say("WRONG", f"the output cannot be loaded: {first_line(error)}")
        return
    try:
        onnx.checker.check_model(given, full_check=False)
    except Exception:
        say("not valid")
        return
    try:
        onnx.checker.check_model(made, full_check=False)
    except Exception as error:
        say("WRONG", f"the output is not valid, the input is: {first_line(error)}")
        return
    if prepared:
        say("other inputs")
        return
    say("original")
    try:
        library.same(given, made, lambda: say("folded"))
    except Wrong as error:
        say("WRONG", str(error))
        return
    say("same")


def _check_ending(case: Case, ended: Ended, usual: int) -> None:
    told = ended.err.strip()
    if ended.code not in (0, 1, 2, 3):
        raise Wrong(f"exit code {ended.code}: {told[-200:]}")
    for sign in ("Traceback", "defect of bnfold", "Warning:"):
        if sign in ended.err or sign in ended.out:
            raise Wrong(f"exit code {ended.code}, {sign}: {(told or ended.out)[-300:]}")
    # The fold may overflow where the original does not.
    overflows = "infinite at other places" in ended.out
    if ended.code == 1 and not overflows and _OWN_FOLD & set(case.arguments):
        raise Wrong(f"a fold of its own is called wrong: {ended.out[-300:]}")
    if ended.code == 2 and (not told.startswith("error: ") or told.count("\n")):
        raise Wrong(f"exit code 2 without a line that says why: {told[:200]!r}")
    if ended.code < 2 and told:
        raise Wrong(f"exit code {ended.code}, and it says {told[:200]!r}")
    if ended.seconds > SECONDS:
        raise Wrong(f"it takes {ended.seconds:.0f} s")
    if ended.peak > usual + (RUNNING if case.runs else MEMORY) + 4 * case.size:
        raise Wrong(f"it takes {ended.peak >> 20} MB for {case.size} bytes")


def _check_words(case: Case, ended: Ended) -> None:
    for text in (ended.out, ended.err, ended.summary):
        if found := _SPOKEN.search(text):
            raise Wrong(f"it prints {found[0]!r}")
    form = "text"
    if "--output-format" in case.arguments:
        form = case.arguments[case.arguments.index("--output-format") + 1]
    obeyed = [line for line in ended.out.splitlines() if line.startswith("::")]
    if any(form != "github" or not re.match("::(error|warning|notice) ", line) for line in obeyed):
        raise Wrong(f"a server obeys {obeyed}")
    if ended.code == 2:
        return
    try:
        if form == "json" and ended.out:
            json.loads(ended.out)
        elif form == "junit":
            ET.fromstring(ended.out)
    except (ValueError, ET.ParseError) as error:
        raise Wrong(f"no {form}: {error}") from error


def _check_files(
    case: Case,
    ended: Ended,
    before: dict[str, tuple[int, bytes]],
    after: dict[str, tuple[int, bytes]],
) -> None:
    changed = {name for name in before if after.get(name) != before[name]}
    new = after.keys() - before.keys()
    output = case.output
    if ended.code in (1, 2) or (ended.code == 3 and ended.err):
        if changed or new - {"report.json", "page.html"}:
            raise Wrong(f"exit code {ended.code}, and {sorted(changed | new)} is changed")
        return
    allowed = {"report.json", "page.html"} if "--html" in case.arguments else set()
    if output is not None:
        allowed.add(output)
        stem = re.escape(Path(output).name)
        allowed |= {
            name
            for name in new
            if name in case.files
            or name in LOCATIONS
            or re.search(rf"{stem}(\.\d+)*\.data", name)
            or Path(name).name in LOCATIONS
        }
        if output not in after:
            raise Wrong(f"exit code {ended.code}, and there is no {output}")
    if changed - ({output} if output else set()) or new - allowed:
        raise Wrong(f"{sorted(changed)} is changed, {sorted(new - allowed)} new")


def work(bases: Sequence[bytes], first: int, count: int) -> None:
    """Run some cases, and print a line for each: its number ahead of it, then what became of it."""
    sys.stdin.close()
    warm._prepare()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "files")
        folder.mkdir()
        usual = run(("--version",), folder).peak
    for number in range(first, first + count):
        print(number, end=" ", flush=True)
        try:
            print(judge(Case.drawn(bases, number), usual), flush=True)
        except Wrong as error:
            print("WRONG", str(error).replace("\n", " ⏎ "), flush=True)


def search(
    first: int, count: int, seconds: float | None = None
) -> tuple[Counter[str], dict[int, str]]:
    """Run cases in processes of their own. Gives what became of them, and what is wrong."""
    return library.search(first, count, seconds, "--command", each=PATIENCE_S)


def show(number: int) -> int:
    """Run a case, and leave its files here, as a run would find them."""
    case = Case.drawn(corpus(), number)
    folder = Path(f"case-{number}")
    folder.mkdir()
    case.put(folder)
    print("bnfold", *case.arguments, flush=True)
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name, "files")
        empty.mkdir()
        usual = run(("--version",), empty).peak
    print(judge(case, usual))
    return 0
