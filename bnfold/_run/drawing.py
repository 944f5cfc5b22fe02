"""Draws inputs that a model accepts.

A model file does not say which sizes its free dimensions may take. So likely sizes are proposed,
small ones first, and the caller keeps the first that runs. The graph says something, too. A
convolution or matrix product that reads an input tells its rank and channels. A Gather bounds its
indices. A comparison with a constant names a value that matters. The file's metadata may give the
range of an image's pixels; then they are drawn from it.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto

from bnfold._errors import UsageError
from bnfold._run.flavours import FLAVOURS, IMAGE_RANK, Flavour, draw_floats, into_range
from bnfold._run.hints import Hints, pixel_range
from bnfold._run.input_sets import InputSet, named, port_of_proto, refuse_unfit
from bnfold._run.nodes import own_inputs
from bnfold._run.noise import Array
from bnfold._system.records import record

Role = Literal["batch", "channel", "side", "length"]
Key: TypeAlias = tuple[str, int]
"""A free dimension: (its name, -1) where it has one, else (input, axis)."""

_FLOATS: dict[int, type[np.floating[Any]]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
_INTEGERS: dict[int, type[np.integer[Any]]] = {
    TensorProto.INT8: np.int8,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.UINT8: np.uint8,
    TensorProto.UINT16: np.uint16,
    TensorProto.UINT32: np.uint32,
    TensorProto.UINT64: np.uint64,
}
_CHOICES: dict[Role, tuple[int, ...]] = {
    "batch": (1, 2),
    "channel": (3, 1),
    "side": (64, 224, 32, 256, 320, 299, 640),
    "length": (16, 64, 128, 512, 576, 256, 1024, 1, 4096, 16000),
}
_ATTEMPTS = 40
# How many numbers a set of inputs may hold. Larger sets are proposed only if there are no smaller.
_LARGEST = 1 << 24
# How many it may hold in any case; whoever has inputs of more can pass them.
_MOST = 1 << 28
_UNTOLD = 10**300
_WIDEST = 8
_OTHERS = 4
_SIDE_STEP = 32


class UndrawableError(Exception):
    """No inputs can be drawn for this model; the text says why."""


@record(frozen=True)
class WantedInputs:
    """The kinds of inputs to draw, and the sizes of free dimensions by name.

    ``signed`` is normal with mean 0 and deviation 1. ``unsigned`` is uniform in [0, 1).
    ``structured`` has marks on a flat ground, like a page. ``large`` is normal with deviation 100.
    A dimension takes its sizes in turn: with 1 and 4 the first set has size 1, all others 4.
    """

    flavours: tuple[Flavour, ...] = ("signed", "unsigned", "structured")
    dims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, draws: Iterable[str], dims: Mapping[str, int | Sequence[int]]) -> WantedInputs:
        """The inputs that a user asks for.

        Raises:
            UsageError: a kind is unknown, no kind is given, or a size is not positive.
        """
        known = {flavour: flavour for flavour in FLAVOURS}
        flavours = []
        for name in (draws,) if isinstance(draws, str) else draws:
            if name not in known:
                raise UsageError(f"there are no {name!r} inputs; there are {', '.join(FLAVOURS)}")
            flavours.append(known[name])
        if not flavours:
            raise UsageError(f"say which inputs to draw: {', '.join(FLAVOURS)}")
        sizes: dict[str, tuple[Any, ...]] = {
            name: tuple(given) if isinstance(given, Sequence) else (given,)
            for name, given in dims.items()
        }
        for name, given in sizes.items():
            whole = all(isinstance(size, int | np.integer) and size >= 1 for size in given)
            if not given or not whole:
                raise UsageError(f"the dimension {name!r} needs sizes of 1 or more, not {given!r}")
        return cls(tuple(flavours), sizes)


USUAL = WantedInputs()


class InputSource:
    """Proposes inputs for one model. Initializers that are listed as inputs get none."""

    def __init__(self, model: onnx.ModelProto, seed: int, wanted: WantedInputs = USUAL) -> None:
        """Read the inputs' types and the hints that the graph gives.

        Raises:
            UndrawableError: an input is a sequence, an optional, a string or a rare float type.
            UsageError: the model has no free dimension of a wanted name.
        """
        graph = model.graph
        hints, pixels = Hints(graph), pixel_range(model)
        images = {value.name for value in graph.input if value.type.denotation == "IMAGE"}
        self._specs = [
            _spec(value, hints, pixels if not images or value.name in images else None)
            for value in own_inputs(graph)
        ]
        self._seed = seed
        self._roles: dict[Key, Role] = {}
        for spec in self._specs:
            for key, role in zip(spec.keys(), spec.roles, strict=True):
                if key is not None:
                    self._roles.setdefault(key, role)
        self._wanted = wanted
        free = sorted(name for name, axis in self._roles if axis == -1)
        for name in wanted.dims:
            if name not in free:
                raise UsageError(
                    f"the model has no free dimension {name!r}; it has {', '.join(free) or 'none'}"
                )

    def __len__(self) -> int:
        """How many input sets are to be drawn."""
        sizes = (len(sizes) for sizes in self._wanted.dims.values())
        return max(len(self._wanted.flavours), *sizes, 1)

    def first(self) -> Iterator[InputSet]:
        """Yield input sets of the first kind, likeliest sizes first."""
        return (self._draw(0, sizes) for sizes in self._likely())

    def with_other_integers(self) -> list[Iterator[InputSet]]:
        """Input sets of the first kind, with other values of single integers.

        It concerns integers that the model compares with constants. They take the constants that
        other sets do not have, and then a value that is none of them. Each proposal is an iterator
        that yields the likeliest sizes first.
        """
        others = {spec.name: found for spec in self._specs if (found := spec.others())}
        count = max(map(len, others.values()), default=0)
        return [
            self._with({name: found[min(number, len(found) - 1)] for name, found in others.items()})
            for number in range(count)
        ]

    def _with(self, given: Mapping[str, Array]) -> Iterator[InputSet]:
        told = [f"{name}={int(value.flat[0])}" for name, value in given.items()]
        for sizes in self._likely():
            drawn = self._draw(0, sizes)
            yield InputSet(" ".join([drawn.label, *told]), {**drawn.feeds, **given})

    def _likely(self) -> Iterator[dict[Key, int]]:
        """Yield sizes of free dimensions, likeliest first."""
        roles = sorted(set(self._roles.values()))
        ranges = [range(len(_CHOICES[role])) for role in roles]
        picks = sorted(itertools.product(*ranges), key=sum)
        for pick in picks[:_ATTEMPTS]:
            size = {role: _CHOICES[role][n] for role, n in zip(roles, pick, strict=True)}
            sizes = {key: size[role] for key, role in self._roles.items()}
            if pick == picks[0] or self._count(sizes) <= _LARGEST:
                yield sizes

    def further(self, number: int, first: InputSet) -> Iterator[InputSet]:
        """Yield input sets of the next kind; ``number`` is 1 for the second kind.

        Sets of the second kind have other sizes than ``first`` where dimensions are free, then the
        same sizes. Sets of later kinds have the same sizes.
        """
        sizes: dict[Key, int] = {}
        for spec in self._specs:
            for key, size in zip(spec.keys(), first.feeds[spec.name].shape, strict=True):
                if key is not None:
                    sizes.setdefault(key, size)
        batch = {key: 2 for key, role in self._roles.items() if role == "batch"}
        length = {
            key: size + max(1, size // 2)
            for key, size in sizes.items()
            if self._roles[key] == "length"
        }
        side = {key: sizes[key] + _SIDE_STEP for key in sizes if self._roles[key] == "side"}
        side = dict(list(side.items())[:1])
        tried = []
        changes = [batch | length | side, length | side, batch | length, batch | side]
        changes += [length, side, batch]  # one size alone, where others fail together
        for change in [*(changes if number == 1 else ()), {}]:
            candidate = sizes | change
            if candidate not in tried:
                tried.append(candidate)
                yield self._draw(number, candidate)

    def filling(self, given: InputSet, names: Collection[str]) -> Iterator[InputSet]:
        """Yield a given input set with drawn values for some further inputs, likeliest sizes first.

        A free dimension that a given input has as well takes the size that it has there.
        """
        known = dict[Key, int]()
        for spec in self._specs:
            if spec.name not in names and spec.name in given.feeds:
                for key, size in zip(spec.keys(), given.feeds[spec.name].shape, strict=True):
                    if key is not None:
                        known[key] = size
        for sizes in self._likely():
            drawn = self._draw(0, {**sizes, **known})
            filled = {name: drawn.feeds[name] for name in names}
            yield InputSet(given.label, {**given.feeds, **filled})

    def _count(self, sizes: Mapping[Key, int]) -> int:
        """How many numbers a set of inputs holds."""
        return sum(math.prod(spec.shape(sizes)) for spec in self._specs)

    def _draw(self, number: int, sizes: Mapping[Key, int]) -> InputSet:
        """Draw an input set of a kind, by the number of the kind, in the given sizes."""
        flavour = self._wanted.flavours[number % len(self._wanted.flavours)]
        asked = {
            name: given[min(number, len(given) - 1)] for name, given in self._wanted.dims.items()
        }
        sizes = {**sizes, **{(name, -1): size for name, size in asked.items()}}
        count = self._count(sizes)
        if count > _MOST and not asked:
            told = f"{count:.3g}" if count < _UNTOLD else "too many"
            raise MemoryError(f"inputs of {told} numbers are not drawn; pass real inputs")
        rng = np.random.default_rng([self._seed, number])
        feeds = {spec.name: spec.draw(rng, flavour, sizes) for spec in self._specs}
        return InputSet(" ".join([flavour, *(f"{n}={s}" for n, s in asked.items())]), feeds)


def refuse_inapplicable(
    model: onnx.ModelProto, inputs: Sequence[InputSet] | None, wanted: WantedInputs
) -> None:
    """Raise `UsageError` unless given inputs, or sizes to draw, fit the inputs of a model.

    Whether the model runs on them is seen later.
    """
    if inputs is None:
        with suppress(UndrawableError):
            InputSource(model, 0, wanted)
        return
    ports = tuple(map(port_of_proto, own_inputs(model.graph)))
    for each in inputs:
        refuse_unfit(named(each, ports), ports)


@record(frozen=True)
class _Spec:
    """One graph input. Its free dimensions have no sizes yet."""

    name: str
    element: int
    dims: tuple[int | str | None, ...]
    roles: tuple[Role, ...]
    bound: int | None
    literals: tuple[int, ...]
    pixels: tuple[float, float] | None

    def keys(self) -> list[Key | None]:
        """Return per axis the key of a free dimension, None for a fixed one."""
        return [
            None if isinstance(dim, int) else (dim, -1) if dim else (self.name, axis)
            for axis, dim in enumerate(self.dims)
        ]

    def shape(self, sizes: Mapping[Key, int]) -> tuple[int, ...]:
        """The shape with its free dimensions of the given sizes."""
        return tuple(
            dim if isinstance(dim, int) else sizes[(dim, -1) if dim else (self.name, axis)]
            for axis, dim in enumerate(self.dims)
        )

    def others(self) -> list[Array]:
        """Other values of a single integer; empty for any other input.

        They are the constants that it is compared with and not drawn as, and one further value.
        """
        shape = [dim for dim in self.dims if isinstance(dim, int)]
        if self.bound or not self.literals or len(shape) < len(self.dims) or math.prod(shape) != 1:
            return []
        value = self.literals[0] // 2
        while value in self.literals:
            value += 1
        found = [*self.literals[1:-1], value][-_OTHERS:]
        return [np.full(shape, each, _INTEGERS[self.element]) for each in found]

    def draw(self, rng: np.random.Generator, flavour: Flavour, sizes: Mapping[Key, int]) -> Array:
        """Return an array of the given sizes."""
        shape = self.shape(sizes)
        if math.prod(shape) > sys.maxsize // _WIDEST:
            raise MemoryError  # NumPy raises other errors for it
        signed = flavour != "unsigned"
        if self.element in _FLOATS:
            values = draw_floats(rng, flavour, shape)
            if self.pixels is not None and len(shape) >= IMAGE_RANK - 1 and flavour != "large":
                values = into_range(values, flavour, *self.pixels)
            return np.asarray(values, dtype=_FLOATS[self.element])
        if self.element == TensorProto.BOOL:
            return np.asarray(self._ones(rng, signed, shape), dtype=np.bool_)
        dtype = _INTEGERS[self.element]
        if self.bound:
            integers: Array = rng.integers(0, self.bound, shape)
        elif self.literals:
            integers = np.full(shape, self.literals[0 if signed else -1])
        elif np.dtype(dtype).itemsize == 1 and len(shape) >= IMAGE_RANK - 1:
            limits = np.iinfo(dtype)
            integers = rng.integers(limits.min, int(limits.max) + 1, shape)
        else:
            integers = self._ones(rng, signed, shape)
        return np.asarray(integers, dtype=dtype)

    def _ones(self, rng: np.random.Generator, all_ones: bool, shape: tuple[int, ...]) -> Array:
        """Return ones, or a mask: zeros and ones that begin with a one."""
        if all_ones:
            return np.ones(shape, dtype=np.int64)
        values: Array = np.asarray(rng.integers(0, 2, shape))
        if shape and shape[-1] > 1:
            values[..., 0] = 1
        elif values.size == 1:
            values = np.zeros(shape, dtype=np.int64)
        return values


def _spec(value: onnx.ValueInfoProto, hints: Hints, pixels: tuple[float, float] | None) -> _Spec:
    """What to draw for one graph input, as its type and the hints tell."""
    kind = value.type.WhichOneof("value")
    tensor = value.type.tensor_type
    if kind != "tensor_type":
        raise UndrawableError(f"input {value.name} is of {kind or 'unknown type'}, not a tensor")
    element = tensor.elem_type
    if element not in _FLOATS and element not in _INTEGERS and element != TensorProto.BOOL:
        name = TensorProto.DataType.Name(element).lower()
        raise UndrawableError(f"input {value.name} has elements of type {name}")
    if tensor.HasField("shape"):
        dims: list[int | str | None] = [
            dim.dim_value if dim.dim_value > 0 else dim.dim_param or None
            for dim in tensor.shape.dim
        ]
    else:
        dims = [None] * (hints.rank(value.name) or IMAGE_RANK)
    for axis, dim in enumerate(dims):
        if not isinstance(dim, int):
            dims[axis] = hints.size(value.name, axis, len(dims)) or dim
    return _Spec(
        value.name,
        element,
        tuple(dims),
        tuple(_role(dims, axis) for axis in range(len(dims))),
        hints.index_bound(value.name),
        tuple(dict.fromkeys(hints.compared_with(value.name))),
        pixels,
    )


def _role(dims: list[int | str | None], axis: int) -> Role:
    """Guess what a dimension counts, from its place and its name."""
    dim, rank = dims[axis], len(dims)
    if isinstance(dim, str) and "batch" in dim.lower():
        return "batch"
    if axis == 0:
        return "batch" if rank > 1 else "length"
    if rank >= IMAGE_RANK:
        last_is_channel = isinstance(dims[-1], int) and dims[-1] <= IMAGE_RANK
        return "channel" if axis == 1 and not last_is_channel else "side"
    first = dims[0]
    if rank == IMAGE_RANK - 1 and isinstance(first, int) and first > 1:
        if first == _CHOICES["channel"][0]:
            return "side"  # an image without a batch dimension
        return "batch" if axis == 1 else "length"  # the stacked states of a recurrent layer
    return "length"
