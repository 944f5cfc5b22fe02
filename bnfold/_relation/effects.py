"""Whether a difference of one value comes to an output of the file, operator by operator.

See `liveness` for what a difference is. No law here says more than its operator's definition: of
an operator without one nothing is sure to come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold._relation.bounds import (
    COPYING,
    MOVING,
    Bounds,
    is_flat,
    is_of_channels,
    moved,
    narrowed,
)
from bnfold._relation.call import full_rank
from bnfold._relation.expressions import Double, Expression
from bnfold._relation.liveness import CANCELS, Effect, Seen, kept, of_sum
from bnfold._relation.ranges import Range
from bnfold._relation.relations import Related
from bnfold._relation.side import attributes
from bnfold._relation.table import Known, Sum

_MANY = 1 << 22
"""Larger differences are only known to be somewhere."""
_CHANNELWISE = frozenset(
    (
        *("Abs", "AveragePool", "Bernoulli", "Cast", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp"),
        *("Gelu", "LRN", "Pow", "Reciprocal", "Sin", "ThresholdedRelu"),
        *(
            "DequantizeLinear",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "HardSwish",
            "LeakyRelu",
            "Log",
        ),
        *("MaxPool", "Mish", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt"),
        *("Swish", "Tanh"),
    )
)
"""Operators that make each channel of the same one, and show in it what differs."""
_WINDOWS = frozenset(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"))
"""Those whose numbers are made of several positions."""
POINTWISE = _CHANNELWISE - _WINDOWS
"""Those whose numbers stay where they are."""
_MIXING = frozenset(
    (
        *("GroupNormalization", "InstanceNormalization", "LayerNormalization", "LogSoftmax"),
        *("RMSNormalization", "Softmax"),
    )
)
"""Operators whose numbers depend on all others along some axes."""
_EXTREME = frozenset(("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMin"))
_DROPPING = frozenset(("Gather", "Pad", "Resize", "Slice", "Split", "Upsample"))
"""Operators that move numbers, and may leave out some."""
_RECURRENT = frozenset(("GRU", "LSTM", "RNN"))
_CURVED = frozenset(
    (
        *("Erf", "Exp", "Gelu", "HardSwish", "Log", "Mish", "Reciprocal", "Sigmoid", "Softplus"),
        *("Softsign", "Sqrt", "Swish", "Tanh", *_MIXING, *_RECURRENT),
    )
)
_BROKEN = frozenset(("Celu", "Clip", "Elu", "LeakyRelu", "PRelu", "Relu", "Selu"))
"""Functions that are maps on each side of some numbers."""
_PRODUCTS = ("Div", "MatMul", "Mul")
_EVEN = frozenset(("Abs", "Cos", "LRN", "Pow", "Sin"))
"""Functions that may put out the same for data that are scaled or shifted."""
_INTEGERS = frozenset(
    (
        *(TensorProto.BOOL, TensorProto.INT4, TensorProto.INT8, TensorProto.INT16),
        *(TensorProto.INT32, TensorProto.INT64, TensorProto.STRING, TensorProto.UINT4),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    )
)
_WITH_INTEGERS = {"ArgMax", "ArgMin", "Bernoulli", "QuantizeLinear", *MOVING, *COPYING}
"""Operators of which integers show a difference for some data."""
_EVEN_BY = 1e-3
"""Differences are one number if they are so near to each other: stored weights are rounded."""
_BEYOND = 512.0
"""Numbers so large are cut to the ends of a quantizer's eight bits, whatever its zero point."""


