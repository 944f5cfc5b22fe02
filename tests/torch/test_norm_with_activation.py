"""A norm and its activation in one module: the norm goes, what else the module does stays."""

from __future__ import annotations

import copy
import enum
import io
import sys
import time
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnfold.nn  # noqa: E402
from bnfold._torch.module.own_code import beyond_data  # noqa: E402

from .folding import assert_close, fold, kinds, outputs, rand, ready  # noqa: E402


class Written(nn.BatchNorm2d):
    """As timm writes it: the norm by its function, then two submodules."""

    def __init__(self, n: int, act: nn.Module | None = None) -> None:
        super().__init__(n)
        self.drop = nn.Dropout(0.3)
        self.act = nn.ReLU(inplace=True) if act is None else act

    def forward(self, x):
        assert x.dim() == 4
        running = self.running_mean, self.running_var
        y = F.batch_norm(x, *running, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(y))


class NothingToDrop(Written):
    def __init__(self, n: int) -> None:
        super().__init__(n, nn.Identity())
        self.drop = nn.Identity()


class DropsLast(Written):
    """Its submodules in another order than they are called in, and one that does nothing."""

    def __init__(self, n: int) -> None:
        super().__init__(n, nn.SiLU())
        self.drop = nn.Identity()

    def forward(self, x):
        return self.drop(self.act(nn.BatchNorm2d.forward(self, x)))


class Super(nn.BatchNorm2d):
    """The activation in the module's own code."""

    def forward(self, x):
        return F.leaky_relu(F.dropout(super().forward(x), 0.2, self.training), 0.3, inplace=True)


class Swish(nn.BatchNorm2d):
    """An activation that PyTorch's modules do not have, in its own code."""

    def forward(self, x):
        y = super().forward(x)
        return (y * torch.sigmoid(y)).clamp(max=3.0)


class Frozen(nn.Module):
    """A norm of buffers, written out."""

    def __init__(self, n: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(n))
        self.act = nn.Hardswish()

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-3).rsqrt()
        shift = self.bias - self.running_mean * scale
        return self.act(x * scale[:, None, None] + shift[:, None, None])


class Tracked(nn.InstanceNorm2d):
    def __init__(self, n: int) -> None:
        super().__init__(n, affine=True, track_running_stats=True)

    def forward(self, x):
        return F.elu(super().forward(x), 0.7)


class Ahead(nn.BatchNorm2d):
    """The activation first: the norm goes into the convolution behind."""

    def forward(self, x):
        return super().forward(F.gelu(x, approximate="tanh"))


def pure(y, slope):
    return F.leaky_relu(y, slope)


class Mode(enum.Enum):
    LEAKY = "leaky"


class Tools:
    """A class that keeps nothing."""

    table: ClassVar = {Mode.LEAKY: pure}

    def __init__(self, slope):
        self.slope = slope

    @classmethod
    def summed(cls, more):
        total = 0.0
        for each in more:
            total += each
        return cls(total).slope

    @staticmethod
    def act(y, slope):
        return Tools.table[Mode.LEAKY](y, slope)


class Helped(nn.BatchNorm2d):
    """Code in other functions and methods, and plain settings: nothing of it is seen elsewhere."""

    slopes: ClassVar = {"used": 0.2}

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.settings = SimpleNamespace(slope=0.1)

    @property
    def slope(self):
        return self.settings.slope + self.slopes["used"]

    def act(self, y):
        return Tools.act(y, *[each + Tools.summed([0.1]) for each in (self.slope,)])

    @torch.no_grad()
    def forward(self, x):
        return self.act(super().forward(x))


LEFT = {
    "helpers": (Helped, {"leaky_relu": nn.LeakyReLU}),
    "written": (Written, {"drop": nn.Dropout, "act": nn.ReLU}),
    "activation with weights": (lambda n: Written(n, nn.PReLU(n)), {"act": nn.PReLU}),
    "other order": (DropsLast, {"act": nn.SiLU, "drop": nn.Identity}),
    "inherited": (Super, {"dropout": nn.Dropout, "leaky_relu": nn.LeakyReLU}),
    "formula": (Swish, {"formula": nn.Module}),
    "frozen": (Frozen, {"act": nn.Hardswish}),
    "instance": (Tracked, {"elu": nn.ELU}),
    "ahead": (Ahead, {"gelu": nn.GELU}),
}


def network(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm, nn.Conv2d(4, 4, 2))


