"""``keep`` holds what it names, and methods that see what a fold changes are named."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import bnfold  # noqa: E402
from bnfold import UsageError  # noqa: E402

from .folding import fold, rand, ready  # noqa: E402

X = rand(2, 4, 5, 5)


def warned(module: nn.Module, x: Any = X, **options: Any) -> tuple[nn.Module, set[str], list[str]]:
    """The folded module, the methods that a warning names, and what it would keep."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        folded = bnfold.fold(module, (x,), **options)
    texts = [str(each.message) for each in caught if "stays the same function" in str(each.message)]
    assert len(texts) < 2
    if not texts:
        return folded, set(), []
    assert caught[-1].filename == __file__
    found = re.search(r"function, but (.+) would see .* keep=(\[.*\])$", texts[0])
    assert found is not None
    return folded, set(found.group(1).split(", ")), eval(found.group(2))


class Net(nn.Module):
    """A stem, a norm that a head takes in, and many ways in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.rest = nn.Linear(4, 4)
        self.alias = self.norm

    def forward(self, x):
        return self.rest(self.classify(self.features(x)).sigmoid())

    def stem(self, x):
        return self.bn(self.conv(x)).relu()

    def pooled(self, x):
        return self.stem(x).mean((2, 3))

    def features(self, x):
        return self._normed(self.pooled(x))

    def _normed(self, x):
        return self.norm(x)

    def by_alias(self, x):
        return self.alias(self.pooled(x))

    def by_variable(self, x):
        norm = self.norm
        return norm(self.pooled(x))

    def by_forward(self, x):
        return self.norm.forward(self.pooled(x))

    def by_getattr(self, x):
        return getattr(self, "norm")(self.pooled(x))  # noqa: B009

    def by_checkpoint(self, x):
        return run_checkpoint(self.norm, self.pooled(x))

    @property
    def embedding(self):
        return self.norm

    def by_property(self, x):
        return self._whole(x)

    @property
    def _whole(self):
        return lambda x: self.norm(self.pooled(x))

    def raw(self, x):
        return self.conv(x)

    def classify(self, x):
        return self.head(x)

    def logits(self, x):
        return self.head(self.norm(self.pooled(x)))

    def whole(self, x):
        return self(x) + self.forward(x)

    def get_classifier(self):
        return self.head

    def reset_classifier(self, classes):
        self.head = nn.Linear(self.norm.num_features, classes)

    def init_weights(self):
        nn.init.zeros_(self.head.bias)

    @staticmethod
    def static(x):
        return x

    @torch.no_grad()
    def wrapped(self, x):
        return self.norm(self.pooled(x))


def run_checkpoint(module, x):
    return module(x)


SEES = {
    "features",
    "by_alias",
    "by_variable",
    "by_forward",
    "by_getattr",
    "by_checkpoint",
    "by_property",
    "wrapped",
    "raw",
    "classify",
}
SAME = {"stem", "pooled", "logits", "whole"}


def test_methods_that_see_a_change_are_named():
    module = ready(Net())
    folded, methods, keep = warned(module)
    assert isinstance(folded.norm, nn.Identity) and isinstance(folded.bn, nn.Identity)
    assert methods == SEES and keep == ["conv", "norm"]
    for name in SEES | SAME:
        x = rand(2, 4) if name == "classify" else X
        same = torch.allclose(getattr(module, name)(x), getattr(folded, name)(x))
        assert same is (name in SAME), name
    with pytest.warns(UserWarning, match="by_alias, "):
        bnfold.plan(module, (X,))


def test_what_the_warning_advises_keeps_all_of_them():
    module = ready(Net())
    folded, methods, _ = warned(module, keep=["conv", "norm"])
    assert not methods
    for name in SEES | SAME:
        x = rand(2, 4) if name == "classify" else X
        assert torch.equal(getattr(module, name)(x), getattr(folded, name)(x)), name


def test_one_of_two_is_enough_for_one_of_two():
    module = ready(Net())
    folded, methods, keep = warned(module, keep="norm")
    assert methods == {"raw"} and keep == ["conv"]
    assert torch.allclose(module.features(X), folded.features(X), atol=1e-12)
    assert isinstance(folded.bn, nn.Identity)


class Stages(nn.Module):
    """Parts in a list and in a row, which methods take one by one."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        parts = [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)]
        self.parts = nn.Sequential(*parts) if kind is nn.Sequential else nn.ModuleList(parts)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x

    def outputs(self, x):
        found = []
        for _, part in enumerate(self.parts):
            x = part(x)
            found.append(x)
        return found

    def listed(self, x):
        return [part(x) for part in self.parts]

    def first(self, x):
        return self.parts[0](x)

    def up_to(self, x, end=1):
        return nn.Sequential(*self.parts[:end])(x)

    def second(self, x):
        return self.parts[1](self.parts[-4](x))

    def by_number(self, x, number=0):
        return self.parts[number](x)

    def by_name(self, x, number=0):
        return getattr(self.parts, f"{number}")(x)

    def by_children(self, x):
        for part in self.parts.children():
            x = part(x)
        return x

    def cut(self, x):
        return nn.Sequential(*list(self.parts.children())[:-3])(x)

    def by_modules(self, x):
        for _, part in self.parts._modules.items():
            x = part(x)
        return x

    def weights(self):
        return [part.weight for part in self.parts if hasattr(part, "weight")]

    def freeze(self):
        for parameter in self.parts.parameters():
            parameter.requires_grad_(False)


