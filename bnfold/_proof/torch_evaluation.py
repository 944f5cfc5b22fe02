"""Runs a part of a PyTorch program in float64, one operator after the other, in PyTorch itself.

Each tensor has a value and a bound. The bound is at least the sum of the absolute values of all
terms in the value. An error of rounding is small relative to the bound.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bnfold._merge.stored import Load
from bnfold._proof.evidence import Mismatch
from bnfold._torch.read.nodes import arguments, kind_of
from bnfold._torch.tensors import from_numpy

_SUMMING = ("addmm", "conv", "linear", "matmul", "mm", "bmm")
_ADDING = ("add", "sub", "rsub")
_ALIKE = (
    "_adaptive_avg_pool2d _adaptive_avg_pool3d _to _unsafe_view adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d alias avg_pool1d avg_pool2d avg_pool3d cat chunk "
    "clone contiguous copy detach div dropout expand expand_as flatten getitem mean movedim mul "
    "permute pixel_shuffle repeat reshape reshape_as select slice split split_with_sizes squeeze "
    "stack sum sym_size t to transpose type_as unflatten unsqueeze view view_as"
)
"""Operators that give the bound of their output if they read the bounds of their inputs."""
_RECURRENT = ("gru", "lstm", "rnn_relu", "rnn_tanh")
_MOVED = 2.0**-20
_ROOM = 4.0


class BoundedValue(NamedTuple):
    """The output of a node, and a bound of the terms in it."""

    value: Any
    bound: Any


@dataclass
class EvaluatedProgram:
    """A program that can be run in parts.

    ``exact`` loads the weights that merging has made, not rounded, by name.

    Attributes:
        nodes: its nodes, by name.
        varying: the names of the nodes that depend on the program's inputs.
        reaching: the names of the nodes that an output depends on, or an operator that may write.
    """

    program: ExportedProgram
    exact: Mapping[str, Load]

    def __post_init__(self) -> None:
        signature = self.program.graph_signature
        self.nodes: dict[str, Node] = {node.name: node for node in self.program.graph.nodes}
        self._stored = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._state: dict[str, Any] = {**self.program.state_dict, **self.program.constants}
        varying = set[str]()
        for node in self.program.graph.nodes:
            given = node.op == "placeholder" and node.name not in self._stored
            if given or any(source.name in varying for source in node.all_input_nodes):
                varying.add(node.name)
        self.varying: Collection[str] = varying
        reaching = set[str]()
        for node in reversed(self.program.graph.nodes):
            if not _is_pure(node) or any(user.name in reaching for user in node.users):
                reaching.add(node.name)
        self.reaching: Collection[str] = reaching

    def weights(self, names: Collection[str]) -> Iterator[str]:
        """Yield the parameters and buffers that some nodes read.

        They may read them through nodes that do not depend on the program's inputs.
        """
        waiting = [source for name in names for source in self.nodes[name].all_input_nodes]
        while waiting:
            node = waiting.pop()
            if node.name in self._stored:
                yield self._stored[node.name]
            elif node.name not in self.varying:
                waiting.extend(node.all_input_nodes)

    def epsilon(self, names: Collection[str]) -> float:
        """The spacing at 1 of the coarsest type among the parameters that some nodes read."""
        stored = (self._state[name].dtype for name in self.weights(names))
        return max((torch.finfo(t).eps for t in stored if t.is_floating_point), default=2.0**-52)

    def between(self, outputs: Collection[str], inputs: Collection[str]) -> list[str]:
        """The varying nodes on the way from ``outputs`` back to ``inputs``, without the inputs."""
        found, waiting = dict[str, None](), [name for name in outputs if name not in inputs]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = None
                sources = (source.name for source in self.nodes[name].all_input_nodes)
                waiting += [s for s in sources if s in self.varying and s not in inputs]
        return list(found)

    def numbers(self, names: Collection[str]) -> list[float]:
        """The finite numbers among the arguments of some nodes: bounds, thresholds, slopes."""
        nodes = [self.nodes[name] for name in names]
        given: list[Any] = [
            value for node in nodes for value in (*node.args, *node.kwargs.values())
        ]
        return [float(n) for n in given if _is_number(n) and math.isfinite(n)]

    def read(self, names: Collection[str]) -> list[str]:
        """The varying nodes, outside of some nodes, whose outputs these nodes read."""
        sources = (source.name for name in names for source in self.nodes[name].all_input_nodes)
        return list(dict.fromkeys(s for s in sources if s in self.varying and s not in names))

    def run(self, name: str, known: dict[str, BoundedValue]) -> BoundedValue:
        """The output of a node. All that is computed for it is added to ``known``.

        Raises:
            Mismatch: it reads an input that is not known.
        """
        waiting = [name]
        while waiting:
            node = self.nodes[waiting[-1]]
            open_ = [s.name for s in node.all_input_nodes if s.name not in known]
            if node.name in known:
                waiting.pop()
            elif open_ and node.op == "call_function":
                waiting += open_
            else:
                known[node.name] = self._value(node, known)
                waiting.pop()
        return known[name]

    def _value(self, node: Node, known: Mapping[str, BoundedValue]) -> BoundedValue:
        """The output of a node and its bound, from the outputs of the nodes that it reads."""
        if node.op == "placeholder" and node.name in self._stored:
            name = self._stored[node.name]
            load = self.exact.get(name)
            stored: Any = self._state[name] if load is None else from_numpy(load())
            value = widened(stored.detach().cpu()) if isinstance(stored, Tensor) else stored
            return BoundedValue(value, _absolute(value))
        if node.op == "get_attr":  # The code of a branch, or of what runs without gradients.
            held = operator.attrgetter(str(node.target))(self.program.graph_module)
            return BoundedValue(held, held)
        if node.op != "call_function":
            raise Mismatch(f"{node.name} is read, which was not")
        with torch.no_grad():
            value = _called(node, known, 0)
            return BoundedValue(value, _bound(node, known, value))


def _is_pure(node: Node) -> bool:
    """Whether a node is known to write nothing.

    An operator that runs the code of a branch, or of what runs without gradients, has no schema,
    and that code may write.
    """
    if node.op in ("placeholder", "get_attr") or node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable


def widened(tensor: Tensor) -> Tensor:
    """A tensor of floats in float64, any other tensor as it is, and so one that holds others."""
    plain = tensor.is_floating_point() and not is_traceable_wrapper_subclass(tensor)
    return tensor.to(torch.float64) if plain else tensor


def _called(node: Node, known: Mapping[str, BoundedValue], which: int) -> Any:
    """The result of an operator on its inputs: on their values if ``which`` is 0, else on their
    bounds. The inputs stay as they are.
    """
    mutable = getattr(getattr(node.target, "_schema", None), "is_mutable", False)

    def given(source: Node) -> Any:
        found = known[source.name][which]
        return found.clone() if mutable and isinstance(found, Tensor) else found

    args, kwargs = map_arg((node.args, node.kwargs), given)
    args, kwargs = torch.utils._pytree.tree_map(_widened_type, (args, kwargs))
    assert callable(node.target)
    if kind_of(node) == "dequantize_affine":
        return _dequantized_in_blocks(*args[:4])
    if "quantize" in kind_of(node):
        args, kwargs = _as_quantizers_ask(node, args, kwargs)
    # What is made of integers alone is in float32.
    return torch.utils._pytree.tree_map(_widened_tensor, node.target(*args, **kwargs))


def _widened_tensor(value: Any) -> Any:
    return widened(value) if isinstance(value, Tensor) else value


def _dequantized_in_blocks(q: Tensor, block: Any, scale: Tensor, zero: Tensor | None) -> Tensor:
    """``(q − z)·s``, where each block of numbers has one s and z. torchao takes no float64."""

    def spread(values: Tensor) -> Tensor:
        sizes = [n if size == -1 else size for size, n in zip(block, q.shape, strict=True)]
        laid = values.reshape([n // size for size, n in zip(sizes, q.shape, strict=True)])
        for axis, size in enumerate(sizes):
            laid = laid.repeat_interleave(size, axis)
        return laid.to(torch.float64)

    centred = q.to(torch.float64) - (spread(zero) if zero is not None else 0.0)
    return centred * spread(scale)


def _as_quantizers_ask(node: Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of an operator that rounds to integers or reads them, so that it takes float64.

    Scales are in float32 as they are stored, and so are floats for a quantizer that takes no
    others. What is dequantized is in float64.
    """
    kind, names = kind_of(node), [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    narrow = ["scale", "scales", *(["input"] if kind.startswith("quantize") else [])]
    for name in narrow:
        if isinstance(given.get(name), Tensor) and given[name].is_floating_point():
            given[name] = given[name].to(torch.float32)
    for name in {"out_dtype", "output_dtype"} & {*names} if kind.startswith("dequantize") else ():
        given[name] = torch.float64
    return (), given


def _widened_type(value: Any) -> Any:
    is_float = isinstance(value, torch.dtype) and value.is_floating_point
    return torch.float64 if is_float else value


def _absolute(value: Any) -> Any:
    if not isinstance(value, Tensor) or is_traceable_wrapper_subclass(value):
        return value
    return value.abs() if value.is_floating_point() else value


def _bound(node: Node, known: Mapping[str, BoundedValue], value: Any) -> Any:
    """A bound of the absolute values of all terms in the output of a node."""
    kind = kind_of(node).removesuffix("_").removesuffix("_copy")
    if node.target is operator.getitem or kind in _ALIKE.split() or kind.startswith(_SUMMING):
        return torch.utils._pytree.tree_map(_absolute, _called(node, known, 1))
    bounds = [known[s.name].bound for s in node.all_input_nodes]
    floats = [b for b in bounds if isinstance(b, Tensor) and b.is_floating_point()]
    if kind in _ADDING and isinstance(value, Tensor) and value.is_floating_point():
        given: list[Any] = [*node.args, *node.kwargs.values()]
        factor = max([1.0, *(abs(float(each)) for each in given if _is_number(each))])
        return factor * sum(floats, torch.zeros((), dtype=torch.float64)) + factor
    if _is_fixed_norm(node):
        first = _of_batch_norm(node, known)
        return first if isinstance(value, Tensor) else (first, *map(_absolute, value[1:]))
    if kind in _RECURRENT:
        return _of_recurrent(node, known, value)
    most = sum((float(b.max()) for b in floats[1:] if b.numel()), 0.0)
    return torch.utils._pytree.tree_map(
        lambda part: part.abs() + most if _has_size(part) else part, value
    )


def _has_size(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype != torch.bool


def _of_recurrent(node: Node, known: Mapping[str, BoundedValue], value: Any) -> Any:
    """A bound for each output of a recurrent operator.

    No sum of terms tells how rounding grows over the steps of a recurrence. So every parameter is
    moved by a small part of itself, and the movement of the output is measured.
    """
    generator, moved = torch.Generator().manual_seed(0), dict(known)
    for source in arguments(node)["params"]:
        old = known[source.name].value
        signs = torch.randint(2, old.shape, generator=generator) * 2 - 1
        moved[source.name] = known[source.name]._replace(value=old * (1 + _MOVED * signs))
    pairs = zip(value, _called(node, moved, 0), strict=True)
    return tuple(
        one.abs() + (_ROOM / _MOVED * (one - other).abs().max() if one.numel() else 0.0)
        for one, other in pairs
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_fixed_norm(node: Node) -> bool:
    """Whether a node is a BatchNorm by running statistics that it does not change."""
    kind = kind_of(node)
    if "batch_norm" not in kind or "with_update" in kind:
        return False
    args = arguments(node)
    return not args.get("training", False) and args.get("running_mean") is not None


def _of_batch_norm(node: Node, known: Mapping[str, BoundedValue]) -> Tensor:
    """``(|x| + |mean|) / √(var + ε)·|γ| + |β|``. The operator computes it from a negated mean."""
    args = arguments(node)

    def of(name: str) -> Any:
        return None if args[name] is None else known[args[name].name].bound

    mean = of("running_mean")
    return torch.nn.functional.batch_norm(
        of("input"),
        -mean,
        of("running_var"),
        of("weight"),
        of("bias"),
        training=False,
        eps=args["eps" if "eps" in args else "epsilon"],
    ).abs()
