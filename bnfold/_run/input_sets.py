"""Input sets: reads those of a user from files, and checks that they fit the ports of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from bnfold._errors import UsageError
from bnfold._run.noise import Array
from bnfold._system import paths
from bnfold._system.records import record

ONLY = ""
"""Stands for the name of the only input of a model."""


@record(frozen=True)
class InputSet:
    """One full set of inputs: a label for the report, and an array per input name."""

    label: str
    feeds: Mapping[str, Array]


@record(frozen=True)
class Port:
    """An input or output: its name, its type as onnxruntime writes it, its shape."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


def port_of_proto(value: onnx.ValueInfoProto) -> Port:
    """The port of an input or output in a model file."""
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return Port(value.name, kind, ())
    tensor = value.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in tensor.shape.dim
    )
    return Port(value.name, f"tensor({element})", shape)


def load_inputs(path: Path) -> list[InputSet]:
    """Read input sets from a file or a folder.

    An .npz file holds one set; its keys are the input names. An .npy file holds one set for a model
    with one input. A folder holds one set in each such file, in the order of the file names.
    `compare` checks whether names, types and shapes fit the model.

    Raises:
        UsageError: a file is missing, is none of these, is empty, or holds pickled objects; or a
            folder has no such file.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".npy"))
        if not files:
            raise UsageError(f"{path} holds no .npz and no .npy file")
        return [_load(file) for file in files]
    return [_load(path)]


def _load(path: Path) -> InputSet:
    """The input set of one file. Raises `UsageError` for a file that holds none."""
    kind = ".npy" if path.suffix == ".npy" else ".npz"
    try:
        paths.refuse_special(path)
        with path.open("rb") as file:
            read = np.load(file, allow_pickle=False)
            if kind == ".npy":
                feeds = {ONLY: read}
            else:
                with read as archive:
                    feeds = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise paths.unreadable(path, error) from error
    except (MemoryError, UsageError):
        raise
    except Exception as error:  # Zip, zlib and NumPy each have their own errors for a bad file.
        raise UsageError(f"{path} is not an {kind} file of plain arrays") from error
    for name, array in feeds.items():
        if not isinstance(array, np.ndarray):
            told = f": {name!r} is none" if name else ""
            raise UsageError(f"{path} is not an {kind} file of plain arrays{told}")
    if not feeds:
        raise UsageError(f"{path} holds no arrays; numpy.savez writes them by input name")
    return InputSet(path.name, feeds)


def named(given: InputSet, ports: tuple[Port, ...]) -> InputSet:
    """The same input set; an array without a name gets the name of the model's only input."""
    if ONLY not in given.feeds:
        return given
    if len(ports) != 1:
        names = ", ".join(port.name for port in ports)
        raise UsageError(f"{given.label} has no names, and the model has inputs {names}: use .npz")
    return InputSet(given.label, {ports[0].name: given.feeds[ONLY]})


def refuse_unfit(given: InputSet, ports: tuple[Port, ...]) -> None:
    """Raise `UsageError` unless names, types and shapes of the arrays fit the model."""
    wanted = {port.name: port for port in ports}
    missing, unknown = wanted.keys() - given.feeds.keys(), given.feeds.keys() - wanted.keys()
    if missing or unknown:
        raise UsageError(
            f"{given.label}: the model's inputs are {sorted(wanted)}, got {sorted(given.feeds)}"
        )
    for name, array in given.feeds.items():
        port = wanted[name]
        if port.type in _TYPES and _TYPES[port.type] != array.dtype:
            raise UsageError(
                f"{given.label}: {name} is {array.dtype}, the model takes {_TYPES[port.type]}"
            )
        fixed = [dim if isinstance(dim, int) and dim > 0 else None for dim in port.shape]
        if fixed and (
            len(fixed) != array.ndim
            or any(d not in (None, size) for d, size in zip(fixed, array.shape, strict=True))
        ):
            raise UsageError(
                f"{given.label}: {name} has shape {list(array.shape)}, "
                f"the model takes {list(port.shape)}"
            )


_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(bool)": np.dtype(np.bool_),
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}
