"""Pipes, terminals, encodings: the same words everywhere, and no escape codes in a file."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest

from bnfold._command import terminal

from .command import COMMAND, EAGER, PATIENCE_S, bnfold, environment, on_terminal, process

CLEAR = "\r\x1b[K"


@pytest.fixture
def full():
    """A device on which nothing can be written."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as device:
        yield device


def test_a_terminal_shows_what_goes_on_and_clears_it(model):
    """What is left is what a pipe gets, which gets nothing else.

    The line has to fit, be the terminal as narrow as this one, or clearing would leave a part.
    """
    shown_and_cleared(model, EAGER)


@pytest.mark.slow
def test_a_terminal_shows_what_takes_long_and_clears_it(slow):
    shown_and_cleared(slow, COMMAND)


def shown_and_cleared(model, command):
    run = on_terminal(model, command=command, columns=12)
    assert run.code == 0
    first, *steps, rest = run.out.split(CLEAR)
    assert first == ""
    assert steps and all(0 < len(step) < 12 for step in steps)
    piped = bnfold(model)
    assert (piped.code, piped.err) == (0, "")
    assert "\x1b" not in piped.out and "\r" not in piped.out
    assert "".join(uncoloured(rest).split()).startswith("".join(piped.out.split())[:200])


def test_a_terminal_is_not_bothered_by_a_short_run(settled):
    assert uncoloured(on_terminal(settled).out) == "nothing to fold\r\n"


COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def uncoloured(text):
    return COLOUR.sub("", text)


@pytest.mark.parametrize(
    "options, variables, terminal, pipe",
    [
        ((), {}, True, False),
        ((), {"NO_COLOR": "1"}, False, False),
        ((), {"NO_COLOR": "", "FORCE_COLOR": ""}, True, False),
        ((), {"FORCE_COLOR": "1"}, True, True),
        ((), {"TERM": "dumb"}, False, False),
        ((), {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        (("--color", "never"), {"FORCE_COLOR": "1"}, False, False),
        (("--color", "always"), {"NO_COLOR": "1", "TERM": "dumb"}, True, True),
        (("--color", "auto"), {}, True, False),
    ],
)
def test_colours_where_they_are_wanted(options, variables, terminal, pipe, settled):
    """A file and a pipe get none by themselves; the command line goes before the environment."""
    shown = on_terminal(settled, *options, env=variables).out
    assert bool(COLOUR.search(shown)) == terminal
    piped = bnfold(settled, *options, env=variables).out
    assert bool(COLOUR.search(piped)) == pipe
    assert uncoloured(shown).split() == uncoloured(piped).split() == ["nothing", "to", "fold"]


def test_what_programs_read_has_no_colours(model):
    for form in ("json", "junit", "github"):
        run = bnfold(model, "--output-format", form, "--color", "always")
        assert run.code == 0 and "\x1b" not in run.out


def test_a_terminal_without_cursor_control(model):
    run = on_terminal(model, command=EAGER, env={"TERM": "dumb"})
    assert run.code == 0
    assert "\x1b" not in run.out


def test_help_on_a_narrow_terminal():
    run = on_terminal("fold", "--help", columns=30)
    assert run.code == 0
    assert "--in-place" in run.out


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_an_encoding_without_arrows(encoding, model):
    run = process(model, "-v", env={"PYTHONIOENCODING": encoding})
    assert (run.code, run.err) == (0, "")
    assert "bn1 -> conv1" in run.out


def test_names_that_an_encoding_lacks_can_still_be_told_apart():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    assert terminal.printable("模/é → 層/é", stream) == "\\u6a21/é -> \\u5c64/é"


def test_a_reader_that_has_seen_enough(model):
    """As in ``bnfold m.onnx -v | head -1``; the exit code stays that of the verdict."""
    process = subprocess.Popen(
        [*COMMAND, str(model), "-v"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(PATIENCE_S), err) == (0, b"")
    process.stderr.close()


def test_a_full_disk_behind_standard_output(full, model):
    done = subprocess.run(
        [*COMMAND, str(model)],
        stdout=full,
        stderr=subprocess.PIPE,
        env=environment(),
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == b"error: cannot write to standard output: no space left on the device\n"


def test_a_full_disk_behind_the_help(full):
    done = subprocess.run(
        [*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, env=environment(), check=False
    )
    assert done.returncode == 2
    assert done.stderr == b"error: no space left on the device\n"


# With all closed, errors are closed too.
@pytest.mark.parametrize(
    "closed", [">&-", pytest.param("2>&-", marks=pytest.mark.slow), "<&- >&- 2>&-"]
)
def test_streams_that_are_closed(closed, model, tmp_path):
    target = tmp_path / "out.onnx"
    script = f'"$@" {closed}'
    run = process(model, "-o", target, command=("sh", "-c", script, "sh", *COMMAND))
    assert (run.code, run.err) == (0, "")
    assert target.exists()


def test_warnings_of_libraries_are_not_shown(settled):
    """Unless Python is asked to show them."""
    script = (
        "import sys, warnings, bnfold._onnx.files.load as files\n"
        "load = files.load_model\n"
        "def noisy(path, **more):\n"
        "    warnings.warn('noise', RuntimeWarning)\n"
        "    return load(path, **more)\n"
        "files.load_model = noisy\n"
        "from bnfold._command.cli import main\n"
        "main(sys.argv[1:], 'bnfold')\n"
    )
    run = process(settled, command=(sys.executable, "-c", script))
    assert (run.out, run.err) == ("nothing to fold\n", "")
    run = process(settled, command=(sys.executable, "-W", "always", "-c", script))
    assert "noise" in run.err
