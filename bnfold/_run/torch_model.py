"""A PyTorch module, or the module of a program, with weights that a run may move."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bnfold._errors import first_line
from bnfold._run.bounds import Exhausted
from bnfold._run.flavours import IMAGE_RANK, Flavour, draw_floats
from bnfold._run.input_sets import InputSet
from bnfold._run.noise import Array, has_steps
from bnfold._run.perturbable_model import Layer
from bnfold._run.session import EngineError
from bnfold._run.torch_modes import Narrowed, Widened
from bnfold._run.torch_outputs import Leaf, named_leaves
from bnfold._run.torch_trace import RANDOM, Traced, Use, traced
from bnfold._system import memory
from bnfold._torch.module.copying import copied
from bnfold._torch.module.fold import Example
from bnfold._torch.tensors import DTYPES, from_numpy, to_numpy

_BITS = 63
"""Of an integer that a tensor holds, without its sign."""


@dataclass(frozen=True)
class Call:
    """The arguments of a module: example inputs. A run may replace their tensors, by number."""

    example: Example

    def feeds(self) -> dict[str, Array]:
        """The floats of the example, and images of bytes, by name."""
        return {
            name: to_numpy(leaf)
            for name, leaf in self.tensors().items()
            if leaf.dtype in DTYPES or _is_bytes(leaf)
        }

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the example, by name."""
        leaves = pytree.tree_leaves((self.example.args, dict(self.example.kwargs)))
        numbered = enumerate(leaves)
        return {f"input {number}": leaf for number, leaf in numbered if isinstance(leaf, Tensor)}

    def sets(self, seed: int, flavours: Sequence[Flavour] = ()) -> list[InputSet]:
        """The example, and an input set of each kind with drawn numbers for what may be drawn."""
        given = self.feeds()
        found = [InputSet("example", given)]
        for number, flavour in enumerate(flavours if given else ()):
            rng = np.random.default_rng([seed, number])
            drawn = {name: _drawn(rng, flavour, values) for name, values in given.items()}
            found.append(InputSet(flavour, drawn))
        return found

    def filled(self, feeds: Mapping[str, Array], double: bool) -> tuple[Any, Any]:
        """The arguments with some floats in place of the example's; with ``double`` in float64.

        All tensors are copies.
        """
        leaves, spec = pytree.tree_flatten((self.example.args, dict(self.example.kwargs)))
        for number, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                continue
            name = f"input {number}"
            given = from_numpy(feeds[name]).to(leaf.device) if name in feeds else leaf
            wide = double and given.is_floating_point()
            leaves[number] = given.to(torch.float64 if wide else given.dtype, copy=True)
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return args, kwargs


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds floats itself: torchao's hold integers and scales, as one tensor."""
    return tensor.dtype in DTYPES and not is_traceable_wrapper_subclass(tensor)


def _is_bytes(tensor: Tensor) -> bool:
    """Whether a tensor is an image whose pixels are bytes."""
    return tensor.dtype in (torch.uint8, torch.int8) and tensor.dim() >= IMAGE_RANK - 1


def _drawn(rng: np.random.Generator, flavour: Flavour, example: Array) -> Array:
    """Numbers of a kind in the shape and type of an example; bytes take all their values."""
    if example.dtype.kind in "iu":
        limits = np.iinfo(example.dtype)
        return np.asarray(
            rng.integers(limits.min, int(limits.max) + 1, example.shape, limits.dtype)
        )
    return draw_floats(rng, flavour, example.shape).astype(example.dtype)


