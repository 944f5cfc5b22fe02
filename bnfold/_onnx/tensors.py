"""Reading and writing the values of a TensorProto, wherever they are stored."""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from bnfold._errors import UsageError
from bnfold._system import memory, scratch

Array = NDArray[Any]

# External data of so many bytes or more may be mapped.
_MAPPED = 1 << 20

# The bits of a number, for types with several numbers in one byte.
PACKED = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}


FLOATS = frozenset(
    (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
)

_RAW: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
}
"""Types whose raw bytes are numbers of NumPy."""


def width(kind: int) -> int:
    """The bits of a stored number of an element type; 0 for texts, and for a type not known."""
    if kind in PACKED or kind == TensorProto.STRING:
        return PACKED.get(kind, 0)
    try:
        return 8 * int(np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize)
    except (KeyError, ValueError, TypeError):
        return 0


def stored_bytes(tensor: TensorProto) -> int:
    """How many bytes a tensor's values take; 0 for a type that is not known."""
    count: int = math.prod(tensor.dims)
    return -(-count * width(tensor.data_type) // 8)


def read(tensor: TensorProto, base_dir: Path | None) -> Array:
    """The values of a tensor, from raw bytes, typed fields or an external file, in memory.

    Nothing is mapped: a mapped file that gets shorter ends the process that looks at it, which may
    be that of whoever calls bnfold. Only where another process waits for this one, large external
    data are `mapped`, which saves a copy; not those of the model's own file, which are read once
    each.

    Raises `UsageError` when external data is missing, too short or has no folder to start from.
    """
    if tensor.data_location == TensorProto.EXTERNAL:
        if scratch.is_watched() and not is_own(tensor):
            return mapped(tensor, base_dir)
        return _read_external(tensor, base_dir)
    dtype = _RAW.get(tensor.data_type)
    if dtype is not None and tensor.HasField("raw_data"):
        data, shape = tensor.raw_data, tensor.dims[:]
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise UsageError(
                f"tensor {tensor.name!r} holds {len(data)} bytes, its shape {shape} needs "
                f"{math.prod(shape) * dtype.itemsize}"
            )
        return np.frombuffer(data, dtype).reshape(tuple(shape))
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise UsageError(f"tensor {tensor.name!r} cannot be read: {error}") from error


def mapped(tensor: TensorProto, base_dir: Path | None) -> Array:
    """The values of a tensor that stay for long, as those of all weights do in a comparison.

    Large ones are mapped from their external file, where that may be (`scratch.may_map`), as
    onnxruntime maps it: the system may drop pages of a mapped file at any time, so they cost no
    memory. On a system that does not let a mapped file be replaced, they are read. Raises
    `UsageError` as `read` does.
    """
    if tensor.data_location == TensorProto.EXTERNAL and tensor.data_type not in PACKED:
        path, offset, size = _external(tensor, base_dir)
        if size >= _MAPPED and os.name == "posix":
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
            try:
                if not scratch.may_map(path):
                    return _read_external(tensor, base_dir)
                with path.open("rb") as file:
                    refuse_changed(file, own_mark(tensor), path)
                    if path.stat().st_size < offset + size:
                        raise _too_short(path, tensor.name)
                    return np.asarray(np.memmap(file, dtype, "r", offset, tuple(tensor.dims)))
            except OSError as error:
                raise _unreadable(path, tensor.name, error) from error
    if tensor.data_location == TensorProto.EXTERNAL:
        return _read_external(tensor, base_dir)
    return read(tensor, base_dir)


def let_go(arrays: Iterable[Array]) -> None:
    """Let the system drop the pages of arrays that are mapped; who looks again reads them again."""
    for array in arrays:
        view: Any = array
        while isinstance(view, np.ndarray) and not isinstance(view, np.memmap):
            view = view.base
        only_read = isinstance(view, np.memmap) and view.mode == "r"
        while only_read and isinstance(view, np.ndarray):
            view = view.base
        if only_read and isinstance(view, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            view.madvise(mmap.MADV_DONTNEED)


def write(tensor: TensorProto, values: Array) -> None:
    """Put new values of the same dtype into a tensor, inline, leaving its name and notes alone."""
    for field in ("float_data", "int32_data", "double_data", "external_data", "data_location"):
        tensor.ClearField(field)
    if tuple(tensor.dims) != values.shape:
        del tensor.dims[:]
        tensor.dims.extend(values.shape)
    if tensor.data_type in PACKED:
        data = numpy_helper.from_array(values).raw_data
    else:
        data = stored(values).tobytes()
    memory.claim(len(data))
    tensor.raw_data = data


def stored(values: Array) -> Array:
    """Values as their bytes stand in a file: in order, the lowest byte first."""
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))


