"""The inputs of a model that get preprocessing: what each is, and what it becomes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from bnfold._core.preprocessing import Preprocessing
from bnfold._errors import UsageError
from bnfold._onnx import tensors
from bnfold._onnx.read.scopes import Scope, opset_of, read_scopes
from bnfold._system.records import record

Wanted = Mapping[str, Preprocessing]
"""Preprocessing by the name of an input; "" is the only input of a model."""

_LAYOUTS = {1: "c", 2: "nc", 4: "nchw", 5: "ncdhw"}
"""The axes of an input whose layout nobody has said. Three may be ``chw`` or ``ncw``."""
_BROADCASTING = 7
"""The opset from which on operators broadcast as NumPy does (ONNX, Changelog, Add-7)."""
_SHORT = TensorProto.FLOAT16


@record(frozen=True)
class Port:
    """One input and its preprocessing.

    Attributes:
        name: the input's name, before and after.
        wanted: what is done with it.
        kind: the element type that the network takes.
        rank: how many axes it has, None where that is not known.
        own: a letter for each axis that the network takes; "" if nothing depends on axes.
        given: the same for the input as it becomes.
    """

    name: str
    wanted: Preprocessing
    kind: int
    rank: int | None
    own: str
    given: str

    @property
    def given_kind(self) -> int:
        """The element type that the input becomes."""
        return _kind(self.wanted.dtype) if self.wanted.dtype else self.kind

    @property
    def indices(self) -> tuple[int, ...] | None:
        """For each channel of the network its place in the input; None where the order is one."""
        found = self.wanted.indices()
        return None if found == tuple(range(len(found))) else found

    def perm(self, layout: str) -> tuple[int, ...] | None:
        """The axes of the input in the order of a layout; None where that is its own."""
        return None if layout == self.given else tuple(map(self.given.index, layout))


def resolved(model: ModelProto, wanted: Wanted) -> list[Port]:
    """The inputs of a model that get preprocessing, in the model's order.

    Raises `UsageError` where the model has no such input, or one that it does not fit.
    """
    scope = read_scopes(model)[0]
    stored = scope.initializers.keys() | scope.sparse.keys()
    values = {value.name: value for value in model.graph.input if value.name not in stored}
    named: dict[str, Preprocessing] = {}
    for name, each in wanted.items():
        if not name and len(values) != 1:
            raise UsageError(
                f"the model has {len(values)} inputs ({_few(values)}): say which, NAME=…"
            )
        target = name or next(iter(values))
        if target in named:
            raise UsageError(
                f"input {target} has preprocessing twice: by its name, and as the only input"
            )
        named[target] = each
    for name in named:
        if name not in values:
            near = difflib.get_close_matches(name, values, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {_few(values)}"
            raise UsageError(f"the model has no input {name}; {hint}")
    if any(not each.is_nothing for each in named.values()):
        opset = opset_of(model.opset_import)
        if opset < _BROADCASTING:
            raise UsageError(
                f"preprocessing takes a model of opset {_BROADCASTING} or later, and this one is "
                f"of {opset}: convert it, onnx.version_converter.convert_version(model, 13)"
            )
    return [
        _resolved(scope, value, named[name])
        for name, value in values.items()
        if name in named and not named[name].is_nothing
    ]


def changed(value: ValueInfoProto, port: Port) -> None:
    """Give an input the type and the shape that it gets with its preprocessing, in place."""
    tensor = value.type.tensor_type
    tensor.elem_type = port.given_kind
    if not tensor.HasField("shape") or not port.own:
        return
    dims = list(tensor.shape.dim)
    held = [type(dim).FromString(dim.SerializeToString()) for dim in dims]
    count = port.wanted.count
    if count is not None and not held[port.own.index("c")].HasField("dim_value"):
        held[port.own.index("c")].dim_value = count
    del tensor.shape.dim[:]
    tensor.shape.dim.extend(held[port.own.index(letter)] for letter in port.given)


def told_type(value: ValueInfoProto) -> str:
    """The type and shape of an input for people."""
    tensor = value.type.tensor_type
    word = str(TensorProto.DataType.Name(tensor.elem_type)).lower()
    kind = {"float": "float32", "double": "float64"}.get(word, word)
    if not tensor.HasField("shape"):
        return kind
    sizes = [
        str(dim.dim_value or dim.dim_param or "?")  # protobuf gives bytes for what is not UTF-8
        for dim in tensor.shape.dim
    ]
    return f"{kind} [{', '.join(sizes)}]"


def _resolved(scope: Scope, value: ValueInfoProto, wanted: Preprocessing) -> Port:
    name, tensor = value.name, value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type":
        raise UsageError(f"input {name} is no tensor: it takes no preprocessing")
    if name in scope.outputs:
        raise UsageError(
            f"input {name} is an output of the model, too, which would have to be {name} before "
            "and after its preprocessing: put an Identity in between"
        )
    kind = tensor.elem_type
    port = Port(name, wanted, kind, None, "", "")
    is_float = kind in tensors.FLOATS
    if not is_float and wanted.is_affine:
        raise UsageError(
            f"input {name} is of {told_type(value)}, and numbers are scaled in floating point: is "
            "its preprocessing in the model already?"
        )
    if port.given_kind != kind and not is_float:
        raise UsageError(f"input {name} is of {told_type(value)}: its type can only stay")
    if wanted.dtype in ("uint16", "float32", "float64") and kind == _SHORT:
        raise UsageError(
            f"input {name} is of float16, which {wanted.dtype} does not fit into: convert it ahead "
            "of the model"
        )
    rank = len(tensor.shape.dim) if tensor.HasField("shape") else None
    if wanted.count is None and not wanted.layout:
        return Port(name, wanted, kind, rank, "", "")
    if rank is None:
        raise UsageError(
            f"input {name} has no shape, and nobody knows which of its axes holds channels: give "
            "it one, or one number for all channels"
        )
    given, own = wanted.layouts() if wanted.layout else (_LAYOUTS.get(rank, ""),) * 2
    if not own:
        raise UsageError(
            f"input {name} has {rank} axes, and any may hold the channels: say which, such as "
            "layout chw or ncw"
        )
    if len(own) != rank:
        raise UsageError(f"input {name} has {rank} axes, not the {len(own)} of layout {given}")
    size = tensor.shape.dim[own.index("c")].dim_value
    if size and wanted.count is not None and size != wanted.count:
        raise UsageError(
            f"input {name} is {told_type(value)}: as {own} it has {size} channels, not "
            f"{wanted.count}; if the network takes another layout, name it: GIVEN:NETWORK, such as "
            "nhwc:nhwc"
        )
    return Port(name, wanted, kind, rank, own, given)


def _kind(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _few(names: Mapping[str, object]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (", …" if len(listed) > 8 else "")
