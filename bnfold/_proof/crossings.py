"""The check of an operator that maps were carried across: it runs before and after.

The old operator reads ``F(z)`` and the new one ``G(z)``, as the maps that its tensors are said to
have gone through have it; z is drawn, and drawn again so that the old one reads about the numbers
that it holds: there a bound or a threshold that is wrong shows. What the two put out must be as is
said of it, too. Sizes that are not known are made up. Runs in onnxruntime, in float32, one node at
a time.
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
from bnfold._proof.carried import claims, laid_out, placed
from bnfold._proof.rows import Line, Mismatch, Side
from bnfold._proof.unchecked import Obstacle, Unchecked
from bnfold._run.bounds import UNBOUNDED, Bounds, Exhausted
from bnfold._run.session import EngineError, OnnxRuntime

# What unknown sizes are taken to be, in turn, until the operator runs.
_SIZES = (2, 4, 1, 6)
_LARGEST = 1 << 22
# Rounding steps, at the largest value put out, that float32 arithmetic may be off by.
_FACTOR = 64 * float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)
_IR_VERSION = 10
Feeds = dict[str, NDArray[Any]]


def check_crossing(
    before: Side,
    after: Side,
    old: Scope,
    new: Scope,
    node: NodeProto,
    twin: NodeProto,
    related: Mapping[str, Related],
    bounds: Bounds = UNBOUNDED,
) -> float | Unchecked:
    """How far two operators differ, in the rounding that float32 may cost.

    `Unchecked` where the two could not be run, time is up, or what they put out is no evidence.
    Raises `Mismatch` where the two differ in shape, or in attributes that are no single numbers, or
    where maps fit their tensors in none of the sizes that are tried.
    """
    if _attributes(node) != _attributes(twin):
        raise Mismatch(f"attributes of {label(twin)} changed")
    unfit: ValueError | None = None
    stopped = Unchecked(Obstacle.DOES_NOT_RUN, "no size of its data was tried")
    steps = [step for gone in related.values() for step in (*gone.old, *gone.new)]
    told = {n for step in steps for n in np.broadcast(step.scale, step.shift).shape}
    least = _reach(node)
    told_after = _Told(after, new, twin)
    numbers = _numbers(before, old, node)

    def compared(size: int, near: bool) -> float | Unchecked:
        drawn = _drawn(before, old, node, related, size, told_after, numbers, near)
        if isinstance(drawn, Unchecked):
            return drawn
        left = _run(before, old, node, drawn[0], bounds)
        right = _run(after, new, twin, drawn[1], bounds)
        return _compared(node, left, right, related, _largest(*drawn))

    for size in dict.fromkeys(max(n, least) for n in (*sorted(told - {1}), *_SIZES)):
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
        except ValueError as error:  # A map and a tensor that NumPy cannot broadcast.
            unfit = error
    if unfit is not None:
        raise Mismatch(f"maps do not fit the tensors of {label(node)}: {unfit}")
    return stopped


@dataclass(frozen=True)
class _Told:
    """What the folded graph says of the tensors that an operator reads there."""

    side: Side
    scope: Scope
    node: NodeProto

    def of(self, number: int) -> tuple[tuple[int | None, ...] | None, int]:
        """The shape, if it is known, and the element type of an input by its number."""
        name = self.node.input[number] if number < len(self.node.input) else ""
        return self.side.shapes.shape(self.scope, name), self.side.shapes.type(self.scope, name)


def _attributes(node: NodeProto) -> dict[str, bytes]:
    """All but single numbers, which a law may change: of these tells what the operators put out."""
    return {
        a.name: a.SerializeToString(deterministic=True)
        for a in node.attribute
        if a.type != AttributeProto.FLOAT
    }


def _numbers(side: Side, scope: Scope, node: NodeProto) -> list[float]:
    """The finite single numbers that an operator holds, in attributes or at inputs."""
    given = {a.name: a.f for a in node.attribute if a.type == AttributeProto.FLOAT}
    with suppress(defs.SchemaError):
        for name, known in defs.get_schema(
            node.op_type, scope.opset, node.domain
        ).attributes.items():
            if known.default_value.type == AttributeProto.FLOAT:
                given.setdefault(name, known.default_value.f)
    held = [side.values(scope, name) for name in node.input if name]
    single = [float(v.reshape(-1)[0]) for v in held if v is not None and v.size == 1]
    return [number for number in (*given.values(), *single) if math.isfinite(number)]


def _drawn(
    side: Side,
    scope: Scope,
    node: NodeProto,
    related: Mapping[str, Related],
    size: int,
    twin: _Told,
    numbers: Sequence[float],
    near: bool,
) -> tuple[Feeds, Feeds] | Unchecked:
    """Data for both operators by input number, if some can be made up; ``near`` the ``numbers``
    that the old one holds, or else anywhere but at them.
    """
    generator = np.random.default_rng(0)
    first: Feeds = {}
    second: Feeds = {}
    for number, name in enumerate(node.input):
        if not name or side.values(scope, name) is not None:
            continue
        shape, element = side.shapes.shape(scope, name), side.shapes.type(scope, name)
        if shape is None:  # as of what a merge has made: maps change no shapes
            shape, element = twin.of(number)
        if shape is None:
            return Unchecked(Obstacle.SHAPE_UNKNOWN, name)
        gone = related.get(name)
        own = _own_sizes(gone, len(shape)) if gone is not None else (1,) * len(shape)
        sizes = tuple(
            n if n is not None else (m if m > 1 else size) for n, m in zip(shape, own, strict=True)
        )
        if math.prod(sizes) > _LARGEST:
            return Unchecked(Obstacle.TOO_LARGE, name)
        if element not in FLOATS:
            # Of indices 0 is always one; of a size asked for at run time no number is known.
            if element not in (TensorProto.INT32, TensorProto.INT64) or node.op_type != "Gather":
                return Unchecked(Obstacle.NOT_DRAWABLE, name)
            zeros = np.zeros(sizes, helper.tensor_dtype_to_np_dtype(element))
            first[str(number)] = second[str(number)] = zeros
            continue
        values = generator.normal(size=sizes)
        first[str(number)] = second[str(number)] = values.astype(np.float32)
        if gone is not None:
            old, new = laid_out(gone.old, len(sizes)), laid_out(gone.new, len(sizes))
            values = placed(old, values, numbers, near, generator)
            drawn = np.where(old.unknown, generator.normal(size=sizes), _through(old, values))
            first[str(number)] = drawn.astype(np.float32)
            second[str(number)] = _through(new, values).astype(np.float32)
    return first, second


def _largest(*fed: Feeds) -> float:
    """The largest number that goes in: what comes out of a sum may be smaller than its terms."""
    sizes = [np.abs(v).max(initial=0) for feeds in fed for v in feeds.values() if v.dtype != bool]
    return float(max(sizes, default=0))


def _reach(node: NodeProto) -> int:
    """The size that a pool's window fits into."""
    lists = {a.name: list(a.ints) for a in node.attribute}
    kernel = lists.get("kernel_shape", [1])
    dilations = lists.get("dilations") or [1] * len(kernel)
    return max((int(k) - 1) * int(d) + 1 for k, d in zip(kernel, dilations, strict=True))