def make(name: str, values: Array) -> TensorProto:
    """A new tensor with the given values."""
    tensor = TensorProto(name=name, data_type=data_type(values.dtype))
    tensor.dims.extend(values.shape)
    write(tensor, values)
    return tensor


def data_type(dtype: np.dtype[Any]) -> int:
    """The ONNX element type of a NumPy dtype."""
    if dtype == ml_dtypes.bfloat16:
        return int(TensorProto.BFLOAT16)
    return int(helper.np_dtype_to_tensor_dtype(dtype))


_BYTES = r"[0-9]{1,18}"
"""A number of bytes that a file can have."""


def external_location(tensor: TensorProto) -> tuple[str, int, int | None]:
    """File name, byte offset and length (None: to the end) of a tensor's external data.

    Raises `UsageError` where no file is named, or offset or length is no number of bytes.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if "\0" in entries.get("location", ""):
        raise UsageError(f"external data of tensor {tensor.name!r}: no file's name has a NUL")
    if not entries.get("location"):
        raise UsageError(f"external data of tensor {tensor.name!r} has no location: no file's name")
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not re.fullmatch(_BYTES, text):
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            raise UsageError(f"external data of tensor {tensor.name!r} has the {key} {shown!r}")
        numbers[key] = int(text) if text is not None else None
    return entries["location"], numbers["offset"] or 0, numbers["length"]


OWN = f"own {os.urandom(8).hex()}"
"""The key of an external tensor whose data are part of its model's own file (`files/lean`). No file
can have it: it is drawn anew in each process. Its value is the `mark` of the file."""


def is_own(tensor: TensorProto) -> bool:
    """Whether a tensor is external in name only: its data are part of its model's own file."""
    return any(entry.key == OWN for entry in tensor.external_data)


MADE = f"made {os.urandom(8).hex()}"
"""The key of an external tensor whose values have changed meanwhile: its value is the number of the
function that makes the new ones. The tensor still refers to the old ones."""


def made_by(tensor: TensorProto) -> int | None:
    """The number of the function that makes the values of a tensor; None for one that has them."""
    found = (int(entry.value) for entry in tensor.external_data if entry.key == MADE)
    return next(found, None)


def own_mark(tensor: TensorProto) -> str:
    """The mark that its model's file had when the tensor was read; "" for one that is not own."""
    return next((entry.value for entry in tensor.external_data if entry.key == OWN), "")


def mark(file: IO[bytes]) -> str:
    """What a file has no more once it is written to, or is another one: which it is, its size, and
    its time.
    """
    status = os.fstat(file.fileno())
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


def data_marks(model: ModelProto, base_dir: Path | None) -> dict[str, str]:
    """The `mark` of each data file that a model refers to, by its location, if it is there."""
    marks = dict[str, str]()
    if base_dir is None:
        return marks
    for tensor in all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL or is_own(tensor):
            continue
        location, _, _ = external_location(tensor)
        if location not in marks:
            with suppress(OSError), (base_dir / location).open("rb") as file:
                marks[location] = mark(file)
    return marks


def refuse_changed(file: IO[bytes], known: str, path: Path) -> None:
    """Raise `UsageError` if a file is not what it was when it got a mark ("": any file is).

    What was read of it before is of that time. Anything else would be weights of another model.
    """
    if known and mark(file) != known:
        raise UsageError(f"{path} was changed while it was read; run it again")


