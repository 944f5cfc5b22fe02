"""Operators of opset 1 to 6 as the specification has them, for onnx's reference evaluator.

There the second operand's axes are those of the first from ``axis`` on (ONNX Add-1, Add-6), and a
PRelu has a slope for each channel (ONNX PRelu-1, PRelu-6). The evaluator lines axes up from the
last one, as later opsets do. Where sizes agree by accident, it multiplies along the wrong axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnfold._run.noise import Array

if TYPE_CHECKING:
    from onnx.reference.op_run import OpRun

_FIRST_WITH_NUMPY_RULES = 7
"""The first opset whose elementwise operators broadcast as NumPy does."""
_BINARY = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")


def operators(opset: int) -> list[type[OpRun]]:
    """The operators that the evaluator has to run in another way than its own, for an opset."""
    if opset >= _FIRST_WITH_NUMPY_RULES:
        return []
    return [_aligned(kind, opset) for kind in (*_BINARY, "PRelu")]


def _aligned(kind: str, opset: int) -> type[OpRun]:
    """An operator of the evaluator that lines up its second operand before it runs."""
    from onnx.reference.ops import load_op  # imported late, as the evaluator is

    base: Any = load_op("", kind, opset)

    def run(self: Any, first: Array, second: Array, *others: Any, **more: Any) -> Any:
        if kind == "PRelu":
            second = second.reshape(()) if second.size == 1 else _from(1, first, second)
        elif getattr(self, "broadcast", 0) and getattr(self, "axis", None) is not None:
            second = _from(self.axis, first, second)
        return base.run(self, first, second, *others, **more)

    return type(kind, (base,), {"op_domain": "", "run": run})


def _from(axis: int, first: Array, second: Array) -> Array:
    """The second operand, its axes lined up with those of the first from ``axis`` on.

    Raises `ValueError` if it has too many.
    """
    start = axis + first.ndim if axis < 0 else axis
    trailing = first.ndim - start - second.ndim
    if trailing < 0:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise ValueError(f"the shapes {shapes} do not broadcast from axis {axis} on")
    return second.reshape((*second.shape, *(1,) * trailing))
