"""Write a model tensor by tensor, never holding a second copy of its weights.

``SerializeToString`` builds the whole file in memory, twice. A message's fields may come in any
order (Protocol Buffers encoding, "Field order"), so the weights of the main graph can follow all
else, each serialized by itself.
"""

from __future__ import annotations

from typing import IO

from onnx import ModelProto

from bnfold._errors import UsageError
from bnfold._onnx.files.wire import prefix
from bnfold._system import memory

_LARGEST = 2**31 - 1


def write(model: ModelProto, file: IO[bytes]) -> None:
    """Write a model and take it apart: its graph is empty afterwards.

    Raises `UsageError` above 2 GiB, which no protobuf reader accepts, and ``MemoryError``.
    """
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    try:
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        rest = model.SerializeToString()
        number = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
        item = type(model.graph).DESCRIPTOR.fields_by_name["initializer"].number
        sizes = [tensor.ByteSize() for tensor in tensors]
    except Exception as error:  # protobuf's error for a message too large differs by backend.
        memory.claim(_LARGEST)  # It is the same where memory has run out.
        raise _too_large() from error
    total = len(graph) + sum(len(prefix(item, size)) + size for size in sizes)
    if len(rest) + total > _LARGEST:
        raise _too_large()
    file.write(rest)
    file.write(prefix(number, total))
    file.write(graph)
    for tensor, size in zip(tensors, sizes, strict=True):
        file.write(prefix(item, size))
        memory.claim(2 * size)
        file.write(tensor.SerializeToString())


def _too_large() -> UsageError:
    return UsageError(
        "the folded model is larger than the 2 GiB that one protobuf file can hold; "
        "store the original with external data first"
    )