@pytest.mark.parametrize("name", LEFT)
def test_the_norm_goes_and_the_rest_stays(name):
    make, left = LEFT[name]
    module, x = ready(network(make(4))), rand(2, 3, 8, 8)
    done = fold(module, x, others=((rand(5, 3, 6, 9),),), codes=[]).module
    assert type(done[1]) is bnfold.nn.Remainder
    assert "batch_norm" not in bnfold.plan(done, (x,)).before
    parts = dict(done[1].named_children())
    assert all(isinstance(parts[part], kind) for part, kind in left.items())
    order = [part for part in parts if part in left]
    assert order == list(left)
    kept = {key: value for key, value in module.state_dict().items() if ".act." in key}
    assert all(torch.equal(done.state_dict()[key], value) for key, value in kept.items())
    assert set(done[1].state_dict()) == {key.removeprefix("1.") for key in kept}


@pytest.mark.parametrize("name", LEFT)
def test_what_stays_can_be_taken_anywhere(name):
    """Copied, saved, scripted, exported, loaded with its own state, and folded once more."""
    module, x = ready(network(LEFT[name][0](4))), rand(2, 3, 8, 8)
    done = fold(module, x).module
    wanted = outputs(done, (x,), {})
    buffer = io.BytesIO()
    torch.save(done, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    again = fold(done, x, folds=0, codes=[]).module
    for made in (copy.deepcopy(done), loaded, again):
        assert kinds(made) == kinds(done)
        assert_close(wanted, outputs(made, (x,), {}), 0.0)
    assert_close(wanted, [torch.jit.script(done)(x)], 0.0)
    assert_close(wanted, [torch.export.export(done, (x,)).module()(x)], 0.0)
    loaded.load_state_dict(done.state_dict())


def test_dropout_stays_a_dropout():
    """In training it drops, as that of the original does."""
    module = ready(network(Written(4)))
    done = fold(module, rand(2, 3, 8, 8)).module
    assert done[1].drop.p == 0.3 and done[1].drop is not module[1].drop
    assert float((done[1].train()(rand(1, 4, 9, 9).abs()) == 0).double().mean()) > 0.1
    assert not fold(ready(network(Super(4))), rand(2, 3, 8, 8)).module[1].dropout.training


def test_attributes_of_the_norm_stay():
    done = fold(ready(network(Written(4))), rand(2, 3, 8, 8)).module[1]
    assert (done.num_features, done.eps) == (4, 1e-5)


def test_nothing_left_is_an_identity():
    done = fold(ready(network(NothingToDrop(4))), rand(2, 3, 8, 8), folds=1, codes=[])
    assert type(done.module[1]) is nn.Identity


def test_one_module_under_two_names():
    """Both names see the change, once."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), Swish(4)
            self.alias = self.norm

        def forward(self, x):
            return self.alias(self.conv(x))

    done = fold(ready(Named()), rand(2, 3, 8, 8), folds=1, codes=[]).module
    assert done.norm is done.alias and len(done.norm) == 1


class Remembers(nn.BatchNorm2d):
    seen = None

    def forward(self, x):
        y = super().forward(x)
        self.seen = tuple(y.shape)
        return y.relu()


class Counts(Remembers):
    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.calls: list[int] = []

    def forward(self, x):
        self.calls.append(1)
        return nn.BatchNorm2d.forward(self, x).relu()


CALLS: list[int] = []


class CountsElsewhere(nn.BatchNorm2d):
    def forward(self, x):
        CALLS.append(1)
        return super().forward(x).relu()


class Chooses(nn.BatchNorm2d):
    """The trace sees one way alone."""

    def forward(self, x):
        y = super().forward(x)
        return y.relu() if x.shape[0] > 1 else y


class ChoosesByValue(Written):
    def forward(self, x):
        return super().forward(x) if self.eps > 0 and len(x) > 1 else x


class OwnSlope(nn.BatchNorm2d):
    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.slope = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return F.prelu(super().forward(x), self.slope)


class OwnFloor(OwnSlope):
    def forward(self, x):
        return torch.maximum(nn.BatchNorm2d.forward(self, x), self.slope[:, None, None])


class Pools(nn.BatchNorm2d):
    def forward(self, x):
        return F.max_pool2d(super().forward(x).relu(), 2)


class Convolves(Written):
    def __init__(self, n: int) -> None:
        super().__init__(n, nn.Conv2d(n, n, 1))


class Idle(Written):
    """A submodule that does not run would run in a row of modules."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.other = nn.ReLU()


class Twice(Written):
    def forward(self, x):
        return self.act(super().forward(x))


class HandsOn(nn.BatchNorm2d):
    """What leaves a module by a side door is not what comes out of it."""

    def forward(self, x):
        y = super().forward(x)
        side.append(y)
        return y.relu()


side: list[torch.Tensor] = []


class Beside(nn.BatchNorm2d):
    """Something beside the norm and its activation, by a method of its own."""

    held: ClassVar[list[int]] = []

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.logger = Logger()

    def forward(self, x):
        y = super().forward(x)
        return self.beside(y).relu()


class Logger:
    def __init__(self) -> None:
        self.count = 0

    def log(self) -> None:
        self.count += 1


class Total:
    count = 0


TOTAL = Logger()


def tell(y):
    CALLS.append(1)
    return y


def counted(function):
    found = {"calls": 0}

    def wrapper(*args):
        found["calls"] += 1
        return function(*args)

    return wrapper


def beside(function):
    """A norm whose method is the function."""
    return type("Made", (Beside,), {"beside": function})


def note(log, y):
    log.append(1)
    return y


def grown(log, y):
    log += [1]
    return y


def noted(y, log=[]):  # noqa: B006
    log.append(1)
    return y


class Notes:
    """What it keeps is the class's."""

    notes: ClassVar[list[int]] = []

    def __init__(self, y) -> None:
        self.y = tell(y)

    @staticmethod
    def note(y):
        Notes.notes.append(1)
        return y

    @classmethod
    def ask(cls, y):
        return y * 2 if torch.is_grad_enabled() else y


def by_class(self, y):
    notes = Notes
    return notes.note(y)


def by_class_handed_on(self, y):
    return ask(Notes, y)


def ask(kind, y):
    return kind.ask(y)


def by_name(self, y):
    name = CALLS
    return note(name, y)


def by_helpers(self, y):
    import bnfold_test_helpers as helpers

    return helpers.told(y)


def by_helper(self, y):
    from bnfold_test_helpers import told

    return told(y)


HELPERS = ModuleType("bnfold_test_helpers")
HELPERS.told = tell
sys.modules["bnfold_test_helpers"] = HELPERS


def by_total(self, y):
    Total.count += 1
    return y


def by_import(self, y):
    from random import random

    return y * 2 if random() > 2 else y


def by_nested(self, y):
    def told():
        return tell(y)

    return told()


BESIDE = {
    "method": (lambda self, y: (CALLS.append(1), y)[1], "in CALLS"),
    "function": (lambda self, y: tell(y), "in CALLS"),
    "nested function": (by_nested, "in CALLS"),
    "comprehension": (lambda self, y: next(tell(each) for each in (y,)), "in CALLS"),
    "property": (property(lambda self: tell), "in CALLS"),
    "static method": (staticmethod(tell), "in CALLS"),
    "partial": (lambda self, y: PARTIAL(y), "in CALLS"),
    "decorator": (counted(lambda self, y: y), "in found"),
    "PyTorch's decorator": (torch.no_grad()(lambda self, y: tell(y)), "in CALLS"),
    "list of the class": (lambda self, y: (self.held.append(1), y)[1], "in held"),
    "object": (lambda self, y: (self.logger.log(), y)[1], "in logger"),
    "object elsewhere": (lambda self, y: (TOTAL.log(), y)[1], "in TOTAL"),
    "class elsewhere": (by_total, "in count"),
    "handed on": (lambda self, y: note(CALLS, y), "in CALLS"),
    "handed on by another name": (by_name, "in CALLS"),
    "handed on and added to": (lambda self, y: grown(CALLS, y), "in CALLS"),
    "handed on within": (lambda self, y: note([CALLS, HELD][1][0][0], y), "in CALLS"),
    "handed on from within": (lambda self, y: grown(HELD[0][0], y), "in HELD"),
    "default": (lambda self, y: noted(y), "in a default of noted"),
    "static method of a class": (lambda self, y: Notes.note(y), "in notes"),
    "class method": (lambda self, y: Notes.ask(y), "is_grad_enabled"),
    "class by another name": (by_class, "in notes"),
    "class handed on": (by_class_handed_on, "is_grad_enabled"),
    "class by a name in quotes": (lambda self, y: getattr(Notes, "note")(y), "in notes"),  # noqa: B009
    "object that is made": (lambda self, y: Notes(y).y, "in CALLS"),
    "list in a partial": (lambda self, y: NOTE(y), "in NOTE"),
    "method of a list": (lambda self, y: (ADD(1), y)[1], "in ADD"),
    "function in a tuple": (lambda self, y: TOLD[0](y), "in CALLS"),
    "object in a list": (lambda self, y: (LOGGERS[0].log(), y)[1], "in LOGGERS"),
    "module that is imported": (by_helpers, "in CALLS"),
    "import from a module": (by_helper, "in CALLS"),
    "gradients": (lambda self, y: y * 2 if torch.is_grad_enabled() else y, "is_grad_enabled"),
    "its weight's": (lambda self, y: y * 2 if not self.weight.requires_grad else y, "requires_"),
    "tracing": (lambda self, y: y * 2 if torch.jit.is_tracing() else y, "is_tracing"),
    "type": (
        lambda self, y: y if torch.get_default_dtype() == torch.float32 else y * 2,
        "get_default_dtype",
    ),
    "prints": (lambda self, y: (print(end=""), y)[1], "uses print"),
    "time": (lambda self, y: y * (time.time() > 0), "uses time"),
    "chance": (by_import, "uses random"),
}
PARTIAL, NOTE, ADD = partial(tell), partial(note, CALLS), CALLS.append
HELD, LOGGERS, TOLD = [[CALLS]], [Logger()], (tell,)


@pytest.mark.parametrize("name", BESIDE)
def test_what_other_code_of_a_module_does(name):
    """A row of modules would not do it: the trace shows one way, and no traces."""
    function, why = BESIDE[name]
    module = ready(network(beside(function)(4)))
    done = fold(module, rand(2, 3, 8, 8), folds=0, codes=["not-a-module"])
    assert why in done.plan.kept[0].message


def test_a_module_of_python_is_not_asked_for_what_it_lacks():
    """Some import as soon as they are asked."""
    asked = []
    HELPERS.__getattr__ = lambda name: asked.append(name) or pure
    module = beside(lambda self, y: HELPERS.told(y))(4)
    try:
        assert "in CALLS" in beyond_data(module)
    finally:
        del HELPERS.__getattr__
    assert not asked


def test_a_variable_that_is_not_set():
    def by_late(self, y):
        return y if self.training is None else pure(y, 0.1) if late is None else y

    assert beyond_data(beside(by_late)(4)) is None
    late = 1
    assert late


STAYS = {
    "remembers": (Remembers, "keeps something in its attributes"),
    "counts": (Counts, "keeps something in its attributes"),
    "counts elsewhere": (CountsElsewhere, "keeps something in CALLS"),
    "side door": (HandsOn, "keeps something in side"),
    "chooses": (Chooses, "cannot be followed for every input"),
    "chooses by length": (ChoosesByValue, "cannot be followed for every input"),
    "own slope": (OwnSlope, "more than a norm and an activation"),
    "own floor": (OwnFloor, "more than a norm and an activation"),
    "pool": (Pools, "more than a norm and an activation"),
    "convolution": (Convolves, "more than a norm and an activation"),
    "idle": (Idle, "each of its submodules once"),
    "twice": (Twice, "each of its submodules once"),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_module_that_does_more_stays(name):
    make, why = STAYS[name]
    module = ready(network(make(4)))
    done = fold(module, rand(2, 3, 8, 8), others=((rand(1, 3, 6, 9),),), codes=["not-a-module"])
    (kept,) = [each for each in done.plan.kept if each.kind == "map"]
    assert why in kept.message and type(done.module[1]) is make


def test_a_hook_stays_with_its_module():
    module = ready(network(Written(4)))
    module[1].register_forward_hook(lambda norm, given, result: result * 2)
    fold(module, rand(2, 3, 8, 8), folds=0, codes=["not-a-module"] * 2)


class Leaks(nn.BatchNorm2d):
    def __init__(self, n: int, holder: list[list[torch.Tensor]]) -> None:
        super().__init__(n)
        self.holder = (holder,)

    def forward(self, x):
        y = super().forward(x)
        self.holder[0][0].append(y)
        return y.relu()


def test_a_tensor_from_the_inside_that_another_reads():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            held: list[list[torch.Tensor]] = [[]]
            self.conv, self.norm, self.held = nn.Conv2d(3, 4, 3), Leaks(4, held), (held,)

        def forward(self, x):
            self.held[0][0] = []
            y = self.norm(self.conv(x))
            return y + self.held[0][0][-1]

    module = ready(Reader())
    done = fold(module, rand(2, 3, 8, 8), codes=["not-a-module"])
    assert "more than one chain" in done.plan.kept[0].message
