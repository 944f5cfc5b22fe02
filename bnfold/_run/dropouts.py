"""Which Dropouts of a model are in training, and so draw which elements they leave out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import onnx
from onnx import TensorProto, numpy_helper

from bnfold._onnx.read.scopes import type_of

# The number of the input that says whether they are in training, where it is one.
_MODES = {
    "Dropout": 2,
    "com.microsoft::BiasDropout": 4,
    "com.microsoft::BitmaskBiasDropout": 4,
    "com.microsoft::BitmaskDropout": 2,
}
_ALWAYS_OFF, _SINCE = 7, 12


def training(model: onnx.ModelProto) -> Callable[[onnx.NodeProto, int], bool]:
    """Whether a node, by the opset of its graph, is a Dropout that may be in training.

    It is below opset 7 if ``is_test`` is 0, and from opset 12 if its input ``training_mode`` is
    there and not known to be false (ONNX Dropout). Known are stored constants that no input of the
    graph may replace, what an Identity hands on, and arguments of local functions if those of all
    calls are. One name counts as false only if it is so in every graph that has it.
    """
    off = _known_off(model)

    def is_in_training(node: onnx.NodeProto, opset: int) -> bool:
        place = _MODES.get(type_of(node))
        if place is None:
            return False
        if node.domain in ("", "ai.onnx") and opset < _SINCE:
            is_test = next((a.i for a in node.attribute if a.name == "is_test"), 0)
            return opset < _ALWAYS_OFF and not is_test
        return place < len(node.input) and bool(node.input[place]) and node.input[place] not in off

    return is_in_training


def _known_off(model: onnx.ModelProto) -> set[str]:
    """The names of tensors that are known to be false wherever they stand."""
    found, passed = defaultdict[str, list[bool]](list), list[tuple[str, str]]()
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    for values, nodes in _graphs(model):
        for name, held in values:
            found[name].append(held is not None and not held)
        for node in nodes:
            called = functions.get((node.domain, node.op_type, node.overload))
            given = [*node.input, *[""] * len(called.input)] if called is not None else []
            passed += zip(called.input if called is not None else (), given, strict=False)
            if node.op_type == "Constant" and node.output:
                held = next((_boolean(a.t) for a in node.attribute if a.name == "value"), None)
                found[node.output[0]].append(held is not None and not held)
            elif type_of(node) == "Identity" and called is None:
                passed.append((node.output[0], node.input[0]))
            else:
                for name in filter(None, node.output):
                    found[name].append(False)
    off = {name for name, told in found.items() if all(told)} | {""}
    formal = {name for name, _ in passed}
    off |= formal - found.keys()
    while wrong := {name for name, given in passed if name in off and given not in off}:
        off -= wrong
    return off


def _graphs(
    model: onnx.ModelProto,
) -> Iterator[tuple[list[tuple[str, bool | None]], Sequence[onnx.NodeProto]]]:
    """What each graph, body and function has besides nodes, with what is known of it; its nodes."""
    waiting = [model.graph]
    for nodes in (f.node for f in model.functions):
        waiting += [each for node in nodes for each in _bodies(node)]
        yield [], nodes
    while waiting:
        graph = waiting.pop()
        waiting += [each for node in graph.node for each in _bodies(node)]
        values: list[tuple[str, bool | None]] = [(value.name, None) for value in graph.input]
        values += [(tensor.name, _boolean(tensor)) for tensor in graph.initializer]
        yield values, graph.node


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _boolean(tensor: TensorProto) -> bool | None:
    """Whether a stored truth value is true anywhere; None for any other tensor."""
    if tensor.data_type != TensorProto.BOOL or tensor.data_location == TensorProto.EXTERNAL:
        return None
    return bool(numpy_helper.to_array(tensor).any())
