"""Libraries of custom operators, as onnxruntime registers them, and the operators that it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
from onnx import defs, helper

from bnfold._errors import UsageError
from bnfold._run.bounds import Bounds
from bnfold._run.nodes import all_nodes
from bnfold._run.session import EngineError, OnnxRuntime, register

_NOBODYS = "ThisOperatorIsNobodys"
Kind = tuple[str, str]
"""The domain and the type of an operator."""


def checked(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """The absolute paths of some libraries. Raises `UsageError` if one cannot be loaded."""
    found = tuple(Path(path).absolute() for path in paths)
    for path in found:
        if not path.is_file():
            raise UsageError(f"{path}: there is no such library of operators (--ops-library)")
        try:
            register([path])
        except EngineError as error:
            raise UsageError(
                f"{path}: onnxruntime cannot load it as a library of operators (--ops-library): "
                f"{error}"
            ) from error
    return found


def unknown_operators(model: onnx.ModelProto, bounds: Bounds) -> set[Kind]:
    """The operators of a model that onnxruntime does not know, with the libraries that it has.

    Only operators that ONNX does not define in the model's version are looked at. Each is loaded
    alone.
    """
    own = {(function.domain, function.name) for function in model.functions}
    nodes = [*model.graph.node, *(node for each in model.functions for node in each.node)]
    versions = imported(model)
    kinds = set(map(kind_of, all_nodes(nodes))) - own
    return {
        kind
        for kind in kinds
        if not is_defined(kind, versions) and _is_unknown(kind, model.opset_import, bounds)
    }


def kind_of(node: onnx.NodeProto) -> Kind:
    """The domain and the type of an operator."""
    return _plain(node.domain), node.op_type


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def imported(model: onnx.ModelProto) -> dict[str, int]:
    """The versions of the domains that a model imports."""
    return {_plain(each.domain): each.version for each in model.opset_import}


def is_defined(kind: Kind, versions: dict[str, int]) -> bool:
    """Whether ONNX defines an operator, in the versions of the domains that a model imports."""
    domain, name = kind
    try:
        defs.get_schema(name, versions.get(domain, 1), domain)
    except defs.SchemaError:
        return False
    return True


def _is_unknown(kind: Kind, imports: Sequence[onnx.OperatorSetIdProto], bounds: Bounds) -> bool:
    """Whether the engine says of an operator what it says of one that nobody has defined."""
    domain, name = kind
    said, of_none = (_refused((domain, each), imports, bounds) for each in (name, _NOBODYS))
    if said is None or of_none is None:
        return False
    return said.replace(name, "") == of_none.replace(_NOBODYS, "").replace(name, "")


def _refused(kind: Kind, imports: Sequence[onnx.OperatorSetIdProto], bounds: Bounds) -> str | None:
    """What the engine says of a model of one operator; None if it loads it."""
    domain, name = kind
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node(name, ["x"], ["y"], domain=domain)],
        "one",
        [value],
        [onnx.ValueInfoProto(name="y")],
    )
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    try:
        OnnxRuntime(model.SerializeToString(), bounds=bounds)
    except EngineError as error:
        return str(error)
    return None
