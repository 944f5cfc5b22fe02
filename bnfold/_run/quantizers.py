"""Operators that round data to integers, and models that are cut or stirred there.

A fold moves every number a little. Where a quantizer rounds a number at the border of two integers,
that little becomes a whole step, and every layer behind sees it. So two equal models may differ by
some steps. Cut at the quantizers, they show whether they are equal: what is rounded is put out, and
what comes of it is put in, the same for both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnfold._onnx.read.scopes import QUANTIZERS, label, type_of
from bnfold._run.nodes import all_nodes, own_inputs, reads
from bnfold._run.noise import Array
from bnfold._run.source import Edit
from bnfold._system.records import record

_ROUNDING = ("DynamicQuantizeLinear", *QUANTIZERS)
# Operators of onnxruntime that round what they compute begin like this.
_ROUNDED = ("QLinear", "QGemm", "QAttention", "QConv")
_LARGEST_SCALE = 1 << 16


@record(frozen=True)
class Quantizer:
    """An operator of the main graph that rounds data to integers.

    ``outputs`` are what it writes; ``data`` is what it reads in the original, and ``other`` in the
    folded model. ``scale`` has the steps that it rounds to, along ``axis`` where there are several;
    it is None where they depend on the data. ``others`` has the one of the folded model where that
    is another number: its data may be as many times larger.
    """

    label: str
    outputs: tuple[str, ...]
    data: str
    other: str
    scale: Array | None
    axis: int
    others: Array | None = None

    def steps(self, data: Array) -> Array:
        """The size of a step for each number of some data, in a shape that broadcasts with it."""
        if self.scale is None:  # ONNX DynamicQuantizeLinear
            low, high = min(float(data.min(initial=0)), 0.0), max(float(data.max(initial=0)), 0.0)
            return np.asarray((high - low) / 255.0)
        if self.scale.size == 1 or data.ndim == 0:
            return np.asarray(self.scale.reshape(-1)[0])
        along = [1] * data.ndim
        along[self.axis % data.ndim] = -1
        return self.scale.reshape(along)


@record(frozen=True)
class Quantizers:
    """The ``common`` quantizers of two models, and whether one of them rounds elsewhere, too."""

    common: tuple[Quantizer, ...]
    others: bool


def quantizers(original: onnx.ModelProto, folded: onnx.ModelProto) -> Quantizers:
    """The quantizers of data in two models.

    A common one writes the same tensors in both main graphs, and has the same constant numbers, but
    for one scale of all its data. Its outputs are the same wherever its data, in steps, are.
    """
    ours, theirs = (dict(_found(model)) for model in (original, folded))
    common = []
    for outputs, (node, numbers) in ours.items():
        twin = theirs.get(outputs)
        if twin is None or numbers is None or not _alike((node, numbers), twin):
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        scale = numbers[0] if numbers else None
        names = label(node), outputs, node.input[0], twin[0].input[0]
        other = twin[1][0] if twin[1] else None
        same = scale is None or other is None or np.array_equal(scale, other)
        common.append(Quantizer(*names, scale, axis, None if same else other))
    # Where both round, but by other numbers, they differ; that is no other place.
    known = {
        outputs
        for outputs in ours.keys() & theirs.keys()
        if ours[outputs][1] is not None and theirs[outputs][1] is not None
    }
    others = any(_rounds_beside(model, known) for model in (original, folded))
    others = others or _rounded(original) != _rounded(folded)
    return Quantizers(tuple(common), others)


def rounds(model: onnx.ModelProto) -> bool:
    """Whether a model may round data to integers anywhere."""
    bodies = [node for function in model.functions for node in function.node]
    every = all_nodes([*model.graph.node, *bodies])
    return any(type_of(n) in _ROUNDING or n.op_type.startswith(_ROUNDED) for n in every)


def cut(
    found: Sequence[Quantizer], original: bool, types: Mapping[str, np.dtype[np.generic]]
) -> Edit:
    """An edit that cuts a model at some quantizers.

    What a quantizer reads becomes an output, unless it is the same input in both models, which no
    file holds a value of. What it writes becomes an input of a given type. Where the scales of the
    two models differ, what it reads is put out in steps. An output that was written by a quantizer
    is dropped: what is ahead of it stands for it.
    """

    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        gone = {name for one in found for name in one.outputs}
        kept = [node for node in graph.node if gone.isdisjoint(node.output)]
        del graph.node[:]
        graph.node.extend(kept)
        own = [value for value in graph.output if value.name not in gone]
        del graph.output[:]
        graph.output.extend(own)
        given = {value.name for value in own_inputs(graph)}
        for one in found:
            data = one.data if original else one.other
            if one.data != one.other or data not in given or one.others is not None:
                graph.node.extend(_put_out(one, data))
                graph.output.add(name=ahead_of(one))
                if one.others is not None:
                    step = one.scale if original else one.others
                    assert step is not None
                    held = numpy_helper.from_array(step.reshape(()), f"{ahead_of(one)}/step")
                    graph.initializer.append(held)
            for name in filter(None, one.outputs):
                element = helper.np_dtype_to_tensor_dtype(types[name])
                graph.input.append(helper.make_tensor_value_info(name, element, None))

    return edit


def stirred(found: Sequence[Quantizer]) -> Edit:
    """An edit that adds an input to what each quantizer of the original reads."""

    def edit(model: onnx.ModelProto) -> None:
        graph, kept = model.graph, []
        by_output = {one.outputs[0]: one for one in found}
        for node in graph.node:
            one = by_output.get(node.output[0]) if node.output else None
            if one is not None:
                added = onnx.NodeProto(op_type="Add", input=[node.input[0], noise_of(one)])
                added.output.append(f"{noise_of(one)}/added")
                kept.append(added)
                node.input[0] = added.output[0]
            kept.append(node)
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)
        for one in found:
            element = onnx.TensorProto.FLOAT
            graph.input.append(helper.make_tensor_value_info(noise_of(one), element, None))

    return edit


def ahead_of(quantizer: Quantizer) -> str:
    """The name of the output that has what a quantizer reads."""
    return f"what {quantizer.label} rounds"


def noise_of(quantizer: Quantizer) -> str:
    """The name of the input that is added to what a quantizer reads."""
    return f"{quantizer.outputs[0]}/noise"


def read_names(model: onnx.ModelProto) -> set[str]:
    """All names that the nodes of a main graph read."""
    return {name for node in model.graph.node for name in reads(node)}


_Numbers = list[Array] | None
_Row = tuple[onnx.NodeProto, _Numbers]


def _found(model: onnx.ModelProto) -> Iterator[tuple[tuple[str, ...], _Row]]:
    """The quantizers of data in a main graph by their outputs, with their constant numbers; None
    for numbers that are not constant.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    fixed = set(stored) - {value.name for value in graph.input}
    held: dict[str, onnx.TensorProto] = {name: stored[name] for name in fixed}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1:
            if node.attribute[0].name == "value":
                held[node.output[0]] = node.attribute[0].t
            fixed.update(node.output)
        elif node.input and fixed.issuperset(filter(None, reads(node))):
            fixed.update(node.output)
        elif type_of(node) in _ROUNDING and node.input and node.input[0] not in fixed:
            yield tuple(node.output), (node, _numbers(node, held))


