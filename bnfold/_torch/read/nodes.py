"""Facts about single nodes of an exported program: kind, arguments, windows, sizes, type."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from bnfold._core.broadcast import Shape
from bnfold._core.index_maps import Size
from bnfold._core.reasons import Reason
from bnfold._core.result import Kept
from bnfold._core.windows import Window

_NORMS = ("batch_norm", "instance_norm")


def is_norm(node: Node) -> bool:
    """Whether an operator is a norm by its name, whoever has defined it."""
    name = str(getattr(node.target, "__name__", node.target))
    return any(norm in name for norm in _NORMS)


def foreign_norm(node: Node, label: str) -> Reason:
    """Why a norm of another library stays."""
    return Reason("unread-code", label, f"{label} is no operator of PyTorch's own")


def inner_norms(program: ExportedProgram) -> tuple[Kept, ...]:
    """The norms in branches and other code that operators of a program call, all of which stay."""
    return tuple(
        Kept(node.name, kind_of(node), reason.code, reason.at, reason.message, reason.advice, "")
        for caller, node in _inside(program.graph_module)
        for reason in [_reason(caller, node)]
    )


def _reason(caller: Node, node: Node) -> Reason:
    where = caller.name
    message = f"{node.name} is in code that {where} calls, where nothing folds"
    return Reason("unread-code", where, message)


def _inside(module: GraphModule) -> Iterator[tuple[Node, Node]]:
    """Each norm in code that operators call, with the operator."""
    for held in module.graph.nodes:
        code = getattr(module, str(held.target), None) if held.op == "get_attr" else None
        if not isinstance(code, GraphModule):
            continue
        for caller in held.users:
            for node in code.graph.nodes:
                if node.op == "call_function" and is_norm(node):
                    yield caller, node
            for _, node in _inside(code):
                yield caller, node


Numbers = int | Sequence[int]

_OF_SELF = (
    "copy dim empty_like fill full_like is_complex is_floating_point is_same_size new_empty "
    "new_empty_strided new_full new_ones new_zeros numel ones_like rand_like randint_like "
    "randn_like size sym_numel sym_size sym_stride zero zeros_like"
)
_OF_OTHER = "expand_as is_same_size reshape_as result_type to type_as view_as"
_OF_A = "_assert_tensor_metadata device dtype layout"
_ASKED: dict[str, tuple[str, ...]] = {}
"""For each operator that takes the shape, type or device of arguments alone, their names."""
for _name, _kinds in (
    ("self", _OF_SELF),
    ("other", _OF_OTHER),
    ("a", _OF_A),
    ("tensor", "result_type"),
):
    for _kind in _kinds.split():
        _ASKED[_kind] = (*_ASKED.get(_kind, ()), _name)


PERMUTATIONS = (
    "mT movedim numpy_T permute permute_copy swapaxes swapdims t t_copy transpose transpose_copy"
)
"""Operators that put axes into another order."""


def kind_of(node: Node) -> str:
    """What kind of operator a node is: ``conv2d``, ``batch_norm``."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of an operator by name, defaults included."""
    names, defaults = _parameters(node.target)
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


@lru_cache(maxsize=1024)
def _parameters(operator: Any) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The names of an operator's arguments, and the values of those that have a default."""
    found = operator._schema.arguments
    defaults = {each.name: each.default_value for each in found if each.has_default_value()}
    return tuple(each.name for each in found), defaults


def reads_of(node: Node) -> Iterator[Node]:
    """The tensors that a node reads, once for each read."""
    yield from _nodes_in((node.args, node.kwargs))


def places(node: Node) -> dict[str, tuple[int, ...]]:
    """For each argument the numbers of its tensors among all tensors that the operator reads."""
    names, _ = _parameters(node.target)
    found, count = {}, 0
    for name, value in (*zip(names, node.args, strict=False), *node.kwargs.items()):
        start, count = count, count + len(_nodes_in(value))
        found[name] = tuple(range(start, count))
    return found


