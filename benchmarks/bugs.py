"""Bugs that fold BatchNorms wrongly, planted from outside.

A model is changed as the bug would have it, and the changed model is folded rightly. What comes out
is, up to rounding, what a tool with that bug would have made of the model as it was. A bug applies
to a model that has the structure for it.

Where a bug gets only the weights wrong, a BatchNorm ``s·x + t`` behind an operator with bias b is
given another scale s' and the shift ``t + b·(s − s')``: the weights then fold to ``W·s'`` and the
bias to ``b·s + t``, as it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import bnfold

Array = NDArray[Any]

TRANSPARENT = ("Dropout", "Identity")
LINEAR = ("Conv", "ConvTranspose")


class Net:
    """A model's main graph, whose stored values can be read and replaced."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.nodes = model.graph.node
        self._given = {value.name for value in model.graph.output}
        self._stored = parameters(model)
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    @property
    def norms(self) -> list[Norm]:
        """The BatchNormalizations, in the order of the graph."""
        return [Norm(self, node) for node in self.nodes if node.op_type == "BatchNormalization"]

    def stored(self, node: NodeProto, position: int) -> Array | None:
        """A float input that the model stores; None if there is none or it is computed."""
        if len(node.input) <= position or node.input[position] not in self._stored:
            return None
        values: Array = numpy_helper.to_array(self._stored[node.input[position]])
        return values if values.dtype == np.float32 else None

    def store(self, node: NodeProto, position: int, values: Array) -> None:
        """Replace a stored input, or add one under a new name at the end of a node's inputs."""
        wanted = np.asarray(values, np.float32)
        if position < len(node.input):
            tensor = self._stored[node.input[position]]
            tensor.CopyFrom(numpy_helper.from_array(wanted, tensor.name))
            return
        name = f"{node.output[0]}/added"
        self.graph.initializer.append(numpy_helper.from_array(wanted, name))
        self._stored[name] = self.graph.initializer[-1]
        node.input.append(name)

    def maker(self, node: NodeProto) -> NodeProto | None:
        """What computes a node's first input for it alone."""
        name = node.input[0]
        alone = len(self._readers.get(name, ())) == 1 and name not in self._given
        return self._makers.get(name) if alone else None

    def reader(self, node: NodeProto) -> NodeProto | None:
        """The only node that reads a node's first output, as its first input."""
        readers = self._readers.get(node.output[0], [])
        found = readers[0] if len(readers) == 1 else None
        return found if found is not None and self.maker(found) is node else None


@dataclass
class Norm:
    """A BatchNormalization, ``scale·x + shift`` per channel."""

    net: Net
    node: NodeProto

    def get(self, position: int) -> Array:
        """One of γ, β, mean and variance, 1 to 4."""
        values = self.net.stored(self.node, position)
        assert values is not None, self.node.name
        return values.astype(np.float64)

    @property
    def epsilon(self) -> float:
        """As stored, or what ONNX says."""
        return float(_attribute(self.node, "epsilon", 1e-5))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        kept = [a for a in self.node.attribute if a.name != "epsilon"]
        del self.node.attribute[:]
        self.node.attribute.extend([*kept, helper.make_attribute("epsilon", float(value))])

    @property
    def momentum(self) -> float:
        """As stored, or what ONNX says."""
        return float(_attribute(self.node, "momentum", 0.9))

    @property
    def scale(self) -> Array:
        """γ/√(var + ε)."""
        scale: Array = self.get(1) / np.sqrt(self.get(4) + self.epsilon)
        return scale

    @property
    def shift(self) -> Array:
        """β − mean·scale."""
        shift: Array = self.get(2) - self.get(3) * self.scale
        return shift

    def become(self, scale: Array, shift: Array) -> None:
        """Another map."""
        self.net.store(self.node, 1, scale * np.sqrt(self.get(4) + self.epsilon))
        self.net.store(self.node, 2, shift)
        self.net.store(self.node, 3, np.zeros_like(shift))

    def ahead(self) -> tuple[NodeProto, Array] | None:
        """The Conv or ConvTranspose whose result this alone reads, and all bias on the way."""
        channels, bias = self.get(1).size, np.zeros(self.get(1).size)
        node = self.net.maker(self.node)
        while node is not None and node.op_type in (*TRANSPARENT, "Add"):
            if node.op_type == "Add":
                constant = self.net.stored(node, 1)
                if constant is None or constant.size not in (1, channels):
                    return None
                bias += constant.reshape(-1)
            node = self.net.maker(node)
        if node is None or node.op_type not in LINEAR or self.net.stored(node, 1) is None:
            return None
        own = self.net.stored(node, 2)
        return (node, bias) if own is None else (node, bias + own)


