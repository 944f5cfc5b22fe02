"""The sizes of what operators put out, where shape inference does not know them.

Inference knows nothing behind a Reshape to sizes that a graph computes in another type, behind an
If whose branches have several ranks, and behind operators of other domains. Each rule is that of
the operator's definition in ONNX; None stands for a size that it does not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.amounts import Size, plus, times
from bnfold._relation.integers import Integers, ranges
from bnfold._relation.outlines import broadcast, parts, rearranged, widened
from bnfold._relation.side import attributes

Told = tuple[Size | None, ...]
_KEEPING = frozenset(
    (
        *("Abs", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "CumSum", "Dropout", "Elu"),
        *("Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
        *("InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Neg"),
        *("Not", "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin"),
        *("Softmax", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
    )
)
"""Operators that put out as many numbers as they read of their first input, where they stand."""
_JOINING = frozenset(
    (
        *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        *("Max", "Mean", "Min", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor"),
    )
)
"""Operators that broadcast all that they read."""
_TELLING = ("Conv", "Gemm", "MatMul", "Reshape")
"""Operators that run only where some sizes are the same."""
_EVERYWHERE = 8
"""From this opset on they do so as NumPy does."""


def note(held: Integers, scope: Scope, node: NodeProto) -> None:
    """Note the sizes of what a node puts out, where inference does not know all of them."""
    kind = type_of(node)
    rule = _RULES.get(kind) or (_reduced if kind.startswith("Reduce") else None)
    names = [name for name in node.output[:] if name]
    if rule is None or not names:
        return
    learns = held.sizes.learns and kind in _TELLING
    if not learns and all(held.is_known(scope, name) for name in names):
        return
    try:
        made = rule(held, scope, node)
    except (IndexError, KeyError, TypeError, ValueError):  # An invalid node.
        return
    for name, told in zip(node.output, made or (), strict=False):
        if name and told is not None:
            held.outlines[scope.path, name] = told
            held.side.note_rank(scope, name, len(told))


def _keeping(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    return [held.of_tensor(scope, node.input[0])]


def _joining(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    if scope.opset < _EVERYWHERE:
        return [None]
    read = [held.of_tensor(scope, name) for name in node.input[:]]
    made = read[0]
    for each in read[1:]:
        made = None if made is None or each is None else broadcast(made, each)
    return [made]


def _moving(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    if type_of(node) == "Reshape":
        _learn_of(held, scope, node)
    return [(widened if type_of(node) == "Expand" else rearranged)(held, scope, node)]


def _learn_of(held: Integers, scope: Scope, node: NodeProto) -> None:
    """Note what a Reshape to known sizes tells; a 0 may stand for the size that is there."""
    target, copies = held.of_names(scope, node.input[1]), not attributes(node).get("allowzero", 0)
    for size in () if target is None or not copies else target.values:
        held.sizes.doubt(size)
    if target is not None and all(map(held.sizes.is_positive, target.values)):
        held.sizes.learn_of_all(held.of_tensor(scope, node.input[0]) or (None,), target.values)


def _conv(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    """As many channels as the kernel has rows; along other axes steps of 1 are followed."""
    data, kernel = (held.of_tensor(scope, name) for name in node.input[:2])
    data = (None,) * len(kernel or ()) if data is None else data
    if kernel is None or len(data) != len(kernel):
        return [None]
    given, count = attributes(node), len(data) - 2
    if kernel[1] is not None:
        held.sizes.learn(data[1], times(kernel[1], given.get("group", 1)))
    steps, spread = (given.get(name, [1] * count) for name in ("strides", "dilations"))
    pads = given.get("pads", [0] * 2 * count)
    behind: list[Size | None] = []
    for axis in range(count):
        size, width = data[2 + axis], kernel[2 + axis]
        fixed = given.get("auto_pad", b"NOTSET") == b"NOTSET" and steps[axis] == 1
        if size is None or not isinstance(width, int) or not fixed:
            behind.append(None)
        else:
            added = pads[axis] + pads[axis + count] - spread[axis] * (width - 1)
            behind.append(plus(size, added))
    return [(data[0], kernel[0], *behind)]


def _global(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    data = held.of_tensor(scope, node.input[0])
    return [None if data is None else (*data[:2], *(1,) * (len(data) - 2))]


def _window(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    """A pool: batch and channels stay."""
    data = held.of_tensor(scope, node.input[0])
    return [None if data is None else (*data[:2], *(None,) * (len(data) - 2))]


def _product(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    one, other = (held.of_tensor(scope, name) for name in node.input[:2])
    if one is None or other is None or min(len(one), len(other)) < 2:
        return [None]
    held.sizes.learn(one[-1], other[-2])
    owner = scope.owner(node.input[0])
    if owner is not None and isinstance(other[-2], int) and not isinstance(one[-1], int):
        held.sizes.ask((owner.path, node.input[0]), one, -1, other[-2])
    return [(*broadcast(one[:-2], other[:-2]), one[-2], other[-1])]


def _gemm(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    given = attributes(node)
    one, other = (held.of_tensor(scope, name) or (None, None) for name in node.input[:2])
    one = one[::-1] if given.get("transA", 0) else one
    other = other[::-1] if given.get("transB", 0) else other
    held.sizes.learn(one[1], other[0])
    return [(one[0], other[1])]


def _turned(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    data = held.of_tensor(scope, node.input[0])
    if data is None:
        return [None]
    order = attributes(node).get("perm", range(len(data))[::-1])
    return [tuple(data[axis] for axis in order) if len(order) == len(data) else None]


def _reduced(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    data, given = held.of_tensor(scope, node.input[0]), attributes(node)
    axes: Sequence[Any] | None = given.get("axes")
    if len(node.input) > 1 and node.input[1]:
        found = held.of_names(scope, node.input[1])
        axes = None if found is None else found.values
    if data is None or not axes:
        return [None]
    gone = {axis % len(data) for axis in axes}
    kept = given.get("keepdims", 1) == 1
    left = [1 if axis in gone else size for axis, size in enumerate(data)]
    return [tuple(s for axis, s in enumerate(left) if kept or axis not in gone)]


def _concat(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    read = [held.of_tensor(scope, name) for name in node.input[:]]
    known = [each for each in read if each is not None]
    if len(known) < len(read) or len({len(each) for each in known}) != 1:
        return [None]
    axis = attributes(node)["axis"] % len(known[0])
    made: list[Size | None] = []
    for place, sizes in enumerate(zip(*known, strict=True)):
        if place != axis:
            told = [size for size in sizes if size is not None]
            made.append(next((s for s in told if isinstance(s, int)), told[0] if told else None))
            continue
        total: Size | None = 0
        for size in sizes:
            total = None if total is None or size is None else plus(total, size)
        made.append(total)
    return [tuple(made)]


def _gather(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    data, places = (held.of_tensor(scope, name) for name in node.input[:2])
    if data is None or places is None:
        return [None]
    axis = attributes(node).get("axis", 0) % len(data)
    return [(*data[:axis], *places, *data[axis + 1 :])]


def _slice(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    data, taken = held.of_tensor(scope, node.input[0]), ranges(held, scope, node)
    if data is None or taken is None:
        return [None]
    made = list(data)
    for start, end, axis, step in taken:
        size = made[axis]
        known = isinstance(size, int) and isinstance(start, int) and isinstance(end, int)
        made[axis] = len(range(size)[start:end:step]) if known else None  # type: ignore[arg-type]
    return [tuple(made)]


def _split(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    data = held.of_tensor(scope, node.input[0])
    axis = attributes(node).get("axis", 0)
    sizes = parts(held, scope, node)
    if data is None or sizes is None:
        return [None]
    axis %= len(data)
    return [(*data[:axis], size, *data[axis + 1 :]) for size in sizes]


def _pad(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    """Behind a Pad of all axes in order."""
    data, pads = held.of_tensor(scope, node.input[0]), attributes(node).get("pads")
    if len(node.input) > 1 and node.input[1]:
        found = held.of_names(scope, node.input[1])
        pads = None if found is None else found.values
    chosen = len(node.input) > 3 and node.input[3]
    if data is None or pads is None or chosen or len(pads) != 2 * len(data):
        return [None]
    pairs = zip(pads[: len(data)], pads[len(data) :], strict=True)
    return [
        tuple(
            None if size is None else plus(plus(size, before), behind)
            for size, (before, behind) in zip(data, pairs, strict=True)
        )
    ]


def _recurrent(held: Integers, scope: Scope, node: NodeProto) -> list[Told | None]:
    """Y ``[steps, directions, batch, hidden]``, and the last states without the steps."""
    data, given = held.of_tensor(scope, node.input[0]), attributes(node)
    if data is None or len(data) != 3 or given.get("layout", 0):
        return [None]
    steps, batch, _ = data
    ways = 2 if given.get("direction", b"forward") == b"bidirectional" else 1
    state = (ways, batch, given.get("hidden_size"))
    return [(steps, *state), state, state]


Rule = Callable[[Integers, Scope, NodeProto], "list[Told | None]"]
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_KEEPING, _keeping),
    **dict.fromkeys(_JOINING, _joining),
    **dict.fromkeys(("Expand", "Flatten", "Reshape", "Squeeze", "Unsqueeze"), _moving),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _window),
    **dict.fromkeys(("GRU", "LSTM", "RNN", "com.microsoft::DynamicQuantizeLSTM"), _recurrent),
    "Concat": _concat,
    "Conv": _conv,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _product,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _turned,
}
