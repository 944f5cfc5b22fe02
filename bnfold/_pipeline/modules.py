"""Are two modules the same function? In float64 by PyTorch, then as exported, in onnxruntime."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.utils import _pytree as pytree

from bnfold._errors import UsageError
from bnfold._judge.cause import Cause
from bnfold._judge.difference import distance, magnitude
from bnfold._judge.settings import Settings
from bnfold._judge.tolerance import DRAWS, FACTOR, MORE_DRAWS
from bnfold._judge.verdict import EndToEnd, OutputCheck, overall
from bnfold._pipeline.comparing import files
from bnfold._run.noise import Noise, can_move
from bnfold._torch.module.fold import Example, copied
from bnfold._torch.read.export import check
from bnfold._torch.tensors import DTYPES, Array, from_numpy, to_numpy

_OPSET = 17
_INPUTS = "example"


def compare(original: nn.Module, folded: nn.Module, example: Example, seed: int) -> EndToEnd:
    """Judge two modules on example inputs.

    First both run in PyTorch in float64, where only the rounding of the folded weights is left to
    differ; the tolerance is how far the original moves when its weights move by their rounding.
    Then both are exported to ONNX, BatchNorms kept, and compared in onnxruntime.
    Raises `UsageError` for a module in training mode or inputs that it does not run on.
    """
    check(original)
    check(folded)
    checks = _in_float64(original, folded, example, seed)
    status = overall(checks)
    try:
        result = _in_onnxruntime(original, folded, example, seed)
    except _NotExportable as error:
        note = f"not compared in onnxruntime: {error}"
        return EndToEnd(status, tuple(checks), (note,), seed, f"torch {torch.__version__}", "CPU")
    if "fail" in (status, result.status):
        status = "fail"
    elif status == "pass":
        status = result.status
    return replace(result, status=status, checks=(*checks, *result.checks))


def compare_programs(original: ExportedProgram, folded: ExportedProgram, seed: int) -> EndToEnd:
    """Judge two programs on the example inputs that the original carries, and on drawn ones of the
    same shapes; by PyTorch alone.

    Inconclusive without example inputs, or where the programs do not run in float64.
    """
    runtime = f"torch {torch.__version__}"
    if original.example_inputs is None:
        note = "the program carries no example inputs to run it on"
        return EndToEnd("inconclusive", (), (note,), seed, runtime, "CPU")
    args, kwargs = original.example_inputs
    given = Example(tuple(args), kwargs)
    checks: list[OutputCheck] = []
    for name, example in ((_INPUTS, given), ("signed", _drawn(given, seed))):
        try:
            found = _in_float64(original.module(), folded.module(), example, seed)
        except UsageError as error:
            return EndToEnd("inconclusive", tuple(checks), (str(error),), seed, runtime, "CPU")
        checks += [replace(check, inputs=name) for check in found]
    return EndToEnd(overall(checks), tuple(checks), (), seed, runtime, "CPU")


def _drawn(example: Example, seed: int) -> Example:
    """Example inputs with normal numbers in place of all floats."""
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return torch.randn(value.shape, generator=generator).to(value.device, value.dtype)

    args, kwargs = pytree.tree_map(draw, (example.args, dict(example.kwargs)))
    return Example(args, kwargs)


class _NotExportable(Exception):
    """The exporter has no ONNX operator for something."""


def _in_float64(
    original: nn.Module, folded: nn.Module, example: Example, seed: int
) -> list[OutputCheck]:
    with _one_thread():
        return _compared(original, folded, example, seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: a grouped convolution in float64 goes group by group, and its threads
    would spend their time waiting for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _compared(
    original: nn.Module, folded: nn.Module, example: Example, seed: int
) -> list[OutputCheck]:
    wide = nn.Module.double(copied(original))
    wanted = _run(wide, example, {})
    made = _run(nn.Module.double(copied(folded)), example, {})
    if [a.shape for a in wanted] != [b.shape for b in made]:
        raise UsageError("the two modules put out different numbers or shapes of tensors")
    noise = Noise(
        {
            name: values
            for name, tensor in (*original.named_parameters(), *original.named_buffers())
            if tensor.dtype in DTYPES and can_move(values := to_numpy(tensor))
        },
        np.random.default_rng(seed),
    )

    def moved(draws: int) -> list[float]:
        """How far each output moves at most under so many draws of rounding noise."""
        most = [0.0] * len(wanted)
        for _ in range(draws):
            weights = {name: from_numpy(values) for name, values in noise.rounding().items()}
            noisy = _run(wide, example, {name: w.double() for name, w in weights.items()})
            most = [max(m, distance(a, b)) for m, a, b in zip(most, wanted, noisy, strict=True)]
        return most

    return _judged(wanted, made, moved)


def _judged(
    wanted: list[Array], made: list[Array], moved: Callable[[int], list[float]]
) -> list[OutputCheck]:
    differences = [distance(a, b) for a, b in zip(wanted, made, strict=True)]
    floors = [float(np.finfo(np.float64).eps) * 64 * magnitude(a) for a in wanted]
    noise = moved(DRAWS)
    rounding = [max(pair) for pair in zip(noise, floors, strict=True)]
    if any(d > FACTOR * r for d, r in zip(differences, rounding, strict=True)):
        rounding = [max(pair) for pair in zip(rounding, moved(MORE_DRAWS), strict=True)]
    checks = []
    for number, difference in enumerate(differences):
        tolerance = FACTOR * rounding[number]
        varied = noise[number] > 0 or bool(np.ptp(wanted[number]) > 0)
        seen = varied and bool(np.isfinite(wanted[number]).all())
        right = difference <= tolerance
        checks.append(
            OutputCheck(
                f"output {number}",
                _INPUTS,
                ("pass" if seen else "inconclusive") if right else "fail",
                difference,
                tolerance,
                difference / tolerance if tolerance else None,
                rounding[number],
                cause=Cause.IN_FLOAT64 if seen else Cause.CONSTANT,
            )
        )
    return checks


def _run(module: nn.Module, example: Example, weights: Mapping[str, Tensor]) -> list[Array]:
    """All tensors that a module puts out, with some of its weights replaced."""

    def widened(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if floating else value

    args, kwargs = pytree.tree_map(widened, (example.args, dict(example.kwargs)))
    own = dict((*module.named_parameters(), *module.named_buffers()))
    placed = {name: w.to(own[name].device) for name, w in weights.items() if name in own}
    try:
        with torch.no_grad():
            result = functional_call(module, placed, args, kwargs)
    except Exception as error:  # Whatever the module's own code raises.
        raise UsageError(
            f"{type(module).__name__} does not run on these inputs in float64: {error}"
        ) from error
    leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    return [to_numpy(leaf) for leaf in leaves]


def _in_onnxruntime(
    original: nn.Module, folded: nn.Module, example: Example, seed: int
) -> EndToEnd:
    outputs = len(_run(nn.Module.double(copied(original)), example, {}))
    with tempfile.TemporaryDirectory(prefix="bnfold-") as scratch:
        paths = [Path(scratch) / name for name in ("original.onnx", "folded.onnx")]
        for module, path in zip((original, folded), paths, strict=True):
            _export(copied(module), example, path, outputs)
        return files(paths[0], paths[1], None, Settings(seed))


def _export(module: nn.Module, example: Example, path: Path, outputs: int) -> None:
    """Export with every BatchNorm kept, by the exporter that needs no further package."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                example.args,
                str(path),
                kwargs=dict(example.kwargs) or None,
                input_names=[f"input_{i}" for i in range(_tensors_of(example))],
                output_names=[f"output_{i}" for i in range(outputs)],
                dynamo=False,
                opset_version=_OPSET,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
    except Exception as error:  # The exporter raises many things.
        line = next((text for text in str(error).splitlines() if text.strip()), "")
        raise _NotExportable(line) from error


def _tensors_of(example: Example) -> int:
    leaves = pytree.tree_leaves((example.args, dict(example.kwargs)))
    return sum(isinstance(leaf, Tensor) for leaf in leaves)
