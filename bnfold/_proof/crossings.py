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
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, defs, helper, numpy_helper

from bnfold._onnx.read.scopes import Scope, label
from bnfold._onnx.tensors import FLOATS
from bnfold._onnx.write.applied import Related
from bnfold._proof.checked_model import CheckedModel, require_same_data
from bnfold._proof.evidence import Mismatch, Obstacle, Unchecked
from bnfold._proof.full_rank_maps import FullRankMap, composed, equalities, values_around
from bnfold._run.bounds import UNBOUNDED, Bounds, Exhausted
from bnfold._run.session import EngineError, OnnxRuntime

# The values that stand for unknown sizes: one after the other, until the operator runs.
_SIZES = (2, 4, 1, 6)
_LARGEST = 1 << 22
# How far float32 arithmetic may be off, relative to the largest output value.
_FACTOR = 64 * float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)
_IR_VERSION = 10
# As many numbers at the least go into an operator that is flat beyond bounds.
_AROUND = 64
# Bounds beyond this are none to draw numbers around: exporters write the largest number for none.
_BOUNDLESS = 1e18
Feeds = dict[str, NDArray[Any]]


def check_crossing(
    before: CheckedModel,
    after: CheckedModel,
    old: Scope,
    new: Scope,
    node: NodeProto,
    twin: NodeProto,
    related: Mapping[str, Related],
    names: Mapping[str, str],
    bounds: Bounds = UNBOUNDED,
) -> float | Unchecked:
    """How far two operators differ, in units of the rounding that float32 may cost. Their types may
    differ: both are run.

    Returns `Unchecked` where the two cannot run, where time is up, or where their outputs prove
    nothing. Raises `Mismatch` where their output shapes differ, where an attribute differs that is
    not a single number, or where the maps fit the tensors in none of the sizes that are tried.
    """
    if _attributes(node) != _attributes(twin):
        raise Mismatch(f"attributes of {label(twin)} changed")
    require_same_data(before, old, new, node, twin, names)
    unfit: ValueError | None = None
    stopped = Unchecked(Obstacle.DOES_NOT_RUN, "no size of its data was tried")
    steps = [step for relation in related.values() for step in (*relation.old, *relation.new)]
    known = {n for step in steps for n in np.broadcast(step.scale, step.shift).shape}
    least = _reach(node)
    folded_shapes = _KnownShapes(after, new, twin)
    numbers = _numbers(before, old, node)

    def compared(size: int, near: bool) -> float | Unchecked:
        drawn = _draw(before, old, node, related, size, folded_shapes, numbers, near)
        if isinstance(drawn, Unchecked):
            return drawn
        left = _run(before, old, node, drawn[0], bounds)
        right = _run(after, new, twin, drawn[1], bounds)
        terms = _largest(*drawn) if node.op_type == twin.op_type else None
        return _compared(node, left, right, related, terms)

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


@dataclass(frozen=True)
class _KnownShapes:
    """The shapes and types that the folded graph knows of an operator's inputs."""

    model: CheckedModel
    scope: Scope
    node: NodeProto

    def of(self, number: int) -> tuple[tuple[int | None, ...] | None, int]:
        """The shape of an input by its number, None if it is not known, and its element type."""
        name = self.node.input[number] if number < len(self.node.input) else ""
        return self.model.shapes.shape(self.scope, name), self.model.shapes.type(self.scope, name)


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