def external_path(name: str, location: str, base_dir: Path) -> Path:
    """The file with a tensor's external data.

    Raises `UsageError` where the location leads out of the model's folder.
    """
    relative = Path(location)
    if location.endswith(("/", "/.")):  # pathlib would drop it, the system would not.
        raise UsageError(f"external data of tensor {name!r}: {location!r} is the name of a folder")
    if relative.is_absolute() or ".." in relative.parts:
        raise UsageError(
            f"external data of tensor {name!r}: the location {location!r} leads out of the model's "
            "folder"
        )
    return base_dir / relative


def _external(tensor: TensorProto, base_dir: Path | None) -> tuple[Path, int, int]:
    """The file of a tensor's external data, where they begin there, and how many bytes they are.

    Raises `UsageError` for a length that the shape does not have, and without a folder.
    """
    location, offset, length = external_location(tensor)
    if base_dir is None:
        raise UsageError(
            f"tensor {tensor.name!r} lies in external file {location!r}; "
            "pass base_dir, the folder of the model"
        )
    path = external_path(tensor.name, location, base_dir)
    size = stored_bytes(tensor)
    if length is not None and length != size:
        raise UsageError(
            f"tensor {tensor.name!r}: external data of {length} bytes, "
            f"but its shape {list(tensor.dims)} needs {size}"
        )
    return path, offset, size


def _read_external(tensor: TensorProto, base_dir: Path | None) -> Array:
    path, offset, size = _external(tensor, base_dir)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
            refuse_changed(file, own_mark(tensor), path)
    except OSError as error:
        raise _unreadable(path, tensor.name, error) from error
    if len(data) < size:
        raise _too_short(path, tensor.name)
    if tensor.data_type in PACKED:
        packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=data)
        return np.asarray(numpy_helper.to_array(packed))
    return np.frombuffer(data, dtype).reshape(tuple(tensor.dims))


def part(tensor: TensorProto, base_dir: Path | None, axis: int, start: int, stop: int) -> Array:
    """The numbers of a tensor from ``start`` to ``stop`` on its first or second ``axis``.

    Of external data no others are read, so that a large tensor may be looked through in parts.
    Raises `UsageError` as `read` does.
    """
    external = tensor.data_location == TensorProto.EXTERNAL
    if not external or tensor.data_type in PACKED or axis not in (0, 1):
        return read(tensor, base_dir)[(slice(None),) * axis + (slice(start, stop),)]
    path, offset, size = _external(tensor, base_dir)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    shape = (*tensor.dims[:axis], stop - start, *tensor.dims[axis + 1 :])
    made = np.empty(shape, dtype)
    if not made.size:
        return made
    outer = made.reshape(tensor.dims[0] if axis else 1, -1).view(np.uint8)
    step = size // len(outer) if len(outer) else 0
    inner = step // max(tensor.dims[axis], 1)
    try:
        with path.open("rb", buffering=0) as file:
            for number, row in enumerate(outer):
                file.seek(offset + number * step + start * inner)
                if file.readinto(row.data) < row.size:
                    raise _too_short(path, tensor.name)
            refuse_changed(file, own_mark(tensor), path)
    except OSError as error:
        raise _unreadable(path, tensor.name, error) from error
    return made


def _unreadable(path: Path, name: str, error: OSError) -> UsageError:
    return UsageError(f"external data {path} of tensor {name!r} cannot be read: {error.strerror}")


def _too_short(path: Path, name: str) -> UsageError:
    return UsageError(f"external data {path} ends before tensor {name!r} does")


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that a model stores, in graphs, bodies, functions and training information."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from node_tensors(function.node)
    for info in model.training_info:
        yield from _graph_tensors(info.initialization)
        yield from _graph_tensors(info.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from node_tensors(graph.node)


def node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """Every tensor that some nodes store in their attributes, and in bodies."""
    for node in nodes:
        for attribute in node.attribute[:]:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from attribute.tensors
            elif attribute.type == AttributeProto.GRAPH:
                yield from _graph_tensors(attribute.g)
            elif attribute.type == AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    yield from _graph_tensors(graph)
