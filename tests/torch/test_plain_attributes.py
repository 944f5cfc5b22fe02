"""Tensors that plain attributes hold, which PyTorch does not look after."""

from __future__ import annotations

import array
import copy
import logging
import random
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import spectral_norm  # noqa: E402

import bnfold  # noqa: E402
from bnfold import UsageError  # noqa: E402
from bnfold._torch.module.plain_attributes import aliases, hidden  # noqa: E402

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
ITSELF = ("list", "nested", "object")


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
    """The trace sees who reads the very parameter. Of what has its memory it cannot be relied on:
    it sees a constant, or, behind a closure, the parameter after all.
    """
    (stays,) = fold(held(kind, buffer), X, folds=0, codes=["shared-weight"]).plan.kept
    found = "a plain attribute of a module has the memory of a.weight" in stays.message
    assert found == (kind not in ITSELF)


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


# What all copies of a module share, and no attribute of it holds.
SHARED = {"gain": 2.0}
NUMBER = 2.0
LOG = logging.getLogger(__name__)
numbers = ModuleType("numbers_of_a_test")
numbers.gain = 2.0


def set_shared(value):
    global NUMBER
    NUMBER = SHARED["gain"] = numbers.gain = value


def of_dictionary(self):
    LOG.debug("asked")
    return SHARED["gain"]


READS = {
    "dictionary": of_dictionary,
    "number": lambda self: NUMBER,
    "module": lambda self: numbers.gain,
    "by a function": lambda self: of_dictionary(self),
    "by a property": lambda self: self.own,
}


class Shares(nn.Module):
    """A gain that is loaded, and kept where all modules find it."""

    def __init__(self, read):
        super().__init__()
        self.read = read

    @property
    def own(self):
        return NUMBER

    def forward(self, x):
        return x * self.read(self)

    def get_extra_state(self):
        return {"gain": NUMBER}

    def set_extra_state(self, state):
        LOG.info("loads")
        set_shared(state["gain"])


@pytest.mark.parametrize("kind", READS)
def test_no_refold_where_loading_sets_what_all_modules_share(kind):
    set_shared(2.0)
    gain = Shares(READS[kind])
    module = ready(nn.Sequential(nn.Linear(4, 4), gain, nn.BatchNorm1d(4)))
    done = bnfold.fold(module, (X,))
    assert isinstance(done[1], nn.Identity)
    other = {**module.state_dict(), "1._extra_state": {"gain": 3.0}}
    same = bnfold.refold(done, module.state_dict())
    assert torch.allclose(same(X), module(X))
    for load in (lambda: None, lambda: module.load_state_dict(other)):
        load()  # The user's own loading sets it for all of them.
        with pytest.raises(UsageError, match=r"changes (SHARED|NUMBER|gain|own)"):
            bnfold.refold(done, other)
    set_shared(2.0)


class Attributes(dict):
    """A dictionary with an attribute of its own."""

    k = 0


class Key:
    """Several keys that are written alike, and one that cannot be written."""

    def __init__(self, bad=False):
        self.bad = bad

    def __repr__(self):
        assert not self.bad
        return "Key"


def objects():
    found = np.empty(1, object)
    found[0] = [2]
    return found


def attributes():
    found = Attributes()
    found.k = 2
    return found


STATES = {
    "list": (lambda: [2], lambda o: o[0], lambda o, v: o.__setitem__(0, v)),
    "bytes": (lambda: bytearray(b"\2"), lambda o: o[0], lambda o, v: o.__setitem__(0, v)),
    "memory": (lambda: Memory(), lambda o: o.view[0], lambda o, v: o.view.__setitem__(0, v)),
    "array": (lambda: array.array("i", [2]), lambda o: o[0], lambda o, v: o.__setitem__(0, v)),
    "objects": (objects, lambda o: o[0][0], lambda o, v: o[0].__setitem__(0, v)),
    "user": (lambda: UserDict({0: 2}), lambda o: o[0], lambda o, v: o.__setitem__(0, v)),
    "attribute": (attributes, lambda o: o.k, lambda o, v: setattr(o, "k", v)),
    "class": (lambda: type("C", (), {"k": 2}), lambda o: o.k, lambda o, v: setattr(o, "k", v)),
    "class of a class": (
        lambda: type("D", (type("C", (), {"k": [2]}),), {}),
        lambda o: o.k[0],
        lambda o, v: o.k.__setitem__(0, v),
    ),
    "class of an object": (
        lambda: type("C", (), {"k": 2})(),
        lambda o: o.k,
        lambda o, v: setattr(type(o), "k", v),
    ),
    "keys": (
        lambda: {Key(): 2, Key(): 2},
        lambda o: next(iter(o.values())),
        lambda o, v: o.__setitem__(next(iter(o)), v),
    ),
    "kind": (
        lambda: [2],
        lambda o: 2 * isinstance(o[0], int),
        lambda o, v: o.__setitem__(0, 2 if v == 2 else 2.0),
    ),
    "empty": (
        lambda: [set()],
        lambda o: 2 if isinstance(o[0], set) else 0,
        lambda o, v: o.__setitem__(0, set() if v == 2 else frozenset()),
    ),
}