def _draw(
    model: CheckedModel,
    scope: Scope,
    node: NodeProto,
    related: Mapping[str, Related],
    size: int,
    twin: _KnownShapes,
    numbers: Sequence[float],
    near: bool,
) -> tuple[Feeds, Feeds] | Unchecked:
    """Data for the old and for the new operator, by input number.

    With ``near`` the old operator reads numbers near those that it holds (``numbers``), else any
    numbers but those. Returns `Unchecked` where no data can be made up for an input.
    """
    generator = np.random.default_rng(0)
    ends = _ends(model, scope, node)
    first: Feeds = {}
    second: Feeds = {}
    for number, name in enumerate(node.input):
        if not name or model.values(scope, name) is not None:
            continue
        shape, element = model.shapes.shape(scope, name), model.shapes.type(scope, name)
        if shape is None:  # a merge has made it; maps change no shapes
            shape, element = twin.of(number)
        if shape is None:
            return Unchecked(Obstacle.SHAPE_UNKNOWN, name)
        relation = related.get(name)
        own = _own_sizes(relation, len(shape)) if relation is not None else (1,) * len(shape)
        sizes = tuple(
            n if n is not None else (m if m > 1 else size) for n, m in zip(shape, own, strict=True)
        )
        free = [k for k, n in enumerate(shape) if n is None and own[k] == 1]
        if node.op_type == "Reshape" and number == 0 and len(node.input) > 1:
            sizes = _that_reshape(sizes, free, model.values(scope, node.input[1]))
        if node.op_type == "Resize" and number == 0 and len(node.input) > 3 and node.input[3]:
            sizes = _that_resize(sizes, free, model.values(scope, node.input[3]))
        if ends is not None and math.prod(sizes) < _AROUND and 1 in own:
            widened = own.index(1)
            sizes = tuple(_AROUND if k == widened else n for k, n in enumerate(sizes))
        if math.prod(sizes) > _LARGEST:
            return Unchecked(Obstacle.TOO_LARGE, name)
        if element not in FLOATS:
            # The index 0 is always right. No number is right for a size that is read at run time.
            if element not in (TensorProto.INT32, TensorProto.INT64) or node.op_type != "Gather":
                return Unchecked(Obstacle.NOT_DRAWABLE, name)
            zeros = np.zeros(sizes, helper.tensor_dtype_to_np_dtype(element))
            first[str(number)] = second[str(number)] = zeros
            continue
        values = generator.normal(size=sizes)
        if ends is not None:
            around = generator.uniform(*ends, size=sizes)
            values = _back_through(
                composed(relation.old if relation else (), len(sizes)), around, values
            )
        first[str(number)] = second[str(number)] = values.astype(np.float32)
        if relation is not None:
            old, new = composed(relation.old, len(sizes)), composed(relation.new, len(sizes))
            values = values_around(old, values, numbers, near, generator)
            drawn = np.where(old.unknown, generator.normal(size=sizes), old.of(values))
            first[str(number)] = drawn.astype(np.float32)
            second[str(number)] = new.of(values).astype(np.float32)
    return first, second


def _that_reshape(
    sizes: tuple[int, ...], free: Sequence[int], target: NDArray[Any] | None
) -> tuple[int, ...]:
    """Sizes that a Reshape takes to its target: the first free one makes the count of elements fit.

    A law holds for all sizes that are not known, so any that fit will do. A 0 in the target copies
    a size, a -1 is what is left. The sizes stay where no size of the free axes makes them fit.
    """
    if target is None:
        return sizes
    asked = [int(n) for n in target.reshape(-1)]
    free = [k for k in free if k >= len(asked) or asked[k] != 0]
    copied = [sizes[k] for k, n in enumerate(asked) if n == 0 and k < len(sizes)]
    wanted = math.prod([*copied, *(n for n in asked if n > 0)])
    fixed = math.prod(n for k, n in enumerate(sizes) if k not in free)
    if not free or not fixed or (min(asked) < 0 and math.prod(sizes) % wanted == 0):
        return sizes
    if min(asked) < 0:
        first = wanted // math.gcd(wanted, fixed)
    elif wanted % fixed == 0:
        first = wanted // fixed
    else:
        return sizes
    return tuple(first if k == free[0] else 1 if k in free else n for k, n in enumerate(sizes))


def _that_resize(
    sizes: tuple[int, ...], free: Sequence[int], target: NDArray[Any] | None
) -> tuple[int, ...]:
    """Sizes whose batch and channels a Resize leaves as they are, where they are free.

    Interpolation runs along space alone in a runtime. A target that names some axes only, or that
    is not known, says nothing of the batch.
    """
    if target is None or target.size != len(sizes):
        return sizes
    kept = [k for k in free if k < 2]
    return tuple(int(target.reshape(-1)[k]) if k in kept else n for k, n in enumerate(sizes))


