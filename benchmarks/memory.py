"""Peak memory of the command on a large model with external data, as a ratio to the model's size.

The model is a chain of Gemm, BatchNormalization and Relu whose weights, 67 MB each, lie in one file
beside it; every BatchNormalization folds, so that every weight changes. Each figure is of a whole
process: peak resident memory as the kernel reports it, and, by looking every few milliseconds, the
most that was the process's own and not pages of a mapped file, which the kernel can drop at any
time::

    python benchmarks/memory.py
    python benchmarks/memory.py --gigabytes 4 --folder /var/tmp
    python benchmarks/memory.py --width 8192

It takes three times the model's size on disk. Beside bnfold: onnx.load + onnx.save, and one session
of onnxruntime that runs the model once, as verification opens it. It imports nothing but the
standard library itself, since a child's peak memory starts from its parent's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from command import bnfold_command

POLL = 0.01

BUILD = """
import sys
import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

path, layers, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
nodes, stored, value = [], [], "x"
with open(path + ".data", "wb") as data:
    for k in range(layers):
        weight = rng.standard_normal((width, width), dtype=np.float32) * (2 / width) ** 0.5
        tensor = TensorProto(name=f"w{k}", data_type=TensorProto.FLOAT, dims=weight.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": path.rpartition("/")[2] + ".data", "offset": data.tell()}
        place["length"] = data.write(weight.astype(np.float32).tobytes())
        for key, number in place.items():
            tensor.external_data.add(key=key, value=str(number))
        stored.append(tensor)
        for name, low, high in (("s", 0.5, 1.5), ("b", -0.3, 0.3), ("m", -0.3, 0.3), ("v", 0.5, 2)):
            parameter = rng.uniform(low, high, width).astype(np.float32)
            stored.append(numpy_helper.from_array(parameter, f"{name}{k}"))
        nodes.append(helper.make_node("Gemm", [value, f"w{k}"], [f"g{k}"], f"gemm{k}"))
        norm = [f"g{k}", f"s{k}", f"b{k}", f"m{k}", f"v{k}"]
        nodes.append(helper.make_node("BatchNormalization", norm, [f"n{k}"], f"norm{k}"))
        value = "y" if k == layers - 1 else f"r{k}"
        nodes.append(helper.make_node("Relu", [f"n{k}"], [value], f"relu{k}"))
ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", width]) for n in "xy"]
graph = helper.make_graph(nodes, "layers", ports[:1], ports[1:], stored)
opsets = [helper.make_opsetid("", 17)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
with open(path, "wb") as file:
    file.write(model.SerializeToString())
"""

LOAD_SAVE = """
import sys, onnx
model = onnx.load(sys.argv[1])
onnx.save(model, sys.argv[2], save_as_external_data=True, location="again.data")
"""

SESSION = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
options.add_session_config_entry("session.disable_prepacking", "1")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.ones((1, int(sys.argv[2])), np.float32)})
"""


@dataclass(frozen=True)
class Peak:
    """Bytes: the most resident memory of a process, and the most that was its own."""

    resident: int
    own: int
    seconds: float


def measure(command: list[str]) -> Peak:
    """Run a command to its end; RuntimeError with what it printed if it fails."""
    with tempfile.TemporaryFile() as log:
        start, own = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            own = max(own, *map(_anonymous, (process.pid, *_children(process.pid))))
            time.sleep(POLL)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            text = log.read().decode(errors="replace").strip()
            raise RuntimeError(f"{command}: exit code {process.returncode}\n{text}")
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return Peak(usage.ru_maxrss * unit, own, seconds)


def _children(process: int) -> list[int]:
    """The processes that a process has started, where the kernel tells: bnfold works in one."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(number) for number in text.split()]


def _anonymous(process: int) -> int:
    """Bytes of resident memory that no file backs, where the kernel tells."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0][1]) * 1024 if lines else 0


def row(name: str, peak: Peak, size: int) -> str:
    """One line of the table."""
    ratios = f"{peak.resident / size:>12.2f}{peak.own / size:>12.2f}"
    return f"{name:<28}{peak.resident / 1e6:>10.0f}{ratios}{peak.seconds:>10.1f}"


def main() -> None:
    """Build the model, measure, print, and leave nothing behind."""
    parser = argparse.ArgumentParser(description="Peak memory on a model with external data.")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the model (default: 1)")
    parser.add_argument("--folder", type=Path, help="where the files go (default: the system's)")
    parser.add_argument("--width", type=int, default=4096, help="of a layer (default: 4096)")
    arguments = parser.parse_args()
    width = str(arguments.width)
    layers = max(1, round(arguments.gigabytes * 1e9 / (4 * arguments.width**2)))
    python, bnfold = sys.executable, bnfold_command()
    with tempfile.TemporaryDirectory(prefix="bnfold-", dir=arguments.folder) as folder:
        model, folded, again = (str(Path(folder) / f"{n}.onnx") for n in ("m", "folded", "again"))
        subprocess.run([python, "-c", BUILD, model, str(layers), width], check=True)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        print(f"{layers} layers, {size / 1e6:.0f} MB")
        print(f"{'command':<28}{'peak MB':>10}{'x model':>12}{'own, x':>12}{'seconds':>10}")
        cases = {
            "one session, one run": [python, "-c", SESSION, model, width],
            "onnx.load + onnx.save": [python, "-c", LOAD_SAVE, model, again],
            "bnfold --no-verify": [*bnfold, model, "-o", folded, "--no-verify"],
            "bnfold verify": [*bnfold, "verify", model, folded],
            "bnfold": [*bnfold, model, "-o", folded],
        }
        for name, command in cases.items():
            try:
                print(row(name, measure(command), size), flush=True)
            except RuntimeError as error:
                sys.exit(str(error))
            for file in Path(folder).glob("again*"):
                file.unlink()


if __name__ == "__main__":
    main()