def comes_out(
    bounds: Bounds, start: Mapping[int, Effect], results: Sequence[Expression], is_map: bool
) -> bool:
    """Whether differences of some bases are sure to show in a result.

    ``is_map`` says that these bases are scaled or shifted: a norm or a Softmax may take that away,
    as long as only maps stand between.
    """
    mapped = set(start) if is_map else set[int]()
    found: dict[int, Effect] = dict(start)
    reading: dict[int, list[Known | Sum]] = {}
    made = {id(each): each for each in bounds.made.values()}
    for each in made.values():
        last = min(each.outputs) if isinstance(each, Known) else each.base
        reading.setdefault(last, []).append(each)
    for base in sorted(reading):
        if base in start:
            continue
        for each in reading[base]:
            values = [each.expression] if isinstance(each, Sum) else each.inputs
            read = {t.base for v in values if v is not None for t in v.terms}
            read = {one for one in read if found.get(one) is not None}
            if not read:
                continue
            if isinstance(each, Sum):
                found[each.base] = of_sum(each.expression, found, each.rank)
                mapped |= {each.base} if read <= mapped else set()
                continue
            given = [of_sum(v, found, None) if v is not None else None for v in each.inputs]
            if any(one is not None for one in given):
                made_ = of_operator(bounds, each, given, read <= mapped)
                found.update(zip(each.outputs, made_, strict=False))
                if read <= mapped and not _bends(bounds, each, given[0]):
                    mapped.update(each.outputs)
    effects = [of_sum(result, found, None) for result in results]
    return any(each is not None and each is not Seen.UNSURE for each in effects)


def _bends(bounds: Bounds, known: Known, effect: Effect) -> bool:
    """Whether an operator makes no map of a map, wherever its data differ."""
    if known.kind not in _BROKEN or known.place is None:
        return known.kind in _CURVED
    data = bounds.inputs(known)[0]
    ends = known.numbers if known.kind == "Clip" else (0.0,)
    inside = np.any([(data.low < end) & (end < data.high) for end in ends], axis=0)
    return bool(np.all(inside | (effect == 0 if not isinstance(effect, Seen) else False)))


def of_operator(
    bounds: Bounds, known: Known, given: Sequence[Effect], is_map: bool
) -> list[Effect]:
    """What comes of differences of what an operator reads, for each of its outputs.

    ``is_map`` says that all of it is scaled or shifted.
    """
    count = len(known.outputs)
    stored = bounds.table.types[known.outputs[0]] in _INTEGERS
    if known.place is None or (stored and known.kind not in _WITH_INTEGERS):
        return [Seen.UNSURE] * count
    side, scope, node = known.place
    kind, inputs = known.kind, bounds.inputs(known)
    places = [place for place, effect in enumerate(given) if effect is not None]
    effects = [effect for effect in given if effect is not None]
    if any(effect is Seen.UNSURE for effect in effects):
        return [Seen.UNSURE] * count
    if count and kind == "QuantizeLinear":
        low, high = inputs[0]
        far = (high <= -_BEYOND) | (low >= _BEYOND) | (np.round(low) == np.round(high))
        return [_masked(given[0], ~far) if places == [0] else Seen.UNSURE]
    if is_map and (kind in _EVEN or (kind in _PRODUCTS and len(effects) > 1)):
        return [Seen.UNSURE] * count
    first, rank = given[0], side.rank(scope, node.input[0])
    rest: list[Effect] = [Seen.UNSURE] * (count - 1)
    if kind in MOVING:
        return _moved(known, given)
    if kind in ("Mul", "Div", "Max", "Min") and len(given) == len(inputs):
        return [_joined(known, given, inputs), *rest]
    if kind == "MatMul" and len(inputs) == 2:
        return [_multiplied(given, inputs), *rest]
    if kind == "Where" and len(inputs) == 3 and first is None:
        return [_chosen(given, inputs[0]), *rest]
    if kind in _RECURRENT:  # A step mixes all numbers of the one before.
        return [np.ones(())] * count
    if places != [0] or first is None:
        return [Seen.UNSURE] * count
    if kind in ("ArgMax", "ArgMin"):
        axis = [attributes(node).get("axis", 0) % rank] if rank else []
        even = _is_even(first, axis, rank, is_map)
        return [Seen.UNSURE if even else _placed(known, first, inputs[0], rank)]
    if kind in _WINDOWS and not (isinstance(first, Seen) or is_of_channels(first, rank)):
        return [Seen.UNSURE] * count
    if kind == "Pow" and not np.all(inputs[1].is_one & (inputs[1].low != 0)):
        return [Seen.UNSURE]
    if kind in _CHANNELWISE:
        shows = ~(inputs[0].is_one | is_flat(known, inputs[0]))
        if kind in _WINDOWS and not is_of_channels(shows, rank):
            shows = np.asarray(np.all(shows))
        return [_masked(first, shows), *rest]
    if kind in COPYING:
        one = isinstance(first, Seen) or first.size == 1 or kind == "Expand"
        return [first if one else Seen.SOMEWHERE]
    if kind in ("Pad", "Resize", "Upsample"):
        return _moved(known, given)
    if kind in _MIXING:
        sizes, axes = side.shapes.sizes(scope, node.input[0]), _mixed(known, rank)
        several = any(_is_several(sizes[axis]) for axis in axes) if sizes else False
        if not several or isinstance(first, Seen):
            return [Seen.UNSURE if is_map or not several else first, *rest]
        if _is_even(first, axes, rank, is_map):
            return [Seen.UNSURE] * count
        return [_spread(first, axes, rank), *rest]
    if kind in ("ReduceMean", "ReduceSum") or kind in _EXTREME:
        return [_reduced(known, first)]
    return [Seen.UNSURE] * count


