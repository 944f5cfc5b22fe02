"""What else simplifies ONNX models: each tool as a process of its own.

Run as a script, this applies one tool to one file::

    python benchmarks/simplifiers.py onnxslim model.onnx simpler.onnx
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TOOLS = ("bnfold", "onnxruntime", "onnxsim", "onnxslim", "onnxscript")


def is_there(tool: str) -> bool:
    """Whether a tool is installed."""
    return importlib.util.find_spec(tool) is not None


def simplify(tool: str, source: Path, target: Path, seconds: float) -> str:
    """Apply a tool within so many seconds: "", or what went wrong in a word."""
    command = [sys.executable, __file__, tool, str(source), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode < 0:
        return "crash"
    if done.returncode or not target.exists():
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        print(f"{tool} on {source.name}: {lines[-1] if lines else 'no output'}", file=sys.stderr)
        return "error"
    return ""


def _bnfold(source: str, target: str) -> None:
    import bnfold

    bnfold.fold(source, target)


def _onnxruntime(source: str, target: str) -> None:
    """Offline, at the highest level whose result does not depend on the machine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = target
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _onnxsim(source: str, target: str) -> None:
    import onnx
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(model, target)


def _onnxslim(source: str, target: str) -> None:
    import onnx
    import onnxslim

    model = onnxslim.slim(onnx.load(source))
    onnx.save(model, target)


def _onnxscript(source: str, target: str) -> None:
    import onnx
    import onnxscript.optimizer

    onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)


def _aimet_onnx(source: str, target: str) -> None:
    import onnx
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight

    model = onnx.load(source)
    fold_all_batch_norms_to_weight(model)  # it changes the model that it is given
    onnx.save(model, target)


_RUN: dict[str, Callable[[str, str], None]] = {
    "bnfold": _bnfold,
    "onnxruntime": _onnxruntime,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxscript": _onnxscript,
    "aimet_onnx": _aimet_onnx,
}

if __name__ == "__main__":
    _RUN[sys.argv[1]](*sys.argv[2:4])
