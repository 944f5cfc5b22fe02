"""Whether the inputs that a user gives are those that a model asks for."""

from __future__ import annotations

import numpy as np

from bnfold._errors import UsageError
from bnfold._run.inputs import ONLY, InputSet
from bnfold._run.session import Port


def named(given: InputSet, ports: tuple[Port, ...]) -> InputSet:
    """An array without a name is that of the only input."""
    if ONLY not in given.feeds:
        return given
    if len(ports) != 1:
        names = ", ".join(port.name for port in ports)
        raise UsageError(f"{given.label} has no names, and the model has inputs {names}: use .npz")
    return InputSet(given.label, {ports[0].name: given.feeds[ONLY]})


def refuse_unfit(given: InputSet, ports: tuple[Port, ...]) -> None:
    """Raise UsageError unless the arrays are what the model asks for."""
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