def parameters(model: ModelProto) -> dict[str, TensorProto]:
    """What the main graph stores, by the name of the value: initializers and Constant nodes."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    return stored


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    found: list[AttributeProto] = [a for a in node.attribute if a.name == name]
    return helper.get_attribute_value(found[0]) if found else default


# --- one BatchNorm or all of them -----------------------------------------------------------------

Plant = Callable[[Net], bool]
"""Puts a bug into a network; False where it has no place."""


def _norms(change: Callable[[Norm], None], once: bool = False) -> Plant:
    """Change all norms, or the middle one alone."""

    def plant(net: Net) -> bool:
        norms = net.norms
        for norm in norms[len(norms) // 2 :][:1] if once else norms:
            change(norm)
        return bool(norms)

    return plant


def _no_epsilon(norm: Norm) -> None:
    norm.epsilon = 0.0


def _usual_epsilon(norm: Norm) -> None:
    """PyTorch's where it was Keras' or TensorFlow's, and the other way round."""
    norm.epsilon = 1e-5 if norm.epsilon > 1e-4 else 1e-3


def _momentum(norm: Norm) -> None:
    norm.epsilon = norm.momentum


def _one_channel(norm: Norm) -> None:
    gamma = norm.get(1)
    gamma[int(np.argmax(np.abs(gamma)))] *= 1.01
    norm.net.store(norm.node, 1, gamma)


def _roll(norm: Norm) -> None:
    norm.become(np.roll(norm.scale, 1), norm.shift)


def _no_bias(norm: Norm) -> None:
    norm.net.store(norm.node, 2, np.zeros_like(norm.get(2)))


def _no_mean(norm: Norm) -> None:
    norm.net.store(norm.node, 3, np.zeros_like(norm.get(3)))


# --- a BatchNorm and what is ahead of it ----------------------------------------------------------


def _unscaled_bias(net: Net) -> bool:
    """The convolution's bias goes into the new one as it is: ``b + t``."""
    places = [(norm, found[1]) for norm in net.norms if (found := norm.ahead()) is not None]
    places = [(norm, bias) for norm, bias in places if bias.any()]
    for norm, bias in places:
        norm.become(norm.scale, norm.shift + bias * (1 - norm.scale))
    return bool(places)


def _wrong_axis(net: Net) -> bool:
    """The scale goes along a ConvTranspose's first axis, which is that of its input."""
    planted = False
    for norm in net.norms:
        found = norm.ahead()
        if found is None or found[0].op_type != "ConvTranspose":
            continue
        node, bias = found
        weight = net.stored(node, 1)
        assert weight is not None
        along = np.resize(norm.scale, weight.shape[0]).reshape(-1, *(1,) * (weight.ndim - 1))
        net.store(node, 1, weight * along)
        norm.become(np.ones_like(bias), norm.shift + bias * (norm.scale - 1))
        planted = True
    return planted


def _group_order(net: Net) -> bool:
    """Output channel m of group j is taken for ``m·g + j``; it is ``j·(Cout/g) + m``."""
    planted = False
    for norm in net.norms:
        found = norm.ahead()
        groups = _attribute(found[0], "group", 1) if found is not None else 1
        scale = norm.scale
        if found is None or groups == 1 or groups == scale.size:
            continue
        wrong = scale.reshape(-1, groups).T.reshape(-1)
        norm.become(wrong, norm.shift + found[1] * (scale - wrong))
        planted = True
    return planted


# --- a map and what is behind it ------------------------------------------------------------------


