"""A PyTorch module, or the module of a program, with weights that a run may move."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from bnfold._run.bounds import Exhausted
from bnfold._run.flavours import Flavour, draw_floats
from bnfold._run.input_sets import InputSet
from bnfold._run.noise import Array, has_steps
from bnfold._run.perturbable_model import Layer
from bnfold._run.session import EngineError
from bnfold._run.torch_trace import RANDOM, Traced, Use, traced
from bnfold._system import memory
from bnfold._torch.module.fold import Example, copied
from bnfold._torch.tensors import DTYPES, from_numpy, to_numpy


@dataclass(frozen=True)
class Call:
    """The arguments of a module: example inputs. A run may replace their floats, by number."""

    example: Example

    def feeds(self) -> dict[str, Array]:
        """The floats of the example, by name."""
        return {
            f"input {number}": to_numpy(leaf)
            for number, leaf in enumerate(self._leaves())
            if isinstance(leaf, Tensor) and leaf.dtype in DTYPES
        }

    def sets(self, seed: int, flavours: Sequence[Flavour] = ()) -> list[InputSet]:
        """The example, and an input set of each kind with drawn numbers for the floats."""
        given = self.feeds()
        found = [InputSet("example", given)]
        for number, flavour in enumerate(flavours if given else ()):
            rng = np.random.default_rng([seed, number])
            drawn = {
                name: draw_floats(rng, flavour, values.shape).astype(values.dtype)
                for name, values in given.items()
            }
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

    def _leaves(self) -> list[Any]:
        return pytree.tree_leaves((self.example.args, dict(self.example.kwargs)))


class TorchModel:
    """See `PerturbableModel`.

    With ``double`` it runs in float64: weights are moved in their own type, then widened.
    """

    def __init__(self, module: nn.Module, call: Call, *, double: bool) -> None:
        """Copy a module; the copy runs. Raises `UsageError` where it cannot be copied."""
        stored = (*module.named_parameters(), *module.named_buffers())
        self.weights: dict[str, Array] = {
            name: values
            for name, tensor in stored
            if tensor.dtype in DTYPES and has_steps(values := to_numpy(tensor))
        }
        own = copied(module)
        self._module = nn.Module.double(own) if double else own
        self._name = type(module).__name__
        self._double = double
        self._call = call

    def run(
        self, feeds: Mapping[str, Array], moved: Mapping[str, Array] | None = None
    ) -> list[Any]:
        """The tensors that the module puts out, in order; see `PerturbableModel.run`."""
        args, kwargs = self._call.filled(feeds, self._double)
        return [_plain(leaf) for leaf in self._outputs(self._placed(moved or {}), args, kwargs)]

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

    def release(self) -> None:
        """Do nothing: the module is the user's, and the copy needs little memory."""

    @cached_property
    def _traced(self) -> Traced:
        """The trace of a run on the example.

        If the run cannot be watched, every output counts as depending on every weight.
        """
        args, kwargs = self._call.filled({}, self._double)
        stored = dict((*self._module.named_parameters(), *self._module.named_buffers()))
        inputs = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        try:
            return traced(stored, inputs, lambda: self._outputs({}, args, kwargs))
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

    def _outputs(self, placed: dict[str, Tensor], args: Any, kwargs: Any) -> list[Tensor]:
        """The tensors that the module puts out with some tensors in place of its weights."""
        try:
            with torch.no_grad():
                result = functional_call(self._module, placed, args, kwargs)
        except Exception as error:  # The module's own code may raise anything.
            if memory.ran_out(error):
                raise Exhausted("out of memory") from error
            where = " in float64" if self._double else ""
            text = f"{self._name} does not run on these inputs{where}: {error}"
            raise EngineError(text) from error
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _plain(tensor: Tensor) -> Array:
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
