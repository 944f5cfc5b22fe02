"""The one operator that several linear operators become, with its constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
from onnx import NodeProto, helper

from bnfold._core.reasons import Reason
from bnfold._merge.kernels import Kernel
from bnfold._merge.steps import Weighted
from bnfold._merge.stored import Load, remembered, unfit
from bnfold._onnx import tensors
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.context import Context
from bnfold._onnx.read.scopes import Names, label
from bnfold._system.records import record

_OF_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
# From this opset on a Gemm may lack its C.
_FREE_OF_C = 11
_OF_GEMM = ("alpha", "beta")


@record(frozen=True)
class Made:
    """New nodes by position, their constants in float64, and the linear operator's position."""

    into: int
    nodes: Mapping[int, NodeProto]
    constants: Mapping[str, Constant]


def made(
    context: Context,
    names: Names,
    earlier: Set[str],
    kernel: Kernel,
    weighted: Sequence[tuple[int, Weighted]],
    source: str,
    slots: Sequence[int],
    output: str,
) -> Made | Reason:
    """The nodes for a kernel, or the reason why its weights cannot be stored.

    The new operator is a copy of one of ``weighted``, with its name and notes: the one with the
    most weights, and the first of several. It stands in the last of the ``slots``. A matrix product
    that needs an Add stands in the first, and the Add in the last. ``earlier`` has the names of
    constants that merges have made.
    """
    nodes = context.scope.nodes
    lenders = [own for own in weighted if nodes[own[0]].op_type == "Gemm"] or weighted
    lender, taken = max(lenders, key=lambda own: (own[1].kernel.size, -own[0]))
    node = NodeProto()
    node.CopyFrom(nodes[lender])
    where = label(node)
    if any(own.dtype != taken.dtype for _, own in weighted):
        return Reason("unsupported-dtype", where, f"{where}: weights are of several types")
    if any(pad < 0 for window in kernel.windows for pad in window.pads):
        return Reason("not-mergeable", where, f"{where}: one operator would have to cut its input")
    data_type = tensors.data_type(taken.dtype)
    values, bias = kernel.weight(), kernel.bias()
    reason = unfit(where, values, bias, taken.dtype)
    if reason is not None:
        return reason
    # Without this, weights merged again would be computed from the first ones each time.
    stacked = any(name in earlier for p, _ in weighted for name in nodes[p].input)
    load = _lying(kernel.weight, node)
    weight = Constant(
        names.fresh(f"{node.input[1]}_merged"),
        load().shape,
        data_type,
        remembered(load, stacked),
    )
    constants = {weight.name: weight}
    old_bias = node.input[2] if len(node.input) > 2 else ""
    _set_attributes(node, kernel)
    del node.input[:]
    node.input.extend([source, weight.name])
    node.output[0] = output
    needed = node.op_type == "Gemm" and context.opset < _FREE_OF_C
    if not needed and not bool((bias != 0).any()):
        return Made(slots[-1], {slots[-1]: node}, constants)
    stem = weight.name.removesuffix("_merged").removesuffix(".weight")
    wanted = f"{old_bias}_merged" if old_bias else f"{stem}.bias"
    shift = Constant(names.fresh(wanted), bias.shape, data_type, remembered(kernel.bias, True))
    constants[shift.name] = shift
    if node.op_type != "MatMul":
        node.input.append(shift.name)
        return Made(slots[-1], {slots[-1]: node}, constants)
    node.output[0] = names.fresh(f"{output}_product")
    context.add(node.output[0], [output])
    add = helper.make_node("Add", [node.output[0], shift.name], [output])
    if node.name:
        add.name = names.fresh(f"{node.name}_add")
    return Made(slots[0], {slots[0]: node, slots[-1]: add}, constants)


def _lying(weight: Load, node: NodeProto) -> Load:
    """Weights in the order of a node: outputs first, except for a product that is not turned."""
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    if node.op_type == "Conv" or turned:
        return weight
    return lambda: np.ascontiguousarray(weight().T)


def _set_attributes(node: NodeProto, kernel: Kernel) -> None:
    settled = _OF_CONV if node.op_type == "Conv" else _OF_GEMM
    kept = [a for a in node.attribute if a.name not in settled]
    if node.op_type == "Conv":
        windows = kernel.windows
        kept += [
            helper.make_attribute("dilations", [w.dilation for w in windows]),
            helper.make_attribute("group", kernel.groups),
            helper.make_attribute("kernel_shape", [w.taps for w in windows]),
            helper.make_attribute("pads", [w.pads[end] for end in (0, 1) for w in windows]),
            helper.make_attribute("strides", [w.stride for w in windows]),
        ]
    del node.attribute[:]
    node.attribute.extend(kept)