@pytest.mark.parametrize("kind", [nn.ModuleList, nn.Sequential])
def test_parts_taken_one_by_one(kind):
    module = ready(Stages(kind))
    folded, methods, keep = warned(module)
    assert isinstance(folded.parts[1], nn.Identity) and keep == ["parts.0"]
    assert methods == {
        *("outputs", "listed", "first", "up_to", "by_number", "by_name"),
        *("by_children", "cut", "by_modules"),
    }
    assert torch.allclose(module.second(X), folded.second(X))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.embed(x))

    def embed(self, x):
        return self.conv(x)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = Inner(), nn.Parameter(torch.ones(4, 4, 1, 1))
        self.bias, self.bn = nn.Parameter(torch.ones(4)), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(F.conv2d(self.body(x).relu(), self.weight, self.bias))

    def through(self, x):
        return self.body(x)

    def into(self, x):
        return self.body.embed(x)

    def own(self, x):
        return F.conv2d(self.body(x).relu(), self.weight, self.bias)


def test_methods_of_parts_and_the_code_of_the_root():
    module = ready(Outer())
    folded, methods, keep = warned(module)
    assert isinstance(folded.bn, nn.Identity) and isinstance(folded.body.bn, nn.Identity)
    assert methods == {"into", "own"} and keep == ["body.conv", "conv2d_1"]
    kept, methods, _ = warned(module, keep=keep)
    assert not methods and isinstance(kept.bn, nn.BatchNorm2d)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def headless(self, x):
        return nn.Sequential(*list(self.children())[:-2])(x)

    def one_by_one(self, x):
        for child in self.children():
            x = child(x)
        return x

    def train_all(self):
        for child in self.children():
            child.train()


class Collects(Flat):
    def both(self, x):
        first = self.conv(x)
        return first, self.bn(first)

    def listed(self, x):
        found = []
        x = self.conv(x)
        if x.ndim:
            found.append(x)
        x = self.bn(x)
        return found, x

    def kept(self, x):
        self.last = self.conv(x).float()
        return self.bn(self.last)

    def by_key(self, x):
        found = {}
        found["conv"] = x = self.conv(x)
        return self.bn(x)

    def early(self, x, raw=False):
        y = self.conv(x)
        if raw:
            return y.flatten(1)
        return self.bn(y)

    def yields(self, x):
        y = self.conv(x)
        yield y
        yield self.bn(y)

    def by_helper(self, x):
        y = self._convolved(x)
        return [y, self.bn(y)]

    def _convolved(self, x):
        return self.conv(x)

    def in_turn(self, x):
        for name in ("conv", "bn"):
            x = getattr(self, name)(x)
        return x

    # What follows gives nothing away that the fold changes.

    def through_helper(self, x):
        return self.bn(self._convolved(x))

    def collects_the_right_one(self, x):
        found = []
        x = self.conv(x)
        x = self.bn(x)
        found.append(x)
        return found

    def branches(self, x):
        y = self.conv(x) if x.ndim == 4 else self.conv(x[None])
        y = self.bn(y)
        return y, self.act(y)

    def sizes(self, x):
        y = self.conv(x)
        size = y.shape
        return self.bn(y).reshape(size)


