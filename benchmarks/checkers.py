"""Checks of a folded model against its original, by bnfold and by other tools, as they come.

A check gets two models and says "pass", "fail" or, bnfold's alone, "inconclusive". All but bnfold's
run both models on inputs drawn from [0, 1), as these tools do. What is not installed is left out.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto
from simplifiers import is_there

import bnfold

Array = NDArray[Any]
Check = Callable[[ModelProto, ModelProto], str]

SIZES = {0: 1, 1: 3, 2: 64, 3: 64}


def uniform(model: ModelProto, seed: int = 0) -> dict[str, Array]:
    """One input drawn from [0, 1); a free dimension gets a size that image networks can take."""
    rng = np.random.default_rng(seed)
    return {name: rng.random(shape).astype(np.float32) for name, shape in shapes(model).items()}


def shapes(model: ModelProto) -> dict[str, list[int]]:
    """The shapes of all inputs that the model does not store."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: [
            dim.dim_value or SIZES.get(axis, 1)
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        ]
        for value in model.graph.input
        if value.name not in stored
    }


def run(model: ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """All outputs by name, from onnxruntime as anyone would call it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def _both(original: ModelProto, folded: ModelProto) -> tuple[dict[str, Array], dict[str, Array]]:
    feeds = uniform(original)
    return run(original, feeds), run(folded, feeds)


def _bnfold(original: ModelProto, folded: ModelProto) -> str:
    return bnfold.verify(original, folded).status


def _onnxsim(original: ModelProto, folded: ModelProto) -> str:
    """What ``onnxsim in.onnx out.onnx 3`` does; it draws from NumPy's own state."""
    from onnxsim import model_checking

    np.random.seed(0)
    same = model_checking.compare(folded, original, 3, input_shapes=shapes(original), verbose=False)
    return "pass" if same else "fail"


def _onnxslim(original: ModelProto, folded: ModelProto) -> str:
    """What its ``--model-check`` does with the outputs."""
    from onnxslim import utils

    return "pass" if utils.check_result(*_both(original, folded)) else "fail"


def _polygraphy(original: ModelProto, folded: ModelProto) -> str:
    """What ``polygraphy run`` does with the outputs, its tolerances being 1e-5 and 1e-5."""
    from polygraphy.comparator import IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    left, right = _both(original, folded)
    compared = SimpleCompareFunc()(
        IterationResult(right, runner_name="folded"), IterationResult(left, runner_name="original")
    )
    return "pass" if all(map(bool, compared.values())) else "fail"


def _torch(original: ModelProto, folded: ModelProto) -> str:
    """``torch.testing.assert_close``: 1.3e-6 and 1e-5 for float32."""
    import torch

    left, right = _both(original, folded)
    for name, values in left.items():
        try:
            torch.testing.assert_close(torch.tensor(right[name]), torch.tensor(values))
        except AssertionError:
            return "fail"
    return "pass"


CHECKERS: dict[str, Check] = {"bnfold": _bnfold}
for _name, _check in (
    ("onnxsim", _onnxsim),
    ("onnxslim", _onnxslim),
    ("polygraphy", _polygraphy),
    ("torch", _torch),
):
    if is_there(_name):
        CHECKERS[_name] = _check


def judged(original: ModelProto, folded: ModelProto) -> dict[str, str]:
    """What every checker says, whatever the tools print."""
    verdicts = {}
    for name, check in CHECKERS.items():
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                verdicts[name] = check(original, folded)
            except Exception as error:  # A checker that breaks down has passed nothing.
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
                verdicts[name] = "error"
    return verdicts
