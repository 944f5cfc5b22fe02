"""Any file name that the system allows."""

from __future__ import annotations

import json
import os

import pytest

from .command import bnfold, process, refused


@pytest.mark.parametrize("name", ["a b  c.onnx", 'модель-模型-é "$HOME".onnx', "fold"])
def test_a_name(name, model, tmp_path):
    (tmp_path / "to").mkdir()
    model.rename(tmp_path / name)
    run = bnfold("-o", f"to/{name}", "--report", f"to/{name}.json", "--", name, cwd=tmp_path)
    assert (run.code, run.lines[-1]) == (0, f"wrote to/{name}")
    document = json.loads((tmp_path / "to" / f"{name}.json").read_text(encoding="utf-8"))
    assert (document["model"], document["output"]) == (name, f"to/{name}")


def test_a_name_with_a_leading_dash(model, tmp_path):
    model.rename(tmp_path / "-x.onnx")
    run = bnfold("-o", "./-y.onnx", "--", "-x.onnx", cwd=tmp_path)
    assert (run.code, run.lines[-1]) == (0, "wrote -y.onnx")
    assert bnfold("--", "-y.onnx", cwd=tmp_path).code == 0
    assert bnfold("verify", "--", "-x.onnx", "-y.onnx", cwd=tmp_path).code == 0


def test_a_name_that_is_not_text(model, tmp_path):
    """Bytes that are no UTF-8 are shown escaped, and the report stays valid."""
    name = os.fsdecode(b"m\xff\n.onnx")
    try:
        model.rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes text alone")
    target = os.fsdecode(b"out\xff.onnx")
    run = process(name, "-o", target, "--report", "r.json", cwd=tmp_path)
    assert (run.code, run.lines[-1]) == (0, r"wrote out\udcff.onnx")
    assert (tmp_path / target).exists()
    document = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert document["output"] == "out?.onnx"
    refused(bnfold(os.fsdecode(b"n\xff\n.onnx"), cwd=tmp_path), r"n\udcff\n.onnx")