def test_what_is_given_away_on_the_way():
    folded, methods, keep = warned(ready(Collects()))
    assert isinstance(folded.bn, nn.Identity) and keep == ["conv"]
    assert methods - {"in_turn"} == {
        *("headless", "one_by_one", "both", "listed", "kept", "by_key", "early", "yields"),
        "by_helper",
    }
    assert warned(ready(Collects()), keep=["conv"])[1] == set()


def test_children_of_the_root():
    assert warned(ready(Flat()))[1] == {"headless", "one_by_one"}


def test_classes_of_pytorch_have_no_other_ways():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    assert warned(module)[1] == set()


class Flag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x, raw=False):
        x = self.conv(x)
        return x if raw or x.shape[-1] < 5 else self.bn(x)


def test_keep_serves_a_flag_and_another_size():
    module, small = ready(Flag()), rand(2, 4, 3, 3)
    changed = bnfold.fold(module, (X,))
    assert not torch.allclose(module(X, True), changed(X, True))
    done = fold(module, X, folds=0, codes=["kept-value"], keep=("conv",))
    assert torch.equal(module(X, True), done.module(X, True))
    assert torch.equal(module(small), done.module(small))
    # What the norm gives stays as it is anyway.
    fold(module, X, folds=1, keep=("bn",))


@pytest.mark.parametrize(
    "name", ["conv.weight", "conv.bias", "bn.weight", "bn.running_var", "conv2d"]
)
def test_keep_parameters_buffers_and_operators(name):
    module = ready(Flag())
    done = fold(module, X, folds=0, codes=["kept-value"], keep=(name,))
    assert done.module.state_dict().keys() == module.state_dict().keys()
    assert name in bnfold.plan(module, (X,), keep=[name]).kept[0].message


def test_a_tied_parameter_is_kept_by_any_of_its_names():
    module = ready(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)))
    module.register_parameter("mine", module[0].bias)
    fold(module, rand(3, 4), folds=1, keep=())  # ahead, into the second
    fold(module, rand(3, 4), folds=0, keep=("mine", "2.weight"))


class TwoCalls(nn.Module):
    """One pool in two calls, past which norms go back into convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))

    def forward(self, x):
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = norm(self.pool(conv(x))).tanh()
        return x


def seen(module: nn.Module, names: tuple[str, ...]) -> list[Any]:
    """What submodules give when the module runs, in all calls."""
    found: list[Any] = []
    watched = copy.deepcopy(module)
    for name in names:
        part = watched.get_submodule(name)
        part.register_forward_hook(lambda _, __, out: found.append(out))
    watched(X)
    return found


def test_every_call_of_a_module_is_kept():
    module = ready(TwoCalls())
    changed = fold(module, X, folds=2).module
    for names in (("pool",), ("convs.0", "pool"), ("convs.1", "norms.0")):
        before, after = seen(module, names), seen(fold(module, X, keep=names).module, names)
        others = seen(changed, names)
        assert len(before) >= 2
        for one, same, other in zip(before, after, others, strict=True):
            assert torch.allclose(one, same, atol=1e-12)
            assert not torch.allclose(one, other) or "norms.0" in names
    assert fold(module, X, keep=("convs.0",)).folded == ["norms.1"]


def test_names_that_are_not_there():
    module = ready(Flag())
    for call in (bnfold.fold, bnfold.plan):
        with pytest.raises(UsageError, match=r"no submodule.*'con'; did you mean 'conv'"):
            call(module, (X,), keep=["con"])
    module.unused = nn.Linear(3, 3)
    with pytest.raises(UsageError, match="unused computes nothing with these inputs"):
        bnfold.fold(module, (X,), keep=["unused"])
    program = torch.export.export(module, (X,))
    with pytest.raises(UsageError, match=r"keep: this is for a torch.nn.Module"):
        bnfold.fold(program, keep=["conv"])


def test_a_buffer_may_be_named_by_any_of_its_names():
    module = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    module[0].register_buffer("held", module[1].running_mean)
    folded = fold(module, X, folds=0, codes=["kept-value"], keep=("1.running_mean",)).module
    assert torch.equal(folded[1].running_mean, module[1].running_mean)
