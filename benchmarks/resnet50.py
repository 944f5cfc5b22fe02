"""Build a ResNet-50 in ONNX with its 53 BatchNormalizations, for the benchmarks.

The architecture is the usual one (stride in the 3 by 3 convolution), about 102 MB of float32. The
weights are drawn by He's rule from a fixed seed. As in training, every BatchNormalization gets the
mean and variance that its input has over a batch of images: the network is evaluated in NumPy, on
small images, while it is built. So activations keep a sane scale through all layers::

    python benchmarks/resnet50.py resnet50.onnx
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED = 50
OPSET, IR_VERSION = 17, 8
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
EXPANSION = 4
CLASSES = 1000
EPSILON = 1e-5
INPUT, OUTPUT = "input", "logits"

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tensor:
    """The name of an activation and its value for the calibration images."""

    name: str
    value: Array

    @property
    def channels(self) -> int:
        """The size of axis 1."""
        return int(self.value.shape[1])


def images(count: int, size: int, seed: int) -> Array:
    """Random images of about unit variance: coarse structure, a tint and fine noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4)).repeat(size // 4, 2).repeat(size // 4, 3)
    tint = rng.standard_normal((count, 3, 1, 1))
    noise = rng.standard_normal((count, 3, size, size))
    return ((coarse + tint + noise) / math.sqrt(3)).astype(np.float32)


def windows(x: Array, kernel: int, stride: int, fill: float) -> Array:
    """Views of all kernel windows of `x`, padded by half a kernel: [N, C, H, W, k, k]."""
    pad = kernel // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
    return view[:, :, ::stride, ::stride]


class Builder:
    """Collects nodes and initializers, and computes what the nodes compute."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(SEED)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, named after the node, and return that output."""
        output = OUTPUT if name == "fc" else f"{name}.out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def weight(self, name: str, value: Array) -> str:
        """Add an initializer and return its name."""
        self.initializers.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def normal(self, *shape: int, scale: float) -> Array:
        """Normal float32 values around zero."""
        values: Array = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return values

    def conv(self, x: Tensor, name: str, channels: int, kernel: int, stride: int) -> Tensor:
        """Add a convolution without bias that keeps the size, but for its stride."""
        fan_in = x.channels * kernel * kernel
        w = self.normal(channels, x.channels, kernel, kernel, scale=math.sqrt(2 / fan_in))
        output = self.node(
            "Conv",
            [x.name, self.weight(f"{name}.weight", w)],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
        )
        view = windows(x.value, kernel, stride, 0.0)
        y = np.tensordot(view, w, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        return Tensor(output, y)

    def batch_norm(self, x: Tensor, name: str, gain: float) -> Tensor:
        """Add a BatchNormalization with the statistics of `x` and a γ around `gain`."""
        mean, var = x.value.mean(axis=(0, 2, 3)), x.value.var(axis=(0, 2, 3))
        gamma = (gain * self.rng.uniform(0.5, 1.5, x.channels)).astype(np.float32)
        beta = self.normal(x.channels, scale=0.1)
        parameters = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": var}
        names = [self.weight(f"{name}.{key}", value) for key, value in parameters.items()]
        output = self.node("BatchNormalization", [x.name, *names], name, epsilon=EPSILON)
        scale = gamma / np.sqrt(var + np.float32(EPSILON))
        shift = beta - mean * scale
        return Tensor(output, x.value * scale[:, None, None] + shift[:, None, None])

    def relu(self, x: Tensor, name: str) -> Tensor:
        """Add a ReLU."""
        return Tensor(self.node("Relu", [x.name], name), np.maximum(x.value, np.float32(0)))

    def bottleneck(self, x: Tensor, name: str, width: int, stride: int) -> Tensor:
        """Add a residual block of three convolutions, with a fourth where the shape changes."""
        outputs = width * EXPANSION
        y = self.batch_norm(self.conv(x, f"{name}.conv1", width, 1, 1), f"{name}.bn1", 1.0)
        y = self.relu(y, f"{name}.relu1")
        y = self.batch_norm(self.conv(y, f"{name}.conv2", width, 3, stride), f"{name}.bn2", 1.0)
        y = self.relu(y, f"{name}.relu2")
        y = self.batch_norm(self.conv(y, f"{name}.conv3", outputs, 1, 1), f"{name}.bn3", 0.5)
        if x.channels != outputs:
            x = self.conv(x, f"{name}.downsample.0", outputs, 1, stride)
            x = self.batch_norm(x, f"{name}.downsample.1", 1.0)
        total = self.node("Add", [y.name, x.name], f"{name}.add")
        return self.relu(Tensor(total, y.value + x.value), f"{name}.relu3")


def build() -> onnx.ModelProto:
    """The model, with a free batch dimension."""
    b = Builder()
    x = Tensor(INPUT, images(count=8, size=64, seed=SEED))
    x = b.relu(b.batch_norm(b.conv(x, "conv1", 64, 7, 2), "bn1", 1.0), "relu")
    pooled = b.node(
        "MaxPool", [x.name], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
    )
    x = Tensor(pooled, windows(x.value, 3, 2, -math.inf).max(axis=(4, 5)))
    for stage, (depth, width) in enumerate(STAGES):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            x = b.bottleneck(x, f"layer{stage + 1}.{block}", width, stride)
    flat = b.node("Flatten", [b.node("GlobalAveragePool", [x.name], "avgpool")], "flatten")
    w = b.weight("fc.weight", b.normal(CLASSES, x.channels, scale=math.sqrt(1 / x.channels)))
    b.node("Gemm", [flat, w, b.weight("fc.bias", b.normal(CLASSES, scale=0.1))], "fc", transB=1)

    image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, 224, 224])
    logits = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(b.nodes, "resnet50", [image], [logits], b.initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="resnet50.py"
    )


def check(path: Path) -> tuple[float, float]:
    """Run the model on two images; the spread of the logits, and of their difference.

    Raises RuntimeError where the outputs are not finite, or so large, small or alike that comparing
    two such models would say nothing.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    (logits,) = session.run(None, {INPUT: images(count=2, size=224, seed=SEED + 1)})
    spread, change = float(np.std(logits)), float(np.std(logits[0] - logits[1]))
    if not (np.isfinite(logits).all() and 0.1 < spread < 10 and change > 0.05 * spread):
        raise RuntimeError(f"logits are degenerate: spread {spread:g}, change {change:g}")
    return spread, change


def main() -> None:
    """Build, save and check the model."""
    parser = argparse.ArgumentParser(description="Build a ResNet-50 with its BatchNorms.")
    parser.add_argument("output", type=Path)
    path: Path = parser.parse_args().output
    onnx.save(build(), path)
    spread, change = check(path)
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, logits spread {spread:.3g}, "
        f"between two images {change:.3g}"
    )


if __name__ == "__main__":
    main()
