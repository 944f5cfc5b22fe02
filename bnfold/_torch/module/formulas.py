"""Operators of a module's own code that go element by element, made modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from bnfold._torch.read.nodes import arguments, kind_of

Bound = Mapping[str, Any]
_SEEDED = torch.Tag.nondeterministic_seeded


@dataclass(frozen=True)
class Read:
    """A tensor that an operator of a formula reads: the number of the operator that makes it, -1
    for what goes in.
    """

    number: int


@dataclass(frozen=True)
class Operation:
    """One operator, with its positional and its named arguments."""

    target: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    bound: tuple[tuple[str, Any], ...]

    def known(self) -> nn.Module | None:
        """The module of PyTorch that does the same; None if there is none."""
        name = str(self.target.overloadpacket.__name__)
        make = _MODULES.get(name.removesuffix("_"))
        return make(dict(self.bound), name.endswith("_")) if make is not None else None


@dataclass(frozen=True)
class Formula:
    """Operators that go element by element: one tensor in, the last one's output out."""

    operations: tuple[Operation, ...]

    @staticmethod
    def of(
        nodes: Sequence[fx.Node], source: fx.Node, is_constant: Callable[[fx.Node], bool]
    ) -> list[Formula] | None:
        """The formulas of some nodes, one behind the other; None if they have other operators.

        Each node that PyTorch has a module for is one by itself, if all have one. Operators that
        read parameters are no formula.
        """
        numbers = {node: number for number, node in enumerate(nodes)}
        numbers[source] = -1
        found = []
        for node in nodes:
            constant = any(map(is_constant, node.all_input_nodes))
            operation = None if constant else _operation(node, numbers)
            if operation is None:
                return None
            found.append(operation)
        lasts = (source, *nodes[:-1])
        row = all(node.all_input_nodes == [last] for node, last in zip(nodes, lasts, strict=True))
        if row and all(operation.known() is not None for operation in found):
            alone = [_operation(node, {node.all_input_nodes[0]: -1}) for node in nodes]
            return [Formula((operation,)) for operation in alone if operation is not None]
        return [Formula(tuple(found))]

    @property
    def name(self) -> str:
        """A name for a submodule."""
        if len(self.operations) > 1:
            return "formula"
        return str(self.operations[0].target.overloadpacket.__name__).rstrip("_")

    def module(self) -> nn.Module:
        """One module of PyTorch where one does the same, else one that has the operators."""
        known = self.operations[0].known() if len(self.operations) == 1 else None
        if known is not None:
            return known.eval()
        graph = fx.Graph()
        nodes = [graph.placeholder("input")]

        def given(value: Any) -> Any:
            return nodes[value.number + 1] if isinstance(value, Read) else value

        for each in self.operations:
            # Without its overload an operator can be scripted, too.
            args = tuple(map(given, each.args))
            kwargs = {name: given(value) for name, value in each.kwargs}
            nodes.append(graph.call_function(each.target.overloadpacket, args, kwargs))
        graph.output(nodes[-1])
        return fx.GraphModule(nn.Module(), graph).eval()


def _operation(node: fx.Node, numbers: Mapping[fx.Node, int]) -> Operation | None:
    """A node as an operator of a formula; None if it is none."""
    target = node.target
    if getattr(target, "namespace", "") != "aten" or not isinstance(target, torch._ops.OpOverload):
        return None
    known = kind_of(node).removesuffix("_") in _MODULES
    if not known and (torch.Tag.pointwise not in target.tags or _SEEDED in target.tags):
        return None
    values = [*node.args, *node.kwargs.values()]
    if not all(isinstance(each, fx.Node) or _is_plain(each) for each in values):
        return None
    if arguments(node).get("train"):  # A dropout that drops.
        return None

    def read(value: Any) -> Any:
        return Read(numbers[value]) if isinstance(value, fx.Node) else value

    return Operation(
        target,
        tuple(map(read, node.args)),
        tuple((name, read(value)) for name, value in node.kwargs.items()),
        tuple((name, read(value)) for name, value in arguments(node).items()),
    )


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _without_inplace(make: Callable[[], nn.Module]) -> Callable[[Bound, bool], nn.Module | None]:
    return lambda bound, inplace: None if inplace else make()


def _elu(bound: Bound, inplace: bool) -> nn.Module | None:
    plain = bound["scale"] == 1 and bound["input_scale"] == 1
    return nn.ELU(bound["alpha"], inplace) if plain else None


_MODULES: dict[str, Callable[[Bound, bool], nn.Module | None]] = {
    "alpha_dropout": lambda bound, inplace: nn.AlphaDropout(bound["p"], inplace),
    "celu": lambda bound, inplace: nn.CELU(bound["alpha"], inplace),
    "dropout": lambda bound, inplace: nn.Dropout(bound["p"], inplace),
    "elu": _elu,
    "feature_dropout": lambda bound, inplace: nn.Dropout2d(bound["p"], inplace),
    "gelu": lambda bound, inplace: None if inplace else nn.GELU(bound["approximate"]),
    "hardsigmoid": lambda bound, inplace: nn.Hardsigmoid(inplace),
    "hardswish": lambda bound, inplace: nn.Hardswish(inplace),
    "hardtanh": lambda bound, inplace: nn.Hardtanh(bound["min_val"], bound["max_val"], inplace),
    "leaky_relu": lambda bound, inplace: nn.LeakyReLU(bound["negative_slope"], inplace),
    "log_sigmoid": _without_inplace(nn.LogSigmoid),
    "mish": lambda bound, inplace: nn.Mish(inplace),
    "relu": lambda bound, inplace: nn.ReLU(inplace),
    "relu6": lambda bound, inplace: nn.ReLU6(inplace),
    "selu": lambda bound, inplace: nn.SELU(inplace),
    "sigmoid": _without_inplace(nn.Sigmoid),
    "silu": lambda bound, inplace: nn.SiLU(inplace),
    "softplus": lambda bound, inplace: (
        None if inplace else nn.Softplus(bound["beta"], bound["threshold"])
    ),
    "tanh": _without_inplace(nn.Tanh),
}
"""What PyTorch's module for an operator is, from its arguments and whether it works in place."""
