"""Norms of ATen.

batch_norm: ``(x − mean) / √(var + ε) · γ + β`` along axis 1, with stored statistics. The others
compute theirs from the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from bnfold._aten.call import Call, Made
from bnfold._aten.writer import Like, exact


class InTraining(Exception):
    """A norm uses, and changes, statistics of what it is given. The message says which."""


def _plain(call: Call, number: float, size: int, kind: int) -> str:
    """The parameter of a norm that has none."""
    values = np.full(size, number, np.float64 if kind == TensorProto.DOUBLE else np.float32)
    kind = int(TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT)
    return call.writer.held("none", Like(kind, (size,)), lambda: values)


def _parameters(call: Call, size: int) -> list[str] | None:
    """γ and β."""
    found = []
    for name, number in (("weight", 1.0), ("bias", 0.0)):
        if call.given.get(name) is None:
            found.append(_plain(call, number, size, call.like.kind))
        else:
            value = call.value(name)
            if value is None:
                return None
            found.append(value)
    return found


def batch_norm(call: Call) -> Made:
    """batch_norm in all its forms, with stored statistics. ε is added to them here."""
    data, kind = call.value("input"), call.kind
    if kind == "instance_norm":
        training = call.given.get("use_input_stats")
    else:
        training = call.given.get("training", "no_training" not in kind and "no_update" not in kind)
    if training is not False:
        if call.given.get("running_mean") is None:
            return None
        raise InTraining(kind)
    mean, variance = call.value("running_mean"), call.value("running_var")
    if data is None or mean is None or variance is None or call.used - {0}:
        return None
    held, eps = call.like_of(variance), call.given.get("eps")
    if held.rank != 1 or not isinstance(held.sizes[0], int) or not isinstance(eps, float):
        return None
    number = eps
    spread = call.made(variance, held, lambda values: values.astype(np.float64) + number)
    parameters = _parameters(call, held.sizes[0])
    if spread is None or parameters is None:
        return None
    inputs = [data, *parameters, mean, spread]
    return call.write("BatchNormalization", inputs, epsilon=0.0)


def instance_norm(call: Call) -> Made:
    """instance_norm: of each channel of a sample."""
    if call.given.get("running_mean") is not None:
        return batch_norm(call)
    data, size = call.value("input"), call.like.sizes[1] if call.like.rank > 2 else None
    if data is None or not isinstance(size, int) or call.given.get("use_input_stats") is not True:
        return None
    return _normalized(call, "InstanceNormalization", data, size)


def _normalized(call: Call, op: str, data: str, size: int, **given: Any) -> Made:
    parameters, eps = _parameters(call, size), call.given.get("eps")
    if parameters is None or not isinstance(eps, float) or call.used - {0}:
        return None
    more = exact("epsilon", eps, call.like.kind)
    return call.write(op, [data, *parameters], **more, **given)


def layer_norm(call: Call) -> Made:
    """layer_norm, native_layer_norm: over the last axes."""
    data, shape = call.value("input"), call.whole("normalized_shape")
    if data is None or shape is None:
        return None
    if len(shape) == 1:
        return _normalized(call, "LayerNormalization", data, shape[0], axis=-1)
    if call.given.get("weight") is None or call.given.get("bias") is None:
        return None
    return _normalized(call, "LayerNormalization", data, math.prod(shape), axis=-len(shape))


def group_norm(call: Call) -> Made:
    """group_norm, native_group_norm: of groups of channels of a sample."""
    groups = call.whole("num_groups" if call.kind == "group_norm" else "group")
    data, size = call.value("input"), call.like.sizes[1] if call.like.rank > 1 else None
    if data is None or groups is None or not isinstance(size, int):
        return None
    return _normalized(call, "GroupNormalization", data, size, num_groups=groups[0])


def rms_norm(call: Call) -> Made:
    """rms_norm: over the last axis. Without an ε PyTorch has one of its own for each type."""
    data, shape = call.value("input"), call.whole("normalized_shape")
    weight, eps = call.value("weight"), call.given.get("eps")
    if data is None or shape is None or len(shape) != 1 or weight is None:
        return None
    if not (eps is None or isinstance(eps, float)) or not call.like.is_real:
        return None
    more = {"own": "epsilon"} if eps is None else exact("epsilon", eps, call.like.kind)
    return call.write("RMSNormalization", [data, weight], axis=-1, **more)


RULES: dict[str, Callable[[Call], Made]] = {
    **dict.fromkeys(
        (
            *("_batch_norm_no_update", "_native_batch_norm_legit"),
            *("_native_batch_norm_legit_no_training", "batch_norm", "cudnn_batch_norm"),
            *("native_batch_norm", "_batch_norm_with_update"),
        ),
        batch_norm,
    ),
    **dict.fromkeys(("group_norm", "native_group_norm"), group_norm),
    "instance_norm": instance_norm,
    **dict.fromkeys(("layer_norm", "native_layer_norm"), layer_norm),
    "rms_norm": rms_norm,
}
"""By the name of the operator."""