def _numbers(node: onnx.NodeProto, held: Mapping[str, onnx.TensorProto]) -> _Numbers:
    found = [held.get(name) for name in node.input[1:] if name]
    small = [t for t in found if t is not None and np.prod(t.dims) <= _LARGEST_SCALE]
    if len(small) < len(found) or any(t.data_location for t in small):
        return None
    return [numpy_helper.to_array(tensor) for tensor in small]


def _put_out(quantizer: Quantizer, data: str) -> Iterator[onnx.NodeProto]:
    """The operator that puts out what a quantizer reads."""
    name = ahead_of(quantizer)
    if quantizer.others is None:
        yield helper.make_node("Identity", [data], [name])
    else:
        yield helper.make_node("Div", [data, f"{name}/step"], [name])


def _alike(one: _Row, other: _Row) -> bool:
    """Whether two quantizers round in the same way."""
    (left, ours), (right, theirs) = one, other
    if ours is None or theirs is None or len(ours) != len(theirs):
        return False
    pairs = list(zip(ours, theirs, strict=True))
    same = all(a.dtype == b.dtype for a, b in pairs)
    same = same and all(np.array_equal(a, b) for a, b in pairs[1:])
    for first, second in pairs[:1]:
        same = same and (first.size == second.size == 1 or np.array_equal(first, second))
    attributes = [
        sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        for node in (left, right)
    ]
    blocks = any(a.name == "block_size" and a.i for a in left.attribute)
    alike = type_of(left) == type_of(right) and attributes[0] == attributes[1]
    return same and alike and not blocks


def _rounds_beside(model: onnx.ModelProto, known: Collection[tuple[str, ...]]) -> bool:
    """Whether a model rounds data by other operators than the known ones of its main graph."""
    own = [node for outputs, (node, _) in _found(model) if outputs not in known]
    bodies = [node for function in model.functions for node in all_nodes(function.node)]
    inner = [one for node in model.graph.node for one in all_nodes([node]) if one is not node]
    return any(type_of(node) in _ROUNDING for node in (*own, *bodies, *inner))


def _rounded(model: onnx.ModelProto) -> set[tuple[str, ...]]:
    """The operators that round what they compute, each by its type and outputs."""
    bodies = [node for function in model.functions for node in function.node]
    every = all_nodes([*model.graph.node, *bodies])
    return {(n.op_type, *n.output) for n in every if n.op_type.startswith(_ROUNDED)}