class TorchModel:
    """See `PerturbableModel`.

    With ``double`` it runs in float64: weights are moved in their own type, then widened. Code that
    asks for a narrower type gets float64 there, unless it does not run like that.

    Attributes:
        outputs: the names of what the last run has put out; a name says where it stands.
    """

    def __init__(
        self, module: nn.Module, call: Call, *, double: bool, numbers_move: bool = False
    ) -> None:
        """Copy a module; the copy runs. Raises `UsageError` where it cannot be copied.

        With ``numbers_move``, the numbers in the module's code are rounded to float32 wherever
        weights are moved: ONNX holds ε and other attributes so.
        """
        stored = (*module.named_parameters(), *module.named_buffers())
        self.weights: dict[str, Array] = {
            name: values
            for name, tensor in stored
            if _is_plain(tensor) and has_steps(values := to_numpy(tensor))
        }
        own = copied(module)
        self._module = nn.Module.double(own) if double else own
        self._name = type(module).__name__
        self._double = double
        self._call = call
        self._numbers_move = numbers_move
        self._widened = double
        self.outputs: list[str] = []

    def run(
        self, feeds: Mapping[str, Array], moved: Mapping[str, Array] | None = None
    ) -> list[Any]:
        """What the module puts out, in order; see `PerturbableModel.run`."""
        args, kwargs = self._call.filled(feeds, self._double)
        narrow = moved is not None and self._numbers_move
        with Narrowed() if narrow else nullcontext():
            found = self._outputs(self._placed(moved or {}), args, kwargs)
        self.outputs = [name for name, _ in found]
        return [_plain(leaf) for _, leaf in found]

    def layers(self, touched: Collection[str]) -> list[Layer]:
        """See `PerturbableModel.layers`. An operator counts by the first weight that it reads.

        An operator that no output feels is left out.
        """
        felt = frozenset().union(*self._traced.outputs)
        left = {name for name in touched if name in self.weights} or set(self.weights)
        found = []
        for use in self._traced.uses:
            names = [name for name in self.weights if name in use.weights & left & felt]
            if not names:
                continue
            nonzero = [name for name in names if self.weights[name].any()] or names
            weight = max(nonzero, key=lambda name: self.weights[name].ndim)
            shape = self.weights[weight].shape
            alone = use.axis is not None and len(use.weights) == 1
            axis = use.axis if alone else int(np.argmax(shape)) if shape else 0
            found.append(Layer(weight.rpartition(".")[0] or weight, weight, axis or 0))
            left.difference_update(names)
        return found

    def reached(self, weights: Collection[str]) -> set[int]:
        """The numbers of the outputs that depend on any of some weights."""
        wanted = set(weights)
        outputs = self._traced.outputs
        return {number for number, names in enumerate(outputs) if not wanted.isdisjoint(names)}

    def weights_of(self, outputs: Iterable[int]) -> frozenset[str]:
        """The names of the weights that some outputs depend on, by the numbers of these."""
        found = frozenset[str]().union(*(self._traced.outputs[number] for number in outputs))
        return found & self.weights.keys()

    def plantable_weights(self) -> Collection[str]:
        """The names of the weights to plant errors in.

        These are the weights of linear operators and norms if they reach every output that any
        weight reaches. Else they are all weights.
        """
        of_layers = {name for use in self._traced.uses if use.of_layer for name in use.weights}
        every = self.reached(self.weights)
        found = of_layers & self.weights.keys()
        return found if every <= self.reached(found) else self.weights.keys()

    def random(self) -> set[int]:
        """The numbers of the outputs that depend on random numbers."""
        return self.reached([RANDOM])

    def reads_numbers(self) -> bool:
        """Whether code reads numbers out of tensors that depend on weights."""
        return not self._traced.numbers.isdisjoint(self.weights)

    def set_aside(self) -> None:
        """Do nothing: the weights are the module's own."""

    def release(self) -> None:
        """Do nothing: the module is the user's, and the copy needs little memory."""

    @cached_property
    def _traced(self) -> Traced:
        """The trace of a run on the example.

        If the run cannot be watched, every output counts as depending on every weight.
        """
        args, kwargs = self._call.filled({}, self._double)
        stored = dict((*self._module.named_parameters(), *self._module.named_buffers()))
        inputs = Call(Example(args, kwargs)).tensors()

        def outputs_of_a_run() -> list[Leaf]:
            return [leaf for _, leaf in self._outputs({}, args, kwargs)]

        try:
            return traced(stored, inputs, outputs_of_a_run)
        except EngineError:
            outputs = len(self.run({}))
        matrices = [name for name, values in self.weights.items() if values.ndim > 1]
        uses = [Use(name, frozenset((name,)), True, None) for name in matrices]
        return Traced((frozenset(self.weights),) * outputs, tuple(uses))

    def _placed(self, moved: Mapping[str, Array]) -> dict[str, Tensor]:
        own = dict((*self._module.named_parameters(), *self._module.named_buffers()))
        return {
            name: from_numpy(values).to(own[name].device, own[name].dtype)
            for name, values in moved.items()
            if name in own
        }

    def _outputs(self, placed: dict[str, Tensor], args: Any, kwargs: Any) -> list[tuple[str, Leaf]]:
        """What the module puts out with some tensors in place of its weights, with names."""
        if self._widened:
            try:
                return self._result(placed, args, kwargs)
            except Exception as error:
                if memory.ran_out(error):
                    raise Exhausted("out of memory") from error
            self._widened = False
        try:
            return self._result(placed, args, kwargs)
        except Exception as error:  # The module's own code may raise anything.
            if memory.ran_out(error):
                raise Exhausted("out of memory") from error
            where = " in float64" if self._double else ""
            text = f"{self._name} does not run on these inputs{where}: {first_line(error)}"
            raise EngineError(text) from error

    def _result(self, placed: dict[str, Tensor], args: Any, kwargs: Any) -> list[tuple[str, Leaf]]:
        with torch.no_grad(), Widened() if self._widened else nullcontext():
            return named_leaves(functional_call(self._module, placed, args, kwargs))


def _plain(leaf: Leaf) -> Array:
    if type(leaf) is int and leaf.bit_length() > _BITS:  # No tensor holds it, but its bytes.
        return np.array([*leaf.to_bytes(leaf.bit_length() // 8 + 1, "little", signed=True)])
    tensor = leaf if isinstance(leaf, Tensor) else torch.from_numpy(np.asarray(leaf))
    return to_numpy(torch.view_as_real(tensor) if tensor.is_complex() else tensor)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch run on one thread.

    A grouped convolution in float64 runs group by group, and several threads would mostly wait for
    each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
