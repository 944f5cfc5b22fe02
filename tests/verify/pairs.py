"""Small random models, each with the form that a right fold would give it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]


class Pair:
    """A chain of linear operators with affine maps around them, and its folded form.

    New weights are computed in float64 and rounded once. Sizes are tiny (1 to 6 channels) and the
    statistics wild (scales over four decades, shifts that cancel), which is what makes tolerances
    hard to measure.
    """

    def __init__(self, seed: int, dtype: type = np.float32, mistake: str = "") -> None:
        """Draw one pair; a mistake is made in one layer of the folded form.

        `spoilt` tells whether it changed anything: rolling a single channel does not. `overflows`
        tells that the new weights do not fit their type, so that there is nothing to fold.
        """
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.mistake = mistake
        self.weights: dict[str, Array] = {}
        self.spoilt = False
        self.overflows = False
        self._nodes: tuple[list[onnx.NodeProto], list[onnx.NodeProto]] = ([], [])
        self._tensors: tuple[list[onnx.TensorProto], list[onnx.TensorProto]] = ([], [])
        self._count = 0
        image = bool(self.rng.random() < 0.6)
        self.channels = int(self.rng.integers(1, 7))
        size = int(self.rng.integers(4, 9))
        rest = [size, size] if image else []
        shape: list[Any] = ["n", self.channels, *rest]
        value = "x"
        layers = int(self.rng.integers(1, 4))
        wrong = int(self.rng.integers(layers))
        for layer in range(layers):
            value = self._layer(value, image, layer == wrong)
            if layer < layers - 1 or self.rng.random() < 0.3:
                value = self._both(str(self.rng.choice(["Relu", "Sigmoid", "Tanh"])), value)
        if image and self.rng.random() < 0.5:
            value = self._both("GlobalAveragePool", value)
        self._both("Identity", value, "y")
        self.original = self._model(0, shape)
        self.folded = self._model(1, shape)

    def _model(self, side: int, shape: list[Any]) -> onnx.ModelProto:
        element = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            self._nodes[side],
            "pair",
            [helper.make_tensor_value_info("x", element, shape)],
            [helper.make_tensor_value_info("y", element, None)],
            self._tensors[side],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return model

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def _both(self, kind: str, value: str, output: str = "") -> str:
        output = output or self._name("v")
        for nodes in self._nodes:
            nodes.append(helper.make_node(kind, [value], [output]))
        return output

    def _constant(self, array: Array) -> str:
        name = self._name("w")
        stored = np.asarray(array, dtype=self.dtype)
        self.weights[name] = stored
        self._tensors[0].append(numpy_helper.from_array(stored, name))
        return name

    def _wild(self, count: int, low: float, high: float) -> Array:
        return np.asarray(10 ** self.rng.uniform(low, high, count), dtype=self.dtype)

    def _affine(self, value: str, channels: int, image: bool) -> tuple[str, Array, Array]:
        """Append an affine map to the original; return its scale and shift in float64."""
        rng, output = self.rng, self._name("v")
        kind = str(rng.choice(["BatchNormalization", "Mul", "Add", "Sub", "Div"]))
        if kind == "BatchNormalization":
            gamma = self._wild(channels, -1, 1) * rng.choice([-1, 1], channels).astype(self.dtype)
            beta = rng.normal(0, 1, channels).astype(self.dtype)
            mean = (rng.normal(0, 1, channels) * self._wild(1, -1, 1.5)).astype(self.dtype)
            variance = self._wild(channels, -3, 1)
            names = [self._constant(a) for a in (gamma, beta, mean, variance)]
            epsilon = 1e-3 if rng.random() < 0.3 else 1e-5
            self._nodes[0].append(
                helper.make_node(kind, [value, *names], [output], epsilon=epsilon)
            )
            parts: list[Array] = [a.astype(np.float64) for a in (gamma, beta, mean, variance)]
            scale = parts[0] / np.sqrt(parts[3] + np.float64(np.float32(epsilon)))
            return output, scale, parts[1] - parts[2] * scale
        constant = self._wild(channels, -1, 1) if rng.random() < 0.5 else self._wild(1, -1, 2)
        shape = [-1, 1, 1] if image else [-1]
        name = self._constant(constant.reshape(shape))
        self._nodes[0].append(helper.make_node(kind, [value, name], [output]))
        wide = np.broadcast_to(constant.astype(np.float64), channels)
        ones, zeros = np.ones(channels), np.zeros(channels)
        maps = {
            "Mul": (wide, zeros),
            "Div": (1 / wide, zeros),
            "Add": (ones, wide),
            "Sub": (ones, -wide),
        }
        return output, *maps[kind]

    def _layer(self, value: str, image: bool, wrong: bool) -> str:
        """Append an affine map ahead, a linear operator, and affine maps behind."""
        rng, source, inner = self.rng, value, self.channels
        scale_in, shift_in = np.ones(inner), np.zeros(inner)
        if rng.random() < 0.4:
            value, scale_in, shift_in = self._affine(value, inner, image)
        outer = int(rng.integers(1, 7))
        kernel = int(rng.choice([1, 2])) if image else 1
        shape = (outer, inner, kernel, kernel) if image else (outer, inner)
        weight = (rng.normal(0, 1, shape) * self._wild(1, -1, 0.5)).astype(self.dtype)
        bias = (rng.normal(0, 1, outer) * self._wild(1, -1, 1)).astype(self.dtype)
        output = self._name("v")
        kind = "Conv" if image else "Gemm"
        options = {} if image else {"transB": 1}
        names = [self._constant(weight), self._constant(bias)]
        self._nodes[0].append(helper.make_node(kind, [value, *names], [output], **options))
        flat = weight.astype(np.float64).reshape(outer, inner, -1)
        new_bias = bias.astype(np.float64) + (flat * shift_in[:, None]).sum(axis=(1, 2))
        flat = flat * scale_in[:, None]
        for _ in range(int(rng.integers(0, 3))):
            output, scale, shift = self._affine(output, outer, image)
            flat = flat * scale[:, None, None]
            new_bias = new_bias * scale + shift
        right = (flat, new_bias.copy())
        flat = flat.copy()
        if wrong and self.mistake == "one channel off":
            flat[outer // 2] *= 1.01
        elif wrong and self.mistake == "bias off":
            new_bias[outer // 2] *= 1.01
        elif wrong and self.mistake == "rolled":
            flat = np.roll(flat, 1, axis=1 if outer == 1 else 0)
        if wrong:
            self.spoilt = not (
                np.array_equal(flat, right[0]) and np.array_equal(new_bias, right[1])
            )
        folded = [self._name("folded"), self._name("folded")]
        for name, array in zip(folded, (flat.reshape(shape), new_bias), strict=True):
            stored = np.asarray(array, dtype=self.dtype)
            self.overflows |= not np.isfinite(stored).all()
            self._tensors[1].append(numpy_helper.from_array(stored, name))
        self._nodes[1].append(helper.make_node(kind, [source, *folded], [output], **options))
        self.channels = outer
        return output
