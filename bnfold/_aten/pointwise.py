"""Operators of ATen that go number by number, and those that hand on what they read.

Where tensors of several types meet, and where a number stands beside a tensor, each is first
brought to the type of the result (PyTorch, "Tensor attributes", type promotion).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import TensorProto

from bnfold._aten.call import Call, Made
from bnfold._aten.writer import Like, exact

_COMPARED = {
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
}
_NAMES = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "mish": "Mish",
    "neg": "Neg",
    "reciprocal": "Reciprocal",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}


def _data(call: Call) -> str | None:
    """The data of an operator that puts out numbers of floating point, in their type."""
    return call.operand("self") if call.like.is_real else None


def unary(call: Call) -> Made:
    """``f(x)``, where PyTorch and ONNX mean the same f."""
    data = _data(call)
    return None if data is None else call.write(_NAMES[call.kind], [data])


def _both(call: Call) -> tuple[str, str] | None:
    if not call.like.is_real:
        return None
    one, other = call.operand("self"), call.operand("other")
    return None if one is None or other is None else (one, other)


def times(call: Call, value: str, factor: object) -> str | None:
    """A value times a number that an operator takes besides."""
    if factor == 1:
        return value
    if not isinstance(factor, (int, float)):
        return None
    like, number = call.like_of(value), float(factor)
    held = call.made(value, like, lambda values: values.astype("float64") * number)
    return held or call.write("Mul", [value, call.writer.number(number, like.kind)], like)


def added(call: Call) -> Made:
    """add: ``x + α·y``; sub: ``x − α·y``; rsub: ``y − α·x``."""
    both = _both(call)
    if both is None:
        return None
    one, other = both if call.kind != "rsub" else both[::-1]
    scaled = times(call, other, call.given.get("alpha", 1))
    if scaled is None:
        return None
    return call.write("Add" if call.kind == "add" else "Sub", [one, scaled])


def multiplied(call: Call) -> Made:
    """mul, and div without rounding."""
    both = _both(call)
    if both is None or call.given.get("rounding_mode") is not None:
        return None
    return call.write("Mul" if call.kind.startswith("mul") else "Div", both)


def added_product(call: Call) -> Made:
    """addcmul: ``x + v·a·b``."""
    parts = [call.operand(name) for name in ("self", "tensor1", "tensor2")]
    if not call.like.is_real or None in parts:
        return None
    data, one, other = (part or "" for part in parts)
    product = call.write("Mul", [one, other], _wide(call, one, other))
    scaled = times(call, product, call.given.get("value", 1))
    return None if scaled is None else call.write("Add", [data, scaled])


def _wide(call: Call, *values: str) -> Like:
    """What the product of tensors is, if one of them has all its sizes; else what is put out."""
    likes = [call.like_of(value) for value in values]
    widest = max(likes, key=lambda like: like.rank)
    plain = all(
        size in (1, own)
        for like in likes
        for size, own in zip(reversed(like.sizes), reversed(widest.sizes), strict=False)
    )
    return widest if plain else call.like


def clipped(call: Call) -> Made:
    """clamp, hardtanh, relu6: between two numbers."""
    data = _data(call)
    bounds = {
        "clamp": ("min", "max"),
        "clamp_max": ("", "max"),
        "clamp_min": ("min", ""),
        "hardtanh": ("min_val", "max_val"),
    }
    if call.kind == "relu6":
        ends: list[object] = [0.0, 6.0]
    else:
        ends = [call.given.get(name) if name else None for name in bounds[call.kind]]
    if data is None or not all(end is None or isinstance(end, (int, float)) for end in ends):
        return None
    return _clipped(call, data, ends)


def _clipped(call: Call, data: str, ends: list[object]) -> str:
    numbers = [
        call.writer.number(float(end), call.like.kind) if isinstance(end, (int, float)) else ""
        for end in ends
    ]
    return call.write("Clip", [data, *numbers])


def _hard(call: Call, data: str) -> str:
    """``clip(x/6 + 1/2, 0, 1)``."""
    sixth, half = (call.writer.number(number, call.like.kind) for number in (1.0 / 6.0, 0.5))
    line = call.write("Add", [call.write("Mul", [data, sixth]), half])
    return _clipped(call, line, [0.0, 1.0])


def gated(call: Call) -> Made:
    """hardsigmoid; silu, hardswish: ``x·g(x)``."""
    data = _data(call)
    if data is None:
        return None
    gate = call.write("Sigmoid", [data]) if call.kind == "silu" else _hard(call, data)
    return gate if call.kind == "hardsigmoid" else call.write("Mul", [data, gate])


def gelu(call: Call) -> Made:
    """gelu: ``x/2 · (1 + erf(x/√2))``; that with tanh is left as it is."""
    data = _data(call)
    if data is None or call.given.get("approximate", "none") != "none":
        return None
    root, one, half = (
        call.writer.number(number, call.like.kind) for number in (math.sqrt(2.0), 1.0, 0.5)
    )
    inner = call.write("Erf", [call.write("Div", [data, root])])
    wide = call.write("Mul", [data, call.write("Add", [inner, one])])
    return call.write("Mul", [wide, half])


def bent(call: Call) -> Made:
    """leaky_relu, elu, celu: with one number for what is below 0."""
    data = _data(call)
    name = "negative_slope" if call.kind == "leaky_relu" else "alpha"
    number = call.given.get(name)
    others = [call.given.get(key, 1) for key in ("scale", "input_scale")]
    if data is None or not isinstance(number, (int, float)) or others != [1, 1]:
        return None
    op = {"celu": "Celu", "elu": "Elu", "leaky_relu": "LeakyRelu"}[call.kind]
    return call.write(op, [data], **exact("alpha", float(number), call.like.kind))


def prelu(call: Call) -> Made:
    """prelu: a slope for each channel, along axis 1."""
    data, slope = call.value("self"), call.value("weight")
    if data is None or slope is None or call.constant("weight") is None or call.like.rank < 2:
        return None
    held = call.like_of(slope)
    count = math.prod(size for size in held.sizes if isinstance(size, int))
    sizes = (count, *(1,) * (call.like.rank - 2)) if count > 1 else ()
    made = call.made(slope, Like(held.kind, sizes), lambda values: values.reshape(sizes))
    return None if made is None else call.write("PRelu", [data, made])


def compared(call: Call) -> Made:
    """Which numbers are larger than others, or the same; both in one type of float32 or wider.

    In half precision PyTorch brings a number to the type of the tensor beside it.
    """
    one, other = call.value("self"), call.given.get("other")
    kind = 0 if one is None else call.like_of(one).kind
    if one is None or kind not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return None
    if isinstance(other, (int, float)):
        second: str | None = call.writer.number(float(other), kind)
    else:
        second = call.value("other")
    if second is None or call.like_of(second).kind != kind:
        return None
    return call.write(_COMPARED[call.kind], [one, second])


def rounded(call: Call) -> Made:
    """round: to whole numbers, halves to even ones."""
    data = _data(call)
    return None if data is None or call.given.get("decimals") else call.write("Round", [data])


def handed(call: Call) -> Made:
    """clone, contiguous, detach … and a change of type, device or layout."""
    data = call.value("self")
    return None if data is None else call.cast(data, call.like.kind)


def dropped(call: Call) -> Made:
    """Dropout and its kin, out of training."""
    data = call.value("input")
    return data if call.given.get("train") is False else None


RULES: dict[str, Callable[[Call], Made]] = {
    **dict.fromkeys(_NAMES, unary),
    **dict.fromkeys(("add", "rsub", "sub", "subtract"), added),
    **dict.fromkeys(("div", "divide", "mul", "multiply", "true_divide"), multiplied),
    **dict.fromkeys(_COMPARED, compared),
    **dict.fromkeys(("clamp", "clamp_max", "clamp_min", "hardtanh", "relu6"), clipped),
    **dict.fromkeys(("hardsigmoid", "hardswish", "silu"), gated),
    **dict.fromkeys(("celu", "elu", "leaky_relu"), bent),
    **dict.fromkeys(
        ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "to", "type_as", "_to_copy"),
        handed,
    ),
    **dict.fromkeys(
        ("alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout"), dropped
    ),
    "addcmul": added_product,
    "gelu": gelu,
    "prelu": prelu,
    "round": rounded,
}
"""By the name of the operator."""