def _own_sizes(gone: Related, rank: int) -> tuple[int, ...]:
    """What the map of a tensor tells of its sizes: 1 where it does not vary."""
    lines = laid_out(gone.old, rank), laid_out(gone.new, rank)
    return np.broadcast_shapes(*(np.broadcast(line.scale, line.shift).shape for line in lines))


def _through(line: Line, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * line.scale + line.shift


def _run(
    side: Side, scope: Scope, node: NodeProto, feeds: Feeds, bounds: Bounds
) -> list[NDArray[Any]]:
    """Run one node alone, its float constants in float32."""
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
        constant = side.values(scope, name)
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
    opset = helper.make_opsetid("", scope.opset)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    return OnnxRuntime(model.SerializeToString(), bounds=bounds).run(feeds)


def _is_data(node: NodeProto, number: int) -> bool:
    """Whether a float input has the type of the data: the scales of a Resize have their own."""
    return node.op_type not in ("Resize", "Upsample") or number == 0


def _compared(
    node: NodeProto,
    left: list[NDArray[Any]],
    right: list[NDArray[Any]],
    related: Mapping[str, Related],
    terms: float,
) -> float | Unchecked:
    """How far outputs are apart, in the rounding of numbers as large as they or their ``terms``.

    Numbers that are not finite are evidence only where both sides have the same infinity: float32
    may overflow on one side alone.
    """
    worst, seen, finite = 0.0, False, True
    names = [name for name in node.output if name]
    for name, one, other in zip(names, left, right, strict=True):
        if one.shape != other.shape:
            raise Mismatch(f"{label(node)} puts out {other.shape} now, not {one.shape}")
        wanted, made = one.astype(np.float64), other.astype(np.float64)
        known = np.isfinite(wanted) & np.isfinite(made)
        size = np.where(known, np.maximum(np.abs(wanted), np.abs(made)), 0.0)
        size = np.maximum(size, terms)
        for claim in claims(related.get(name), wanted.ndim) if made.size else ():
            seen = True
            with np.errstate(invalid="ignore"):
                was, now = _through(claim.old, wanted), _through(claim.new, made)
                off = np.abs(was - now)
            sizes = [
                size * np.abs(line.scale) + np.abs(line.shift) for line in (claim.old, claim.new)
            ]
            largest = float(max(np.where(claim.apart, 0.0, part).max() for part in sizes))
            off = np.where(claim.apart | (was == now), 0.0, off)
            if not math.isfinite(largest):
                finite = False
                continue
            finite = finite and bool(np.isfinite(off).all())
            off = np.where(np.isfinite(off), off, 0.0)
            worst = max(worst, float(off.max()) / (_FACTOR * max(largest, _TINY)))
    if worst > 1.0 or (seen and finite):
        return worst
    return Unchecked(Obstacle.NOT_FINITE if seen else Obstacle.EMPTY, label(node))
