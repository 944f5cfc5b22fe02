"""Which checks of a folded model notice that it is wrong, and which take a right one for wrong.

Bugs that fold BatchNorms wrongly are planted from outside: the parameters of a model are changed as
the bug would have it, and the changed model is folded rightly. What comes out is what a tool with
that bug would have made of the model as it was. Every checker then compares the two::

    python benchmarks/kills.py
    python benchmarks/kills.py digits ppocrv5-cls

A cell says in how many models a bug was noticed, of those whose weights it changes by more than
rounding; for bnfold the verdict "inconclusive" counts as noticed and stands in brackets. Below, how
many right folds, by bnfold and by other tools, each checker takes for wrong. The exit status is 1
if bnfold passes a bug or fails a fold of its own.

onnxsim's and onnxslim's checks are the tools' own. Polygraphy's and PyTorch's stand for their
default tolerances, on one input drawn from [0, 1), as Polygraphy draws it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from catalogue import Model, chosen
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from simplifiers import TOOLS, is_there, simplify

import bnfold

# Networks whose BatchNorms matter to their outputs, and that take seconds.
USUAL = (
    "digits",
    "ppocrv5",
    "drawn-shufflenet",
    "efficientnet-lite0",
    "resnet",
    "mobilenet-v2",
    "dcgan",
    "unet",
    "tcn",
)
SIZES = {0: 1, 1: 3, 2: 64, 3: 64}
ROUNDING = 16 * float(np.finfo(np.float32).eps)
SECONDS = 120.0
Array = NDArray[Any]


class Parameters:
    """The BatchNormalizations of a model, whose parameters can be read and replaced."""

    def __init__(self, model: ModelProto) -> None:
        self.norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._stored[node.output[0]] = node.attribute[0].t

    def get(self, node: NodeProto, position: int) -> Array:
        """One of scale, bias, mean and variance, 1 to 4."""
        values: Array = numpy_helper.to_array(self._stored[node.input[position]])
        return values

    def put(self, node: NodeProto, position: int, values: Array) -> None:
        """Replace one of them."""
        stored = self._stored[node.input[position]]
        name = stored.name
        stored.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    def epsilon(self, node: NodeProto, change: Callable[[float, float], float]) -> None:
        """Set epsilon to what a function makes of it and of the momentum."""
        found = {a.name: a for a in node.attribute}
        old = found["epsilon"].f if "epsilon" in found else 1e-5
        momentum = found["momentum"].f if "momentum" in found else 0.9
        if "epsilon" not in found:
            found["epsilon"] = node.attribute.add(name="epsilon", type=onnx.AttributeProto.FLOAT)
        found["epsilon"].f = change(old, momentum)


Bug = Callable[[Parameters], None]


def _epsilons(change: Callable[[float, float], float], only: int | None = None) -> Bug:
    def plant(model: Parameters) -> None:
        norms = model.norms if only is None else [model.norms[len(model.norms) // 2]]
        for node in norms:
            model.epsilon(node, change)

    return plant


def _each(position: int, change: Callable[[Array], Array], one: bool = False) -> Bug:
    def plant(model: Parameters) -> None:
        for node in [model.norms[len(model.norms) // 2]] if one else model.norms:
            model.put(node, position, change(model.get(node, position)))

    return plant


def _one_channel(values: Array) -> Array:
    changed: Array = values.copy()
    changed[int(np.argmax(np.abs(values)))] *= 1.01
    return changed


def _roll_scales(model: Parameters) -> None:
    """γ/√(var + ε) of the neighbour, with the shift as it was: mean and bias move along."""
    for node in model.norms:
        gamma, beta, mean, variance = (model.get(node, n).astype(np.float64) for n in range(1, 5))
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        shift = beta - mean * gamma / np.sqrt(variance + epsilon)
        model.put(node, 1, np.roll(gamma, 1))
        model.put(node, 4, np.roll(variance, 1))
        model.put(node, 3, np.zeros_like(mean))
        model.put(node, 2, shift)


BUGS: dict[str, Bug] = {
    "epsilon left out": _epsilons(lambda old, _: 0.0),
    "epsilon left out once": _epsilons(lambda old, _: 0.0, only=1),
    "epsilon a hundredth": _epsilons(lambda old, _: old / 100),
    "momentum for epsilon": _epsilons(lambda _, momentum: momentum),
    "one channel x 1.01": _each(1, _one_channel, one=True),
    "scale rolled": _roll_scales,
    "bias left out": _each(2, np.zeros_like),
    "bias left out once": _each(2, np.zeros_like, one=True),
    "mean left out": _each(3, np.zeros_like),
    "mean left out once": _each(3, np.zeros_like, one=True),
}


def wrong_folds(original: ModelProto) -> Iterator[tuple[str, ModelProto]]:
    """What tools with a bug would make of a model."""
    for name, plant in BUGS.items():
        changed = ModelProto()
        changed.CopyFrom(original)
        plant(Parameters(changed))
        yield name, bnfold.fold(changed)
    rounded = bnfold.fold(original)
    for tensor in rounded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    yield "weights through bfloat16", rounded


def weights(model: ModelProto) -> dict[str, Array]:
    """All stored floats by name."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in stored.items()}
    return {name: values for name, values in arrays.items() if values.dtype == np.float32}


def changes(right: ModelProto, wrong: ModelProto) -> bool:
    """Whether weights differ by more than rounding."""
    left, other = weights(right), weights(wrong)
    if left.keys() != other.keys():
        return True
    for name, values in left.items():
        if values.shape != other[name].shape:
            return True
        largest = float(np.abs(values).max(initial=0))
        if float(np.abs(values - other[name]).max(initial=0)) > ROUNDING * largest:
            return True
    return False


