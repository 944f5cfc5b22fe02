"""Tensors that plain attributes hold, which PyTorch does not look after."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import spectral_norm  # noqa: E402

import bnfold  # noqa: E402
from bnfold import UsageError  # noqa: E402

from .folding import fold, rand, ready  # noqa: E402

X = rand(4, 4)
HELD = {
    "list": lambda weight: [weight],
    "nested": lambda weight: {"a": (0, [weight])},
    "object": lambda weight: SimpleNamespace(inner=OrderedDict(a=weight)),
    "data": lambda weight: weight.data,
    "part": lambda weight: [weight.data[:2]],
    "turned": lambda weight: weight.detach().T,
    "array": lambda weight: weight.detach().numpy()[1:],
    "module": lambda weight: [other_module(weight)],
    "slots": lambda weight: Slots(weight.data),
    "partial": lambda weight: partial(given, weight.data),
    "closure": lambda weight: closed(weight.data),
    "default": lambda weight: [lambda data=weight.data: data],
}


class Slots:
    """An object that has no `__dict__`."""

    __slots__ = ("__private",)

    def __init__(self, weight):
        self.__private = weight

    @property
    def weight(self):
        return self.__private


def given(weight):
    return weight


def closed(weight):
    return lambda: weight


def other_module(weight):
    """A module that is none of the network's, with a parameter in the same memory."""
    found = nn.Linear(4, 4)
    found.weight = nn.Parameter(weight.detach())
    return found


def first(held):
    """The tensor that is held."""
    while not isinstance(held, torch.Tensor):
        if isinstance(held, SimpleNamespace):
            held = held.inner
        elif isinstance(held, nn.Module | Slots):
            held = held.weight
        elif callable(held):
            held = held()
        elif isinstance(held, dict):
            held = held["a"]
        else:
            held = torch.from_numpy(held) if hasattr(held, "dtype") else held[-1]
    return held


class Reads(nn.Module):
    """A linear operator ahead of a norm, and a second reader of its weight."""

    def __init__(self, kind: str, buffer: bool = False) -> None:
        super().__init__()
        self.a, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)
        if buffer:
            weight = self.a.weight.detach()
            del self.a.weight
            self.a.register_buffer("weight", weight)
        self.kind = kind

    def hold(self):
        self.held = HELD[self.kind](self.a.weight)
        return self

    def forward(self, x):
        weight = first(self.held)
        return self.bn(self.a(x)), F.linear(x, weight.repeat(4 // len(weight), 1) * 2)


def held(kind: str, buffer: bool = False) -> nn.Module:
    return ready(Reads(kind, buffer)).hold()


@pytest.mark.parametrize("buffer", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in HELD if kind != "array"])
def test_a_weight_that_is_read_by_another_way(kind, buffer):
    """No parameter of the module is read there: a constant in the same memory is."""
    fold(held(kind, buffer), X, folds=0, codes=["shared-weight"])


class Names(Reads):
    """The same, but for the second reader: what the user reads outside is the user's."""

    def forward(self, x):
        return self.bn(self.a(x))


@pytest.mark.parametrize("kind", HELD)
def test_memory_that_is_the_users_is_not_written(kind):
    """Who holds the parameter itself sees it fold; a tensor in its memory stays what it was."""
    module = ready(Names(kind)).hold()
    before, wanted = copy.deepcopy(first(module.held)), module(X)
    done = bnfold.fold(module, (X,), inplace=True)
    assert torch.allclose(done(X), wanted)
    itself = first(module.held) is module.a.weight
    assert isinstance(done.bn, nn.Identity) == itself
    assert itself or torch.equal(first(module.held), before)


@pytest.mark.parametrize("turned", [False, True])
def test_an_array_that_begins_ahead_of_the_weight(turned):
    module, array = ready(Names("array")), np.random.default_rng(0).random((6, 4))
    module.a.weight = nn.Parameter(torch.from_numpy(array[1:5]))
    module.held, before = array[::-1] if turned else array, array.copy()
    bnfold.fold(module, (X,), inplace=True)
    assert np.array_equal(array, before)


def test_what_shares_no_memory_stops_nothing():
    """Copies, PyTorch's own list of recurrent weights, a weight that a norm hook keeps."""
    module = ready(Names("list"))
    module.held, module.more = [module.a.weight.detach().clone()], nn.LSTM(2, 2).double()
    fold(module, X, folds=1)
    hooked = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    fold(ready(hooked), X, folds=1)
    assert bnfold.refold(bnfold.fold(module, (X,)), module.state_dict()) is not None


@pytest.mark.parametrize("kind", HELD)
def test_no_refold_where_a_plain_attribute_would_keep_the_old_weights(kind):
    module = ready(Names(kind)).hold()
    done = bnfold.fold(module, (X,))
    with pytest.raises(UsageError, match="plain attributes"):
        bnfold.refold(done, module.state_dict())


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = {"a": [1.0]}

    def forward(self, x):
        return x * self.k["a"][0]


class Sets(nn.Module):
    """A number that follows from the weights, and is set as they are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gain, self.bn = nn.Linear(4, 4), Gain(), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(self.gain(self.a(x)))

    def load_state_dict(self, state_dict, *args, **kwargs):
        found = super().load_state_dict(state_dict, *args, **kwargs)
        self.gain.k["a"][0] = float(self.a.weight.detach().abs().max())
        return found


def test_no_refold_where_loading_sets_a_number_of_the_code():
    module = ready(Sets())
    module.load_state_dict(module.state_dict())
    done = bnfold.fold(module, (X,))
    assert isinstance(done.gain, nn.Identity)
    same = bnfold.refold(done, module.state_dict())
    assert torch.allclose(same(X), module(X))
    other = {name: 2 * values for name, values in module.state_dict().items()}
    with pytest.raises(UsageError, match=r"changes gain\.k\['a'\]\[0\]"):
        bnfold.refold(done, other)
