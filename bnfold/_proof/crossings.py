"""The check of an operator that maps were carried across: the old and the new operator both run.

The numbers z are drawn. The old operator reads ``F(z)`` and the new one reads ``G(z)``; F and G are
the maps that the rewrite recorded for the tensor. The two outputs must fit the maps recorded for
them as well. For example, a scale of 2 was carried across a Relu: the old one reads z, the new one
reads 2·z, and the new output must be twice the old one.

A second draw brings the data near the numbers that the operator holds. A wrong bound or a wrong
threshold shows there. Unknown sizes are made up. Each operator runs alone in onnxruntime, in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, defs, helper, numpy_helper

from bnfold._onnx.read.scopes import Scope, label
from bnfold._onnx.tensors import FLOATS, data_type
from bnfold._onnx.write.applied import Applied, Related
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.evidence import Mismatch, Obstacle, Unchecked
from bnfold._proof.full_rank_maps import equalities
from bnfold._proof.operator_data import Feeds, KnownShapes, draw, fit_any_rank
from bnfold._proof.steps import Steps
from bnfold._run.bounds import UNBOUNDED, Bounds, Exhausted
from bnfold._run.session import EngineError, OnnxRuntime

# The values that stand for unknown sizes: one after the other, until the operator runs.
_SIZES = (2, 4, 1, 6)
# How far float32 arithmetic may be off, relative to the largest output value.
_FACTOR = 64 * float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)
_IR_VERSION = 10
_SUMS = {"Add", "Sub", "Sum"}
# Their bounds may be of any size, so that one element says nothing of how far another may be off.
_BOUNDED = {"Max", "Min"}
_ACTIVATIONS = {"Abs", "Clip", "HardSigmoid", "LeakyRelu", "Relu"}
_BY_ELEMENT = _SUMS | _BOUNDED | _ACTIVATIONS | {"Dropout", "Identity"}


def check_crossing(
    before: CheckedModel,
    after: CheckedModel,
    old: Scope,
    new: Scope,
    node: NodeProto,
    twin: NodeProto,
    fold: Applied,
    steps: Steps,
    bounds: Bounds = UNBOUNDED,
) -> float | Unchecked:
    """How far two operators differ, in units of the rounding that float32 may cost. Their types may
    differ, and terms of a sum may have changed places: both are run.

    Returns `Unchecked` where the two cannot run, where time is up, or where their outputs prove
    nothing.

    Raises:
        Mismatch: the shapes of their outputs differ, or an attribute that is no single number. Or
            the maps fit the tensors in none of the sizes that are tried.
    """
    if before.may_drop(old, node) or after.may_drop(new, twin):
        raise Mismatch(f"a map went past {label(node)}, which draws random numbers")
    if _attributes(node) != _attributes(twin):
        raise Mismatch(f"attributes of {label(twin)} changed")
    related, places = fold.related, _places(node, twin, fold.reads)
    sums = {node.op_type, twin.op_type} <= _SUMS and len(node.input) == 2
    steps.require_same_data(old, new, node, NodeProto(input=fold.reads) if sums else twin)
    unfit: ValueError | None = None
    stopped = Unchecked(Obstacle.DOES_NOT_RUN, "no size of its data was tried")
    factors = [step for relation in related.values() for step in (*relation.old, *relation.new)]
    known = {n for step in factors for n in np.broadcast(step.scale, step.shift).shape}
    least = _reach(node)
    by_element = node.op_type in _BY_ELEMENT and fit_any_rank(related)
    folded_shapes = KnownShapes(after, new, twin, by_element)
    numbers = _numbers(before, old, node)
    rounding = _rounding(after, new, twin, [before.values(old, name) for name in node.input])

    def compared(size: int, near: bool) -> float | Unchecked:
        drawn = draw(before, old, node, related, size, folded_shapes, numbers, near)
        if isinstance(drawn, Unchecked):
            return drawn
        left = _run(before, old, node, drawn[0], bounds)
        terms = _largest(*drawn) if sums or node.op_type == twin.op_type else None
        found: list[float] = []
        for at in places:
            right = _run(after, new, twin, {at[n]: fed for n, fed in drawn[1].items()}, bounds)
            off = _compared(node, left, right, related, terms, rounding)
            if isinstance(off, Unchecked):
                return off
            found.append(off)
        return min(found)

    for size in dict.fromkeys(max(n, least) for n in (*sorted(known - {1}), *_SIZES)):
        try:
            found = compared(size, near=False)
            if not isinstance(found, Unchecked):
                near = compared(size, near=True) if numbers else found
                return found if isinstance(near, Unchecked) else max(found, near)
            stopped = found
        except Exhausted as error:
            return Unchecked(Obstacle.EXHAUSTED, str(error))
        except EngineError as error:
            stopped = Unchecked(Obstacle.DOES_NOT_RUN, str(error))
        except ValueError as error:  # NumPy cannot broadcast a map and a tensor.
            unfit = error
    if unfit is not None:
        raise Mismatch(f"maps do not fit the tensors of {label(node)}: {unfit}")
    return stopped


def _places(node: NodeProto, twin: NodeProto, reads: Sequence[str]) -> list[dict[str, str]]:
    """Where the folded operator reads what the old one reads, by input number: terms of a sum by
    their names, ``reads``, as they may have changed places. Raises `Mismatch` where one is missing.

    Where both are one tensor now, one of two ways has to hold: either says what is computed.
    """
    if not {node.op_type, twin.op_type} <= _SUMS or len(node.input) != 2:
        return [{str(k): str(k) for k in range(len(node.input))}]
    if sorted(twin.input) != sorted(reads):
        raise Mismatch(f"{label(twin)} reads {', '.join(twin.input)}, not {', '.join(reads)}")
    plain, swapped = {"0": "0", "1": "1"}, {"0": "1", "1": "0"}
    ways = [plain] if list(twin.input) == list(reads) else [swapped]
    return [plain, swapped] if reads[0] == reads[1] else ways


def _attributes(node: NodeProto) -> dict[str, bytes]:
    """The attributes that are not single numbers, by name.

    A law may change a single number; the outputs of the operators show whether it is right.
    """
    return {
        a.name: a.SerializeToString(deterministic=True)
        for a in node.attribute
        if a.type != AttributeProto.FLOAT
    }


def _numbers(model: CheckedModel, scope: Scope, node: NodeProto) -> list[float]:
    """The finite single numbers that an operator holds, in attributes or as inputs."""
    given = {a.name: a.f for a in node.attribute if a.type == AttributeProto.FLOAT}
    with suppress(defs.SchemaError):
        for name, known in defs.get_schema(
            node.op_type, scope.opset, node.domain
        ).attributes.items():
            if known.default_value.type == AttributeProto.FLOAT:
                given.setdefault(name, known.default_value.f)
    held = [model.values(scope, name) for name in node.input if name]
    single = [float(v.reshape(-1)[0]) for v in held if v is not None and v.size == 1]
    return [number for number in (*given.values(), *single) if math.isfinite(number)]


def _rounding(
    model: CheckedModel, scope: Scope, twin: NodeProto, before: Sequence[NDArray[Any] | None]
) -> float:
    """What rounding may cost, relative to the numbers: that of float32 arithmetic, or, if it is
    more, that of a new number of the folded operator to the type in which it is stored.
    """
    info: Any = ml_dtypes.finfo  # ml_dtypes gives it no type.
    found = [_FACTOR]
    for name, was in zip(twin.input, before, strict=False):
        made = model.values(scope, name) if name else None
        if made is None or was is None or data_type(made.dtype) not in FLOATS:
            continue
        if made.shape != was.shape or not np.array_equal(made, was):
            found.append(float(info(made.dtype).eps))
    return max(found)


def _largest(*fed: Feeds) -> float:
    """The largest absolute value of the data. The terms of a sum may be larger than the sum."""
    sizes = [np.abs(v).max(initial=0) for feeds in fed for v in feeds.values() if v.dtype != bool]
    return float(max(sizes, default=0))


def _reach(node: NodeProto) -> int:
    """The size that the window of a pool needs; 1 for other operators."""
    lists = {a.name: list(a.ints) for a in node.attribute}
    kernel = lists.get("kernel_shape", [1])
    dilations = lists.get("dilations") or [1] * len(kernel)
    return max((int(k) - 1) * int(d) + 1 for k, d in zip(kernel, dilations, strict=True))


def _run(
    model: CheckedModel, scope: Scope, node: NodeProto, feeds: Feeds, bounds: Bounds
) -> list[NDArray[Any]]:
    """The outputs of one node that runs alone; its float constants become float32."""
    alone = NodeProto()
    alone.CopyFrom(node)
    constants, inputs = [], []
    for number, name in enumerate(node.input):
        if not name:
            continue
        alone.input[number] = str(number)
        if str(number) in feeds:
            values = feeds[str(number)]
            element = helper.np_dtype_to_tensor_dtype(values.dtype)
            inputs.append(helper.make_tensor_value_info(str(number), element, values.shape))
            continue
        constant = model.values(scope, name)
        if constant is None:
            raise EngineError("an input is not known")
        if helper.np_dtype_to_tensor_dtype(constant.dtype) in FLOATS and _is_data(node, number):
            constant = constant.astype(np.float32)
        constants.append(numpy_helper.from_array(constant, str(number)))
    outputs = []
    for number, name in enumerate(node.output):
        if name:
            alone.output[number] = f"y{number}"
            outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, None))
    graph = helper.make_graph([alone], "probe", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", scope.opset)]
    if node.domain not in ("", "ai.onnx"):
        opsets.append(helper.make_opsetid(node.domain, 1))  # onnxruntime's own have no other
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    return OnnxRuntime(proto.SerializeToString(), bounds=bounds).run(feeds)


def _is_data(node: NodeProto, number: int) -> bool:
    """Whether a float input has the type of the data. The scales of a Resize have their own."""
    return node.op_type not in ("Resize", "Upsample") or number == 0


def _compared(
    node: NodeProto,
    left: list[NDArray[Any]],
    right: list[NDArray[Any]],
    related: Mapping[str, Related],
    terms: float | None,
    rounding: float,
) -> float | Unchecked:
    """How far the outputs differ, in units of the ``rounding`` of the largest number.

    The largest number is an output or one of its ``terms``; of a Max or a Min it is that of each
    element, which is one of two numbers. Without ``terms`` the two operators are of different
    types: each has the rounding of its own numbers. An infinity proves something only where both
    sides have the same one: float32 may overflow on one side alone. Returns `Unchecked` where the
    outputs prove nothing.
    """
    worst, seen, finite = 0.0, False, True
    names = [name for name in node.output if name]
    for name, one, other in zip(names, left, right, strict=True):
        if one.shape != other.shape:
            raise Mismatch(f"{label(node)} puts out {other.shape} now, not {one.shape}")
        wanted, made = one.astype(np.float64), other.astype(np.float64)
        known = np.isfinite(wanted) & np.isfinite(made)
        sides = [np.where(known, np.abs(side), 0.0) for side in (wanted, made)]
        own = node.op_type in _BOUNDED
        if terms is not None:
            sides = [np.maximum(np.maximum(*sides), 0.0 if own else terms)] * 2
        for equality in equalities(related.get(name), wanted.ndim) if made.size else ():
            seen = True
            with np.errstate(invalid="ignore"):
                was, now = equality.old.of(wanted), equality.new.of(made)
                off = np.abs(was - now)
            sizes = [
                side * np.abs(map_.scale) + np.abs(map_.shift)
                for side, map_ in zip(sides, (equality.old, equality.new), strict=True)
            ]
            room = np.maximum(*(np.where(equality.exempt, 0.0, part) for part in sizes))
            largest = float(room.max())
            room = room if own else np.asarray(largest)
            off = np.where(equality.exempt | (was == now), 0.0, off)
            if not math.isfinite(largest):
                finite = False
                continue
            finite = finite and bool(np.isfinite(off).all())
            off = np.where(np.isfinite(off), off, 0.0)
            worst = max(worst, float((off / (rounding * np.maximum(room, _TINY))).max()))
    if worst > 1.0 or (seen and finite):
        return worst
    return Unchecked(Obstacle.NOT_FINITE if seen else Obstacle.EMPTY, label(node))
