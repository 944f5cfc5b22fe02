"""Values of an exported program that are the same at every call.

These are parameters, buffers and lifted tensors, and values that are computed from them alone: a
weight norm, a reshaped scale, ``(running_var + eps).rsqrt()``. PyTorch itself evaluates them.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from bnfold._core.reasons import Reason
from bnfold._merge.stored import Load
from bnfold._torch.read.nodes import dtype_of, is_norm, kind_of, number_of, values_read
from bnfold._torch.tensors import DTYPES, Array, from_numpy, to_numpy

_JUMPING = (
    *("ceil", "copysign", "fix", "floor", "floor_divide", "fmod", "frac", "hardshrink"),
    *("heaviside", "histc", "mode", "nextafter", "remainder", "round", "sgn", "sign"),
    *("threshold", "trunc"),
)


@dataclass(frozen=True)
class Constant:
    """A constant tensor.

    ``name`` is the name of the parameter or buffer, or of the operator that computes the constant.
    ``sources`` are the names of all parameters and buffers whose values it is computed from:
    ``zeros_like(weight)`` has none. ``stored`` says that it is a parameter or buffer itself.
    ``torch_dtype`` is its stored type. Values that are not yet rounded to that type are float64.
    ``exact`` gives those of a constant that a norm computes, where all is computed in float64.
    """

    name: str
    tensor: Callable[[], Tensor]
    shape: tuple[int, ...]
    torch_dtype: torch.dtype
    sources: tuple[str, ...]
    stored: bool
    exact: Load | None = None

    @cached_property
    def load(self) -> Callable[[], Array]:
        """Read the values, rounded no more than those that are stored."""
        return self.exact or (lambda: to_numpy(self.tensor()))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the stored values. Only for `is_float`."""
        return DTYPES[self.torch_dtype]

    @property
    def is_float(self) -> bool:
        """Whether affine maps are folded into this element type."""
        return self.torch_dtype in DTYPES