def _is_even(effect: Effect, axes: Sequence[int], rank: int | None, is_map: bool) -> bool:
    """Whether a difference may be one number along some axes."""
    if isinstance(effect, Seen) or effect is None or rank is None or effect.ndim > rank:
        return is_map
    full = full_rank(effect, rank)
    if all(full.shape[axis] == 1 for axis in axes):
        return is_map
    return bool(np.all(np.ptp(full, axis=tuple(axes)) <= _EVEN_BY * np.max(np.abs(full))))


def _placed(known: Known, effect: Effect, data: Range, rank: int | None) -> Effect:
    """ArgMax, ArgMin: a channel that may be the largest, or not, of several."""
    assert known.place is not None
    _, _, node = known.place
    if rank is None or isinstance(effect, Seen) or effect is None or effect.ndim > rank:
        return Seen.UNSURE
    axis = attributes(node).get("axis", 0) % rank
    effect, *ends = (full_rank(each, rank) for each in (effect, data.low, data.high))
    size = effect.shape[axis]
    if size < 2 or any(end.shape[axis] not in (1, size) for end in ends):
        return Seen.UNSURE
    low, high = (np.repeat(e, size, axis) if e.shape[axis] == 1 else e for e in ends)
    if node.op_type == "ArgMin":
        low, high = -high, -low
    shows = np.zeros(effect.shape, np.bool_)
    for channel in range(size):
        others = [each for each in range(size) if each != channel]
        least, most = (np.max(np.take(end, others, axis), axis) for end in (low, high))
        own = [np.take(end, channel, axis) for end in (low, high)]
        shows[(slice(None),) * axis + (channel,)] = np.any((own[1] > least) & (own[0] < most))
    return Seen.SOMEWHERE if np.any(shows & (effect != 0)) else Seen.UNSURE


def _is_several(size: int | str | None) -> bool:
    return isinstance(size, int) and size > 1


def _masked(effect: Effect, shows: NDArray[np.bool_]) -> Effect:
    """A difference where something of it shows."""
    if not shows.any():
        return None
    if isinstance(effect, Seen):
        return effect if shows.all() else Seen.UNSURE
    return None if effect is None else kept(0.618 * effect * shows)


def _moved(known: Known, given: Sequence[Effect]) -> list[Effect]:
    """Behind an operator that moves numbers."""
    joins = known.kind == "Concat"
    taken = list(given) if joins else list(given[:1])
    nothing = Related(np.zeros(()), np.zeros(()))
    if any(effect is not None for effect in given[len(taken) :]):
        return [Seen.UNSURE] * len(known.outputs)
    if not any(isinstance(effect, Seen) for effect in taken):
        known_ = [e for e in taken if not isinstance(e, Seen)]
        relations = [nothing if e is None else Related(e, np.zeros(())) for e in known_]
        found = moved(known, relations)
        if found is not None:
            return [kept(scale) for scale, _ in found]
    keeps_all = known.kind not in _DROPPING
    return [Seen.SOMEWHERE if keeps_all else Seen.UNSURE] * len(known.outputs)


