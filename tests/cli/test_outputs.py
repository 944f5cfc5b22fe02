"""What the command says is what the golden file has, and fits terminals of any width."""

from __future__ import annotations

import os
import re

import pytest

from bnfold._report.lines import cells, wrapped

from .command import bnfold, on_terminal
from .outputs import FILE, RUNS, Said, document, said

WIDTHS = (60, 80, 120)


@pytest.fixture(scope="module")
def runs() -> list[Said]:
    return said()


def test_all_that_is_said_is_in_the_golden_file(runs):
    found = document(runs)
    known = FILE.read_text(encoding="utf-8")
    assert found == known, "python -m tests.cli.outputs --write, and look at every difference"


def test_errors_are_of_one_style(runs):
    """One line that begins with ``error:``, in a sentence without a full stop at its end."""
    errors = [run for run in runs if run.code == 2]
    assert len(errors) > 15
    for run in errors:
        (last,) = [line for line in run.text.splitlines() if line.startswith("error: ")]
        assert re.fullmatch(r"error: .*[^.\s]", last), last
        assert not re.match(r"error: [A-Z][a-z]", last), last


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal_and_no_word_is_broken(runs, width):
    for run in runs:
        for line in run.lines:
            lines = wrapped(line, str(line), width)
            assert max(map(cells, lines)) <= width, run.call
            room = width - 12
            words = [word for word in line.split() if cells(word) <= room]
            shown = " ".join(lines).split()
            for word in words:
                assert word in shown, (run.call, word)


@pytest.mark.parametrize("width", WIDTHS)
def test_help_fits(width):
    for call in RUNS:
        if call.endswith("--help"):
            run = bnfold(*call.split(), env={"COLUMNS": str(width)})
            assert max(map(cells, run.lines)) <= width, call
            assert "eval" in run.out or call != "--help"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
@pytest.mark.parametrize("width", WIDTHS)
def test_a_real_terminal(width, tmp_path):
    """The lines of a whole run, as they come out on a terminal of this width."""
    from .outputs import folder

    folder(tmp_path)
    run = on_terminal(
        tmp_path / "several.onnx", "--no-verify", "-v", columns=width, env={"NO_COLOR": "1"}
    )
    lines = run.out.replace("\r\n", "\n").splitlines()
    assert run.code == 0 and len(lines) > 15
    assert max(map(cells, lines)) <= width
    assert "\x1b" not in run.out and "\u202e" not in run.out
