"""Operators without a translation: all that tells one apart, as text.

Two of them put out the same if they are of one kind, and every argument is the same: a tensor that
the proof knows to be the same, a number, a size that follows from the inputs' in the same way. Code
that an operator calls (a branch, the body of a loop) is text, too. What nobody knows to be the
same, as an object of another library, has a text that no other has.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from bnfold._aten.in_place import is_changing
from bnfold._torch.tensors import to_numpy

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_NAMED = (torch.dtype, torch.layout, torch.memory_format, torch.device, torch._ops.OpOverload)
_CALLING = frozenset(
    (
        *("associative_scan", "auto_functionalized", "auto_functionalized_v2", "cond", "map_impl"),
        *("scan", "strict_mode", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled"),
    )
)
"""Operators of higher order that are known to depend on their arguments alone."""
_unlike = itertools.count()


def unlike() -> str:
    """A text that no other has."""
    return f"nothing else {next(_unlike)}"


@dataclass(eq=False)
class Told:
    """Tells the arguments of an operator, and collects the tensors among them.

    ``said`` gives the text of a node that is no tensor, or None. ``module`` holds the code that
    operators call.
    """

    said: Callable[[Node], str | None]
    module: GraphModule
    tensors: list[Node] = field(default_factory=list)

    def of(self, value: Any) -> str:
        """The text of an argument."""
        if isinstance(value, Node):
            return self._of_node(value)
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self.of, value))}]"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{key!r}: {self.of(part)}' for key, part in value.items())}}}"
        if type(value) in _PLAIN:
            return repr(value)
        if isinstance(value, _NAMED):
            return str(value)
        return unlike()

    def _of_node(self, node: Node) -> str:
        if node.op == "get_attr":
            held = _held(self.module, str(node.target))
            if isinstance(held, GraphModule):
                return text_of(held)
        said = self.said(node)
        if said is not None:
            return said
        self.tensors.append(node)
        return f"%{len(self.tensors) - 1}"


def _held(module: GraphModule, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def text_of(module: GraphModule) -> str:
    """Code as text: the same for two graphs that do the same with what they are given."""
    numbers: dict[Node, int] = {}
    lines = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            held = _held(module, str(node.target))
            line = text_of(held) if isinstance(held, GraphModule) else _stored(held)
        elif node.op == "placeholder":
            line = "given"
        elif node.op in ("call_function", "output"):
            told = Told(lambda each: f"#{numbers[each]}" if each in numbers else None, module)
            line = f"{name_of(node.target)}({told.of(node.args)}, {told.of(node.kwargs)})"
            line = unlike() if told.tensors or is_changing(node) else line
        else:
            line = unlike()
        numbers[node] = len(numbers)
        lines.append(line)
    return f"<{'; '.join(lines)}>"


def _stored(value: Any) -> str:
    """A tensor that code holds, by its type, its sizes and its numbers."""
    if not isinstance(value, Tensor) or value.is_meta or value.layout is not torch.strided:
        return unlike()
    try:
        numbers = to_numpy(value).tobytes()
    except (RuntimeError, TypeError):  # Of a type that NumPy does not have.
        return unlike()
    return f"{value.dtype} {list(value.shape)} {hashlib.sha256(numbers).hexdigest()}"


def name_of(target: Any) -> str:
    """The whole name of what a node calls."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        name = str(target)
        return f"higher order {name}" if name in _CALLING else f"{name} {unlike()}"
    module = getattr(target, "__module__", "")
    if module in ("_operator", "builtins", "math", "torch") or str(target) == "output":
        return f"{module} {getattr(target, '__name__', target)}"
    if module == "torch.utils._sympy.functions" or module.startswith("torch._sym"):
        return f"{module} {getattr(target, '__name__', target)}"
    return unlike()


def is_drawn(node: Node, module: GraphModule) -> bool:
    """Whether what an operator puts out may be other numbers for the same data."""
    target = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        inner = [is_drawn(part, code) for code in _codes(node, module) for part in _calls(code)]
        return any(inner) or "auto_functionalized" in str(target)
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target.namespace not in ("aten", "prims", "quantized_decomposed"):
        return True
    if "empty" in target._schema.name:  # Nobody knows what is in new memory.
        return True
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    if "scaled_dot_product" in target._schema.name:
        names = [argument.name for argument in target._schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        return bool(given.get("dropout_p", 0.0) != 0.0)
    return True


def _codes(node: Node, module: GraphModule) -> Iterator[GraphModule]:
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            held = _held(module, str(source.target))
            if isinstance(held, GraphModule):
                yield held


def _calls(module: GraphModule) -> Iterator[Node]:
    return (node for node in module.graph.nodes if node.op == "call_function")
