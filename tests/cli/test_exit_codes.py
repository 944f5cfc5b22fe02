"""0 done and verified, 1 verification failed, 2 unusable, 3 could not be judged."""

from __future__ import annotations

import subprocess

import onnx
import pytest

from . import examples
from .command import (
    FROM_CHECKOUT,
    PLANTED,
    SCRIPT,
    TOO_LARGE,
    bnfold,
    environment,
    process,
    refused,
    tree,
)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            (str(SCRIPT),), marks=pytest.mark.skipif(not SCRIPT.exists(), reason="not installed")
        ),
        FROM_CHECKOUT,
    ],
    ids=["script", "checkout"],
)
def test_folded_and_verified(command, model, tmp_path):
    run = process(model, "-o", tmp_path / "out.onnx", command=command)
    assert (run.code, run.err) == (0, "")
    assert run.lines[-2:] == ["verification: pass", f"wrote {tmp_path / 'out.onnx'}"]
    assert examples.operators(tmp_path / "out.onnx").count("BatchNormalization") == 2


def test_nothing_to_fold_is_done(settled):
    run = bnfold(settled)
    assert (run.code, run.out, run.err) == (0, "nothing to fold\n", "")


def test_a_wrong_fold_fails_and_leaves_no_file(model, tmp_path):
    before = tree(tmp_path)
    run = bnfold(model, "-o", tmp_path / "out.onnx", factor=TOO_LARGE)
    assert (run.code, run.err) == (1, "")
    assert run.lines[-2:] == ["verification: fail", "no file was written"]
    assert "certificates: 0 of 1 hold" in run.lines
    assert tree(tmp_path) == before


def test_unverified_when_asked(model, tmp_path):
    run = bnfold(model, "-o", tmp_path / "out.onnx", "--no-verify", factor=TOO_LARGE)
    assert run.code == 0
    assert "not verified (--no-verify)" in run.lines
    assert "verification: pass" not in run.lines
    assert (tmp_path / "out.onnx").exists()


def test_what_cannot_run_cannot_be_judged(strange, tmp_path):
    run = bnfold(strange, "-o", tmp_path / "out.onnx", "--no-prove")
    assert (run.code, run.err) == (3, "")
    assert "the original does not load" in run.out
    assert run.lines[-2] == "verification: inconclusive"
    assert (tmp_path / "out.onnx").exists()


def test_what_cannot_run_but_is_folded_wrong_fails(strange, tmp_path):
    """The certificate needs no runtime. Of what ONNX calls no valid model, it is told as that."""
    made = onnx.load(strange)
    refused(
        bnfold(strange, "-o", tmp_path / "out.onnx", factor=TOO_LARGE), "Unrecognized attribute"
    )
    made.graph.node[-1].domain = "my.plugin"
    made.opset_import.add(domain="my.plugin", version=1)
    onnx.save(made, strange)
    run = bnfold(strange, "-o", tmp_path / "out.onnx", factor=TOO_LARGE)
    assert run.code == 1
    assert not (tmp_path / "out.onnx").exists()


def test_an_unreadable_model_is_unusable(tmp_path):
    refused(bnfold(tmp_path / "none.onnx"), "none.onnx", "there is no such file")


def test_a_wrong_option_is_unusable(model):
    run = bnfold(model, "--fuse")
    assert (run.code, run.out) == (2, "")
    assert "--fuse" in run.err


DEFECT = (*PLANTED[:2], PLANTED[2].replace("return right(", "return {}['gone']("))


def test_a_defect_of_bnfold_is_told_from_a_failed_check(model, tmp_path):
    """Python's own exit code for an uncaught exception is 1, which means something else here."""
    before = tree(tmp_path)
    run = process(model, "-o", tmp_path / "out.onnx", command=DEFECT)
    refused(run, "KeyError: 'gone'", "a defect of bnfold", "BNFOLD_TRACEBACK=1")
    assert tree(tmp_path) == before


def test_a_defect_can_be_traced(model):
    env = environment(BNFOLD_TRACEBACK="1")
    done = subprocess.run([*DEFECT, str(model)], capture_output=True, env=env, check=False)
    assert done.stderr.startswith(b"Traceback") and b"in wrong" in done.stderr
