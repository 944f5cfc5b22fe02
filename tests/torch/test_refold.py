"""``refold`` gives, bit by bit, what ``fold`` gives for the original with other weights."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, weight_norm  # noqa: E402

import bnfold  # noqa: E402
from bnfold import UsageError  # noqa: E402

from .folding import rand, ready, state  # noqa: E402

X = rand(2, 4, 5, 5)


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def assert_same(one: nn.Module, other: nn.Module) -> None:
    first, second = dict(one.named_modules()), dict(other.named_modules())
    assert [(n, type(m)) for n, m in first.items()] == [(n, type(m)) for n, m in second.items()]
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        assert values.dtype == theirs[name].dtype and torch.equal(values, theirs[name]), name
    assert {n: p.requires_grad for n, p in one.named_parameters()} == {
        n: p.requires_grad for n, p in other.named_parameters()
    }


class Keeps(nn.Module):
    """A mask that no checkpoint holds, and a convolution without a bias in code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = Own(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.register_buffer("mask", rand(4, 1, 1), persistent=False)
        self.frozen = nn.Parameter(rand(4, 1, 1), requires_grad=False)

    def forward(self, x):
        return self.bn(self.conv(x)) * self.mask + self.frozen


class Own(nn.Conv2d):
    """A convolution whose forward shows only to a second export that it adds a bias."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight, self.bias)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.again = nn.Sequential(self.block, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.again[2].weight = self.block[0].weight

    def forward(self, x):
        return self.again(self.block(x).relu())


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)
    )


def normed() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4))


def parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4))


class NormAct(nn.BatchNorm2d):
    """A norm and an activation in one module."""

    def __init__(self) -> None:
        super().__init__(4)
        self.act = nn.SiLU()

    def forward(self, input):
        return self.act(super().forward(input))


def activated() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), NormAct(), nn.Conv2d(4, 4, 1), NormAct())


class Siamese(nn.Module):
    """A block on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.block(x).tanh() * self.block(x + 1).sigmoid()


def between() -> nn.Module:
    return nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Sigmoid(), NormAct(), nn.Sigmoid())


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (plain, {}),
    "kept": (plain, {"keep": ["0"]}),
    "own code": (Keeps, {}),
    "tied": (Tied, {}),
    "cloned": (Tied, {"clone": True}),
    "weight norm": (normed, {}),
    "parametrized": (parametrized, {}),
    "norm and activation": (activated, {}),
    "several inputs": (Siamese, {}),
    "depthwise": (between, {"depthwise": True}),
}


