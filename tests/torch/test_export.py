"""What an export leaves behind: PyTorch's settings as they were, and all of what is given away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

import torch.fx.config as fx_config  # noqa: E402
from torch import nn  # noqa: E402
from torch.fx import _lazy_graph_module as lazy  # noqa: E402

import bnfold  # noqa: E402
from bnfold import UsageError  # noqa: E402
from bnfold._torch.read.spared import Spared  # noqa: E402

from .folding import rand, ready  # noqa: E402

NAME = "do_not_emit_stack_traces"
X = rand(2, 3, 5, 5)
if not hasattr(fx_config, NAME):
    pytest.skip("this PyTorch always notes where operators are called", allow_module_level=True)


def network():
    return ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))


class Failing(nn.Module):
    """Its code cannot be traced."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def settings():
    return getattr(fx_config, NAME), lazy._use_lazy_graph_module_flag


def begin(monkeypatch, before):
    monkeypatch.setattr(fx_config, NAME, before)
    monkeypatch.setattr(lazy, "_use_lazy_graph_module_flag", before)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("kind", [network, Failing])
def test_settings_are_put_back(before, kind, monkeypatch):
    begin(monkeypatch, before)
    try:
        bnfold.fold(kind().eval(), (X,))
    except UsageError:
        assert kind is Failing
    assert settings() == (before, before)


def test_threads_that_overlap_put_them_back(monkeypatch):
    """The first to begin ends first: it may not put back what the second one has found."""
    begin(monkeypatch, False)
    spared = Spared()
    first, second = spared.left_out(), spared.left_out()
    with ThreadPoolExecutor(1) as other:
        first.__enter__()
        other.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert settings() == (True, True)
        other.submit(second.__exit__, None, None, None).result()
    assert settings() == (False, False)
    with spared.left_out():
        assert settings() == (True, True)
    assert settings() == (False, False)


def test_what_is_made_of_a_graph_module_says_where_operators_are_called(monkeypatch):
    begin(monkeypatch, False)
    module = torch.export.export(network(), (X,)).module()
    folded = bnfold.fold(module, (X,))
    nodes = [node for node in folded.graph.nodes if "relu" in str(node.target)]
    assert [bool(node.meta.get("stack_trace")) for node in nodes] == [True]
    assert not any("Lazy" in kind.__name__ for kind in type(folded).__mro__)


def test_the_program_is_the_same_without(monkeypatch):
    """Names, metadata of modules and the order of operators do not come from what is left out."""
    from bnfold._torch.read.export import export

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = network(), nn.LSTM(3, 4)

        def forward(self, x):
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (self.b(self.a[0](x)[0])[0],))

    begin(monkeypatch, False)
    module = ready(Blocks())
    one, other = (export(module, (X,), None, None, given) for given in (False, True))
    assert str(one.graph) == str(other.graph)
    stacks = [[node.meta.get("nn_module_stack") for node in p.graph.nodes] for p in (one, other)]
    assert stacks[0] == stacks[1]
    traces = [{node.meta.get("stack_trace") for node in p.graph.nodes} for p in (one, other)]
    assert traces[0] == {None} != traces[1]
    assert one.graph_module.code == other.graph_module.code
