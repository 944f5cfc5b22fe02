"""What of an operator is not affine: the rest is steps ahead of it and behind it.

Norms end with ``γ·n + β``. QuantizeLinear divides by its scale before it rounds, DequantizeLinear
multiplies in the end. HardSigmoid is ``clip(α·x + β, 0, 1)``. A convolution whose weight is
computed ends with ``+ B``. Recurrent operators multiply what they read with weights before anything
else.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import field

import numpy as np
from onnx import NodeProto, helper

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.expressions import Expression, Linear, along
from bnfold._relation.fillings import Fillings
from bnfold._relation.linear import Applied, apply
from bnfold._relation.reading import Step
from bnfold._relation.side import Array, Side, Weight, attributes
from bnfold._system.records import record

_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


@record(frozen=True, eq=False)
class Core:
    """The part of an operator that is not affine.

    Attributes:
        node: what tells it apart; its inputs do not count.
        names: what it reads; "" where nothing is read any more.
        given: what each of these is; None for a constant.
        numbers: parameters that a map of its data moves.
        steps: what is done with what it puts out.
        gates: what it computes of its data before anything else.
    """

    node: NodeProto
    names: Sequence[str]
    given: Sequence[Expression | None]
    numbers: Sequence[float] = ()
    steps: Sequence[Step] = ()
    gates: Sequence[Expression] = field(default_factory=list)


def of(
    fillings: Fillings, scope: Scope, node: NodeProto, given: Sequence[Expression | None]
) -> Core:
    """The core of an operator that reads ``given``; the operator itself if nothing is affine."""
    kind, side = type_of(node), fillings.integers.side
    plain = Core(node, node.input, given)
    if not given or given[0] is None:
        return plain
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        return _quantizer(side, scope, plain) or plain
    if kind in ("Clip", "ThresholdedRelu", "Pad"):
        return _with_numbers(side, scope, plain) or plain
    if kind == "HardSigmoid":
        return _hard_sigmoid(plain)
    if kind in ("Conv", "ConvTranspose"):
        return _biased(side, scope, plain) or plain
    if kind in _GATES:
        return _recurrent(fillings, scope, plain) or plain
    return _norm(side, scope, plain) or plain


def bounds(side: Side, scope: Scope, node: NodeProto) -> tuple[float, float] | None:
    """The bounds of a Clip or Relu, if they are numbers."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    core = _with_numbers(side, scope, Core(node, node.input, [None] * len(node.input)))
    if core is None:
        return None
    return (0.0, np.inf) if core.node.op_type == "Relu" else (core.numbers[0], core.numbers[1])


def product(node: NodeProto, factors: Sequence[str], output: str) -> NodeProto:
    """The product of two tensors, as a part of another operator."""
    return NodeProto(op_type="Mul", name=node.name, input=factors, output=[output])


def _without(node: NodeProto, *names: str) -> NodeProto:
    """An operator without some attributes."""
    kept = [a for a in node.attribute if a.name not in names]
    return NodeProto(op_type=node.op_type, domain=node.domain, output=node.output, attribute=kept)


def _with_numbers(side: Side, scope: Scope, plain: Core) -> Core | None:
    """Clip, ThresholdedRelu and Pad: bounds, α, and what is put around the data."""
    node, held = plain.node, attributes(plain.node)
    if node.op_type == "ThresholdedRelu":
        alpha = float(held.get("alpha", 1.0))
        return Core(_without(node, "alpha"), plain.names, plain.given, (alpha,))
    wanted: Sequence[tuple[str, float]] = (("value", 0.0),)
    if node.op_type == "Clip":
        wanted = (("min", -np.inf), ("max", np.inf))
    elif held.get("mode", b"constant") != b"constant":
        return None
    first = 3 - len(wanted)
    numbers, names = [], list(node.input)
    for place, (name, default) in enumerate(wanted, first):
        stored = node.input[place] if place < len(node.input) else ""
        weight = side.floats(scope, stored) if stored else None
        if stored and (weight is None or weight.shape not in ((), (1,))):
            return None
        value = held.get(name, default) if weight is None else weight.double().reshape(())
        numbers.append(float(value))
        if stored:
            names[place] = ""
    while names and not names[-1]:
        names.pop()
    lean = _without(node, *(name for name, _ in wanted))
    if node.op_type == "Clip" and numbers == [0.0, np.inf]:
        relu = NodeProto(op_type="Relu", output=node.output)
        return Core(relu, names[:1], plain.given[:1])
    return Core(lean, names, plain.given[: len(names)], numbers)


def _hard_sigmoid(plain: Core) -> Core:
    held, unit = attributes(plain.node), float(np.finfo(np.float32).eps)
    alpha, beta = (np.asarray(float(held.get(k, v))) for k, v in (("alpha", 0.2), ("beta", 0.5)))
    clip = NodeProto(op_type="Clip", output=plain.node.output)
    data = plain.given[0]
    assert data is not None
    moved = Step(alpha, beta, unit / 2, unit).of(data)
    return Core(clip, plain.names, [moved], (0.0, 1.0))


