"""Serializes a model that was read without its large weights, and perhaps changed since, with them.

Protocol buffers that follow each other merge (Protocol Buffers documentation, "Encoding", "Last One
Wins"): a tensor of the main graph may stand behind everything else. So its data go from the file
into the result, and into no message in between.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from onnx import GraphProto, ModelProto, TensorProto

from bnfold._onnx import tensors as tensors_module
from bnfold._onnx.files.lean import is_own
from bnfold._onnx.files.models import tensors
from bnfold._onnx.files.wire import prefix


def serialized(model: ModelProto, path: Path) -> bytes:
    """The bytes of a model, what `lean.read` has left in the file put back into it.

    Raises what protobuf raises for a model that is too large without those tensors.
    """
    if not any(map(is_own, tensors(model))):
        whole: bytes = model.SerializeToString()
        return whole
    rest = ModelProto()
    rest.CopyFrom(model)
    del rest.graph.initializer[:]
    rest.graph.initializer.extend(t for t in model.graph.initializer if not is_own(t))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for tensor in filter(is_own, tensors(rest)):
            start, end = _place(tensor)
            tensor.raw_data = data[start:end]
            _settle(tensor)
        parts: list[bytes | memoryview] = [rest.SerializeToString()]
        with memoryview(data) as view:
            slices = []
            for tensor in filter(is_own, model.graph.initializer):
                start, end = _place(tensor)
                told = TensorProto()
                told.CopyFrom(tensor)
                _settle(told)
                held = told.SerializeToString()
                head = prefix(TensorProto.RAW_DATA_FIELD_NUMBER, end - start)
                size = len(held) + len(head) + end - start
                inner = prefix(GraphProto.INITIALIZER_FIELD_NUMBER, size)
                outer = prefix(ModelProto.GRAPH_FIELD_NUMBER, len(inner) + size)
                slices.append(view[start:end])
                parts += (outer, inner, held, head, slices[-1])
            try:
                return b"".join(parts)
            finally:
                for part in slices:
                    part.release()


def _place(tensor: TensorProto) -> tuple[int, int]:
    """Where the data of a tensor begin and end in the file."""
    _, start, length = tensors_module.external_location(tensor)
    assert length is not None
    return start, start + length


def _settle(tensor: TensorProto) -> None:
    """Have a tensor hold its own data."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
