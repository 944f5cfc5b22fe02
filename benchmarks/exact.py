"""How far a change of a model moves its outputs, measured apart from bnfold: in float64.

Both models are run by the onnx package's evaluator with every float32 taken for a float64, so that
nothing is lost to rounding on the way and a difference between two models is one between two
functions. The operators that this evaluator gets wrong (a BatchNormalization with momentum) or does
slowly are computed here, by PyTorch. What rounding may do to the same outputs is measured too: in
float64, how far they move when every weight does by -1, 0 or +1 unit in the last place of its
float32; and how far float32 arithmetic, onnxruntime's without optimizations, is off.

What a last Sigmoid or Softmax reads counts as an output too: two models that differ there differ,
also where the function is saturated on the inputs at hand and hides it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from bugs import parameters
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = NDArray[Any]
Feeds = Mapping[str, Array]

DRAWS = 8
WEIGHTED = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul")
SATURATING = ("Sigmoid", "Softmax", "Tanh")


def movement(left: Sequence[Array], right: Sequence[Array]) -> list[float]:
    """The largest absolute difference of each output that both have; infinite where one is NaN."""
    found = []
    for a, b in zip(left, right, strict=False):
        if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
            found.append(float("inf"))
        else:
            found.append(float(np.nanmax(np.abs(a - b), initial=0.0)))
    return found


class Yardstick:
    """A model's outputs in float64 on some inputs, and how far rounding moves them."""

    def __init__(self, model: ModelProto, inputs: Sequence[Feeds], seed: int = 0) -> None:
        """Run the model on each input: in float64, in float32, and `DRAWS` times with its weights
        moved.

        Raises whatever the evaluator does for an operator that it cannot compute.
        """
        rng = np.random.default_rng(seed)
        self._inputs = inputs
        self.outputs = [evaluate(model, feeds) for feeds in inputs]
        single = [in_float32(model, feeds) for feeds in inputs]
        self.rounding = [movement(*pair) for pair in zip(self.outputs, single, strict=True)]
        for _ in range(DRAWS):
            moved = [evaluate(noisy(model, rng), feeds) for feeds in inputs]
            for k, (plain, other) in enumerate(zip(self.outputs, moved, strict=True)):
                steps = zip(self.rounding[k], movement(plain, other), strict=True)
                self.rounding[k] = [max(pair) for pair in steps]

    def excess(self, other: ModelProto) -> float:
        """How many times further than rounding another model is off, on the worst input and output.

        Raises as the evaluator does.
        """
        worst = 0.0
        for feeds, plain, rounding in zip(self._inputs, self.outputs, self.rounding, strict=True):
            gaps = movement(plain, evaluate(other, feeds))
            for gap, usual in zip(gaps, rounding, strict=False):
                worst = max(worst, gap / usual if usual else (np.inf if gap else 0.0))
        return worst


def evaluate(model: ModelProto, feeds: Feeds) -> list[Array]:
    """The outputs of a float32 model in float64, and then what their last functions read."""
    wide = _laid_open(model)
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in _tensors(wide):
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = _widened(attribute.i)
    evaluator = ReferenceEvaluator(wide, new_ops=_OPERATORS)
    fed = {name: _wide(values) for name, values in feeds.items()}
    with np.errstate(all="ignore"), torch.no_grad():
        return [np.asarray(output) for output in evaluator.run(None, fed)]


