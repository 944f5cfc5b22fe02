"""The proof for programs and modules of PyTorch: what is the same, and what never is proved to be.

Pairs that differ do so in PyTorch's own numbers, on inputs that show it.
"""

from __future__ import annotations

import copy
import json

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from torch import nn  # noqa: E402
from torch.export import Dim  # noqa: E402

import bnfold  # noqa: E402
from bnfold import UsageError  # noqa: E402
from bnfold._command.cli import main  # noqa: E402

from ..graphs import model, op  # noqa: E402
from .folding import rand, ready  # noqa: E402
from .zoo_kinds import NETWORKS  # noqa: E402

F32 = torch.float32
X = rand(2, 3, 6, 6, dtype=F32)
HALVES = (torch.float16, torch.bfloat16)
DIFFERENT = ("refuted", "not proved")


def exported(module, *args, **options):
    return torch.export.export(module, args, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_bnfold_folds_is_proved(name):
    module = ready(NETWORKS[name](), F32)
    program = exported(module, X)
    assert bnfold.prove(program, bnfold.fold(program)).status == "proved"
    folded = bnfold.fold(module, (X,), merge=True)
    found = bnfold.prove(module, folded, (X,))
    assert found.status == "proved", found
    assert found.layers and found.distance < 8


class Small(nn.Module):
    """Norms that fold, one of them ahead of padding; what follows hides differences."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(True))
        self.deep = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        y = self.norm(self.deep(self.stem(x)))
        return self.head(y.mean((2, 3))).mul(50).sigmoid().argmax(1)


def small(dtype=F32, module=Small):
    made = ready(module(), dtype)
    return made, bnfold.fold(made, (X.to(dtype),))


@torch.no_grad()
def dropped_epsilon(one, other):
    norm, conv = one.norm, one.deep
    scale = norm.weight.double() / norm.running_var.double().sqrt()
    other.deep.weight.copy_(conv.weight.double() * scale[:, None, None, None])


@torch.no_grad()
def nearly_one_channel(one, other):
    other.deep.weight[2] *= 1 + 1e-5


@torch.no_grad()
def swapped_channels(one, other):
    other.deep.weight[:, :2] = other.deep.weight[:, [1, 0]]


@torch.no_grad()
def shifted_across_padding(one, other):
    first = other.stem[0]
    other.deep.bias += other.deep.weight[:, 0].sum((1, 2)) * 0.25
    first.bias[0] -= 0.25


@torch.no_grad()
def one_weight(one, other):
    other.head.weight[3, 1] += 3e-6


BUGS = {
    "deep": (dropped_epsilon, nearly_one_channel),
    "head": (one_weight,),
    "": (swapped_channels, shifted_across_padding),
}


@pytest.mark.parametrize("dtype", [F32, torch.float64])
@pytest.mark.parametrize("at", BUGS)
def test_a_planted_bug_is_found_behind_what_hides_it(at, dtype):
    one, other = small(dtype)
    assert bnfold.prove(one, other, (X.to(dtype),)).status == "proved"
    for bug in BUGS[at]:
        wrong = copy.deepcopy(other)
        bug(one, wrong)
        found = bnfold.prove(one, wrong, (X.to(dtype),))
        assert found.status in DIFFERENT
        if at:
            assert (found.status, found.at) == ("refuted", at)


@pytest.mark.parametrize("dtype", HALVES)
def test_units_are_those_of_the_type(dtype):
    one, other = small(dtype)
    right = bnfold.prove(one, other, (X.to(dtype),))
    assert right.status == "proved" and 0 < right.distance < 2
    with torch.no_grad():
        other.deep.weight[1, 2] *= 1 + 64 * torch.finfo(dtype).eps
    wrong = bnfold.prove(one, other, (X.to(dtype),))
    assert (wrong.status, wrong.at) == ("refuted", "deep")


class Dead(nn.Module):
    """Nothing comes through the ReLU."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.conv(x)) - 1e6))


def test_a_weight_of_a_dead_channel_is_seen():
    one, other = small(module=Dead)
    assert torch.equal(one(X), other(X))
    with torch.no_grad():
        other.conv.weight[1] *= 1.01
    assert torch.equal(one(X), other(X))
    assert bnfold.prove(one, other, (X,)).status in DIFFERENT


class Branches(nn.Module):
    """A branch that no example takes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.rare, self.usual = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.norm(self.conv(x)).mean((2, 3))
        return torch.cond(y.sum() > 1e9, self.rare.forward, self.usual.forward, (y,))


def test_branches_are_proved_where_they_are_the_same_code():
    one, other = small(module=Branches)
    assert bnfold.prove(one, other, (X,)).status == "proved"
    with torch.no_grad():
        other.rare.weight[0, 0] *= 1.001
    assert torch.allclose(one(X), other(X), 1e-4, 1e-4)
    assert bnfold.prove(one, other, (X,)).status in DIFFERENT


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.state = nn.BatchNorm2d(3), nn.Buffer(torch.zeros(3))
        self.k = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x, y):
        return self.function(self, x, y)


def written_into(m, x, y):
    z = x + 1
    z[:, 0].mul_(2)
    return z * 3


def written_after(m, x, y):
    z = x + 1
    w = z * 3
    z[:, 0].mul_(2)
    return w


def counted(m, x, y):
    m.state.add_(x.mean((0, 2, 3)))
    return x + m.state[:, None, None]


def drawn_twice(m, x, y):
    return torch.rand_like(x) + torch.rand_like(x)


def drawn_once(m, x, y):
    z = torch.rand_like(x)
    return z + z


def branch_of(m, x, y, factor):
    return torch.cond(x.sum() > 0, lambda z: z * factor, lambda z: z + 1, (x,))


# One function, another one, and whether they are the same.
PAIRS = {
    "the order of outputs": (lambda m, x, y: (x, y), lambda m, x, y: (y, x), False),
    "a dict's keys": (lambda m, x, y: {"a": x, "b": y}, lambda m, x, y: {"b": x, "a": y}, False),
    "a list for a tuple": (lambda m, x, y: [x, y], lambda m, x, y: (x, y), False),
    "an output twice": (lambda m, x, y: (x, x), lambda m, x, y: (x, y), False),
    "an output less": (lambda m, x, y: (x, None), lambda m, x, y: (x, y), False),
    "a number put out": (lambda m, x, y: (x, 3), lambda m, x, y: (x, 4), False),
    "a size put out": (lambda m, x, y: (x, x.shape[0]), lambda m, x, y: (x, x.shape[1]), False),
    "the other input": (lambda m, x, y: x * 2, lambda m, x, y: y * 2, False),
    "a view written into": (written_into, written_after, False),
    "the same, written anew": (
        written_into,
        lambda m, x, y: (x + 1) * 3 * torch.tensor([2.0, 1, 1])[:, None, None],
        None,
    ),
    "in place": (lambda m, x, y: (x + 1).relu_(), lambda m, x, y: (x + 1).relu(), True),
    "a buffer that counts": (counted, counted, None),
    "an input written into": (
        lambda m, x, y: x.add_(1) * 2,
        lambda m, x, y: x.add(1) * 2,
        None,
    ),
    "an input written into in both": (
        lambda m, x, y: x.add_(1) * 2,
        lambda m, x, y: x.add_(1) * 2,
        None,
    ),
    "draws": (drawn_twice, drawn_once, None),
    "dropout in training": (
        lambda m, x, y: F.dropout(x, 0.5, True),
        lambda m, x, y: F.dropout(x, 0.5, False),
        False,
    ),
    "a norm of the batch": (
        lambda m, x, y: F.batch_norm(x, None, None, training=True),
        lambda m, x, y: F.batch_norm(x, m.norm.running_mean, m.norm.running_var),
        False,
    ),
    "a norm of the batch, twice": (
        lambda m, x, y: F.batch_norm(x, None, None, training=True),
        lambda m, x, y: F.batch_norm(x, None, None, training=True),
        True,
    ),
    "a norm in training": (
        lambda m, x, y: F.batch_norm(x, m.norm.running_mean, m.norm.running_var, training=True),
        lambda m, x, y: F.batch_norm(x, m.norm.running_mean, m.norm.running_var, training=True),
        None,
    ),
    "a type between": (lambda m, x, y: x.half().float() * 2, lambda m, x, y: x * 2, None),
    "a wider type between": (lambda m, x, y: x.double().float(), lambda m, x, y: x, True),
    "an integer between": (lambda m, x, y: x.int() * 1.5, lambda m, x, y: x * 1.5, False),
    "another type put out": (lambda m, x, y: x.double() * 2, lambda m, x, y: x * 2, False),
    "bytes of another type": (
        lambda m, x, y: x.view(torch.int32).float(),
        lambda m, x, y: x,
        False,
    ),
    "branches": (
        lambda m, x, y: branch_of(m, x, y, 2.0),
        lambda m, x, y: branch_of(m, x, y, 2.5),
        None,
    ),
    "a branch": (
        lambda m, x, y: branch_of(m, x, y, 2.0),
        lambda m, x, y: branch_of(m, x, y, 2.0),
        True,
    ),
    "axes": (lambda m, x, y: x.transpose(2, 3), lambda m, x, y: x, False),
    "sizes": (lambda m, x, y: x.view(2, 3, 4, 9), lambda m, x, y: x.view(2, 3, 9, 4), False),
    "rows as channels": (lambda m, x, y: x.view(2, 6, -1), lambda m, x, y: x.flatten(2), False),
    "parts": (lambda m, x, y: x.split([1, 2], 1)[1], lambda m, x, y: x.split([2, 1], 1)[0], False),
    "another part": (lambda m, x, y: x.chunk(3, 1)[0], lambda m, x, y: x.chunk(3, 1)[1], False),
    "slices": (lambda m, x, y: x[:, :, 1:], lambda m, x, y: x[:, :, :-1], False),
    "a step": (lambda m, x, y: x[..., ::2], lambda m, x, y: x[..., :3], False),
    "an operator without translation": (
        lambda m, x, y: torch.cumsum(x, 2),
        lambda m, x, y: torch.cumsum(x, 3),
        False,
    ),
    "the same without translation": (
        lambda m, x, y: torch.cumsum(m.norm(x), 2) + torch.lerp(x, y, 0.3),
        lambda m, x, y: torch.cumsum(m.norm(x), 2) + torch.lerp(x, y, 0.3),
        True,
    ),
    "its number": (lambda m, x, y: x.lerp(y, 0.3), lambda m, x, y: x.lerp(y, 0.31), False),
    "its data": (lambda m, x, y: x.lerp(y, 0.3), lambda m, x, y: y.lerp(x, 0.3), False),
    "its parts": (lambda m, x, y: x.sort(2)[0], lambda m, x, y: x.sort(2)[1].float(), False),
    "a convolution's stride": (
        lambda m, x, y: F.conv2d(x, m.conv.weight, stride=(2, 1)),
        lambda m, x, y: F.conv2d(x, m.conv.weight, stride=(1, 2)),
        False,
    ),
    "its padding": (
        lambda m, x, y: F.conv2d(x, m.conv.weight, padding=(1, 0))[:, :, 1:-1],
        lambda m, x, y: F.conv2d(x, m.conv.weight),
        None,
    ),
    "padding": (lambda m, x, y: F.pad(x, (1, 0)), lambda m, x, y: F.pad(x, (0, 1)), False),
    "the padding's mode": (
        lambda m, x, y: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda m, x, y: F.pad(x, (1, 1, 1, 1), mode="circular"),
        False,
    ),
    "pools": (lambda m, x, y: F.max_pool2d(x, 2), lambda m, x, y: F.avg_pool2d(x, 2), False),
    "what a pool counts": (
        lambda m, x, y: F.avg_pool2d(x, 3, 1, 1),
        lambda m, x, y: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        False,
    ),
    "a pool's divisor": (
        lambda m, x, y: F.avg_pool2d(x, 2, divisor_override=3),
        lambda m, x, y: F.avg_pool2d(x, 2),
        False,
    ),
    "where the largest is": (
        lambda m, x, y: F.max_pool2d(x, 2, return_indices=True)[1],
        lambda m, x, y: F.max_pool2d(x, 2, 1, return_indices=True)[1][..., ::2, ::2],
        None,
    ),
    "a reduction": (lambda m, x, y: x.sum(2), lambda m, x, y: x.sum(3), False),
    "resizing": (
        lambda m, x, y: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda m, x, y: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        False,
    ),
    "resizing by rows": (
        lambda m, x, y: F.interpolate(m.norm(x), scale_factor=2),
        lambda m, x, y: m.norm(F.interpolate(x, scale_factor=2)),
        True,
    ),
    "a slope": (lambda m, x, y: F.leaky_relu(x), lambda m, x, y: F.leaky_relu(x, 0.011), False),
    "a bound": (lambda m, x, y: F.relu6(x * 9), lambda m, x, y: (x * 9).clamp(0, 5.9), False),
    "bounds": (lambda m, x, y: F.relu6(x), lambda m, x, y: x.clamp(0, 6), True),
    "an approximation": (
        lambda m, x, y: F.gelu(x),
        lambda m, x, y: F.gelu(x, approximate="tanh"),
        None,
    ),
    "a norm's epsilon": (
        lambda m, x, y: F.layer_norm(x, (6,), eps=1e-3),
        lambda m, x, y: F.layer_norm(x, (6,), eps=1e-2),
        False,
    ),
    "a norm's axes": (
        lambda m, x, y: F.layer_norm(x, (6, 6)),
        lambda m, x, y: F.layer_norm(x, (6,)),
        False,
    ),
    "groups": (
        lambda m, x, y: F.group_norm(x, 1),
        lambda m, x, y: F.group_norm(x, 3),
        False,
    ),
    "alpha": (
        lambda m, x, y: torch.add(m.conv(x), y, alpha=2),
        lambda m, x, y: torch.add(m.conv(x), y),
        False,
    ),
    "a number beyond the type": (
        lambda m, x, y: x.half() * torch.tensor(1e6),
        lambda m, x, y: x.half() * torch.tensor(2e6),
        None,
    ),
    "beside a constant": (lambda m, x, y: x - m.k, lambda m, x, y: m.k - x, False),
    "the module's other layer": (lambda m, x, y: m.conv(x), lambda m, x, y: m.other(x), False),
    "an unused input": (lambda m, x, y: m.conv(x), lambda m, x, y: m.conv(x) + 0 * y, None),
    "a pooled norm": (
        lambda m, x, y: m.norm(F.adaptive_avg_pool2d(x, 1)).flatten(1),
        lambda m, x, y: F.adaptive_avg_pool2d(m.norm(x), 1).flatten(1),
        True,
    ),
    "a joined norm": (
        lambda m, x, y: torch.cat([m.norm(x), y], 1),
        lambda m, x, y: (
            torch.cat([x, y], 1) * torch.cat([m.scale, torch.ones_like(m.scale)])[:, None, None]
            + torch.cat([m.shift, torch.zeros_like(m.shift)])[:, None, None]
        ),
        True,
    ),
}


def rearranged(m, x, y):
    z = x + 1
    w = z.view(2, 3, 36)
    z.relu_()
    return w


def read_again(m, x, y):
    z = x + 1
    w = z.relu_()
    return w + z


def dropped(m, x, y):
    z = x + 1
    F.dropout(z, 0.5, False).relu_()
    return z


def alike(m, x, y):
    z = x + 1
    w = z.type_as(y)
    z.relu_()
    return w


def summed(m, x, y):
    z = x + 1
    w = torch.einsum("nchw->nhwc", z)
    z.relu_()
    return w


# A function that writes into memory, what it means, and what it would mean without that.
WRITING = {
    "a view that is read behind": (
        rearranged,
        lambda m, x, y: (x + 1).relu().view(2, 3, 36),
        lambda m, x, y: (x + 1).view(2, 3, 36),
    ),
    "a name that is read behind": (
        read_again,
        lambda m, x, y: (x + 1).relu() + (x + 1).relu(),
        lambda m, x, y: (x + 1).relu() + (x + 1),
    ),
    "a dropout that is none": (
        dropped,
        lambda m, x, y: (x + 1).relu(),
        lambda m, x, y: x + 1,
    ),
    "a type that is the same": (
        alike,
        lambda m, x, y: (x + 1).relu(),
        lambda m, x, y: x + 1,
    ),
    "an einsum that is a view": (
        summed,
        lambda m, x, y: torch.einsum("nchw->nhwc", (x + 1).relu()),
        lambda m, x, y: torch.einsum("nchw->nhwc", x + 1),
    ),
    "a chain": (
        lambda m, x, y: (x + 1).relu_().add_(y).mul_(2).clamp_(0, 3),
        lambda m, x, y: ((x + 1).relu() + y).mul(2).clamp(0, 3),
        lambda m, x, y: x + 1,
    ),
    "one's own memory": (
        lambda m, x, y: (z := x + 1).mul_(z),
        lambda m, x, y: (x + 1) * (x + 1),
        lambda m, x, y: (x + 1) * x,
    ),
}

UNTOLD = ("a dropout that is none", "a type that is the same", "an einsum that is a view")


@pytest.mark.parametrize("name", WRITING)
def test_what_is_written_is_read_by_every_name(name, tmp_path):
    """Also where a program comes from a file, which does not tell whose memory is shared."""
    args = X * 3, rand(2, 3, 6, 6, dtype=F32, seed=5)
    one, same, other = (ready(Function(each), F32) for each in WRITING[name])
    assert not _differ(one(*copy.deepcopy(args)), same(*args))
    assert _differ(one(*copy.deepcopy(args)), other(*args))
    writing, meant, wrong = (exported(module, *args) for module in (one, same, other))
    torch.export.save(writing, tmp_path / "a.pt2")
    loaded = torch.export.load(tmp_path / "a.pt2")
    assert bnfold.prove(writing, wrong).status in DIFFERENT
    assert bnfold.prove(loaded, wrong).status in DIFFERENT
    assert bnfold.prove(wrong, loaded).status in DIFFERENT
    found = bnfold.prove(loaded, meant)
    assert found.status == ("not proved" if name in UNTOLD else "proved"), found


@pytest.mark.parametrize("name", PAIRS)
def test_functions(name):
    one, other, same = PAIRS[name]
    first = ready(Function(one), F32)
    norm = first.norm
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    first.scale = nn.Parameter(scale.float())
    first.shift = nn.Parameter((norm.bias.double() - scale * norm.running_mean.double()).float())
    second = copy.deepcopy(first)
    second.function = other
    args = X * 3, rand(2, 3, 6, 6, dtype=F32, seed=5)
    found = bnfold.prove(first, second, args)
    assert (found.status == "proved") is (same is True), found
    assert found.status == "proved" or found.why
    if same is False and not name.endswith(("twice", "training")):
        results = [
            torch.utils._pytree.tree_flatten(m(*copy.deepcopy(args))) for m in (first, second)
        ]
        (ones, spec), (others, other_spec) = results
        differ = spec != other_spec or any(
            type(a) is not type(b) or (a != b if not isinstance(a, torch.Tensor) else _differ(a, b))
            for a, b in zip(ones, others, strict=True)
        )
        assert differ


def _differ(a, b):
    return a.dtype != b.dtype or a.shape != b.shape or not torch.allclose(a, b, 1e-4, 1e-4)


def test_inputs_are_those_of_the_same_places():
    class One(nn.Module):
        def forward(self, a, b):
            return a - b

    class Other(nn.Module):
        def forward(self, b, a):
            return a - b

    class Turned(nn.Module):
        def forward(self, b, a):
            return b - a

    One, Other, Turned = (kind().eval for kind in (One, Other, Turned))
    args = X, X + 1
    assert bnfold.prove(One(), Turned(), args).status == "proved"
    assert bnfold.prove(One(), Other(), args).status in DIFFERENT
    named = {"a": X, "b": X + 1}
    assert bnfold.prove(One(), Other(), kwargs=named).status == "proved"
    assert bnfold.prove(One(), Turned(), kwargs=named).status in DIFFERENT


def test_parameters_that_are_one_tensor():
    def tied(turned):
        made = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        made[1].weight = made[0].weight
        if turned:
            made[1].weight = nn.Parameter(made[0].weight.T.clone())
        return ready(made, F32)

    args = (X[..., :3],)
    one, other, apart = tied(False), tied(False), tied(True)
    apart.load_state_dict(one.state_dict())
    assert bnfold.prove(one, other, args).status == "proved"
    assert bnfold.prove(one, apart, args).status == "proved"
    with torch.no_grad():
        apart[1].weight[0, 1] += 1e-3
    assert bnfold.prove(one, apart, args).status in DIFFERENT


class Recurrent(nn.Module):
    """A map of each feature ahead of a recurrent operator, which takes it in."""

    def __init__(self, kind, **given):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.rnn = kind(3, 5, **given)

    def forward(self, x):
        return self.rnn(x * self.scale + self.shift)[0]


ROWS = rand(2, 6, 3, dtype=F32)
RECURRENT = {
    "lstm": (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    "gru": (nn.GRU, {"batch_first": True}),
    "rnn": (nn.RNN, {"nonlinearity": "relu", "bias": False}),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_operators(name):
    kind, given = RECURRENT[name]
    module = ready(Recurrent(kind, **given), F32)
    program = exported(module, ROWS)
    folded = bnfold.fold(program)
    assert "mul" not in str(folded.graph)
    assert bnfold.prove(program, folded).status == "proved"
    for key, held in folded.state_dict.items():
        changed = copy.deepcopy(folded)
        with torch.no_grad():
            changed.state_dict[key].view(-1)[-1] += 1e-4 * (1 + held.view(-1)[-1].abs())
        assert bnfold.prove(program, changed).status in DIFFERENT, key


def test_sizes_that_vary():
    class Rows(nn.Module):
        def __init__(self, turned):
            super().__init__()
            self.conv, self.norm, self.turned = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), turned

        def forward(self, x):
            y = self.norm(self.conv(x))
            return y.flatten(2).mT.reshape(-1, 4) if self.turned else y.flatten(2).reshape(-1, 4)

    one, other = (ready(Rows(turned), F32) for turned in (False, True))
    free = ({0: Dim("n", min=2, max=64), 2: Dim.AUTO, 3: Dim.AUTO},)
    fewer = ({0: Dim("n", min=2, max=8), 2: Dim.AUTO, 3: Dim.AUTO},)
    x = rand(3, 3, 7, 9, dtype=F32)
    wide, narrow = (exported(one, x, dynamic_shapes=each) for each in (free, fewer))
    assert bnfold.prove(wide, bnfold.fold(wide)).status == "proved"
    assert bnfold.prove(wide, exported(other, x, dynamic_shapes=free)).status != "proved"
    assert bnfold.prove(narrow, wide).status == "proved"
    assert bnfold.prove(wide, narrow).status == "not proved"
    assert bnfold.prove(wide, exported(one, x)).status == "not proved"
    found = bnfold.prove(one, bnfold.fold(one, (x,)), (x,), dynamic_shapes=free)
    assert found.status == "proved"


def test_sizes_that_the_data_decide():
    class Chosen(nn.Module):
        def __init__(self, bound):
            super().__init__()
            self.line, self.norm, self.bound = nn.Linear(3, 4), nn.BatchNorm1d(4), bound

        def forward(self, x):
            y = self.norm(self.line(x))
            return y[y[:, 0] > self.bound].flatten()

    x = rand(8, 3, dtype=F32)
    one, other = (ready(Chosen(bound), F32) for bound in (0.0, 0.1))
    assert bnfold.prove(one, bnfold.fold(one, (x,)), (x,)).status == "proved"
    assert bnfold.prove(one, other, (x,)).status == "not proved"


def test_files_and_the_command(tmp_path):
    module, folded = small()
    paths = [str(tmp_path / name) for name in ("a.pt2", "b.pt2", "c.pt2")]
    wrong = copy.deepcopy(folded)
    nearly_one_channel(module, wrong)
    for each, path in zip((module, folded, wrong), paths, strict=True):
        torch.export.save(exported(each, X), path)
    assert bnfold.prove(paths[0], paths[1]).status == "proved"
    assert bnfold.prove(exported(module, X), paths[2]).at == "deep"
    said = CliRunner().invoke(main, ["verify", paths[0], paths[1], "--prove", "-v"])
    assert said.exit_code == 0 and "layers agree within" in said.output
    said = CliRunner().invoke(
        main, ["verify", paths[0], paths[2], "--prove", "--output-format", "json"]
    )
    assert said.exit_code == 1 and json.loads(said.output)["at"] == "deep"
    said = CliRunner().invoke(main, ["verify", paths[0], paths[1], "--prove", "--trust"])
    assert said.exit_code == 0


def to_file(module, path, *args):
    torch.onnx.export(module, args, path, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE)
    return path


def test_a_program_and_a_file(tmp_path):
    module, folded = small()
    module = nn.Sequential(module.stem, module.deep, module.norm).eval()
    folded = nn.Sequential(folded.stem, folded.deep).eval()
    path = to_file(module, tmp_path / "a.onnx", X)
    assert bnfold.prove(module, path, (X,)).status == "proved"
    assert bnfold.prove(path, folded, (X,)).status == "proved"
    assert bnfold.prove(folded, bnfold.fold(path), (X,)).status == "proved"
    with torch.no_grad():
        folded[1].weight[1, 2] *= 1.0001
    found = bnfold.prove(path, folded, (X,))
    assert (found.status, found.at) == ("refuted", "1")
    assert bnfold.prove(module, path, (X[:1],)).status == "not proved"
    torch.export.save(exported(module, X), tmp_path / "a.pt2")
    said = CliRunner().invoke(main, ["verify", str(tmp_path / "a.pt2"), str(path), "--prove"])
    assert said.exit_code == 0, said.output


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_a_softmax_of_a_file_that_takes_several_axes_for_one(kind):
    function = F.softmax if kind == "Softmax" else F.log_softmax

    class Along(nn.Module):
        def forward(self, x):
            return function(x, 1)

    for opset, rank, status in ((13, 3, "proved"), (11, 2, "proved"), (11, 3, "not proved")):
        x = rand(2, 3, 4)[(0,) * (3 - rank)]
        file = model(op(kind, "x", "y", axis=1), x=x.shape, opset=opset)
        assert bnfold.prove(Along().eval(), file, (x.float(),)).status == status


def test_inputs_of_a_file_in_another_order(tmp_path):
    class Less(nn.Module):
        def forward(self, a, b):
            return a - b

    module = Less().eval()
    names = {"dynamo": False, "input_names": ["b", "a"]}
    torch.onnx.export(module, (X, X + 1), tmp_path / "a.onnx", **names)
    assert bnfold.prove(module, tmp_path / "a.onnx", (X, X + 1)).status == "not proved"
    names["input_names"] = ["x", "y"]
    torch.onnx.export(module, (X, X + 1), tmp_path / "a.onnx", **names)
    assert bnfold.prove(module, tmp_path / "a.onnx", (X, X + 1)).status == "proved"


def test_weights_that_pytorch_computes_do_not_refute_a_file(tmp_path):
    made = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)).eval()
    path = to_file(made, tmp_path / "a.onnx", X)
    with torch.no_grad():
        made.parametrizations.weight.original0[1] *= 1.001
    assert bnfold.prove(made, path, (X,)).status == "not proved"


def test_what_is_asked_of_models():
    module, folded = small()
    with pytest.raises(UsageError, match="example inputs"):
        bnfold.prove(module, folded)
    with pytest.raises(UsageError, match="training mode"):
        bnfold.prove(copy.deepcopy(module).train(), folded, (X,))
    with pytest.raises(UsageError, match="freeze_initializers"):
        bnfold.prove(module, folded, (X,), freeze_initializers=True)
    with pytest.raises(UsageError, match="none"):
        bnfold.prove(module, "none.onnx", (X,))
    program = exported(module, X)
    assert bnfold.prove(program, folded, (X,)).status == "proved"
    assert bnfold.prove(program, program.module(), (X,)).status == "proved"


def test_weights_without_numbers_are_not_proved():
    with torch.device("meta"):
        meta = nn.Linear(3, 4).eval()
    program = torch.export.export(meta, (torch.ones(2, 3, device="meta"),))
    assert bnfold.prove(program, program).status == "not proved"
