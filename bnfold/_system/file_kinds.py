"""What a file is, from its first bytes: for one that is not the model that was expected."""

from __future__ import annotations

import re
import zipfile
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

_HEAD = 4096
_EXPORT = "export the network to ONNX, for instance with torch.onnx.export"
_CONVERT = "convert it to ONNX, for instance with tf2onnx"
_UNPACK = "unpack it first"
_SOURCE = "give the ONNX file that it was made from"
_AGAIN = "download the file again"


class Kind(NamedTuple):
    """What a file is, and what to do: each half of a sentence that begins with the file's name."""

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}; {self.advice}"


_BEGINNINGS: tuple[tuple[int, bytes, Kind], ...] = (
    (
        0,
        b"version https://git-lfs",
        Kind(
            "it is a Git LFS pointer, which stands for the file",
            "fetch the file with 'git lfs pull', or download it",
        ),
    ),
    (0, b"\x1f\x8b", Kind("it is compressed with gzip", _UNPACK)),
    (0, b"BZh", Kind("it is compressed with bzip2", _UNPACK)),
    (0, b"\xfd7zXZ\0", Kind("it is compressed with xz", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", Kind("it is compressed with zstd", _UNPACK)),
    (0, b"\x04\x22\x4d\x18", Kind("it is compressed with lz4", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("it is a 7z archive", _UNPACK)),
    (0, b"Rar!\x1a\x07", Kind("it is a RAR archive", _UNPACK)),
    (257, b"ustar", Kind("it is a tar archive", _UNPACK)),
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        Kind("it is an HDF5 file, as Keras writes them (.h5, .hdf5)", _CONVERT),
    ),
    (4, b"TFL3", Kind("it is a TensorFlow Lite model", _CONVERT)),
    (4, b"ORTM", Kind("it is a model in onnxruntime's ORT format", _SOURCE)),
    (0, b"ftrt", Kind("it is a TensorRT engine", _SOURCE)),
    (0, b"ptrt", Kind("it is a TensorRT engine", _SOURCE)),
    (0, b"GGUF", Kind("it is a GGUF file, as llama.cpp reads them", _EXPORT)),
    (0, b"RKNN", Kind("it is a model for Rockchip NPUs", _SOURCE)),
    (0, b"\x01HEF", Kind("it is a model for Hailo accelerators", _SOURCE)),
    (0, b"\x93NUMPY", Kind("it is a NumPy array", "give a model; arrays are for --inputs")),
    (0, b"\x7fELF", Kind("it is a program or a shared library", "give a model")),
    (0, b"MZ", Kind("it is a program or a library for Windows", "give a model")),
    (0, b"\x89PNG", Kind("it is an image", "give a model")),
    (0, b"\xff\xd8\xff", Kind("it is an image", "give a model")),
    (0, b"%PDF", Kind("it is a PDF document", "give a model")),
)
"""Where a kind of file has its mark, and the mark."""

_CHECKPOINT = Kind(
    "it is a PyTorch checkpoint or module (.pt, .pth)",
    f"{_EXPORT}, or fold the module in Python: bnfold.fold(module, (example,))",
)
_TORCHSCRIPT = Kind(
    "it is a TorchScript module",
    "export the module that it was made from to ONNX, or fold that in Python: "
    "bnfold.fold(module, (example,))",
)
PROGRAM = Kind(
    "it is an exported program of PyTorch",
    "'bnfold MODEL.pt2' folds it; in Python, torch.export.load reads it, bnfold.fold and "
    "bnfold.verify take what that gives",
)
_KERAS = Kind("it is a Keras model", _CONVERT)
CORE_ML = Kind("it is a Core ML model", _SOURCE)
_SAVED_MODEL = Kind("it is a TensorFlow SavedModel", f"{_CONVERT} --saved-model")
_OLD_CHECKPOINT = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What torch.save pickled first before PyTorch 1.6 (torch/serialization.py, MAGIC_NUMBER)."""

_JSON = r"""[{\[]\s*["{\[\]}\d]"""

_BY_SUFFIX = {
    ".caffemodel": Kind("it is named like a Caffe model", "convert it to ONNX"),
    ".engine": Kind("it is named like a TensorRT engine", _SOURCE),
    ".mlmodel": CORE_ML,
    ".param": Kind("it is named like an ncnn model", _SOURCE),
    ".mnn": Kind("it is named like an MNN model", _SOURCE),
    ".pb": Kind("it is perhaps a TensorFlow graph", _CONVERT),
    ".pdiparams": Kind("it is named like weights of Paddle", "convert it with paddle2onnx"),
    ".pdmodel": Kind("it is named like a model of Paddle", "convert it with paddle2onnx"),
    ".plan": Kind("it is named like a TensorRT engine", _SOURCE),
    ".trt": Kind("it is named like a TensorRT engine", _SOURCE),
}


def of_file(path: Path, head: bytes) -> Kind | None:
    """What a file is that begins with ``head``; None where nothing is known of such a beginning."""
    for at, mark, kind in _BEGINNINGS:
        if head[at : at + len(mark)] == mark:
            return kind
    for look in (_external, _archive, _weights, _pickle, _text, _engine, _zeros):
        found = look(path, head[:_HEAD])
        if found is not None:
            return found
    return None


def of_path(path: Path) -> Kind | None:
    """What a file is; None where nothing is known of its beginning."""
    with path.open("rb") as file:
        return of_file(path, file.read(_HEAD))


def of_name(path: Path) -> Kind | None:
    """What a file is, from its name: for one whose bytes tell nothing."""
    return _SAVED_MODEL if path.name == "saved_model.pb" else _BY_SUFFIX.get(path.suffix.lower())


def of_folder(path: Path) -> Kind:
    """What a folder is."""
    if (path / "saved_model.pb").is_file() or (path / "keras_metadata.pb").is_file():
        return _SAVED_MODEL
    if path.suffix in (".mlpackage", ".mlmodelc"):
        return CORE_ML
    models = sorted(found.name for found in path.glob("*.onnx"))
    if len(models) == 1:
        return Kind("it is a folder", f"give the model in it: {path / models[0]}")
    several = f", of which it holds {len(models)}" if models else ""
    return Kind(
        "it is a folder", f"give a model file{several}; --output-dir and --check take folders"
    )


def _archive(path: Path, head: bytes) -> Kind | None:
    """What a zip archive is, from the names in it."""
    if head[:4] not in (b"PK\3\4", b"PK\5\6"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return Kind("it is a zip archive that is cut off or damaged", _AGAIN)
    within = {name.partition("/")[2] for name in names} | set(names)
    if {"data.pkl", "constants.pkl"} <= within or any(n.startswith("code/") for n in within):
        return _TORCHSCRIPT
    if within & {"archive_format", "serialized_exported_program.json"}:
        return PROGRAM
    if "data.pkl" in within:
        return _CHECKPOINT
    if "model.weights.h5" in within:
        return _KERAS
    if "saved_model.pb" in within:
        return _SAVED_MODEL
    if any(".mlpackage/" in name or name.endswith(".mlmodel") for name in names):
        return CORE_ML
    if names and all(name.endswith(".npy") for name in names):
        return Kind("it is an archive of NumPy arrays", "give a model; arrays are for --inputs")
    models = [name for name in names if name.endswith(".onnx")]
    holds = f" that holds {models[0]}" if models else ""
    return Kind(f"it is a zip archive{holds}", _UNPACK)


def _weights(path: Path, head: bytes) -> Kind | None:
    """Weights in safetensors: the size of a header, and the header as JSON."""
    size = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or not 2 <= size <= 1 << 32 or b'"' not in head[9:40].lstrip()[:1]:
        return None
    return Kind("it holds weights in safetensors, and no network", _EXPORT)


def _pickle(_: Path, head: bytes) -> Kind | None:
    if head[:1] != b"\x80" or head[1:2] not in (b"\2", b"\3", b"\4", b"\5"):
        return None
    if _OLD_CHECKPOINT in head[:32] or b"torch" in head:
        return _CHECKPOINT
    return Kind("it is a pickle of Python", "export the model that it holds to ONNX")


def _text(_: Path, head: bytes) -> Kind | None:
    """What a text is; None for bytes that are no text."""
    try:
        text = head.decode("utf-8", "strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    text = text.removeprefix("\ufeff").lstrip()
    if not text or not all(c.isprintable() or c in "\t\r\n\f" for c in text):
        return None
    low = text.lower()
    if low.startswith(("<!doctype html", "<html", "<head", "<body")):
        return Kind("it is a web page", "download the file itself, not the page about it")
    if low.startswith("/annex/") or "/annex/objects/" in low[:300]:
        return Kind("it is a git-annex pointer", "fetch the file with 'git annex get'")
    if low.startswith("<?xml") or low.startswith("<net "):
        if "<net " in low:
            return Kind("it is a model of OpenVINO", _SOURCE)
        return Kind("it is an XML file, perhaps a server's answer", _AGAIN)
    if re.match(_JSON, text):
        return Kind("it is JSON, and holds no graph of ONNX", "give the model itself")
    return Kind("it is a text", "give the model itself")


def _engine(_: Path, head: bytes) -> Kind | None:
    """A TensorRT engine behind metadata, as Ultralytics writes it: a size, JSON, the engine."""
    size = int.from_bytes(head[:4], "little")
    if head[4:5] == b"{" and b"ftrt" in (head[4 + size : 8 + size], head[size : size + 4]):
        return Kind("it is a TensorRT engine", _SOURCE)
    return None


def _zeros(_: Path, head: bytes) -> Kind | None:
    same = [value for value, _ in groupby(head)] == [0]
    return Kind("it begins with nothing but zeros", _AGAIN) if same else None


def _external(path: Path, _: bytes) -> Kind | None:
    """The weights of a model that lies beside them."""
    for end in (".data", "_data", ".weights", "_weights"):
        model = path.with_name(path.name.removesuffix(end))
        if path.name.endswith(end) and model.suffix == ".onnx" and model.is_file():
            return Kind(f"it holds the weights of {model.name}", f"give {model}")
    return None
