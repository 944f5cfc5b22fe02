"""Norms ahead of nn.LSTM, nn.GRU and nn.RNN, in modules and in programs.

Steps, batch, inputs and hidden units are all 4 where that fits.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

import bnfold  # noqa: E402
from bnfold._core.operators.record import UNKNOWN  # noqa: E402
from bnfold._proof.torch_certificate import certify_program  # noqa: E402
from bnfold._torch.program.fold import PlannedProgram  # noqa: E402
from bnfold._torch.read.linear import ROWS  # noqa: E402
from bnfold._torch.read.nodes import arguments  # noqa: E402

from .carrying import program  # noqa: E402
from .folding import assert_close, fold, outputs_of, rand, ready, wide  # noqa: E402
from .merging import planned_and_folded  # noqa: E402

X = rand(4, 4, 4)
KINDS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}


class Net(nn.Module):
    """norm over [batch, channels, steps], then what reads the channels last."""

    def __init__(self, rnn: nn.Module, order: tuple[int, int, int] = (2, 0, 1)) -> None:
        super().__init__()
        self.bn, self.rnn, self.order = nn.BatchNorm1d(4), rnn, order

    def forward(self, x):
        return self.rnn(self.bn(x).permute(self.order))


def both(module: nn.Module, folds: int = 1, codes: list[str] | None = None) -> nn.Module:
    """What folds in a module and in a program, seen to be the same."""
    made = fold(module, X, folds=folds, codes=[] if codes is None else codes)
    in_program(module, folds)
    return made.module


def in_program(module: nn.Module, folds: int) -> None:
    """The same of a program, with its certificates, of one export."""
    given = exported(module)
    plan, folded = planned_and_folded(given)
    assert sum(len(each.nodes) for each in plan.folds) == folds
    assert_close(*(outputs_of(wide(each), (X,), {}) for each in (given, folded)))


def exported(module: nn.Module) -> Any:
    return torch.export.export(module, (X,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers, bidirectional", [(1, False), (1, True), (2, True)])
def test_every_kind(kind, layers, bidirectional):
    rnn = KINDS[kind](4, 4, layers, bidirectional=bidirectional)
    module = ready(Net(rnn))
    made = both(module)
    assert isinstance(made.bn, nn.Identity)
    for name, old in module.rnn.named_parameters():
        entered = "_ih_l0" in name
        assert torch.equal(old, made.rnn.get_parameter(name)) is not entered, name
    assert [*made.state_dict()] == [n for n in module.state_dict() if not n.startswith("bn.")]


@pytest.mark.parametrize("options", [{"batch_first": True}, {"dropout": 0.5, "num_layers": 2}])
def test_options(options):
    order = (0, 2, 1) if "batch_first" in options else (2, 0, 1)
    both(ready(Net(nn.LSTM(4, 3, bidirectional=True, **options), order)))


def test_a_free_batch():
    """First states of zeros are then made of a size, and vary with it."""
    module, x = ready(Net(nn.LSTM(4, 4, bidirectional=True))), rand(3, 4, 5)
    free = {"x": {0: torch.export.Dim("n")}}
    fold(module, x, folds=1, codes=[], others=((rand(2, 4, 5),),), dynamic_shapes=free)
    program(module, x, folds=1, dynamic_shapes=free)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_projection(bidirectional):
    both(ready(Net(nn.LSTM(4, 4, 2, proj_size=2, bidirectional=bidirectional))))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_steps_and_batch_are_no_inputs(order, batch_first):
    """Channels lie on the axis of steps or of the batch."""
    module = ready(Net(nn.LSTM(4, 4, batch_first=batch_first), order))
    both(module, 0, ["no-linear-operator"])


def test_a_state_that_is_given():
    class Given(Net):
        def forward(self, x):
            read = self.bn(x).permute(2, 0, 1)
            return self.rnn(read, read[:1].contiguous() if self.order else x[:1])

    module = ready(Given(nn.GRU(4, 4), ()))
    both(module)
    both(ready(Given(nn.GRU(4, 4))), 0, ["no-linear-operator"])


def without_bias(scale: bool) -> nn.Module:
    module = ready(Net(nn.GRU(4, 4, 2, bias=False)))
    with torch.no_grad():
        if scale:
            module.bn.bias.zero_()
            module.bn.running_mean.zero_()
    return module


def test_without_biases_the_scale_goes_in_alone():
    both(without_bias(True))
    module = without_bias(False)
    plan = fold(module, X, folds=0).plan
    assert "has no bias" in plan.kept[0].message
    program(module, X)
    assert "has no biases" in bnfold.plan(exported(module)).kept[0].message


def flattened(rnn: nn.Module) -> nn.Module:
    """All parameters one after the other in one memory, as cuDNN has them."""
    memory = torch.zeros(sum(p.numel() for p in rnn.parameters()), dtype=torch.float64)
    start = 0
    for name, old in list(rnn.named_parameters()):
        part = memory[start : start + old.numel()].view(old.shape)
        part.copy_(old.detach())
        setattr(rnn, name, nn.Parameter(part))
        start += old.numel()
    return rnn


def test_weights_in_one_memory():
    module = ready(Net(nn.LSTM(4, 4, 2, bidirectional=True)))
    flattened(module.rnn)
    both(module)


TIED = {
    "directions": ("weight_ih_l0_reverse", "weight_ih_l0"),
    "layers": ("weight_ih_l1", "weight_ih_l0"),
    "of the recurrence": ("weight_hh_l0", "weight_ih_l0"),
    "biases": ("bias_hh_l0", "bias_ih_l0"),
}


def tied(name: str) -> nn.Module:
    both_ways = name == "directions"
    rnn = nn.LSTM(4, 4, 1 if both_ways else 2, bidirectional=both_ways)
    module = ready(Net(rnn))
    setattr(rnn, TIED[name][0], getattr(rnn, TIED[name][1]))
    return module


@pytest.mark.parametrize("name", TIED)
def test_one_parameter_in_two_places(name):
    """Changed in place, it would be changed in both, or twice."""
    done = fold(tied(name), X, folds=0)
    assert "in several places" in done.plan.kept[0].message
    in_program(tied(name), 1)
    done = fold(tied(name), X, folds=1, clone=True)
    first, second = (done.module.rnn.get_parameter(each) for each in TIED[name])
    assert (first is second) == (name == "directions")  # Of these each became the same.


def test_two_that_share_a_weight():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.GRU(4, 4), nn.GRU(4, 4), nn.BatchNorm1d(4)
            self.b.weight_ih_l0 = self.a.weight_ih_l0

        def forward(self, x):
            return self.a(x)[0], self.b(self.bn(x).permute(2, 0, 1))[0]

    module = ready(Two())
    fold(module, X, folds=0)
    done = fold(module, X, folds=1, clone=True).module
    assert done.b.weight_ih_l0 is done.b._flat_weights[0]
    assert torch.equal(done.a.weight_ih_l0, module.a.weight_ih_l0)
    program(module, X, folds=1)


def test_called_twice():
    class Twice(Net):
        def forward(self, x):
            return self.rnn(self.rnn(self.bn(x).permute(2, 0, 1))[0])[0]

    module = ready(Twice(nn.GRU(4, 4)))
    fold(module, X, folds=0, codes=["no-linear-operator"])
    program(module, X, folds=1)


def test_a_weight_that_is_computed():
    module = ready(Net(nn.LSTM(4, 4)))
    parametrizations.weight_norm(module.rnn, "weight_ih_l0")
    fold(module, X, folds=0, codes=["no-linear-operator"])
    module = ready(Net(nn.LSTM(4, 4)))
    parametrizations.weight_norm(module.rnn, "weight_hh_l0")
    fold(module, X, folds=1)


def test_a_packed_sequence_has_no_axis_of_steps():
    graph = torch.fx.Graph()
    data, sizes, state, w, r = (graph.placeholder(name) for name in "dshwr")
    node = graph.call_function(
        torch.ops.aten.gru.data,
        (data, sizes, state, [w, r], False, 1, 0.0, False, False),
    )
    assert ROWS["gru"].read(None, node, arguments(node)) is UNKNOWN


def test_nothing_goes_in_from_behind():
    class Behind(Net):
        def forward(self, x):
            return self.bn(self.rnn(x)[0])

    fold(ready(Behind(nn.LSTM(4, 4))), X, folds=0, codes=["no-linear-operator"])


def test_half_precision():
    module = ready(Net(nn.GRU(4, 4)), torch.float16)
    with torch.no_grad():
        module.rnn.weight_ih_l0.fill_(1e-3)
        module.bn.weight.fill_(1e-6)
    done = fold(module, X.half(), folds=0)
    assert "underflow" in {each.code for each in done.plan.kept}


def old(state, before, name):
    return before[name]


def other_direction(state, before, name):
    end = "_reverse"
    return state[name.removesuffix(end) if name.endswith(end) else name + end]


def off_by_a_thousandth(state, before, name):
    values = state[name].detach().clone()
    values[1] *= 1.001
    return values


@pytest.mark.parametrize("wrong", [old, other_direction, off_by_a_thousandth])
@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_of_a_wrong_parameter_fails(kind, wrong):
    rnn = KINDS[kind](4, 4, 2, bidirectional=True)
    module = ready(Net(rnn), torch.float32)
    program = torch.export.export(module, (X.float(),))
    _, folded = PlannedProgram(program).apply_told().applied
    state, before = folded.after.state_dict, folded.before.state_dict
    for name in [n for n in state if "_ih_l0" in n]:
        made = copy.copy(folded.after)
        value = nn.Parameter(wrong(state, before, name))
        made._state_dict = {**state, name: value}
        found = certify_program([replace(folded, after=made)])
        assert [each.law for each in found if each.fails] == ["absorb"], name
