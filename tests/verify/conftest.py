"""Fixtures: small models on disk, and a comparison that collects the weights itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold._judge import by_proof
from bnfold._judge.end_to_end import compare
from bnfold._judge.settings import Settings
from bnfold._judge.verdict import EndToEnd

from .folding import weights

Compare = Callable[..., EndToEnd]


@pytest.fixture(autouse=True)
def _run_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about what a run shows: a proof would settle it before.

    The modules that are about a proof within a verdict say ``PROVES = True``.
    """
    if not getattr(request.module, "PROVES", False):
        monkeypatch.setattr(by_proof, "proof_of", lambda *_: None)


@pytest.fixture
def judge() -> Compare:
    """Compare two files, every floating-point constant being a weight."""

    def run(original: Path, folded: Path, **options: object) -> EndToEnd:
        parameters = weights(onnx.load(original))
        chosen = {
            field.name: options.pop(field.name)
            for field in fields(Settings)
            if field.name in options
        }
        options = {"parameters": parameters, "settings": Settings(**chosen), **options}  # type: ignore[arg-type]
        return compare(original, folded, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a model given as text, random weights added by name and shape."""

    def run(text: str, name: str = "model", **shapes: tuple[int, ...]) -> Path:
        model = onnx.parser.parse_model(text)
        rng = np.random.default_rng(7)
        for weight, shape in shapes.items():
            array = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
            array = np.abs(array) if weight.startswith("var") else array
            tensor = numpy_helper.from_array(array.astype(np.float32), weight)
            model.graph.initializer.append(tensor)
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return run
