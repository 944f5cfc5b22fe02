"""Copies of modules: what is empty is copied in one go, and stays what it was."""

from __future__ import annotations

from collections import OrderedDict, deque

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bnfold._torch.module.copying import copied  # noqa: E402


class Named(OrderedDict):
    """A container of its own class."""


def holding() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.results, module.rows, module.seen, module.waiting = {}, [], set(), deque()
    module[0].results = module.results
    module.named, module.told = Named(), OrderedDict()
    module.told.version = [1]
    return module


@pytest.mark.parametrize("shared", [False, True])
def test_empty_containers(shared):
    """Each is another one of the same class, with what hangs on it; what was one stays one."""
    module = holding()
    made = copied(module, shared)
    for name in ("results", "rows", "seen", "waiting", "named", "told", "_forward_hooks"):
        old, new = getattr(module, name), getattr(made, name)
        assert new is not old
        assert type(new) is type(old)
        assert new == old
    assert made[0].results is made.results
    assert made.told.version == [1]
    assert made.told.version is not module.told.version
    made.results["a"] = 1
    made.register_forward_hook(lambda *_: None)
    made[1]._buffers.clear()
    assert not module.results
    assert not module._forward_hooks
    assert module[1]._buffers


@pytest.mark.parametrize("shared", [False, True])
def test_tensors(shared):
    module = holding()
    made = copied(module, shared)
    for old, new in zip(module.state_dict().values(), made.state_dict().values(), strict=True):
        assert torch.equal(old, new)
        assert (old.data_ptr() == new.data_ptr()) is shared
