"""onnx's reference evaluator: it is asked where onnxruntime has no kernel.

Operators of opset 1 to 6 are run here as the specification has them. There the second operand's
axes are those of the first from ``axis`` on (ONNX Add-1, Add-6), and a PRelu has a slope for each
channel (ONNX PRelu-1, PRelu-6). The evaluator lines axes up from the last one, as later opsets do.
Where sizes agree by accident, it multiplies along the wrong axis. Below opset 14 it mixes batch
statistics into a BatchNormalization of inference, which is run here by its definition, too. And
below opset 13 a Softmax takes its data for a matrix; the evaluator's is the later one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from bnfold._onnx import tensors
from bnfold._onnx.read.order import put_in_order
from bnfold._onnx.read.scopes import opset_of
from bnfold._onnx.tensors import all_tensors
from bnfold._run.bounds import UNBOUNDED, Bounds
from bnfold._run.input_sets import port_of_proto
from bnfold._run.nodes import OWN, all_nodes, own_inputs
from bnfold._run.noise import Array
from bnfold._run.session import EngineError, engine_error

if TYPE_CHECKING:
    from onnx.reference.op_run import OpRun

_REFERENCE_LIMIT = 1 << 28
_FIRST_RIGHT_BATCH_NORMALIZATION = 14
_FIRST_WITHOUT_A_MODE = 7
"""The first opset whose BatchNormalization has no ``is_test``."""
_FIRST_WITH_NUMPY_RULES = 7
"""The first opset whose elementwise operators broadcast as NumPy does."""
_FIRST_SOFTMAX_OF_AN_AXIS = 13
_BINARY = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")


class Reference:
    """The onnx package's own evaluator. It is slow; models that it runs wrongly are refused."""

    runtime = f"onnx.reference {onnx.__version__}"

    def __init__(
        self, source: Path | bytes, folder: Path | None = None, *, bounds: Bounds = UNBOUNDED
    ) -> None:
        """Load a file, or a serialized model whose external data lies in `folder`.

        Raises:
            EngineError: the model does not load, is too large, or would come out wrong.
            Exhausted: time is up.
        """
        self._bounds = bounds
        bounds.check()
        # Imported late: it is slow to import, and few need it.
        from onnx.reference import ReferenceEvaluator

        try:
            if isinstance(source, Path):
                model = onnx.load(source, "protobuf", load_external_data=False)
            else:
                model = onnx.load_model_from_string(source)
            put_in_order(model)
            _inline(model, folder or (source.parent if isinstance(source, Path) else None))
        except Exception as error:
            raise engine_error(error) from error
        if model.ByteSize() > _REFERENCE_LIMIT:
            raise EngineError("too large for the reference evaluator")
        _refuse_known_bugs(model)
        try:
            replaced = _replaced(opset_of(model.opset_import))
            self._evaluator = ReferenceEvaluator(model, new_ops=replaced)
        except Exception as error:
            raise engine_error(error) from error
        self.inputs = tuple(map(port_of_proto, own_inputs(model.graph)))
        self.outputs = tuple(map(port_of_proto, model.graph.output))

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Return the outputs in graph order; see `Engine.run`."""
        self._bounds.check()
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = self._evaluator.run(None, dict(feeds))
        except Exception as error:
            raise engine_error(error) from error
        return list(outputs)


def _inline(model: onnx.ModelProto, folder: Path | None) -> None:
    """Take external data into the model. `onnx.load` refuses symbolic links, which hubs make."""
    for tensor in all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensors.write(tensor, tensors.read(tensor, folder))


def _refuse_known_bugs(model: onnx.ModelProto) -> None:
    """Raise where a BatchNormalization is one of training: batch statistics are none here."""
    opset = opset_of(model.opset_import)
    if opset >= _FIRST_RIGHT_BATCH_NORMALIZATION:
        return
    nodes = [*model.graph.node, *(node for each in model.functions for node in each.node)]
    for node in all_nodes(nodes):
        if node.op_type != "BatchNormalization" or node.domain not in OWN:
            continue
        in_test = any(attribute.name == "is_test" and attribute.i for attribute in node.attribute)
        if any(node.output[1:]) or (opset < _FIRST_WITHOUT_A_MODE and not in_test):
            raise EngineError(
                f"the reference evaluator computes BatchNormalization of opset {opset} wrongly"
            )


def _replaced(opset: int) -> list[type[OpRun]]:
    """The operators that the evaluator has to run in another way than its own, for an opset."""
    kinds = []
    if opset < _FIRST_RIGHT_BATCH_NORMALIZATION:
        kinds.append(_normalizing(opset))
    if opset < _FIRST_SOFTMAX_OF_AN_AXIS:
        kinds += [_of_rows(kind, opset) for kind in ("Hardmax", "LogSoftmax", "Softmax")]
    if opset < _FIRST_WITH_NUMPY_RULES:
        kinds += [_aligned(kind, opset) for kind in (*_BINARY, "PRelu")]
    return kinds


def _normalizing(opset: int) -> type[OpRun]:
    """BatchNormalization in inference: ``scale·(x − mean) / √(var + ε) + bias`` along axis 1 or,
    with ``spatial`` = 0 below opset 9, for each element (ONNX BatchNormalization-1 to -9).
    """
    from onnx.reference.ops import load_op  # imported late, as the evaluator is

    base: Any = load_op("", "BatchNormalization", opset)

    def run(self: Any, x: Array, *given: Array, **_: Any) -> Any:
        single = getattr(self, "spatial", 1) in (0,)
        shape = (-1, *(1,) * (x.ndim - 2)) if not single and x.ndim > 1 else None
        scale, bias, mean, var = (one if shape is None else one.reshape(shape) for one in given)
        return ((scale * (x - mean) / np.sqrt(var + self.epsilon) + bias).astype(x.dtype),)

    return type("BatchNormalization", (base,), {"op_domain": "", "run": run})


def _of_rows(kind: str, opset: int) -> type[OpRun]:
    """An operator that sees a matrix: the sizes ahead of ``axis``, which is 1 by default, make its
    rows, the others its columns (ONNX Softmax-1 and -11, and so LogSoftmax and Hardmax).
    """
    from onnx.reference.ops import load_op  # imported late, as the evaluator is

    base: Any = load_op("", kind, opset)

    def run(self: Any, x: Array, **given: Any) -> Any:
        held = {attribute.name for attribute in self.onnx_node.attribute}
        axis = given.get("axis", self.axis if "axis" in held else 1)
        axis += x.ndim if axis < 0 else 0
        rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
        alike = copy(self)
        alike.axis = 1
        (found,) = base._run(alike, rows)
        return (found.reshape(x.shape),)

    return type(kind, (base,), {"op_domain": "", "run": run})


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

    Raises `ValueError` if it has too many, or if there is no such axis.
    """
    start = axis + first.ndim if axis < 0 else axis
    trailing = first.ndim - start - second.ndim
    if start < 0 or trailing < 0:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise ValueError(f"the shapes {shapes} do not broadcast from axis {axis} on")
    return second.reshape((*second.shape, *(1,) * trailing))