def asked(node: Node) -> tuple[int, ...]:
    """Of which of the tensors that a node reads, by number, it takes no values.

    ``x.view_as(y)`` takes the sizes of y, ``x.type_as(y)`` its type, ``zeros_like(y)`` both. An
    affine map changes none of these. Operators that are not PyTorch's own may read all they are
    given, whatever they are called.
    """
    if getattr(node.target, "namespace", "") not in ("aten", "prim"):
        return ()
    kind = kind_of(node)
    if kind == "broadcast_tensors":  # Each part has the values of one tensor, the sizes of all.
        used = {number_of(part) for part in parts_of(node) if part.target is operator.getitem}
        return tuple(k for k, _ in enumerate(reads_of(node)) if k not in used)
    names = _ASKED.get(kind, ())
    known = places(node) if names else {}
    return tuple(number for name in names for number in known.get(name, ()))


def valueless(nodes: Sequence[Node], seen: Container[Node], whole: bool) -> set[Node]:
    """The operators whose values nobody reads, among ``nodes`` in their order.

    All that reads them asks for their shape or type alone, or is such an operator itself:
    ``ones_like(y[:, :1])`` takes no value of y. They write nothing, and are none of those ``seen``
    by somebody outside the graph. They put out tensors whose sizes no value decides: those of
    ``y.nonzero()`` tell of the values of y. Something has to read them, unless the graph is the
    ``whole`` of what runs: the code of a module may keep what no operator reads.
    """
    found = set[Node]()
    for node in reversed(nodes):
        schema = getattr(node.target, "_schema", None)
        pure = node.target is operator.getitem or (
            getattr(node.target, "namespace", "") == "aten"
            and schema is not None
            and not schema.is_mutable
        )
        if (
            pure
            and node not in seen
            and not _tells_of_values(node)
            and (whole or node.target is operator.getitem or _is_used(node))
            and all(
                user in found
                or (user.op == "call_function" and asked(user) and node not in values_read(user))
                for user in node.users
            )
        ):
            found.add(node)
    return found


def _tells_of_values(node: Node) -> bool:
    """Whether what a node puts out has numbers, or sizes that follow from values; or is unknown."""
    example = node.meta.get("val")
    if not all(isinstance(part, Tensor) for part in pytree.tree_leaves(example)):
        return True
    by_values = torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())
    if kind_of(node) == "index":  # By places it puts out as many as there are places.
        masks = (torch.bool, torch.uint8)
        by_values = any(dtype_of(place) in masks for place in _nodes_in(arguments(node)["indices"]))
    return by_values or bool(free_unbacked_symbols(example))


def _is_used(node: Node) -> bool:
    """Whether an operator reads what a node puts out, or a part of the list that it puts out."""
    return any(user.target is not operator.getitem or user.users for user in node.users)


def values_read(node: Node) -> list[Node]:
    """The tensors whose values a node reads, once for each read."""
    apart = asked(node)
    return [source for number, source in enumerate(reads_of(node)) if number not in apart]


def _nodes_in(value: Any) -> list[Node]:
    found: list[Node] = []

    def note(source: Node) -> Node:
        found.append(source)
        return source

    torch.fx.map_arg(value, note)
    return found


def is_tensor(node: Node) -> bool:
    """Whether a node puts out one tensor, not a list of them."""
    return isinstance(node.meta.get("val"), Tensor)


def parts_of(node: Node) -> tuple[Node, ...]:
    """The nodes that take a part from a list, if the part is used."""
    return tuple(user for user in node.users if user.users)


def main_of(node: Node) -> Node | None:
    """Where the first of an operator's outputs is: the node itself, or what takes it from the list.

    None where nothing takes it, or several do.
    """
    if is_tensor(node):
        return node
    parts = parts_of(node)
    if any(part.target is not operator.getitem for part in parts):
        return None
    firsts = [part for part in parts if number_of(part) == 0]
    return firsts[0] if len(firsts) == 1 else None


