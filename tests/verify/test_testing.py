"""``bnfold.testing``: a test that fails says what to look at."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest

import bnfold
from bnfold.testing import assert_equivalent

from ..graphs import conv, model, op
from .test_bisect import net, spoiled


def test_equal_models():
    made = net()
    assert_equivalent(made, bnfold.fold(made))


def test_the_message_names_the_operator():
    made = net()
    wrong = spoiled(bnfold.fold(made), "two")
    with pytest.raises(AssertionError) as failure:
        assert_equivalent(made, wrong)
    text = str(failure.value)
    assert text.startswith("The two are not the same function.\n")
    assert "tolerance" in text
    assert "at fault: two (Conv); what is read there agrees: c" in text


def test_what_cannot_be_judged():
    """An output that is 0 whatever comes in shows nothing."""
    made = model(conv("one", "x", "a", (4, 3, 1, 1)), op("Sub", "a a", "y"))
    with pytest.raises(AssertionError, match="could not be judged"):
        assert_equivalent(made, made)
    assert_equivalent(made, made, allow_inconclusive=True)


def test_a_file_that_is_missing_is_no_failure_of_the_models(tmp_path):
    with pytest.raises(bnfold.UsageError, match="missing"):
        assert_equivalent(tmp_path / "missing.onnx", tmp_path / "missing.onnx")


def test_in_a_run_of_pytest(tmp_path):
    """The failure is that of the test's own line, without the inside of bnfold."""
    made = net()
    onnx.save(made, tmp_path / "a.onnx")
    onnx.save(spoiled(made, "one"), tmp_path / "b.onnx")
    (tmp_path / "test_models.py").write_text(
        "from bnfold.testing import assert_equivalent\n\n\n"
        "def test_deployed():\n"
        "    assert_equivalent('a.onnx', 'b.onnx')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_models.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "at fault: one (Conv)" in run.stdout
    assert "bnfold/testing.py" not in run.stdout.replace("\\", "/")