# --- the checkers: whether they say that two models are the same --------------------------------


def _feeds(model: ModelProto) -> dict[str, Array]:
    """One input drawn from [0, 1)."""
    rng = np.random.default_rng(0)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name not in stored:
            dims = enumerate(value.type.tensor_type.shape.dim)
            shape = [dim.dim_value or SIZES.get(axis, 1) for axis, dim in dims]
            feeds[value.name] = rng.random(shape).astype(np.float32)
    return feeds


def _run(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[Array] = session.run(None, feeds)
    return outputs


def _close(relative: float, absolute: float) -> Callable[[ModelProto, ModelProto], str]:
    def check(original: ModelProto, folded: ModelProto) -> str:
        feeds = _feeds(original)
        pairs = zip(_run(original, feeds), _run(folded, feeds), strict=True)
        same = all(np.allclose(b, a, relative, absolute, equal_nan=True) for a, b in pairs)
        return "pass" if same else "fail"

    return check


def _bnfold(original: ModelProto, folded: ModelProto) -> str:
    return bnfold.verify(original, folded).status


def _onnxsim(original: ModelProto, folded: ModelProto) -> str:
    from onnxsim import model_checking

    shapes = {name: list(values.shape) for name, values in _feeds(original).items()}
    same = model_checking.compare(folded, original, 3, input_shapes=shapes, verbose=False)
    return "pass" if same else "fail"


def _onnxslim(original: ModelProto, folded: ModelProto) -> str:
    from onnxslim import utils

    feeds = _feeds(original)
    names = [value.name for value in original.graph.output]
    left, right = (dict(zip(names, _run(m, feeds), strict=True)) for m in (original, folded))
    return "pass" if utils.check_result(left, right) else "fail"


CHECKERS: dict[str, Callable[[ModelProto, ModelProto], str]] = {
    "bnfold": _bnfold,
    **({"onnxsim": _onnxsim} if is_there("onnxsim") else {}),
    **({"onnxslim": _onnxslim} if is_there("onnxslim") else {}),
    "polygraphy": _close(1e-5, 1e-5),
    "torch": _close(1.3e-6, 1e-5),
}


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


def right_folds(source: Path, folder: Path) -> Iterator[tuple[str, ModelProto]]:
    """What tools make of a model."""
    for tool in TOOLS:
        target = folder / f"{tool}.onnx"
        if is_there(tool) and not simplify(tool, source, target, SECONDS):
            yield tool, onnx.load(target)


Tally = dict[tuple[str, str], list[str]]


def examine(model: Model, bugs: Tally, folds: Tally) -> None:
    """Judge all folds of one model, and add the verdicts up."""
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        with contextlib.redirect_stdout(sys.stderr):
            source = model.write(Path(folder))
        original = onnx.load(source)
        if not Parameters(original).norms:
            return
        print(f"{model.name} …", file=sys.stderr, flush=True)
        right = bnfold.fold(original)
        for bug, wrong in wrong_folds(original):
            if changes(right, wrong):
                for checker, verdict in judged(original, wrong).items():
                    bugs.setdefault((bug, checker), []).append(verdict)
                    if checker == "bnfold" and verdict == "pass":
                        print(f"bnfold passes {model.name}: {bug}", file=sys.stderr)
        for tool, folded in right_folds(source, Path(folder)):
            for checker, verdict in judged(original, folded).items():
                folds.setdefault((tool, checker), []).append(verdict)
                if checker == "bnfold" and verdict == "fail":
                    print(f"bnfold fails {model.name} by {tool}", file=sys.stderr)


def _noticed(verdicts: list[str]) -> str:
    open_ = verdicts.count("inconclusive")
    told = f"{len(verdicts) - verdicts.count('pass')}/{len(verdicts)}"
    return f"{told} ({open_})" if open_ else told


def _alarms(verdicts: list[str]) -> str:
    return f"{verdicts.count('fail') + verdicts.count('error')}/{len(verdicts)}"


def rows(tally: Tally) -> list[str]:
    """The bugs or tools of a tally, in order."""
    return list(dict.fromkeys(row for row, _ in tally))


def table(title: str, tally: Tally, cell: Callable[[list[str]], str]) -> None:
    """Rows of bugs or tools, columns of checkers."""
    width = max(len(text) for text in (title, *rows(tally))) + 2
    print(f"{title:<{width}}" + "".join(f"{name:>13}" for name in CHECKERS))
    for row in rows(tally):
        cells = (cell(tally.get((row, checker), [])) for checker in CHECKERS)
        print(f"{row:<{width}}" + "".join(f"{text:>13}" for text in cells), flush=True)


def main() -> None:
    """Judge, print; exit with 1 if bnfold lets a bug pass or fails its own fold."""
    parser = argparse.ArgumentParser(description="Which checkers notice which bugs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: the quick ones)")
    arguments = parser.parse_args()
    try:
        models = chosen(arguments.names or USUAL)
    except ValueError as error:
        parser.error(str(error))
    bugs: Tally = {}
    folds: Tally = {}
    for model in models:
        examine(model, bugs, folds)
    table("bug: noticed", bugs, _noticed)
    print()
    table("fold: taken for wrong", folds, _alarms)
    passed = "pass" in [v for bug in rows(bugs) for v in bugs[bug, "bnfold"]]
    failed = "fail" in folds.get(("bnfold", "bnfold"), [])
    sys.exit(1 if passed or failed else 0)


if __name__ == "__main__":
    main()