def _joined(known: Known, given: Sequence[Effect], inputs: Sequence[Range]) -> Effect:
    """Mul, Div, Max, Min: unless one of the others hides it."""
    total: Effect = None
    for place, effect in enumerate(given):
        if effect is None:
            continue
        if known.kind in ("Max", "Min"):
            shows = ~narrowed(known, inputs, place)
        else:
            others = [each for number, each in enumerate(inputs) if number != place]
            zero = [each.is_one & (each.low == 0) for each in others]
            shows = ~zero[0] if zero else np.ones((), np.bool_)
        own = _masked(effect, shows)
        if isinstance(own, Seen) or isinstance(total, Seen):
            if Seen.UNSURE in (own, total):
                return Seen.UNSURE
            total = Seen.SOMEWHERE
        elif own is not None:
            total = own if total is None else total * 1.31 + own * 0.77
    return total


def _multiplied(given: Sequence[Effect], inputs: Sequence[Range]) -> Effect:
    """MatMul of data: a row of one, and a column of the other."""
    total: Effect = None
    for place, (effect, other) in enumerate(zip(given, reversed(inputs), strict=True)):
        if effect is None:
            continue
        if isinstance(effect, Seen) or np.any(other.is_one & (other.low == 0)):
            return Seen.UNSURE
        axis = -1 if place == 0 else -2
        full = effect if effect.ndim > 1 else effect.reshape(1, -1)
        own = np.any(full != 0, axis=axis, keepdims=True) * (1.0 + place)
        total = own if total is None else total + own
    return total


def _chosen(given: Sequence[Effect], condition: Range) -> Effect:
    """Where: what a condition takes that is the same."""
    total: Effect = None
    for place, effect in enumerate(given[1:]):
        if effect is None:
            continue
        never = condition.high == 0 if place == 0 else condition.low == 1
        if isinstance(effect, Seen):
            own: Effect = Seen.UNSURE if never.any() else effect
        elif max(never.size, effect.size) > _MANY:
            own = Seen.UNSURE
        else:
            own = kept(effect * ~never)
        if own is Seen.UNSURE:
            return own
        if isinstance(own, Seen) or isinstance(total, Seen):
            total = Seen.SOMEWHERE
        elif own is not None:
            total = own if total is None else total + own
    return total


def _mixed(known: Known, rank: int | None) -> list[int]:
    """The axes along which a norm or a Softmax mixes."""
    assert known.place is not None
    _, scope, node = known.place
    if rank is None:
        return []
    if known.kind in ("GroupNormalization", "InstanceNormalization"):
        return list(range(2, rank))
    if known.kind in ("LogSoftmax", "Softmax"):
        axis = attributes(node).get("axis", -1 if scope.opset >= 13 else 1) % rank
        return [axis] if scope.opset >= 13 else list(range(axis, rank))
    return list(range(attributes(node).get("axis", -1) % rank, rank))


def _spread(effect: Double, axes: Sequence[int], rank: int | None) -> Effect:
    """A difference that is everywhere along some axes."""
    if rank is None or rank < effect.ndim:
        return Seen.UNSURE
    full = effect.reshape((1,) * (rank - effect.ndim) + effect.shape)
    return kept(np.abs(full).sum(axis=tuple(axes), keepdims=True))


def _reduced(known: Known, effect: Effect) -> Effect:
    """Reductions: a sum adds up differences; of others a single one shows."""
    assert known.place is not None
    side, scope, node = known.place
    rank, given = side.rank(scope, node.input[0]), attributes(node)
    axes = given.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        stored = side.constant(scope, node.input[1])
        axes = None if stored is None else stored.load().reshape(-1).tolist()
        if axes is None:
            return Seen.UNSURE
    if rank is None or isinstance(effect, Seen) or effect is None or effect.ndim > rank:
        return Seen.UNSURE
    if not axes:
        if given.get("noop_with_empty_axes", 0):
            return effect
        axes = range(rank)
    reduced = tuple({axis % rank for axis in axes})
    full = effect.reshape((1,) * (rank - effect.ndim) + effect.shape)
    if known.kind in _EXTREME and np.any((full != 0).sum(axis=reduced) > 1):
        return Seen.UNSURE
    keeps = bool(given.get("keepdims", 1))
    total = full.sum(axis=reduced, keepdims=keeps)
    size = np.abs(full).sum(axis=reduced, keepdims=keeps)
    return kept(np.where(np.abs(total) > CANCELS * size, total, 0.0))