def _shift_across_padding(net: Net) -> bool:
    """A shift goes into the bias of the Conv that follows, as if zeros outside were shifted too:
    ``b_o + Σ W[o,i,k]·t_i`` (not exact at the border).
    """
    planted = False
    for node in net.nodes:
        weight = net.stored(node, 1) if node.op_type == "Conv" else None
        if weight is None:
            continue
        first, padded = net.maker(node), any(_attribute(node, "pads", ()))
        while first is not None and first.op_type in (*TRANSPARENT, "MaxPool", "Pad"):
            if first.op_type == "Pad":
                padded |= _attribute(first, "mode", b"constant") == b"constant"
            first = net.maker(first)
        groups = int(_attribute(node, "group", 1))
        shift = _without_shift(net, first, weight.shape[1] * groups) if padded else None
        if shift is None or not shift.any():
            continue
        per_group = shift.reshape(groups, 1, weight.shape[1])
        sums = weight.astype(np.float64).sum(tuple(range(2, weight.ndim)))
        more = (sums.reshape(groups, -1, weight.shape[1]) * per_group).sum(2).reshape(-1)
        bias = net.stored(node, 2)
        net.store(node, 2, more if bias is None else more + bias)
        planted = True
    return planted


def _without_shift(net: Net, last: NodeProto | None, channels: int) -> Array | None:
    """Take the shift out of a BatchNormalization, or out of the Adds and Subs of constants among
    the Muls and Divs by constants that end at a node; the shift that they had.
    """
    if last is not None and last.op_type == "BatchNormalization":
        norm = Norm(net, last)
        shift = norm.shift
        norm.become(norm.scale, np.zeros_like(shift))
        return shift
    total, factor = np.zeros(channels), np.ones(channels)
    while last is not None and last.op_type in ("Add", "Div", "Mul", "Sub"):
        constant = net.stored(last, 1)
        if constant is None or constant.size not in (1, channels):
            break
        values = np.broadcast_to(constant.reshape(-1).astype(np.float64), channels)
        if last.op_type in ("Add", "Sub"):
            total += factor * (values if last.op_type == "Add" else -values)
            net.store(last, 1, np.zeros_like(constant))
        else:
            factor = factor * (values if last.op_type == "Mul" else 1 / values)
        last = net.maker(last)
    return total


def _through_pool(net: Net) -> bool:
    """A BatchNormalization changes places with a MaxPool, though some scales are negative."""
    for first in net.nodes:
        second = net.reader(first)
        if second is None or {first.op_type, second.op_type} != {"BatchNormalization", "MaxPool"}:
            continue
        norm = first if first.op_type == "BatchNormalization" else second
        if len(first.output) > 1 or len(second.output) > 1 or not (Norm(net, norm).scale < 0).any():
            continue
        swapped = NodeProto()
        swapped.CopyFrom(second)
        swapped.input[0], swapped.output[0] = first.input[0], first.output[0]
        later = NodeProto()
        later.CopyFrom(first)
        later.input[0], later.output[0] = second.input[0], second.output[0]
        first.CopyFrom(swapped)
        second.CopyFrom(later)
        kept = [value for value in net.graph.value_info if value.name != first.output[0]]
        del net.graph.value_info[:]
        net.graph.value_info.extend(kept)
        return True
    return False


PLANTS: dict[str, Plant] = {
    "epsilon left out": _norms(_no_epsilon),
    "epsilon left out once": _norms(_no_epsilon, once=True),
    "epsilon 1e-5 for 1e-3": _norms(_usual_epsilon),
    "momentum for epsilon": _norms(_momentum),
    "one channel x 1.01": _norms(_one_channel, once=True),
    "scale rolled": _norms(_roll),
    "bias left out": _norms(_no_bias),
    "bias left out once": _norms(_no_bias, once=True),
    "mean left out": _norms(_no_mean),
    "mean left out once": _norms(_no_mean, once=True),
    "bias unscaled": _unscaled_bias,
    "ConvTranspose axis 0": _wrong_axis,
    "group order": _group_order,
    "shift across padding": _shift_across_padding,
    "negative through pool": _through_pool,
}


def wrong_folds(original: ModelProto) -> Iterator[tuple[str, ModelProto]]:
    """What tools with a bug would make of a model, by bug."""
    for name, plant in PLANTS.items():
        changed = ModelProto()
        changed.CopyFrom(original)
        if plant(Net(changed)):
            yield name, bnfold.fold(changed)
    yield "weights through bfloat16", through_bfloat16(original)


def through_bfloat16(original: ModelProto) -> ModelProto:
    """A right fold whose weights are rounded once too often."""
    rounded = bnfold.fold(original)
    net = Net(rounded)
    for node in net.nodes:
        weight = net.stored(node, 1) if node.op_type in (*LINEAR, "Gemm", "MatMul") else None
        if weight is not None:
            net.store(node, 1, weight.astype(ml_dtypes.bfloat16))
    return rounded
