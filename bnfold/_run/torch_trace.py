"""Which weights of a PyTorch module each of its outputs depends on, and which operators read them.

One real run shows it: the output of an operator depends on all that its operands depend on. This
works for modules and programs alike, whatever their Python code looks like. What that code does
with a number that it has read out of a tensor does not show: it may choose its way by it. So all
that a module puts out depends on each such number, and on what sizes follow from: whether code asks
for them does not show either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

RANDOM = "random numbers"
"""Stands for random numbers among the weights that a tensor depends on."""
DATA = "data"
"""Stands for the inputs among the weights that a tensor depends on."""
_OF_LAYERS = (
    "attention",
    "batch_norm",
    "conv",
    "group_norm",
    "gru",
    "layer_norm",
    "linear",
    "lstm",
    "mm",
    "rms_norm",
    "rnn",
)
"""Parts of the names of linear operators and norms."""
_SIZED_BY_VALUES = ("nms",)
"""Operators of other libraries that have no tag for it: what they put out has as many parts as the
values say.
"""
_EXITS = ("__array__", "__dlpack__", "numpy", "storage", "tolist", "untyped_storage")
"""The methods of a tensor that give its numbers away."""


@dataclass(frozen=True)
class Use:
    """An operator that reads data and weights.

    Attributes:
        operator: its name.
        weights: the weights that its operand of the highest rank is made of, among those operands
            that are made of weights alone.
        of_layer: whether it is a linear operator or a norm.
        axis: the axis of the output channels in that operand; None where the operand is computed
            from weights, has one axis, or its operator is no convolution or matrix product.
    """

    operator: str
    weights: frozenset[str]
    of_layer: bool
    axis: int | None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # It has no types.
    """A run in progress; see `traced`.

    Attributes:
        uses: the operators that have read data and weights so far.
        numbers: the names of all that numbers were read from so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: list[Use] = []
        self._sources: dict[int, frozenset[str]] = {}
        self._written: dict[int | None, frozenset[str]] = {}
        self._held: list[Tensor] = []
        self._turned: dict[int, bool] = {}
        self.numbers = frozenset[str]()

    def mark(self, tensor: Tensor, *names: str) -> None:
        """Name a tensor: all that is computed from it depends on these names."""
        self._put(tensor, frozenset(names))
        self._turned[id(tensor)] = False

    def of(self, value: Any) -> frozenset[str]:
        """The names that a tensor depends on; none for what is no tensor.

        What is written into a part of a tensor counts for all that share its memory.
        """
        own = self._sources.get(id(value), frozenset())
        return own | self._written.get(_memory(value), frozenset()) if self._written else own

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        found = frozenset().union(*map(self.of, self._felt(func, args, operands)))
        if any(DATA in self.of(each) for each in operands):
            found |= {DATA}
        if torch.Tag.nondeterministic_seeded in func.tags:
            found |= {RANDOM}
        name = func.overloadpacket.__name__
        if torch.Tag.data_dependent_output in func.tags:
            self.numbers |= found
        elif torch.Tag.dynamic_output_shape in func.tags or name in _SIZED_BY_VALUES:
            self.numbers |= found if name != "index" else self._masks(args)
        self._use(name, args, operands)
        changed = _written(func, args, kwargs or {})
        for tensor in (*pytree.tree_leaves(result), *changed):
            if isinstance(tensor, Tensor):
                self._put(tensor, self.of(tensor) | found)
        for tensor in changed:
            self._written[_memory(tensor)] = self.of(tensor)
        if name in ("t", "transpose", "detach", "alias") and isinstance(result, Tensor):
            turn = self._turned.get(id(args[0]))
            if turn is not None and result.dim() == 2:
                self._turned[id(result)] = turn ^ (name in ("t", "transpose"))
        return result

    def _masks(self, args: tuple[Any, ...]) -> frozenset[str]:
        """What the masks among indices depend on: by others there are as many as indices."""
        indices = [each for each in pytree.tree_leaves(args[1:]) if isinstance(each, Tensor)]
        masks = [each for each in indices if each.dtype in (torch.bool, torch.uint8)]
        return frozenset().union(*map(self.of, masks))

    def _felt(self, func: Any, args: tuple[Any, ...], operands: list[Tensor]) -> list[Tensor]:
        """The operands that a result feels: not those that are multiplied by constant zeros."""
        name = func.overloadpacket.__name__
        if name in ("mul", "mul_"):
            zeros = [each for each in operands if self._is_zero(each)]
            scalar = any(type(each) in (int, float) and each == 0 for each in args)
            return zeros or ([] if scalar else operands)
        if any(part in name for part in ("batch_norm", "convolution")):
            weight = args[1] if len(args) > 1 else None
            if isinstance(weight, Tensor) and self._is_zero(weight):
                return [each for each in args[1:3] if isinstance(each, Tensor)]
        return operands

    def _is_zero(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of weights only, and holds nothing but zeros."""
        found = self.of(tensor)
        return bool(found) and DATA not in found and not bool(tensor.any())

    def _put(self, tensor: Tensor, found: frozenset[str]) -> None:
        if id(tensor) not in self._sources:
            self._held.append(tensor)  # so that no other gets its id
        self._sources[id(tensor)] = found

    def _use(self, name: str, args: tuple[Any, ...], operands: list[Tensor]) -> None:
        """Note the operator, if one operand is made of weights only and another one of data."""
        if not any(DATA in self.of(each) for each in operands):
            return
        fixed = [each for each in operands if self.of(each) and DATA not in self.of(each)]
        if not fixed:
            return
        of_layer = any(part in name for part in _OF_LAYERS)
        widest = max(fixed, key=lambda each: each.dim())
        axis = None
        if id(widest) in self._turned and widest.dim() > 1:
            if "conv" in name:
                axis = int(any(arg is True for arg in args[6:7]))
            elif "mm" in name:
                axis = 0 if self._turned[id(widest)] else widest.dim() - 1
        self.uses.append(Use(name, self.of(widest) - {RANDOM}, of_layer, axis))


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operator writes into."""
    if not func._schema.is_mutable:
        return []
    arguments = func._schema.arguments
    given = {**dict(zip((each.name for each in arguments), args, strict=False)), **kwargs}
    into = [each.name for each in arguments if each.alias_info and each.alias_info.is_write]
    leaves = pytree.tree_leaves([given.get(name) for name in into])
    return [each for each in leaves if isinstance(each, Tensor)]


def _memory(value: Any) -> int | None:
    """What is the same for all tensors that share memory; None for what has none."""
    try:
        with torch._C.DisableTorchFunction():  # This is no exit.
            return int(value.untyped_storage()._cdata)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


class _Exits(TorchFunctionMode):
    """Tells a watch of the tensors whose numbers leave PyTorch without an operator."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _EXITS:
            self._watch.numbers |= frozenset().union(*map(self._watch.of, args[:1]))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Traced:
    """What a run has shown.

    Attributes:
        outputs: the names that each output depends on.
        uses: the operators that read data and weights, in the order in which they ran.
        numbers: the names of all that code has read numbers out of.
    """

    outputs: tuple[frozenset[str], ...]
    uses: tuple[Use, ...]
    numbers: frozenset[str] = frozenset()


def traced(
    weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor], run: Callable[[], list[Any]]
) -> Traced:
    """The trace of a run. The module must use these very tensors as its weights and inputs."""
    trace = _Watch()
    for name, tensor in weights.items():
        trace.mark(tensor, name)
    for name, tensor in inputs.items():
        trace.mark(tensor, DATA, name)
    with trace, _Exits(trace):
        outputs = run()
    found = tuple(trace.of(each) | trace.numbers for each in outputs)
    return Traced(found, tuple(trace.uses), trace.numbers)
