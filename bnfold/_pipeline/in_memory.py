"""Models that other packages hold in memory: as a protobuf, and back as what they were.

These are a Graph of onnx_graphsurgeon, a Model of onnx_ir, and an ONNXProgram, which torch.onnx
makes. None of these packages is imported unless the caller has it imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnx import ModelProto

from bnfold._errors import UsageError

_KINDS = {
    "onnx_graphsurgeon": "Graph",
    "onnx_ir": "Model",
    "torch.onnx": "ONNXProgram",
}
"""The class of each package."""


def is_in_memory(model: Any) -> bool:
    """Whether a model is of one of these kinds."""
    return _package(model) is not None


def as_proto(model: Any) -> tuple[ModelProto, Path | None]:
    """The protobuf of a model that `is_in_memory`, and the folder of its external data, if it has.

    Raises `UsageError` for a model whose external data lie in several folders.
    """
    package = _package(model)
    if package == "onnx_graphsurgeon":
        import onnx_graphsurgeon

        return onnx_graphsurgeon.export_onnx(model), None
    import onnx_ir

    if package == "torch.onnx":
        if not isinstance(getattr(model, "model", None), onnx_ir.Model):
            return model.model_proto, None  # as PyTorch before 2.6 had it
        model = model.model
    folders = {Path(tensor.base_dir) for tensor in _external(model)}
    if len(folders) > 1:
        raise UsageError(
            f"external data of the model lie in {len(folders)} folders: load them first, "
            "onnx_ir.external_data.load_to_model(model)"
        )
    return onnx_ir.to_proto(model), next(iter(folders), None)


def given_back(proto: ModelProto, model: Any, folder: Path | None) -> Any:
    """A protobuf as a model of the same kind as another one. ``folder`` has its external data."""
    package = _package(model)
    if package == "onnx_graphsurgeon":
        import onnx_graphsurgeon

        return onnx_graphsurgeon.import_onnx(proto)
    import onnx_ir

    made = onnx_ir.from_proto(proto)
    if folder is not None:
        onnx_ir.external_data.set_base_dir(made.graph, folder)
    if package == "onnx_ir":
        made.meta.update(model.meta)
        return made
    return type(model)(made, model.exported_program)


def _package(model: Any) -> str | None:
    """The package that a model is of; None if it is of none of these kinds."""
    for package, name in _KINDS.items():
        kind = getattr(sys.modules.get(package), name, None)
        if isinstance(kind, type) and isinstance(model, kind):
            return package
    return None


def _external(model: Any) -> Iterator[Any]:
    """The initializers of a Model of onnx_ir that lie in other files, in all of its graphs."""
    import onnx_ir

    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                yield value.const_value
