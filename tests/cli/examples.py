"""Models on disk for the command to work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graphs import bn, conv, model, op, rand


def foldable() -> onnx.ModelProto:
    """One BatchNormalization that folds into its Conv, and two behind a Sigmoid that do not."""
    return model(
        conv("conv1", "x", "c1", (8, 3, 3, 3)),
        bn("bn1", "c1", "b1", 8),
        op("Relu", "b1", "r"),
        conv("conv2", "r", "c2", (8, 8, 3, 3)),
        op("Sigmoid", "c2", "s"),
        bn("bn2", "s", "b2", 8),
        op("Sigmoid", "b2", "t"),
        bn("bn3", "t", "y", 8),
    )


def settled() -> onnx.ModelProto:
    """Nothing to fold."""
    return model(conv("conv", "x", "c", (8, 3, 3, 3)), op("Relu", "c", "y"))


def strange() -> onnx.ModelProto:
    """A fold, and an operator with an attribute that no runtime takes."""
    return model(
        conv("conv", "x", "c", (8, 3, 3, 3)),
        bn("bn", "c", "b", 8),
        op("Relu", "b", "y", name="mystery", strength=2),
    )


def slow() -> onnx.ModelProto:
    """Takes seconds to verify and is small to store."""
    pieces, source, channels = [], "x", 16
    for k in range(4):
        pieces += [
            conv(f"conv{k}", source, f"c{k}", (32, channels, 3, 3), pads=[1, 1, 1, 1]),
            bn(f"bn{k}", f"c{k}", f"b{k}", 32),
            op("Relu", f"b{k}", f"r{k}"),
        ]
        source, channels = f"r{k}", 32
    return model(*pieces, x=(1, 16, 400, 400), y=source)


def unshaped() -> onnx.ModelProto:
    """A map that crosses a MaxPool of which no check can run: the model says no shape."""
    made = model(
        conv("conv", "x", "c", (8, 3, 3, 3)),
        op("MaxPool", "c", "r", kernel_shape=[2, 2]),
        op("Mul", "r two", "y"),
        weights={"two": np.float32(2.0)},
    )
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.ClearField("shape")
    return made


def crossing() -> onnx.ModelProto:
    """A BatchNormalization behind a MaxPool, which is checked by running that operator alone."""
    return model(
        conv("conv", "x", "c", (8, 3, 3, 3)),
        op("MaxPool", "c", "p", kernel_shape=[2, 2]),
        bn("bn", "p", "b", 8),
        op("Relu", "b", "y"),
    )


def hiding() -> onnx.ModelProto:
    """Six folds. Every second one hardly moves the output, and has one beside it that does."""
    pieces, total = [], ""
    for k in range(6):
        node, weights = bn(f"bn{k}", f"c{k}", f"b{k}", 4)
        if k % 2:
            weights |= {name: np.float32(1e-9) * weights[name] for name in list(weights)[:2]}
        pieces += [conv(f"conv{k}", "x", f"c{k}", (4, 3, 3, 3)), (node, weights)]
        pieces += [op("Sigmoid", f"b{k}", f"s{k}")]
        if total:
            pieces.append(op("Add", f"{total} s{k}", f"t{k}"))
        total = f"t{k}" if total else f"s{k}"
    return model(*pieces, y=total)


def endless() -> onnx.ModelProto:
    """A fold, and a loop that no machine sees the end of."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"]),
            helper.make_node("Conv", ["state", "loop.w"], ["next"], pads=[1, 1, 1, 1]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    turns = {
        "turns": np.array(2**62, np.int64),
        "yes": np.array(True),
        "loop.w": rand(8, 8, 3, 3) * np.float32(0.01),
    }
    return model(
        conv("conv", "x", "c", (8, 3, 3, 3)),
        bn("bn", "c", "b", 8),
        op("Loop", "turns yes b", "y", body=body),
        weights=turns,
    )


def save(made: onnx.ModelProto, path: Path, **data: str) -> Path:
    """Write a model; tensors named in ``data`` go to that file beside it, one after the other."""
    stored = onnx.ModelProto()
    stored.CopyFrom(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    for tensor in stored.graph.initializer:
        location = data.get(tensor.name.replace(".", "_"))
        if location is None:
            continue
        with (path.parent / location).open("ab") as file:
            offset, length = file.tell(), file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(stored.SerializeToString())
    return path


def operators(path: Path) -> list[str]:
    """The operators of a model file, its external data loaded."""
    return [node.op_type for node in onnx.load(path).graph.node]


def older(folder: Path) -> Path:
    """An older output with a data file of its own."""
    return save(settled(), folder / "out.onnx", conv_w="out.onnx.data")
