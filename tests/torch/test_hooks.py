"""Hooks: what they saw they still see, and what they change is changed once."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from .folding import fold, rand, ready  # noqa: E402

PLACES = ["conv", "bn", "act", "inner", "drop"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential()
        self.inner.conv = nn.Conv2d(4, 4, 1)
        self.inner.drop = nn.Dropout()
        self.inner.bn = nn.BatchNorm2d(4)
        self.inner.act = nn.Identity()
        self.out = nn.ReLU()

    def forward(self, x):
        return self.out(self.inner(x))


def place(model, where):
    return model.inner if where == "inner" else getattr(model.inner, where)


@pytest.mark.parametrize("where", PLACES)
def test_forward_hook_that_changes_the_output(where):
    model = ready(Model())
    place(model, where).register_forward_hook(lambda m, i, o: o * 3 + 1)
    fold(model, rand(2, 4, 3, 3))


@pytest.mark.parametrize("where", PLACES)
def test_forward_hook_that_does_what_no_map_does(where):
    model = ready(Model())
    place(model, where).register_forward_hook(lambda m, i, o: o.sin())
    fold(model, rand(2, 4, 3, 3))


@pytest.mark.parametrize("where", PLACES)
def test_pre_hook_that_changes_the_input(where):
    model = ready(Model())
    place(model, where).register_forward_pre_hook(lambda m, i: (i[0] * 3 + 1,))
    fold(model, rand(2, 4, 3, 3))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("pre", [True, False])
def test_hooks_that_read_see_what_they_saw(where, pre):
    model, seen, x = ready(Model()), [], rand(2, 4, 3, 3)
    if pre:
        place(model, where).register_forward_pre_hook(lambda m, i: seen.append(i[0].clone()))
    elif where == "bn":  # What a norm that goes is given is what it gives.
        place(model, where).register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    else:
        place(model, where).register_forward_hook(
            lambda m, i, o: seen.append(torch.stack([i[0], o]))
        )
    done = fold(model, x)
    seen.clear()
    with torch.no_grad():
        model(x), done.module(x)
    first, second = seen
    assert torch.allclose(first, second, rtol=1e-10, atol=1e-10)


def test_reading_hook_on_a_norm_does_not_stop_the_fold():
    model, seen = ready(Model()), []
    model.inner.bn.register_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
    done = fold(model, rand(2, 4, 3, 3), folds=1)
    seen.clear()
    done.module(rand(2, 4, 3, 3))
    assert seen == ["Identity"]


def test_hook_handles_still_remove_after_folding_in_place():
    import bnfold

    model, seen = ready(Model()), []
    handle = model.inner.bn.register_forward_hook(lambda m, i, o: seen.append(1))
    bnfold.fold(model, (rand(2, 4, 3, 3),), inplace=True)
    seen.clear()
    handle.remove()
    model(rand(2, 4, 3, 3))
    assert isinstance(model.inner.bn, nn.Identity) and not seen


def test_backward_hook_on_a_conv_sees_its_own_gradient():
    model, seen, x = ready(Model()), [], rand(2, 4, 3, 3)
    model.inner.conv.register_full_backward_hook(lambda m, i, o: seen.append(o[0].clone()))
    done = fold(model, x)
    model(x).sum().backward(), done.module(x).sum().backward()
    assert torch.allclose(seen[0], seen[1])


def test_identity_whose_hook_computes_stays_right():
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Identity(), nn.ReLU()))
    model[1].register_forward_hook(lambda m, i, o: o * 5)
    fold(model, rand(2, 4, 3, 3), folds=0, codes=["shared-output"])