def number_of(part: Node) -> int:
    """Which element of a list a getitem takes."""
    number = part.args[1]
    assert isinstance(number, int)
    return number


def rank_of(node: Node) -> int:
    """The number of axes of a node's output."""
    shape = shape_of(node)
    assert shape is not None
    return len(shape)


def order_of(node: Node, rank: int) -> tuple[int, ...]:
    """For each axis that a permutation puts out the axis that it reads."""
    more, named = (
        node.args[1:],
        {k: v for k, v in node.kwargs.items() if k not in ("self", "input")},
    )
    assert callable(node.target)
    marked = node.target(torch.empty(tuple(range(2, 2 + rank)), device="meta"), *more, **named)
    return tuple(size - 2 for size in marked.shape)


def permuted_from(node: Node) -> tuple[Node, tuple[int, ...]] | None:
    """What a permutation of axes reads, and for each axis of it the one where it is put out.

    None for any other node.
    """
    if node.op != "call_function" or kind_of(node) not in PERMUTATIONS.split():
        return None
    (source,) = node.all_input_nodes
    order = order_of(node, rank_of(source))
    return source, tuple(sorted(range(len(order)), key=order.__getitem__))


def listed(value: object) -> list[int]:
    """The numbers of an argument: one number for all axes, or one for each; [] for None."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]


def shape_of(value: object) -> Shape | None:
    """The sizes of a node's output; None for a size that may change from call to call."""
    sizes = sizes_of(value)
    if sizes is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in sizes)


def sizes_of(value: object) -> tuple[Size, ...] | None:
    """The sizes of a node's output, each as a number or as the expression that gives it."""
    example = value.meta.get("val") if isinstance(value, Node) else None
    if not isinstance(example, Tensor):
        return None
    sizes: Sequence[object] = example.shape
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)


def free_axes(example: object) -> dict[int, Any]:
    """The axes of a traced tensor whose size is no number, as ``dynamic_shapes`` has them."""
    sizes: Sequence[object] = example.shape if isinstance(example, Tensor) else ()
    return {axis: Dim.AUTO for axis, size in enumerate(sizes) if not isinstance(size, int)}


def sizes_in(example: Tensor) -> list[int]:
    """The sizes of a traced tensor; those that vary as they were in its trace."""
    sizes: Sequence[Any] = example.shape
    return [size if isinstance(size, int) else int(size.node.hint) for size in sizes]


def dtype_of(value: object) -> torch.dtype | None:
    """The element type of a node's output."""
    example = value.meta.get("val") if isinstance(value, Node) else None
    return example.dtype if isinstance(example, Tensor) else None


def windows(
    taps: Numbers, strides: Numbers, padding: Numbers | str, dilations: Numbers
) -> tuple[Window, ...] | None:
    """The window along each axis of space; None where it depends on sizes that may change.

    ``"same"`` asks for a stride of 1 and pads by ``d·(k − 1)`` in all. Where that is odd, the end
    gets one more than the beginning: 3 in all are 1 ahead and 2 behind.
    """
    rank = max(
        len(value) if isinstance(value, Sequence) else 1 for value in (taps, strides, dilations)
    )
    pads = padding if not isinstance(padding, str) else 0
    each = [_each(value, rank) for value in (taps, strides, dilations, pads)]
    if any(value is None for value in each):
        return None
    found = []
    for k, stride, dilation, pad in zip(*each, strict=True):
        total = dilation * (k - 1)
        ends = (total // 2, total - total // 2) if padding == "same" else (pad, pad)
        found.append(Window.of(k, dilation, stride, ends))
    return tuple(found)


def _each(value: Numbers, rank: int) -> list[int] | None:
    """The numbers for each axis, from one number for all axes or from one for each.

    None where a number is not fixed.
    """
    numbers = listed(value)
    if not all(isinstance(number, int) for number in numbers):
        return None
    return numbers * rank if len(numbers) == 1 else numbers