class Memory:
    def __init__(self):
        self.view = memoryview(bytearray(b"\2"))

    def __deepcopy__(self, memo):
        made = Memory()
        made.view[:] = self.view
        return made


class Chooses(nn.Module):
    """Which way it goes is a plain attribute's to say, and set as weights are loaded."""

    def __init__(self, make, read, write):
        super().__init__()
        self.a, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.o, self.how = make(), (read, write)

    def forward(self, x):
        y = self.a(x)
        z = self.bn(y)
        return z if self.how[0](self.o) == 2 else z + y

    def get_extra_state(self):
        return {"v": self.how[0](self.o)}

    def set_extra_state(self, state):
        self.how[1](self.o, state["v"])


@pytest.mark.parametrize("kind", STATES)
def test_no_refold_where_loading_sets_what_the_code_asks(kind):
    module = ready(Chooses(*STATES[kind]))
    done = bnfold.fold(module, (X,))
    same = bnfold.refold(done, module.state_dict())
    assert torch.allclose(same(X), module(X))
    other = module.state_dict()
    other["_extra_state"] = {"v": 4}
    with pytest.raises(UsageError, match="changes"):
        bnfold.refold(done, other)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.o = nn.Linear(4, 4), nn.BatchNorm1d(4), random.Random(0)

    def forward(self, x):
        return self.bn(self.a(x))


class LoadsPlain(Plain):
    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.o.seed(3)


def hooked():
    module = Plain()
    module.register_load_state_dict_post_hook(lambda module, _: module.o.seed(3))
    return module


@pytest.mark.parametrize("make", [LoadsPlain, hooked])
def test_no_refold_where_loading_may_set_what_nobody_sees(make):
    """Python shows nothing of what a generator of random numbers holds."""
    module = ready(make())
    done = bnfold.fold(module, (X,))
    with pytest.raises(UsageError, match=r"may change o\b"):
        bnfold.refold(done, module.state_dict())


@dataclass
class Settings:
    k: int = 1


SEEN = (
    *(namedtuple("Pair", "a b")(1, 2), OrderedDict(a=1), defaultdict(list), UserDict(a=1)),
    *(Settings(), SimpleNamespace(a=1), torch.Size([1]), torch.float32, np.float32(1), Slots(1)),
    *(nn.ReLU(), partial(given, 1), F.relu, torch.relu, slice(1), object(), {1}, np.zeros(2)),
)


def test_what_everybody_sees_hides_nothing():
    module = ready(LoadsPlain())
    module.more = SEEN
    assert hidden(module) == "o"
    module.o = None
    assert hidden(module) is None


def test_what_nobody_sees_stops_nothing_where_pytorch_loads():
    module = ready(Plain())
    refolded = bnfold.refold(bnfold.fold(module, (X,)), module.state_dict())
    assert torch.allclose(refolded(X), module(X), atol=1e-5)


def method(weight):
    return weight.data.norm


def class_with(weight):
    return type("C", (), {"held": [weight.data]})


ALIASES = {
    "method": method,
    "class": class_with,
    "object of a class": lambda weight: class_with(weight)(),
    "key": lambda weight: {weight.data: 1},
    "entry of an array": lambda weight: np.array([weight.data, None], object)[:1],
    "dictionary with attributes": lambda weight: setattr(a := Attributes(), "k", weight.data) or a,
    "among many": lambda weight: [torch.zeros(1), weight.data, torch.zeros(100), *range(100)],
}


@pytest.mark.parametrize("kind", ALIASES)
def test_where_the_memory_of_a_weight_may_be(kind):
    module = Names("list")
    module.held = ALIASES[kind](module.a.weight)
    assert aliases(module).names == {"a.weight"}


@pytest.mark.parametrize("make", [bytearray, lambda b: array.array("f", b), memoryview])
def test_bytes_that_are_the_memory_of_a_weight(make):
    module = Names("list")
    module.held = make(bytearray(64))
    module.a.weight = nn.Parameter(torch.frombuffer(module.held, dtype=torch.float32).view(4, 4))
    assert aliases(module).names == {"a.weight"}


class Raising:
    __slots__ = ("empty",)

    def __getattr__(self, name):
        raise RuntimeError(name)

    @property
    def computed(self):
        raise RuntimeError("computed")


class Hiding:
    @property
    def __dict__(self):
        raise RuntimeError("unbound")


class Iterating(list):
    def __iter__(self):
        raise RuntimeError("iterated")


def unset():
    def function():
        return variable

    if not function:
        variable = 1
    return function


def circle():
    found = [1]
    found.append({"found": found})
    return found


@pytest.mark.parametrize(
    "make", [Raising, Hiding, lambda: Iterating([1]), unset, circle, lambda: {Key(bad=True): [1]}]
)
def test_no_code_of_what_is_held_runs(make):
    module = Names("list")
    module.held = [make(), module.bn.weight.data]
    assert aliases(module).names == {"bn.weight"}
