"""``bnfold.testing``: a test that fails says what to look at."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
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
    other = onnx.ModelProto.FromString(made.SerializeToString())
    other.opset_import[0].version += 1  # else both are the same operators and numbers
    with pytest.raises(AssertionError, match="could not be judged"):
        assert_equivalent(made, other)
    assert_equivalent(made, other, allow_inconclusive=True)


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
    # Options of the run around it name plugins that this run is to do without.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "at fault: one (Conv)" in run.stdout
    assert "bnfold/testing.py" not in run.stdout.replace("\\", "/")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"timeout": 0}, "a timeout is a number of seconds above 0, not 0"),
        ({"timeout": -1.5}, "a timeout is a number"),
        ({"timeout": float("nan")}, "a timeout is a number"),
        ({"timeout": "10"}, "a timeout is a number of seconds above 0, not '10'"),
        ({"timeout": True}, "a timeout is a number"),
        ({"threads": -1}, "threads are a whole number from 1 to 1024"),
        ({"threads": 2**40}, "threads are a whole number"),
        ({"threads": 1.0}, "threads are a whole number"),
        ({"threads": "2"}, "threads are a whole number"),
        ({"threads": None}, "threads are a whole number"),
        ({"rtol": -1e-3}, "rtol is a number that is 0 or more"),
        ({"rtol": "1e-3"}, "rtol is a number that is 0 or more, not '1e-3'"),
        ({"atol": float("inf")}, "atol is a number that is 0 or more"),
        ({"atol": float("nan")}, "atol is a number that is 0 or more"),
        ({"atol": 1j}, "atol is a number that is 0 or more"),
        ({"seed": -1}, "a seed is a whole number from 0"),
        ({"seed": 0.5}, "a seed is a whole number from 0"),
        ({"seed": 2**64}, "a seed is a whole number from 0"),
    ],
)
def test_an_option_that_means_nothing(options, words):
    made = net()
    with pytest.raises(bnfold.UsageError, match=re.escape(words)):
        bnfold.verify(made, made, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": 1e-3},
        {"rtol": 0, "atol": 1e-3},
        {"rtol": np.float32(1e-3), "atol": np.float64(1e-6)},
        {"threads": np.int64(1), "seed": np.uint8(3)},
        {"timeout": 600},
        {"seed": 2**64 - 1},
        {"timeout": np.float32(600)},
        {"timeout": float("inf"), "power": True},
    ],
)
def test_an_option_that_means_something(options):
    made = net()
    assert bnfold.verify(made, bnfold.fold(made), **options).status == "pass"


def test_time_that_is_up():
    made = net()
    result = bnfold.verify(made, made, timeout=1e-9)
    assert (result.status, result.checks) == ("inconclusive", ())
    assert result.notes == ("time is up after 1e-09 s (--timeout)",)


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": 1e-3},
        {"timeout": 5},
        {"threads": 1},
        {"power": True},
        {"bisect": True},
        {"draws": ["large"]},
        {"inputs": {"x": np.zeros(1)}},
    ],
)
def test_options_that_modules_of_pytorch_do_not_take(options):
    """Better said than passed over."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = torch.nn.Linear(2, 2).eval()
    with pytest.raises(bnfold.UsageError, match=r"of PyTorch.* example inputs"):
        bnfold.verify(module, module, (torch.randn(1, 2),), **options)
