"""Real models as converters leave them: norms left, maps left, and the verdict.

Each converter runs here, so that a new release of it is met as users meet it. Its file goes through
the command, the certificates and the comparison.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import version_converter

import bnfold

from . import zoo
from .cli.command import bnfold as run_command
from .graphs import counts, session

NORM = "BatchNormalization"


def converted(version: int) -> Callable[[Path, Path], None]:
    """onnx's own converter between opsets."""

    def convert(source: Path, target: Path) -> None:
        onnx.save(version_converter.convert_version(onnx.load(source), version), target)

    return convert


def half(**options: object) -> Callable[[Path, Path], None]:
    """onnxruntime's converter to float16."""

    def convert(source: Path, target: Path) -> None:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(source), **options), target)

    return convert


def prepared(**options: object) -> Callable[[Path, Path], None]:
    """What onnxruntime asks to run ahead of its quantization."""

    def convert(source: Path, target: Path) -> None:
        module = pytest.importorskip("onnxruntime.quantization.shape_inference")
        module.quant_pre_process(str(source), str(target), skip_symbolic_shape=True, **options)

    return convert


def saved(level: str) -> Callable[[Path, Path], None]:
    """A file that onnxruntime saves once it has optimized a model."""

    def convert(source: Path, target: Path) -> None:
        session(source, level, target)

    return convert


CONVERTERS = {
    "opset 15": converted(15),
    "opset 21": converted(21),
    "float16": half(),
    "float16, inputs in float32": half(keep_io_types=True),
    "float16, norms in float32": half(op_block_list=[NORM]),
    "float16, norms and inputs in float32": half(keep_io_types=True, op_block_list=[NORM]),
    "prepared for quantization": prepared(),
    "prepared, not optimized": prepared(skip_optimization=True),
    "saved, basic": saved("ENABLE_BASIC"),
    "saved, extended": saved("ENABLE_EXTENDED"),
    "saved, all": saved("ENABLE_ALL"),
}
# What has no room in float16, and what then has nowhere to go.
NARROW = {"underflow", "not-carried"}
MODELS = {
    "digits": tuple(CONVERTERS),
    "cls": ("float16, norms in float32", "saved, basic", "prepared for quantization"),
    "det": ("opset 15", "float16, norms and inputs in float32", "saved, extended"),
}
# Of the larger models, one path each in the usual run: digits takes all of them.
USUAL = {("cls", "saved, basic"), ("det", "float16, norms and inputs in float32")}


def paths() -> list[Any]:
    pairs = [(name, how) for name, several in MODELS.items() for how in several]
    slow = pytest.mark.slow
    return [p if p[0] == "digits" or p in USUAL else pytest.param(*p, marks=slow) for p in pairs]


@pytest.mark.parametrize("name, how", paths())
def test_no_norm_is_left_and_the_model_passes(name, how, tmp_path):
    source, target, report = (tmp_path / f for f in ("in.onnx", "out.onnx", "report.json"))
    CONVERTERS[how](zoo.path(name), source)
    done = run_command(source, "-o", target, "--report", report)
    # Errors of 1 % in some layers of cls end below what float16 rounds.
    assert done.code == (3 if name == "cls" and "float16" in how else 0), done.out + done.err
    told = json.loads(report.read_text(encoding="utf-8"))
    certificates = told["verification"]["certificates"]
    assert [c for c in certificates if not c["holds"] and not c["unchecked"]] == []
    assert NORM not in counts(onnx.load(target))
    if how != "saved, all":  # whose blocked layout is known to onnxruntime alone
        left, own = (Counter(k.code for k in bnfold.plan(m).kept) for m in (source, zoo.path(name)))
        assert set(left - own) <= (NARROW if "float16" in how else set())


@pytest.mark.parametrize("name", ["digits", "cls", pytest.param("det", marks=pytest.mark.slow)])
def test_norms_in_float32_fold_as_those_in_float16_do(name, tmp_path):
    """Every norm goes with the Cast ahead of it and the one behind it, and no other Cast."""
    plain, kept = tmp_path / "plain.onnx", tmp_path / "kept.onnx"
    half()(zoo.path(name), plain)
    half(op_block_list=[NORM])(zoo.path(name), kept)
    norms = counts(onnx.load(kept))[NORM]
    (before, after), (_, wanted) = (
        (plan.before, plan.after) for plan in map(bnfold.plan, (kept, plain))
    )
    assert after.get(NORM, 0) == 0
    casts = before["Cast"] - after.get("Cast", 0)
    assert casts == 2 * norms
    assert {k: n for k, n in after.items() if k != "Cast"} == {
        k: n for k, n in wanted.items() if k != "Cast"
    }