def _ends(side: CheckedModel, scope: Scope, node: NodeProto) -> tuple[float, float] | None:
    """An interval in which an operator that is flat beyond bounds shows them; None for any other.

    Of Clip it is that between its bounds, of HardSigmoid that between ``−β/α`` and ``(1 − β)/α``, a
    quarter wider on either side.
    """
    given = {a.name: a.f for a in node.attribute}
    if node.op_type == "HardSigmoid":
        alpha, beta = given.get("alpha", 0.2), given.get("beta", 0.5)
        ends = sorted((-beta / alpha, (1 - beta) / alpha)) if alpha else [0.0, 0.0]
        given = {"min": ends[0], "max": ends[1]}
    elif node.op_type != "Clip":
        return None
    for name, number in (("min", 1), ("max", 2)):
        held = side.values(scope, node.input[number]) if number < len(node.input) else None
        if held is not None and held.size == 1:
            given[name] = float(held.reshape(-1)[0])
    given = {name: bound for name, bound in given.items() if abs(bound) < _BOUNDLESS}
    if not given:
        return None
    low, high = given.get("min"), given.get("max")
    low = low if low is not None else given["max"] - 1.0
    high = high if high is not None else low + 1.0
    margin = max(high - low, 0.0) / 4
    return low - margin, max(low, high) + margin


def _back_through(
    map_: FullRankMap, wanted: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The numbers that a map takes to the wanted ones; ``others`` where it is constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(map_.scale == 0, others, (wanted - map_.shift) / map_.scale)


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


def _own_sizes(relation: Related, rank: int) -> tuple[int, ...]:
    """The sizes of a tensor as its maps tell them; 1 along each axis where they do not vary."""
    lines = composed(relation.old, rank), composed(relation.new, rank)
    return np.broadcast_shapes(*(np.broadcast(map_.scale, map_.shift).shape for map_ in lines))


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
) -> float | Unchecked:
    """How far the outputs differ, in units of the rounding of the largest number.

    The largest number is an output or one of its ``terms``. Without ``terms`` the two operators are
    of different types: each has the rounding of its own numbers. An infinity proves something only
    where both sides have the same one: float32 may overflow on one side alone. Returns `Unchecked`
    where the outputs prove nothing.
    """
    worst, seen, finite = 0.0, False, True
    names = [name for name in node.output if name]
    for name, one, other in zip(names, left, right, strict=True):
        if one.shape != other.shape:
            raise Mismatch(f"{label(node)} puts out {other.shape} now, not {one.shape}")
        wanted, made = one.astype(np.float64), other.astype(np.float64)
        known = np.isfinite(wanted) & np.isfinite(made)
        sides = [np.where(known, np.abs(side), 0.0) for side in (wanted, made)]
        if terms is not None:
            sides = [np.maximum(np.maximum(*sides), terms)] * 2
        for equality in equalities(related.get(name), wanted.ndim) if made.size else ():
            seen = True
            with np.errstate(invalid="ignore"):
                was, now = equality.old.of(wanted), equality.new.of(made)
                off = np.abs(was - now)
            sizes = [
                side * np.abs(map_.scale) + np.abs(map_.shift)
                for side, map_ in zip(sides, (equality.old, equality.new), strict=True)
            ]
            largest = float(max(np.where(equality.exempt, 0.0, part).max() for part in sizes))
            off = np.where(equality.exempt | (was == now), 0.0, off)
            if not math.isfinite(largest):
                finite = False
                continue
            finite = finite and bool(np.isfinite(off).all())
            off = np.where(np.isfinite(off), off, 0.0)
            worst = max(worst, float(off.max()) / (_FACTOR * max(largest, _TINY)))
    if worst > 1.0 or (seen and finite):
        return worst
    return Unchecked(Obstacle.NOT_FINITE if seen else Obstacle.EMPTY, label(node))