@pytest.fixture
def no_trace(monkeypatch):
    """From the second call on nothing may be exported."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("traced again")

    return lambda: monkeypatch.setattr(torch.export, "export", refuse)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(
    ("name", "inplace"),
    [*((name, False) for name in KINDS), ("own code", True), ("depthwise", True)],
)
def test_it_is_what_fold_gives(name, inplace, no_trace):
    make, options = KINDS[name]
    module, other = ready(make()), ready(make(), seed=7)
    if isinstance(module, Keeps):
        other.mask = module.mask.clone()
    wanted = bnfold.fold(other, (X,), **options)
    folded = bnfold.fold(module, (X,), inplace=inplace, **options)
    assert (norms(wanted) < norms(other)) is (name not in ("kept", "tied"))
    before = state(folded)
    no_trace()
    made = bnfold.refold(folded, other.state_dict())
    assert type(made) is type(folded) and not made.training
    assert_same(made, wanted)
    assert torch.allclose(made(X), other(X), atol=1e-10)
    if name == "plain":
        assert_same(bnfold.refold(copy.deepcopy(made), other.state_dict()), wanted)
    after = state(folded)
    assert before["modules"] == after["modules"]
    for key, values in before["values"].items():
        assert torch.equal(values, after["values"][key])


def test_what_folds_is_decided_anew():
    """A scale that turns negative no longer passes the Relu; one that is positive now does."""
    module = plain().double().eval()
    with torch.no_grad():
        for norm in (module[1], module[3]):
            norm.weight.uniform_(0.5, 1.5)
        module[3].bias.zero_()
    other = copy.deepcopy(module)
    with torch.no_grad():
        other[3].weight[2] = -1.0
    for first, second in ((module, other), (other, module)):
        folded = bnfold.fold(first, (X,))
        assert isinstance(folded[3], nn.Identity) is (first is module)
        made = bnfold.refold(folded, second.state_dict())
        assert isinstance(made[3], nn.Identity) is (second is module)
        assert torch.allclose(made(X), second(X), atol=1e-12)
        # and back again: the first result has not changed the recipe
        assert_same(bnfold.refold(made, first.state_dict()), folded)


def test_it_holds_no_weights():
    module = ready(plain())
    weights = [weakref.ref(each) for each in (*module.parameters(), *module.buffers())]
    folded = bnfold.fold(module, (X,))
    other = ready(plain(), seed=3).state_dict()
    del module
    gc.collect()
    assert all(each() is None for each in weights)
    made = bnfold.refold(folded, other)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.fill_(5.0)
    assert not any((tensor == 5.0).all() for tensor in other.values() if tensor.ndim)


def test_another_type_is_cast_as_load_state_dict_does():
    folded = bnfold.fold(ready(plain(), torch.float32), (X.float(),))
    made = bnfold.refold(folded, ready(plain(), seed=2).state_dict())
    assert {tensor.dtype for tensor in made.parameters()} == {torch.float32}


def test_without_example_inputs(no_trace):
    module, other = ready(plain()), ready(plain(), seed=5)
    wanted, folded = bnfold.fold(other), bnfold.fold(module)
    no_trace()
    assert_same(bnfold.refold(folded, other.state_dict()), wanted)


def test_a_module_that_was_pickled_knows_nothing():
    folded = bnfold.fold(ready(plain()), (X,))
    file = io.BytesIO()
    torch.save(folded, file)
    file.seek(0)
    data = pickle.dumps(folded)
    assert b"bnfold." not in data and b"cbnfold" not in data
    for loaded in (torch.load(file, weights_only=False), pickle.loads(data)):
        assert torch.equal(loaded(X), folded(X))
        with pytest.raises(UsageError, match="loaded from a file"):
            bnfold.refold(loaded, folded.state_dict())
    with pytest.raises(UsageError, match="does not know how it was folded"):
        bnfold.refold(ready(plain()), {})
    with pytest.raises(TypeError, match="expected a module"):
        bnfold.refold("model.onnx", {})  # type: ignore[type-var]


def test_weights_that_do_not_fit():
    module = ready(plain())
    folded = bnfold.fold(module, (X,))
    good = module.state_dict()
    bad = [
        ({f"module.{name}": values for name, values in good.items()}, 'Missing key.*"0.weight"'),
        (folded.state_dict(), 'Missing key.*"1.weight"'),
        ({**good, "extra": good["0.weight"]}, 'Unexpected key.*"extra"'),
        ({**good, "0.weight": good["0.weight"][:2]}, "size mismatch for 0.weight"),
    ]
    for weights, text in bad:
        with pytest.raises(UsageError, match=rf"do not fit Sequential: .*{text}") as caught:
            bnfold.refold(folded, weights)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UsageError, match=r'running_var" and 4 more; Unexpected') as caught:
        bnfold.refold(bnfold.fold(ready(plain()), (X,)), {f"m.{n}": v for n, v in good.items()})
    assert str(caught.value).count('"m.') == 6
    with pytest.raises(UsageError, match=r"do not fit Sequential: .* and 4 more$") as caught:
        bnfold.refold(folded, {**good, **{n: v[:0] for n, v in good.items() if v.dim()}})
    assert len(str(caught.value)) < 1200
    with pytest.raises(UsageError, match=r"give the network itself, model\.module"):
        bnfold.refold(nn.DataParallel(folded), good)
    for wrong in (None, [1], good.items()):
        with pytest.raises((TypeError, UsageError)):
            bnfold.refold(folded, wrong)


def test_the_folded_module_exports_and_folds_again():
    folded = bnfold.fold(ready(plain()), (X,))
    program = torch.export.export(folded, (X,))
    assert torch.equal(program.module()(X), folded(X))
    twice = bnfold.fold(folded, (X,))
    assert torch.equal(twice(X), folded(X))
    made = bnfold.refold(twice, ready(copy.deepcopy(folded)).state_dict())
    assert torch.isfinite(made(X)).all()
