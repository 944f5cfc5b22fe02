"""What is printed: short by default, every fold and every kept map when asked."""

from __future__ import annotations

import pytest

from bnfold._core.reasons import CODES
from bnfold._report.text import _size

from ..graphs import bn, const, conv, model, op, rand
from . import examples
from .command import TOO_LARGE, bnfold, refused


def kept_for_two_reasons():
    return model(
        conv("conv", "x", "c", (8, 3, 3, 3)),
        bn("bn1", "c", "b1", 8),
        op("Sigmoid", "b1", "s"),
        bn("bn2", "s", "b2", 8),
        op("Tanh", "b2", "t"),
        const("Mul", "t", "m", rand(1, 8, 6, 6)),
        op("Relu", "m", "y"),
    )


def test_the_default_groups_what_stays_by_reason(tmp_path):
    run = bnfold(examples.save(examples.foldable(), tmp_path / "m.onnx"))
    start = run.lines.index("kept 2 maps")
    group = run.lines[start + 1]
    assert group.startswith("  no-linear-operator: bn2: ")
    assert group.endswith(", and 1 more")
    assert run.lines[start + 2].startswith("certificates: ")
    assert not any("→" in line for line in run.lines)


def test_each_reason_has_a_line(tmp_path):
    run = bnfold(examples.save(kept_for_two_reasons(), tmp_path / "m.onnx"))
    lines = [line.split(":")[0].strip() for line in run.lines if line.startswith("  ")]
    assert {"no-linear-operator", "not-per-channel"} <= set(lines)


def test_verbose_lists_folds_and_kept_maps(model):
    run = bnfold(model, "-v")
    assert "  bn1 → conv1 (absorb behind Conv)" in run.lines
    start = next(k for k, line in enumerate(run.lines) if "no-linear-operator (2): " in line)
    advice = CODES["no-linear-operator"].advice
    assert run.lines[start] == f"  no-linear-operator (2): {advice}"
    assert [line.split(":")[0].strip() for line in run.lines[start + 1 : start + 3]] == [
        "bn2",
        "bn3",
    ]
    assert sum(" inputs: pass, difference " in line for line in run.lines) == 3


def test_the_table_says_what_became_less(model):
    run = bnfold(model)
    assert run.lines[0].split() == ["before", "after"]
    assert run.lines[1].split() == ["BatchNormalization", "3", "2"]
    assert run.lines[2].startswith("  file size ")
    assert run.lines[3] == "folded 1 map into 1 operator"


def test_merges_are_counted_by_operator(tmp_path):
    """The sum inside is one operator before it becomes part of another."""
    same = {"pads": [1] * 4}
    made = model(
        conv("a", "x", "a0", (3, 3, 3, 3), **same),
        conv("b", "x", "b0", (3, 3, 1, 1)),
        op("Add", "a0 b0", "c"),
        const("Mul", "c", "d", rand(3, 1, 1)),
        op("Add", "x d", "e"),
        op("Relu", "e", "r"),
        conv("g", "r", "g0", (3, 1, 3, 3), group=3, **same),
        conv("h", "r", "h0", (3, 3, 1, 1)),
        op("Add", "g0 h0", "y"),
    )
    run = bnfold(examples.save(made, tmp_path / "m.onnx"))
    assert "merged 5 linear operators into 1" in run.lines
    start = run.lines.index("kept 1 unmerged operator")
    assert run.lines[start + 1].startswith("  merge-cost: h: g and h side by side: ")


@pytest.mark.parametrize(
    "size, text",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (123456, "123 kB"),
        (999_700, "1.00 MB"),
        (25_600_000, "25.6 MB"),
        (12_345_000_000, "12.3 GB"),
        (1_234_000_000_000, "1234 GB"),
    ],
)
def test_sizes_have_three_digits(size, text):
    assert _size(size) == text


def test_a_fold_that_fails_says_by_how_much(model):
    run = bnfold(model, factor=TOO_LARGE)
    assert any(
        line.startswith("  conv1 ← bn1: ") and "units in the last place off" in line
        for line in run.lines
    )
    assert "  y on signed inputs: fail, difference " in run.out


@pytest.mark.parametrize("code", ["no-gain", "overflow"])
def test_explain(code):
    run = bnfold("explain", code)
    assert (run.code, run.err) == (0, "")
    assert run.lines == [f"{code}: {CODES[code].meaning}", CODES[code].advice]


def test_explain_lists_every_code():
    run = bnfold("explain")
    assert (run.code, run.lines) == (0, list(CODES))


def test_explain_an_unknown_code():
    refused(bnfold("explain", "no-such-code"), "'no-such-code'", "'bnfold explain' lists them")


def test_help_of_folding():
    run = bnfold("fold", "--help")
    assert (run.code, run.err) == (0, "")
    for option in ("--output", "--in-place", "--no-verify", "--inputs", "--seed", "--report"):
        assert option in run.out


def test_help_says_what_exit_codes_mean():
    text = " ".join(bnfold("--help").out.split())
    for meaning in ("0 done", "1 verification failed", "2 wrong usage", "3 could not be judged"):
        assert meaning in text
    for command in ("explain", "fold", "verify"):
        assert f" {command} " in text
    assert "..." not in text.replace("[ARGS]...", "")


def test_the_first_argument_may_be_the_command_or_the_model(model):
    assert bnfold("fold", model).out == bnfold(model).out
