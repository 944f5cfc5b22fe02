"""Reads model files, with clear errors for what is not a usable ONNX model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from bnfold._errors import UsageError, first_line
from bnfold._onnx.files import text_forms
from bnfold._onnx.files.external import external_files, free_name, link
from bnfold._onnx.files.lean import LARGEST, read_lean
from bnfold._onnx.files.locations import check_external
from bnfold._onnx.files.sound import refuse_unsound
from bnfold._onnx.files.wire import Unusual, fields
from bnfold._onnx.read import inference
from bnfold._onnx.read.order import put_in_order
from bnfold._onnx.tensors import all_tensors
from bnfold._system import file_kinds, memory, paths, scratch

_OF_CORE_ML = range(200, 3001)
"""The numbers of the fields of a Core ML model that hold the network (Core ML, Model.proto)."""


def load_model(
    path: Path, *, lean: bool = False, base_dir: Path | None = None, follow_links: bool = False
) -> ModelProto:
    """Read a model file, in binary form or as text; external data stays where it is.

    With ``lean`` the large tensors of the file itself stay there too (`lean.read_lean`). Nodes come
    in order, whatever their order in the file. ``base_dir`` is the folder of external
    data, if not the file's own; ``follow_links`` is as in `locations`.

    Raises `UsageError`, with one line for people, when the file cannot be read, is not an ONNX
    model, holds no operators or a cycle of them, or refers to external data that is not there.
    """
    if path.is_dir():
        raise UsageError(f"cannot read {path}: {file_kinds.of_folder(path)}")
    data = paths.read(path, in_parts if lean else _refuse_too_large)
    if not data:
        raise UsageError(f"{path} is empty: it holds no bytes; download or export it again")
    model = text_forms.parse(path, data) or _parsed(path, data)
    if not model.graph.node:
        raise UsageError(f"{path} holds no operators: there is nothing to fold or to check")
    refuse_names(model, str(path))
    check_external(model, base_dir or path.parent, path, follow_links=follow_links)
    try:
        refuse_unsound(model)
        put_in_order(model)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return model


def in_parts(path: Path) -> bytes | None:
    """What `read_lean` gives. Raises `UsageError` where the file is too large to be read whole."""
    data = read_lean(path)
    if data is None:
        _refuse_too_large(path)
    return data


def _refuse_too_large(path: Path) -> None:
    """Raise `UsageError` for a file that is larger than a model can be. It may be a hole."""
    if path.stat().st_size <= LARGEST:
        return
    if looks := file_kinds.of_path(path) or file_kinds.of_name(path):
        raise UsageError(f"{path} is not an ONNX model: {looks}")
    raise UsageError(f"cannot read {path}: it is larger than the 2 GiB that a model file can have")


def refuse_names(model: ModelProto, what: str = "the model") -> None:
    """Raise `UsageError` for a name that is not UTF-8."""
    strange = next((name for name in _names(model) if not isinstance(name, str)), None)
    if strange is not None:
        raise UsageError(f"{what} is not a valid ONNX model: the name {strange!r} is not UTF-8")


@contextmanager
def in_binary(path: Path, follow_links: bool = False) -> Iterator[Path]:
    """The file of a model in binary form: the file itself or, for a text, a temporary twin.

    onnxruntime runs no text. Raises `UsageError` as `load_model` does.
    """
    if not path.is_file() or not text_forms.begins_as_text(path):
        yield path
        return
    model = load_model(path, follow_links=follow_links)
    locations = external_files(model)
    with scratch.beside(None) as temporary:
        twin = temporary / free_name(locations)
        twin.write_bytes(model.SerializeToString())
        for name in locations:
            link(path.parent / name, temporary / name)
        yield twin


def _parsed(path: Path, data: bytes) -> ModelProto:
    """The model in binary form. Raises `UsageError` for any other file, and says what it is."""
    try:
        model: ModelProto = ModelProto.FromString(data)
        if model.HasField("graph"):
            return model
        why = ": it holds no graph"
    except DecodeError as error:
        if memory.ran_out(error):
            raise MemoryError from error
        why = ", or is cut off; download or export it again"
    looks = file_kinds.of_file(path, data) or _of_protobuf(data) or file_kinds.of_name(path)
    if looks is not None:
        why = f": {looks}"
    raise UsageError(f"{path} is not an ONNX model{why}")


def _of_protobuf(data: bytes) -> file_kinds.Kind | None:
    """What a protobuf is, from its fields; None for one of no kind that is known."""
    try:
        numbers = {field.number for field in fields(data, 0, len(data))}
        tensor = TensorProto.FromString(data)
    except (Unusual, IndexError, DecodeError):
        return None
    if max(numbers, default=0) in _OF_CORE_ML and 1 in numbers:
        return file_kinds.CORE_ML
    stored = (tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data)
    if tensor.data_type and any(map(len, stored)):
        return file_kinds.Kind("it is a tensor in ONNX's format", "give the model")
    return None


@contextmanager
def understood(model: ModelProto, path: Path | None) -> Iterator[None]:
    """A context in which errors name the model's file, and say if the model is not valid.

    An error with a valid model is a defect of bnfold, and passes through unchanged.
    """
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}" if path is not None else str(error)) from error
    except MemoryError:
        raise
    except Exception as error:
        broken = isinstance(error, UnicodeDecodeError)
        problem = "some text in it is not UTF-8" if broken else why_invalid(model, path)
        if problem is None:
            raise
        name = path if path is not None else "the model"
        raise UsageError(f"{name} is not a valid ONNX model: {problem}") from error


def why_invalid(model: ModelProto, path: Path | None = None) -> str | None:
    """The complaint of ONNX's checker about a model; None if it has none.

    ``path`` is its file. Where data are external, and there is no file in binary form to look at
    instead, the model is looked at without these data. A graph without a name, and outputs of which
    no shape is said, are nothing that any runtime minds.
    """
    safe = inference.is_safe(model)
    if safe is False:
        return "a size in it comes out negative"
    found: ModelProto | Path = model
    outside = any(tensor.data_location == TensorProto.EXTERNAL for tensor in all_tensors(model))
    types = [value.type for value in model.graph.output if value.type.HasField("tensor_type")]
    if not (model.graph.name and all(kind.tensor_type.HasField("shape") for kind in types)):
        found = _bare(model)
    elif outside and path is not None and path.is_file() and not text_forms.begins_as_text(path):
        found, outside = path, False
    elif outside:
        found = _bare(model)
    try:
        onnx.checker.check_model(found, full_check=bool(safe) and not outside)
    except Exception as error:  # Checker and shape inference share no class of errors.
        return first_line(error)
    return None


def _bare(model: ModelProto) -> ModelProto:
    """A copy of a model with a name, in which external tensors hold no numbers, without the outputs
    of which no shape is said.
    """
    bare = ModelProto()
    bare.CopyFrom(model)
    bare.graph.name = bare.graph.name or "graph"
    for value in list(bare.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            bare.graph.output.remove(value)
    for tensor in all_tensors(bare):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.dims[:] = [0]
            tensor.raw_data = b""
    return bare


def _names(model: ModelProto) -> list[str | bytes]:
    """Every name in a model's graphs. Protobuf gives bytes for a name that is not UTF-8."""
    names: list[str | bytes] = []
    _add_graph_names(model.graph, names)
    for function in model.functions:
        names += (function.name, function.domain, *function.input, *function.output)
        _add_node_names(function.node, names)
    return names


def _add_graph_names(graph: GraphProto, names: list[str | bytes]) -> None:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        names += [value.name for value in values]
    _add_node_names(graph.node, names)


def _add_node_names(nodes: Iterable[NodeProto], names: list[str | bytes]) -> None:
    for node in nodes:
        names += (node.name, node.op_type, node.domain)
        names += node.input[:]
        names += node.output[:]
        for attribute in node.attribute[:]:
            names.append(attribute.name)
            if attribute.HasField("g"):
                _add_graph_names(attribute.g, names)
            for graph in attribute.graphs:
                _add_graph_names(graph, names)
