"""An exported program in float64, whatever types its operators ask for."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from bnfold._errors import UsageError, first_line
from bnfold._torch.module.copying import copied
from bnfold._torch.module.fold import Example
from bnfold._torch.tensors import DTYPES, NARROW

_ATEN = torch.ops.aten
_CONVERTING = (_ATEN.to.dtype, _ATEN.to.other, _ATEN._to_copy.default, _ATEN.type_as.default)


def widened(program: ExportedProgram, example: Example) -> ExportedProgram:
    """A program with float64 wherever it has a narrower type. ``example`` is widened.

    What asserts the type of a tensor is left out.

    Raises:
        UsageError: it cannot be exported like that.
    """
    module = copied(program.module())
    try:
        for part in list(module.modules()):
            if isinstance(part, GraphModule):
                _widen(part)
        wide = nn.Module.double(module)
        return torch.export.export(wide, example.args, dict(example.kwargs))
    except Exception as error:  # Whatever torch.export raises.
        raise UsageError(
            f"the program cannot be exported in float64: {first_line(error)}"
        ) from error


def _widen(module: GraphModule) -> None:
    """Change what a graph computes to float64, in place; parameters and buffers are not touched."""
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(module)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                owner, _, name = str(node.target).rpartition(".")
                if value.dtype in NARROW:
                    setattr(module.get_submodule(owner), name, value.double())
        elif node.op == "call_module" and str(node.target).endswith("_guards_fn"):
            module.graph.erase_node(node)
        elif isinstance(node.target, OpOverload):
            _widen_node(module, node)
    module.recompile()


def _widen_node(module: GraphModule, node: Node) -> None:
    if node.target is torch.ops.aten._assert_tensor_metadata.default:
        module.graph.erase_node(node)
        return
    weight = _widened_weight(module, node)
    if weight is not None:
        node.replace_all_uses_with(weight)
        module.graph.erase_node(node)
        return
    node.args = map_aggregate(node.args, _wide)
    node.kwargs = map_aggregate(node.kwargs, _wide)
    assert isinstance(node.target, OpOverload)
    takes = any(argument.name == "dtype" for argument in node.target._schema.arguments)
    made = node.meta.get("val")
    narrow = isinstance(made, Tensor) and made.dtype in NARROW
    if narrow and takes and not node.all_input_nodes and node.kwargs.get("dtype") is None:
        node.kwargs = {**node.kwargs, "dtype": torch.float64}


def _widened_weight(module: GraphModule, node: Node) -> Node | None:
    """The parameter or buffer that a node converts between floating-point types; None for others.

    In float64 it does nothing. Who writes into what it makes writes into a copy: that stays.
    """
    if node.target not in _CONVERTING:
        return None
    source, made = node.args[0], node.meta.get("val")
    if not isinstance(source, Node) or source.op != "get_attr":
        return None
    if not isinstance(made, Tensor) or made.dtype not in DTYPES:
        return None
    held = attrgetter(str(source.target))(module)
    writing = (
        getattr(getattr(each.target, "_schema", None), "is_mutable", True) for each in node.users
    )
    plain = isinstance(held, Tensor) and held.dtype in DTYPES and not any(writing)
    return source if plain else None


def _wide(value: Any) -> Any:
    return torch.float64 if value in NARROW else value