def in_float32(model: ModelProto, feeds: Feeds) -> list[Array]:
    """The same values from onnxruntime, its optimizations off."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = _laid_open(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, dict(feeds))
    return outputs


def _laid_open(model: ModelProto) -> ModelProto:
    """A copy that also puts out what the functions read that its outputs come from."""
    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    makers = {name: node for node in made.graph.node for name in node.output}
    for value in list(made.graph.output):
        last = makers.get(value.name)
        if last is not None and last.op_type in SATURATING:
            made.graph.output.add(name=last.input[0])
    return made


def noisy(model: ModelProto, rng: np.random.Generator) -> ModelProto:
    """A copy whose stored weights have moved by up to a unit in the last place of float32.

    They are stored as float64, or they would round to the next number once more. Only what linear
    operators and BatchNormalizations read moves: other constants may be sizes.
    """
    moved = ModelProto()
    moved.CopyFrom(model)
    stored = parameters(moved)
    for name in sorted({n for node in moved.graph.node for n in _weights(node)} & stored.keys()):
        values = numpy_helper.to_array(stored[name])
        if values.dtype == np.float32:
            steps = rng.integers(-1, 2, values.shape) * np.spacing(np.abs(values))
            changed = np.where(values == 0, 0, values.astype(np.float64) + steps)
            stored[name].CopyFrom(numpy_helper.from_array(changed, stored[name].name))
    return moved


def _weights(node: NodeProto) -> Sequence[str]:
    return node.input[1:] if node.op_type in WEIGHTED else ()


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _widened(element: int) -> int:
    return int(TensorProto.DOUBLE) if element == TensorProto.FLOAT else element


def _wide(values: Array) -> Array:
    return values.astype(np.float64) if values.dtype == np.float32 else values


# --- operators, as ONNX defines them ------------------------------------------------------------


def _pads(pads: Sequence[int] | None, rank: int) -> list[int]:
    """ONNX's pads, all beginnings and then all ends, in PyTorch's order: last axis first."""
    pads = pads or [0] * (2 * rank)
    return [n for axis in reversed(range(rank)) for n in (pads[axis], pads[rank + axis])]


def _torch(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(values))  # PyTorch warns of memory that it may not write to


def _refuse(condition: Any, what: str) -> None:
    if condition:
        raise NotImplementedError(what)


class Conv(OpRun):
    """By PyTorch; explicit pads."""

    op_domain = ""

    def _run(
        self, x: Array, w: Array, b: Array | None = None, auto_pad: str = "NOTSET", **a: Any
    ) -> tuple[Array]:
        _refuse(auto_pad not in ("NOTSET", "VALID", None), f"Conv with auto_pad {auto_pad}")
        rank = x.ndim - 2
        padded = F.pad(_torch(x), _pads(a.get("pads"), rank))
        run = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        bias = None if b is None else _torch(b)
        strides, dilations = (a.get(key) or [1] * rank for key in ("strides", "dilations"))
        y = run(padded, _torch(w), bias, strides, 0, dilations, a.get("group") or 1)
        return (y.numpy(),)


class ConvTranspose(OpRun):
    """By PyTorch; pads that are alike on both sides."""

    op_domain = ""

    def _run(
        self, x: Array, w: Array, b: Array | None = None, auto_pad: str = "NOTSET", **a: Any
    ) -> tuple[Array]:
        rank = x.ndim - 2
        pads = a.get("pads") or [0] * (2 * rank)
        _refuse(auto_pad not in ("NOTSET", None), f"ConvTranspose with auto_pad {auto_pad}")
        _refuse(a.get("output_shape"), "ConvTranspose with an output_shape")
        _refuse(list(pads[:rank]) != list(pads[rank:]), "ConvTranspose with uneven pads")
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        strides, dilations = (a.get(key) or [1] * rank for key in ("strides", "dilations"))
        y = run(
            _torch(x),
            _torch(w),
            None if b is None else _torch(b),
            strides,
            list(pads[:rank]),
            a.get("output_padding") or [0] * rank,
            a.get("group") or 1,
            dilations,
        )
        return (y.numpy(),)


class BatchNormalization(OpRun):
    """``γ·(x − mean)/√(var + ε) + β``: in inference, whatever the momentum."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, **a: Any
    ) -> tuple[Array]:
        _refuse(a.get("training_mode"), "BatchNormalization in training mode")
        epsilon = a.get("epsilon")
        shape = (1, -1, *(1,) * (x.ndim - 2))
        factor = scale / np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
        y = (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
        return (y,)


class MaxPool(OpRun):
    """By PyTorch, what is outside being smaller than everything."""

    op_domain = ""

    def _run(self, x: Array, **a: Any) -> tuple[Array]:
        _refuse(a.get("auto_pad") not in ("NOTSET", None), "MaxPool with auto_pad")
        rank = x.ndim - 2
        padded = F.pad(_torch(x), _pads(a.get("pads"), rank), value=-np.inf)
        run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
        strides, dilations = (a.get(key) or [1] * rank for key in ("strides", "dilations"))
        y = run(padded, a["kernel_shape"], strides, 0, dilations, bool(a.get("ceil_mode")))
        return (y.numpy(),)


class AveragePool(OpRun):
    """By PyTorch: sums over windows, divided by how much of each lies inside, or by its size."""

    op_domain = ""

    def _run(self, x: Array, **a: Any) -> tuple[Array]:
        odd = a.get("auto_pad") not in ("NOTSET", None) or a.get("ceil_mode")
        _refuse(odd, "AveragePool with auto_pad or ceil_mode")
        rank = x.ndim - 2
        pads, kernel = _pads(a.get("pads"), rank), a["kernel_shape"]
        run = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
        strides = a.get("strides") or [1] * rank
        values = _torch(x)
        inside = F.pad(torch.ones_like(values), pads)
        share = torch.ones(()) if a.get("count_include_pad") else run(inside, kernel, strides)
        return ((run(F.pad(values, pads), kernel, strides) / share).numpy(),)


class Resize(OpRun):
    """The nearest value, as Paddle asks for it: ``floor(i / scale)`` along each axis."""

    op_domain = ""

    def _run(
        self, x: Array, roi: Array | None = None, scales: Array | None = None, *_: Any, **a: Any
    ) -> tuple[Array]:
        asked = (a["mode"], a["coordinate_transformation_mode"], a["nearest_mode"])
        _refuse(asked != ("nearest", "asymmetric", "floor") or scales is None, f"Resize {asked}")
        assert scales is not None
        for axis, scale in enumerate(scales):
            places = np.floor(np.arange(int(x.shape[axis] * scale)) / scale).astype(int)
            x = np.take(x, places, axis)
        return (x,)


_OPERATORS = [Conv, ConvTranspose, BatchNormalization, MaxPool, AveragePool, Resize]
