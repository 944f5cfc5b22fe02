"""Models as text: JSON, protobuf's text form and ONNX's own notation, read and written by onnx.

A text is read whatever its name is. A file is written as text if its name asks for it
(`written_as`).
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from onnx import ModelProto, serialization

from bnfold._errors import UsageError, first_line
from bnfold._system import memory, paths
from bnfold._system.records import record

_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some editors put ahead of UTF-8."""

_FIRST = rb"[{<#_\sa-qs-z\xef]"
"""What a text begins with. A model in binary form begins with the tag of a field: none of these."""


@record(frozen=True)
class Form:
    """A form of text: its name for users, its name in onnx, how a model looks, and suffixes.

    ``is_exact``: whether it holds all that a model holds.
    """

    told: str
    name: str
    beginning: bytes
    suffixes: tuple[str, ...]
    is_exact: bool = True


_FORMS = (
    Form("JSON", "json", rb'(?s:\s*\{.*?"graph"\s*:)', (".json", ".onnxjson")),
    Form(
        "protobuf's text form",
        "textproto",
        rb"(?s:(?:\s*#[^\n]*\n)*\s*[a-z_]+\s*[:{<].*?\bgraph\s*:?\s*[{<])",
        (".textproto", ".prototxt", ".pbtxt", ".txtpb"),
    ),
    Form(
        "ONNX's notation",
        "onnxtxt",
        rb"\s*<[^>]*?\bir_version\s*:",
        (".onnxtxt", ".onnxtext"),
        is_exact=False,
    ),
)


_OTHERS = (
    r"\.(engine|gguf|gz|h5|hdf5|html|keras|mlmodel|mlpackage|np[yz]|ort|pickle|pkl|plan|pt[2h]?"
    r"|safetensors|tar|tflite|tgz|trt|xml|zip)"
)
"""Suffixes of files of other kinds, which readers would take a model of ONNX for."""


def written_as(path: Path) -> Form | None:
    """The form of text that a file's name asks for; None for protobuf's binary form.

    Raises `UsageError` for the name of another kind of file, or of a form that loses something.
    """
    suffix = path.suffix.lower()
    if re.fullmatch(_OTHERS, suffix):
        raise UsageError(f"cannot write {path}: a model of ONNX is no {suffix} file; name it .onnx")
    form = next((form for form in _FORMS if suffix in form.suffixes), None)
    if form is not None and not form.is_exact:
        raise UsageError(f"cannot write {path}: {form.told} rounds numbers; name it .onnx")
    return form


def parse(path: Path, data: bytes) -> ModelProto | None:
    """The model that a text holds, None if it holds none.

    Raises `UsageError` where the text looks like a model and onnx cannot read it.
    """
    form = form_of(data)
    return None if form is None else _read(form, path, data.removeprefix(_MARK))


def form_of(data: bytes) -> Form | None:
    """The form of text in which a file holds a model, None for any other file."""
    if not re.match(_FIRST, data):
        return None
    text = data.removeprefix(_MARK)
    return next((form for form in _FORMS if re.match(form.beginning, text)), None)


def write(form: Form, model: Path, path: Path, destination: Path) -> None:
    """Write a model in binary form as text, which is then to be moved to ``destination``.

    Raises `UsageError` where the text would not say all that the model holds.
    """
    proto = ModelProto.FromString(model.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx says that its notation is experimental
        text = serialization.registry.get(form.name).serialize_proto(proto)
    try:
        same = _read(form, path, text) == proto
    except UsageError:
        same = False
    if not same:
        raise UsageError(
            f"cannot write {destination}: {form.told} does not hold all that is in the model; "
            "name it .onnx"
        )
    path.write_bytes(text)


def begins_as_text(path: Path) -> bool:
    """Whether a file may hold a text. Raises `UsageError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return re.match(_FIRST, file.read(1)) is not None
    except OSError as error:
        raise paths.unreadable(path, error) from error


def _read(form: Form, path: Path, text: bytes) -> ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader = serialization.registry.get(form.name)
            model: ModelProto = reader.deserialize_proto(text, ModelProto())
        except Exception as error:  # The three parsers share no class of errors.
            if memory.ran_out(error):
                raise MemoryError from error
            why = first_line(error)
            raise UsageError(f"{path} cannot be read as {form.told} of ONNX: {why}") from error
    return model