class Constants:
    """Finds the constants of one program by node. Each is resolved once."""

    def __init__(
        self, program: ExportedProgram, written: Set[Node], exact: Mapping[str, Load]
    ) -> None:
        """``written`` are the nodes into whose memory some operator writes.

        ``exact`` has by name the float64 values of parameters, not yet rounded to their type.
        """
        signature = program.graph_signature
        self._names: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._mutated = set(signature.buffers_to_mutate.values())
        self._written = written
        self._exact = dict(exact)
        self._state: dict[str, Any] = {**program.state_dict, **program.constants}
        self._found: dict[Node, Constant | Reason] = {}
        self._is_wide = False

    def add(self, node: Node, name: str, value: Tensor, exact: Load) -> None:
        """Add a new parameter, with its float64 values and its value as the program holds it."""
        self._exact[name] = exact
        self._found[node] = self._parameter(name, value)

    @cached_property
    def _wide(self) -> Constants:
        """The same constants, computed in float64 from the stored numbers."""
        wide = copy.copy(self)
        floats = {n: v for n, v in self._state.items() if getattr(v, "dtype", None) in DTYPES}
        wide._exact = {**{n: partial(_widened, v) for n, v in floats.items()}, **self._exact}
        wide._found, wide._is_wide = {}, True
        return wide

    def find(self, node: Node) -> Constant | Reason:
        """The constant of a node, or the reason why it is no constant."""
        waiting = [node]
        while waiting:
            current = waiting[-1]
            computed = _computed(current)
            open_ = [n for n in computed.all_input_nodes if n not in self._found]
            if current.op == "call_function" and open_ and _is_pure(computed):
                waiting.extend(open_)
                continue
            waiting.pop()
            if current not in self._found:
                self._found[current] = self._resolve(current)
        return self._found[node]

    def _resolve(self, node: Node) -> Constant | Reason:
        if node.op == "placeholder":
            name = self._names.get(str(node.target))
            value = self._state.get(name) if name is not None else None
            if name is None or not isinstance(value, Tensor):
                return Reason("dynamic-weight", node.name, f"{node.name} is an input of the model")
            if name in self._mutated or node in self._written:
                message = f"{name} changes while the model runs"
                return Reason("dynamic-weight", name, message)
            return self._parameter(name, value)
        computed = _computed(node)
        sources = [self._found.get(source) for source in computed.all_input_nodes]
        constants = [source for source in sources if isinstance(source, Constant)]
        example = node.meta.get("val")
        if (
            node.op != "call_function"
            or not _is_pure(computed)
            or not self._written.isdisjoint((node, computed))
            or not constants
            or len(constants) != len(sources)
            or not isinstance(example, Tensor)
            or (self._is_wide and jumps(node))
        ):
            return Reason("dynamic-weight", node.name, f"{node.name} is computed at run time")
        try:
            result = self._evaluate(node)
        except Exception as error:  # Whatever an operator raises on constants it cannot take.
            message = f"{node.name} could not be evaluated: {error}"
            return Reason("dynamic-weight", node.name, message)
        read = [self._found[source] for source in values_read(computed)]
        names = tuple(
            dict.fromkeys(name for c in read if isinstance(c, Constant) for name in c.sources)
        )
        normed = is_norm(computed) or any(source.exact for source in constants)
        shape, dtype = tuple(result.shape), result.dtype
        wide = normed and dtype in DTYPES and not jumps(node)
        exact = partial(self._exactly, node, result) if wide else None
        return Constant(node.name, lambda: result, shape, dtype, names, False, exact)

    def _exactly(self, node: Node, result: Tensor) -> Array:
        """What a node computes in float64; its ``result`` where that is not finite, or the code
        asks for another type.
        """
        wide = self._wide.find(node)
        if not isinstance(wide, Constant) or not bool(result.isfinite().all()):
            return to_numpy(result)
        return to_numpy(wide.tensor())

    def _parameter(self, name: str, value: Tensor) -> Constant:
        exact = self._exact.get(name)
        tensor = (lambda: value) if exact is None else (lambda: from_numpy(exact()))
        return Constant(name, tensor, tuple(value.shape), value.dtype, (name,), stored=True)

    def _evaluate(self, part: Node) -> Tensor:
        def tensor(source: Node) -> Any:
            found = self._found[source]
            assert isinstance(found, Constant)
            return found.tensor()

        node = _computed(part)
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), tensor)
        assert callable(node.target)
        with torch.no_grad():
            result = node.target(*args, **kwargs)
        if node is not part:
            result = result[number_of(part)]
        if not isinstance(result, Tensor):
            raise TypeError("it is no tensor")
        return result


def jumps(node: Node) -> bool:
    """Whether what a node computes jumps where its numbers change a little: it rounds them, also to
    a type of fewer digits, compares them, or counts by them.

    The last digit of what it reads decides then, so that it has to run in the type of the numbers.
    """
    computed = _computed(node)
    kind = kind_of(computed)
    if "quant" in kind or kind in _JUMPING or computed.kwargs.get("rounding_mode"):
        return True
    made = dtype_of(node)
    if made is None or made.is_complex:
        return False
    read = [dtype for dtype in map(dtype_of, values_read(computed)) if dtype in DTYPES]
    if not read:
        return False
    if not made.is_floating_point:
        return True
    return torch.finfo(made).eps > max(torch.finfo(dtype).eps for dtype in read)


def _widened(tensor: Tensor) -> Array:
    return to_numpy(tensor).astype(np.float64)


def _computed(node: Node) -> Node:
    """The operator that computes a value: of a part of a list (getitem) the one that makes it."""
    if node.target is not operator.getitem or not isinstance(node.args[0], Node):
        return node
    return node.args[0]


def _is_pure(node: Node) -> bool:
    """Whether an operator depends on its inputs alone and changes nothing."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
