"""What bnfold makes of one model, as hashes and as text.

A result is hashed bit by bit, for the fold is computed in float64 and rounded once, and the same
IEEE operations give the same bits everywhere. Matrix products are the exception: the order in which
BLAS adds up depends on the kernel that it takes for the processor, and so may the last bit. Models
whose result was seen to depend on that (``record`` says how that is seen) are hashed with their
weights rounded to 20 bits below the largest number of their tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import to_array

import bnfold
from bnfold._onnx.files.load import understood
from bnfold._pipeline import any_kind
from bnfold._pipeline.module_options import ModuleOptions

from ..graphs import done

Array = Any
BITS = 20
SHOWN = 12
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


@dataclass(frozen=True)
class Given:
    """A model or the path of one, with the example inputs of a module and the options of its fold.

    One ``outside`` is folded from file to file, its weights beside it as external data.
    """

    model: Any
    args: tuple[Any, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    outside: bool = False


@dataclass(frozen=True)
class Outcome:
    """The text of the plan, the reasons, and the result in full; and of the model itself, as it was
    given.

    ``says`` lists the laws of the folds and the codes of what is kept. ``folded`` is what it folds
    to, None where it cannot.
    """

    plan: str
    reasons: str
    result: bytes
    given: bytes
    says: tuple[str, ...]
    folded: Any

    @property
    def rounded(self) -> bytes:
        """The result with rounded weights."""
        return b"" if self.folded is None else _bits(self.folded, rounded=True)

    @property
    def text(self) -> str:
        """The result as text."""
        return "" if self.folded is None else "\n".join(_text(self.folded)) + "\n"


def digest(data: str | bytes) -> str:
    raw = data.encode() if isinstance(data, str) else data
    return hashlib.sha256(raw).hexdigest()[:16]


def outcome(given: Given) -> Outcome:
    """Plan and fold a model."""
    model = given.model
    before = _bits(model)
    try:
        plan, folded = _planned_and_folded(given)
    except bnfold.UsageError as error:
        refusal = f"{type(error).__name__}: {ADDRESS.sub('…', str(error))}"
        return Outcome("", refusal, b"", before, ("refused",), None)
    assert _bits(model) == before, "the model that was given has changed"
    says = {law for fold in plan.folds for law in fold.laws}
    says |= {kept.code if kept.kind == "map" else f"{kept.kind}:{kept.code}" for kept in plan.kept}
    return Outcome(
        plan=_lines(_folds(plan)),
        reasons=_lines(kept.to_dict() for kept in plan.kept),
        result=_files(model) if given.outside else _bits(folded),
        given=before,
        says=tuple(sorted(says)),
        folded=folded,
    )


def _planned_and_folded(given: Given) -> tuple[bnfold.Plan, Any]:
    """What ``bnfold.plan`` and ``bnfold.fold`` give, of one reading: most time goes there."""
    model = given.model
    if any_kind._is_module(model):
        options = ModuleOptions(given.args, **given.options)
        module = any_kind._prepare_module(model, options)
        return module.plan, module.apply(inplace=False)
    if any_kind._is_program(model):
        from bnfold._torch.program.fold import PlannedProgram

        program = PlannedProgram(model)
        return program.plan, program.apply()
    proto, folder = any_kind._read(model, None)
    with understood(proto, any_kind._path_of(model)):
        once = done(proto, folder)
    return once.plan, once.folded


def _folds(plan: bnfold.Plan) -> Iterator[dict[str, Any]]:
    yield from (asdict(fold) for fold in plan.folds)
    yield {"before": dict(sorted(plan.before.items()))}
    yield {"after": dict(sorted(plan.after.items()))}


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _bits(model: Any, rounded: bool = False) -> bytes:
    """A model as bytes that are the same for the same model."""
    if isinstance(model, Path):
        return model.read_bytes()
    if isinstance(model, ModelProto):
        if rounded:
            copy = ModelProto()
            copy.CopyFrom(model)
            for tensor in _tensors(copy.graph):
                _round(tensor)
            model = copy
        return bytes(model.SerializeToString(deterministic=True))
    parts = ["\n".join(_structure(model)).encode()]
    for name, value in _state(model):
        parts += [f"{name} {value.dtype} {value.shape}".encode()]
        parts += [(_rounded(value) if rounded else value).tobytes()]
    return b"\0".join(parts)


def _files(model: ModelProto) -> bytes:
    """The files that the fold of a model with external data writes."""
    with tempfile.TemporaryDirectory(prefix="bnfold-") as name:
        path = Path(name, "model.onnx")
        copy = ModelProto()
        copy.CopyFrom(model)
        onnx.save_model(copy, path, save_as_external_data=True, location="data", size_threshold=0)
        output = Path(name, "folded", "model.onnx")
        output.parent.mkdir()
        bnfold.fold(path, output)
        found = sorted(file for file in output.parent.iterdir())
        return b"\0".join(file.name.encode() + b"\0" + file.read_bytes() for file in found)


def _text(model: Any) -> Iterator[str]:
    """A model a line per operator and per weight."""
    if isinstance(model, ModelProto):
        yield from _onnx_text(model.graph)
        for function in model.functions:
            yield f"function {function.domain}::{function.name}"
            yield from _nodes_text(function.node)
        return
    yield from _structure(model)
    for name, value in _state(model):
        yield f"{name} = {_shown(value)}"


# --- ONNX --------------------------------------------------------------------------------------


def _onnx_text(graph: GraphProto) -> Iterator[str]:
    yield f"graph {graph.name}({', '.join(value.name for value in graph.input)})"
    yield from _nodes_text(graph.node)
    for tensor in graph.initializer:
        yield f"  {tensor.name} = {_shown_tensor(tensor)}"
    yield f"  return {', '.join(value.name for value in graph.output)}"


def _nodes_text(nodes: Iterable[NodeProto]) -> Iterator[str]:
    for node in nodes:
        bodies, attributes = [], []
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                bodies.append(attribute)
            elif attribute.type == AttributeProto.TENSOR:
                attributes.append(f"{attribute.name}={_shown_tensor(attribute.t)}")
            elif attribute.ref_attr_name:
                attributes.append(f"{attribute.name}=@{attribute.ref_attr_name}")
            else:
                attributes.append(f"{attribute.name}={helper.get_attribute_value(attribute)!r}")
        outputs, inputs = ", ".join(node.output), ", ".join(node.input)
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        yield f"  {outputs} = {kind}({inputs}) {' '.join(attributes)} #{node.name}"
        for body in bodies:
            yield f"  {node.name}.{body.name}:"
            yield from (f"  {line}" for line in _onnx_text(body.g))


def _shown_tensor(tensor: TensorProto) -> str:
    if tensor.data_location == TensorProto.EXTERNAL:
        return f"external {[entry.value for entry in tensor.external_data]}"
    if tensor.data_type == TensorProto.STRING:
        return str(list(tensor.string_data))
    return _shown(to_array(tensor))


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            if attribute.type == AttributeProto.GRAPH:
                yield from _tensors(attribute.g)


def _round(tensor: TensorProto) -> None:
    real = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    if tensor.data_type not in real or tensor.data_location == TensorProto.EXTERNAL:
        return
    raw = _rounded(to_array(tensor)).tobytes()
    for stored in ("float_data", "double_data", "int32_data"):
        tensor.ClearField(stored)
    tensor.raw_data = raw


# --- PyTorch -----------------------------------------------------------------------------------


def _structure(model: Any) -> Iterator[str]:
    """The nodes of a program's graph, or the kinds of a module's parts."""
    if hasattr(model, "graph_signature"):
        for node in model.graph.nodes:
            line = f"{node.name} = {node.op} {node.target} {node.args} {dict(node.kwargs)}"
            yield ADDRESS.sub("…", line)
        for spec in (*model.graph_signature.input_specs, *model.graph_signature.output_specs):
            yield f"{spec.kind} {getattr(spec.arg, 'name', spec.arg)} {spec.target}"
        return
    for name, part in model.named_modules():
        extra = ADDRESS.sub("…", part.extra_repr())
        yield f"{name}: {type(part).__name__}({extra}) training={part.training}"


def _state(model: Any) -> Iterator[tuple[str, Array]]:
    values = {**model.state_dict, **model.constants} if _is_program(model) else model.state_dict()
    torch = sys.modules["torch"]
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            continue
        plain = value.detach().cpu().contiguous()
        if plain.dtype == torch.bfloat16:
            plain = plain.float()
        yield name, plain.numpy()


def _is_program(model: Any) -> bool:
    return hasattr(model, "graph_signature")


# --- numbers -----------------------------------------------------------------------------------


def _rounded(value: Array) -> Array:
    """Whole multiples of what is 20 bits below the largest finite number."""
    wide = value.astype(np.float64) if value.dtype.kind not in "biuc" else value
    if wide.dtype != np.float64 or not wide.size:
        return value
    largest = float(np.abs(np.where(np.isfinite(wide), wide, 0.0)).max())
    if largest == 0.0:
        return wide + 0.0
    unit = 2.0 ** (math.frexp(largest)[1] - BITS)
    return np.round(wide / unit) + 0.0


def _shown(value: Array) -> str:
    wide = value.astype(np.float64) if value.dtype.kind not in "biucSUO" else value
    flat = [repr(x) for x in wide.reshape(-1)[:SHOWN].tolist()]
    more = "" if wide.size <= SHOWN else f" … {digest(np.ascontiguousarray(value).tobytes())}"
    return f"{value.dtype}{list(value.shape)} {' '.join(flat)}{more}"
