"""How lines wrap on a terminal: between words, no wider than it, and no word lost."""

from __future__ import annotations

import itertools
import random
import shlex

import pytest

from bnfold._report.lines import NARROWEST, Line, cells, wrapped

WIDTHS = (40, 60, 80, 120)


def as_one(lines):
    """The text that some lines have together: what is broken in a word has no space there."""
    return "".join("".join(lines).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_words_stay_whole_and_nothing_is_wider(width):
    draw = random.Random(width)
    for _ in range(200):
        words = ["x" * draw.randint(1, 25) for _ in range(draw.randint(1, 40))]
        indent = " " * draw.randint(0, 8)
        text = indent + " ".join(words)
        lines = wrapped(text, text, width)
        assert [word for line in lines for word in line.split()] == words
        assert max(map(cells, lines)) <= width
        assert all(line.startswith(indent) for line in lines)
        for line, after in itertools.pairwise(lines):  # no line ends before it has to
            assert cells(line) + 1 + cells(after.split()[0]) > width


def test_what_fits_stays_as_it_is():
    text = "  BatchNormalization        6        0"
    assert wrapped(text, text, 40) == [text]


def test_a_long_name_breaks_between_its_parts():
    name = "/backbone/stage2/block3/" + "/".join(f"layer{k}" for k in range(20))
    text = f"    {name} stays: it is a name"
    lines = wrapped(text, text, 60)
    assert as_one(lines) == as_one([text])
    assert all(line.endswith("/") for line in lines[1:-1])
    assert max(map(cells, lines)) <= 60


def test_a_part_that_is_wider_than_all_loses_its_middle():
    text = "it reads " + "a" * 100 + "b" * 100 + " which is new"
    lines = wrapped(text, text, 60)
    assert max(map(cells, lines)) <= 60
    (cut,) = [line for line in lines if "…" in line]
    assert cut.strip().startswith("aaa") and cut.strip().endswith("bbb")
    assert "which is new" in " ".join(lines)


def test_wide_characters_take_two_columns_and_accents_none():
    assert (cells("模型"), cells("é"), cells("e\u0301")) == (4, 1, 1)
    text = " ".join(["模型" * 5] * 20)
    assert max(map(cells, wrapped(text, text, 60))) <= 60
    text = "模" * 500
    assert max(map(cells, wrapped(text, text, 60))) <= 60


def test_a_command_is_whole_or_told_in_general():
    line = Line(f"  bnfold {'very/' * 20}long.onnx", "type", "  bnfold MODEL")
    assert wrapped(line, str(line), 60) == ["  bnfold MODEL"]
    assert wrapped(line, str(line), 200) == [str(line)]
    words = ["bnfold", "a/" * 15 + "it is.onnx", "-o", "b/" * 20 + "out.onnx"]
    line = Line("  " + shlex.join(words), "type", "  bnfold MODEL")
    lines = wrapped(line, str(line), 60)
    assert len(lines) == 2 and max(map(cells, lines)) <= 60
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == words


def test_a_terminal_of_no_width_at_all():
    text = "word " * 30
    assert max(map(cells, wrapped(text, text, 1))) <= NARROWEST
