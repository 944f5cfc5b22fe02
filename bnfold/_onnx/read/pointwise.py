"""ONNX operators that compute each element from one element and are not linear: activations.

Each is translated into a record with the law that it obeys, or with none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from bnfold._core.bounded import Clipped, HardSigmoid, Thresholded
from bnfold._core.broadcast import broadcasts_to
from bnfold._core.laws import Form
from bnfold._core.operators.crossed import Activation
from bnfold._core.operators.record import UNKNOWN, Operator, Row
from bnfold._core.pointwise import Homogeneous
from bnfold._core.reasons import Reason
from bnfold._onnx.read import attributes
from bnfold._onnx.read.context import Context, OnnxRow, has
from bnfold._onnx.read.crossed import blended
from bnfold._onnx.read.scopes import label

# From opset 11 on bounds are inputs.
_BOUNDS = {"min": 1, "max": 2}
# Types of which every runtime has a HardSigmoid: onnxruntime has none of float64.
_HARD: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
}
_EXTREMES = ("Max", "Min")
_HOMOGENEOUS = ("Abs", "LeakyRelu", "PRelu", "Relu")
_NOT_LINEAR = "Celu Elu Erf Gelu HardSwish Mish Selu Sigmoid Softplus Softsign Tanh"


def _activation(node: NodeProto) -> Activation:
    """An activation that no map crosses."""
    return Activation(label=label(node), kind=node.op_type)


def _not_linear(context: Context, node: NodeProto) -> Operator:
    return _activation(node)


def _homogeneous(context: Context, node: NodeProto) -> Operator:
    law = Homogeneous(node.op_type == "Abs", node.op_type in ("LeakyRelu", "PRelu"))
    # A PRelu's slopes may broadcast its input to a larger shape.
    like = context.shape(node.input[0]) if node.op_type != "PRelu" else None
    return Activation(label=label(node), like=like, kind=node.op_type, law=law)


def _hard_sigmoid(context: Context, node: NodeProto) -> Operator:
    dtype = _HARD.get(context.type(node.input[0]))
    alpha, beta = attributes.number(node, "alpha", 0.2), attributes.number(node, "beta", 0.5)
    return Activation(
        label=label(node),
        like=context.shape(node.input[0]),
        kind=node.op_type,
        law=HardSigmoid(alpha, beta, dtype is not None),
        dtype=dtype,
    )


def _form(context: Context, node: NodeProto) -> Form | None:
    """The HardSigmoid that a Clip may become, whose numbers are attributes since opset 6."""
    dtype = _HARD.get(context.type(node.input[0]))
    if dtype is None or context.opset < 6:
        return None
    return Form("HardSigmoid", HardSigmoid(1.0, 0.0), dtype=dtype)


def _clip(context: Context, node: NodeProto) -> Operator:
    like, form = context.shape(node.input[0]), _form(context, node)
    if context.opset < 11:
        low, high = (
            attributes.number(node, name, math.nan) if attributes.has(node, name) else None
            for name in ("min", "max")
        )
        return Activation(
            label=label(node),
            like=like,
            kind=node.op_type,
            law=Clipped(low, high, form=form),
        )
    bounds: list[float | None] = []
    movable, dtype = True, np.dtype(np.float32)
    for position in _BOUNDS.values():
        if not has(node, position):
            bounds.append(None)
            continue
        found = context.constant(node, position)
        if found is None or math.prod(found.shape) != 1 or not found.is_float:
            return _activation(node)
        bounds.append(float(found.load().reshape(-1)[0]))
        dtype = found.dtype
        movable = movable and found.protected is None
    return Activation(
        label=label(node),
        like=like,
        kind=node.op_type,
        law=Clipped(bounds[0], bounds[1], movable, form),
        numbers=_BOUNDS,
        dtype=dtype,
    )


def _extreme(context: Context, node: NodeProto) -> Operator:
    """Max and Min of a tensor and a constant of floats: a Clip with one bound; or of tensors.

    No map along an axis passes where the constant may enlarge the tensor: axes would not be those
    of what it reads. Below opset 8 nothing broadcasts.
    """
    fixed = [k for k in range(len(node.input)) if context.constant(node, k) is not None]
    if not fixed and len(node.input) > 1:
        return blended(context, node, ordered=True)
    if len(node.input) != 2 or len(fixed) != 1 or context.is_set_by_call(node.input[fixed[0]]):
        return UNKNOWN
    (place,) = fixed
    found, shape = context.constant(node, place), context.shape(node.input[1 - place])
    assert found is not None
    if not found.is_float or not math.prod(found.shape):
        return UNKNOWN
    if context.opset < 8 and shape != found.shape:
        return UNKNOWN
    bound = found.load().astype(np.float64)
    if np.isnan(bound).any():
        return _activation(node)
    fits = found.shape == () or (shape is not None and broadcasts_to(found.shape, shape))
    where = label(node)
    message = f"whether the constant of {where} enlarges what it reads is not known"
    places = {"min": place, "max": place}
    least, nothing = node.op_type == "Max", Clipped(None, None)
    own, other = _EXTREMES if least else _EXTREMES[::-1]
    law = Clipped(
        bound if least else None,
        None if least else bound,
        movable=found.protected is None,
        rank=len(shape) if shape is not None and fits else None,
        turns=(
            Form(own, nothing, places, found.dtype, keeps=True),
            Form(other, nothing, places, found.dtype, keeps=True),
        ),
        uneven=None if fits else Reason("unknown-shape", where, message),
    )
    return Activation(
        label=where,
        data=(1 - place,),
        like=shape if fits else None,
        kind=node.op_type,
        law=law,
        numbers=places,
        dtype=found.dtype,
    )


def _thresholded_relu(context: Context, node: NodeProto) -> Operator:
    """It gives x where x > α, else 0. α is a float32, whatever the type of x."""
    return Activation(
        label=label(node),
        like=context.shape(node.input[0]),
        kind=node.op_type,
        law=Thresholded(attributes.number(node, "alpha", 1.0), 0.0, fixed=True),
        numbers={"threshold": "alpha"},
        dtype=np.dtype(np.float32),
    )


ROWS: dict[str, OnnxRow] = {
    **{name: Row(_not_linear) for name in _NOT_LINEAR.split()},
    **{name: Row(_homogeneous) for name in _HOMOGENEOUS},
    **{name: Row(_extreme) for name in _EXTREMES},
    "Clip": Row(_clip),
    "HardSigmoid": Row(_hard_sigmoid),
    "ThresholdedRelu": Row(_thresholded_relu),
}