def _norm(side: Side, scope: Scope, plain: Core) -> Core | None:
    """A norm without γ and β."""
    node = plain.node
    kind, axis = type_of(node), 1
    if kind in ("LayerNormalization", "RMSNormalization"):
        axis = -1
    elif kind != "InstanceNormalization" and (kind != "GroupNormalization" or scope.opset < 21):
        return None
    rank = side.rank(scope, node.input[0])
    if rank is None or any(node.output[1:]):
        return None
    side.note_rank(scope, node.output[0], rank)
    steps, names = [], list(node.input)
    for place, name in enumerate(node.input[1:3], 1):
        if not name:
            continue
        weight = side.floats(scope, name)
        if weight is None or (axis == 1 and len(weight.shape) != 1):
            return None
        values = along(weight.double(), 1, rank) if axis == 1 else weight.double()
        scale, shift = (values, None) if place == 1 else (None, values)
        steps.append(Step(scale, shift, weight.unit / 2, weight.unit))
        names[place] = ""
    while not names[-1]:  # A β that is left out is 0.
        names.pop()
    return Core(node, names, plain.given[: len(names)], steps=steps)


def _biased(side: Side, scope: Scope, plain: Core) -> Core | None:
    """A convolution with a weight that is no constant, without its bias.

    Its weight has the rank of what it reads and puts out.
    """
    node = plain.node
    bias = side.floats(scope, node.input[2]) if len(node.input) > 2 else None
    rank = side.rank(scope, node.input[1])
    for name in (node.input[0], node.output[0]):
        side.note_rank(scope, name, rank)
    if bias is None or rank is None or rank < 3 or len(bias.shape) != 1:
        return None
    values = bias.double()
    if not np.all(np.isfinite(values)):
        return None
    step = Step(None, along(values, 1, rank), bias.unit / 2, bias.unit)
    return Core(node, node.input[:2], plain.given[:2], steps=[step])


def _quantizer(side: Side, scope: Scope, plain: Core) -> Core | None:
    """QuantizeLinear and DequantizeLinear without their scale."""
    node, given = plain.node, list(plain.given)
    weight, held = side.floats(scope, node.input[1]), attributes(node)
    data = given[0]
    if weight is None or held.get("block_size", 0) or data is None:
        return None
    values = weight.double()
    if not np.all(values > 0):
        return None
    if values.size > 1:
        rank = side.rank(scope, node.input[0])
        if rank is None or values.ndim != 1:
            return None
        axis = held.get("axis", 1) % rank
        values = values.reshape((-1, *(1,) * (rank - 1 - axis)))
    else:
        values = values.reshape(())
    names = [name if place != 1 else "" for place, name in enumerate(node.input)]
    if node.op_type == "DequantizeLinear":
        step = Step(values, None, weight.unit, weight.unit)
        return Core(node, names, given, steps=[step])
    step = Step(1.0 / values, None, weight.unit, weight.unit)
    return Core(node, names, [step.of(data), *given[1:]])


def _of_way(weight: Weight, way: int) -> Array:
    """The weights of one direction."""
    values: Array = weight.load()[way][:, :, None]
    return values


def _recurrent(fillings: Fillings, scope: Scope, plain: Core) -> Core | None:
    """LSTM, GRU, RNN: ``x·Wᵀ + Wb`` of each direction comes first (ONNX LSTM, GRU, RNN).

    B holds Wb and Rb, each [directions, gates · hidden]. Rb stays a parameter. An initial state
    that is left out is 0.
    """
    node, data, side = plain.node, plain.given[0], fillings.integers.side
    weight = side.floats(scope, node.input[1]) if len(node.input) > 2 else None
    rank = side.rank(scope, node.input[0])
    if weight is None or data is None or len(weight.shape) != 3 or rank not in (None, 3):
        return None
    ways, rows, columns = weight.shape
    stored = node.input[3] if len(node.input) > 3 else ""
    bias = side.floats(scope, stored) if stored else None
    if stored and (bias is None or bias.shape != (ways, 2 * rows)):
        return None
    gates = []
    own = np.zeros((ways, rows))
    rest = np.zeros((ways, rows))
    if bias is not None:
        own, rest = np.split(bias.double(), 2, axis=1)
    for way in range(ways):
        linear = Linear(
            ("product", -1, -1),
            -1,
            -1,
            functools.partial(_of_way, weight, way),
            rows,
            columns,
            1,
            ((),),
            error=weight.unit / 2,
            unit=weight.unit,
            name=weight.name,
        )
        made = apply(Applied(node.input[0], linear, 3, 3), data)
        if made is None:
            return None
        gates.append(made.shifted(own[way], weight.unit / 2, weight.unit))
    held = _without(node)
    del held.output[:]  # Which of them are read makes no difference.
    held.output.extend(f"output {k}" for k in range(3 if node.op_type == "LSTM" else 2))
    held.attribute.append(helper.make_attribute("recurrent bias", rest.reshape(-1).tolist()))
    names = ["", "", node.input[2], "", *node.input[4:]]
    given = [None, None, plain.given[2], None, *plain.given[4:]]
    for place in range(5, min(len(names), 7)):
        state = fillings.of_name(scope, names[place])
        if state is not None and state.is_zero:
            names[place] = ""
    while not names[-1]:
        names.pop()
    given = given[: len(names)]
    return Core(held, names, given, gates=gates)
