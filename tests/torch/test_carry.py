"""Norms carried across other operators of PyTorch, and one step outside of what is exact.

Batch, channels and sizes agree by accident wherever they can.
"""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402

from .carrying import C, behind, normed, program  # noqa: E402
from .folding import fold, rand, ready  # noqa: E402

X = rand(C, C, C, C)
MORE = ((rand(3, C, 6, 5),),)


def shapes(op):
    """Sizes other than the example's, where an operator takes them."""
    return () if getattr(op, "fixed", False) else MORE


def fixed(op):
    op.fixed = True
    return op


BEHIND = {
    # operator, kind of norm, what stops it ("" where nothing does), channels of the norm, its rank,
    # channels of the conv
    "relu": (F.relu, "positive scale", ""),
    "relu-in-place": (F.relu_, "positive scale", ""),
    "relu-negative": (F.relu, "scale", "not-carried"),
    "relu-shift": (F.relu, "positive", "not-carried"),
    "leaky": (lambda x: F.leaky_relu(x, 0.1), "positive scale", ""),
    "prelu": (nn.PReLU(C), "positive scale", ""),
    "abs": (torch.abs, "positive scale", ""),
    "abs-negative": (torch.abs, "scale", "not-carried"),
    "max-pool": (lambda x: F.max_pool2d(x, 2), "positive", ""),
    "max-pool-negative": (lambda x: F.max_pool2d(x, 2), "any", "not-carried"),
    "max-pool-padded": (lambda x: F.max_pool2d(x, 3, 2, 1), "positive", ""),
    "max-pool-holes": (lambda x: F.max_pool2d(x, 2, 1, 1, 2), "positive", "no-linear-operator"),
    "max-pool-indices": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        "positive",
        "",
    ),
    "adaptive-max": (lambda x: F.adaptive_max_pool2d(x, 2), "positive", ""),
    "adaptive-max-negative": (lambda x: F.adaptive_max_pool2d(x, 2), "any", "not-carried"),
    "average": (lambda x: F.avg_pool2d(x, 2), "any", ""),
    "average-counted": (lambda x: F.avg_pool2d(x, 3, 1, 1), "any", "zero-padding"),
    "average-counted-scale": (lambda x: F.avg_pool2d(x, 3, 1, 1), "scale", ""),
    "average-uncounted": (
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        "any",
        "",
    ),
    "average-ceil": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), "any", "zero-padding"),
    "average-divisor": (
        lambda x: F.avg_pool2d(x, 2, divisor_override=3),
        "any",
        "zero-padding",
    ),
    "adaptive-average": (lambda x: F.adaptive_avg_pool2d(x, 2), "any", ""),
    "mean": (lambda x: x.mean((2, 3)), "any", "", C, 2),
    "mean-kept": (lambda x: x.mean(3, keepdim=True), "any", ""),
    "mean-over-channels": (fixed(lambda x: x.mean(1)), "any", "axis-mismatch", C, 3),
    "sum": (lambda x: x.sum((2, 3)), "any", "not-carried", C, 2),
    "sum-scale": (lambda x: x.sum((2, 3)), "scale", "", C, 2),
    "amax": (lambda x: x.amax((2, 3)), "positive", "", C, 2),
    "amax-negative": (lambda x: x.amax((2, 3)), "any", "not-carried", C, 2),
    "amin": (lambda x: x.amin(3), "positive", "", C, 3),
    "max": (lambda x: x.max(3).values, "positive", "", C, 3),
    "max-with-indices": (
        lambda x: (lambda m: m.values + m.indices)(x.max(3)),
        "positive",
        "no-linear-operator",
        C,
        3,
    ),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), "any", ""),
    "bilinear": (lambda x: F.interpolate(x, size=(7, 3), mode="bilinear"), "any", ""),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"), "any", ""),
    "area": (lambda x: F.interpolate(x, size=3, mode="area"), "any", ""),
    "reflect": (lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), "any", ""),
    "replicate": (lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"), "any", ""),
    "circular": (lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"), "any", ""),
    "zeros": (lambda x: F.pad(x, (1, 1)), "any", "zero-padding"),
    "zeros-scale": (lambda x: F.pad(x, (1, 1)), "scale", ""),
    "twos-scale": (lambda x: F.pad(x, (1, 1), value=2.0), "scale", "not-carried"),
    "pads-channels": (
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)),
        "scale",
        "not-carried",
        C + 2,
    ),
    "cast": (lambda x: x.to(x.dtype).type_as(torch.zeros(1, dtype=x.dtype)), "any", ""),
    "cast, decomposed": (lambda x: torch.ops.aten._to_copy(x, dtype=x.dtype), "any", ""),
    "flip": (lambda x: x.flip(2), "any", ""),
    "flip-channels": (lambda x: x.flip(1), "any", "not-carried"),
    "roll": (lambda x: x.roll((1, 2), (2, 3)), "any", ""),
    "transpose": (lambda x: x.transpose(2, 3), "any", ""),
    "mT": (lambda x: x.mT, "any", ""),
    "permute": (lambda x: x.permute(0, 1, 3, 2), "any", ""),
    "permute-channels": (fixed(lambda x: x.permute(0, 2, 3, 1)), "any", "axis-mismatch"),
    "movedim": (lambda x: x.movedim(2, -1), "any", ""),
    "there-and-back": (lambda x: x.permute(0, 2, 3, 1).movedim(-1, 1), "any", ""),
    "flatten": (lambda x: x.flatten(2), "any", "", C, 3),
    "flatten-all": (fixed(lambda x: x.flatten(1)), "any", "axis-mismatch", C**3, 2),
    "view": (lambda x: x.view(x.shape[0], C, -1), "any", "", C, 3),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2).reshape(-1, C), "any", "", C, 2),
    "as-batch": (fixed(lambda x: x.reshape(C * C, C, C)), "any", "axis-mismatch", C, 3),
    "squeeze": (lambda x: x.mean((2, 3), keepdim=True).squeeze(3), "any", "", C, 3),
    "unsqueeze": (lambda x: x.unsqueeze(2).squeeze(2), "any", ""),
    "unflatten": (lambda x: x.unflatten(1, (2, 2)).flatten(1, 2), "any", ""),
    "shuffle-by-hand": (
        lambda x: x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2),
        "any",
        "",
        6,
        4,
        6,
    ),
    "pixel-shuffle": (lambda x: F.pixel_shuffle(x, 2), "any", "", 2, 4, 8),
    "pixel-unshuffle": (
        fixed(lambda x: F.pixel_unshuffle(x, 2)),
        "any",
        "unknown-shape",
        4 * C,
    ),
    "channel-shuffle": (lambda x: F.channel_shuffle(x, 2), "any", "", 6, 4, 6),
    "expand": (lambda x: x.mean(3, keepdim=True).expand(-1, -1, -1, 5), "any", ""),
    "narrow": (lambda x: x.narrow(1, 1, 2), "any", "", 2),
    "slice": (lambda x: x[:, 1:4:2], "any", "", 2),
    "slice-space": (lambda x: x[:, :, 1:], "any", ""),
    "select": (lambda x: x[:, :, :, 0], "any", "", C, 3),
    "select-channel": (fixed(lambda x: x[:, 1]), "any", "axis-mismatch", C, 3),
    "twice": (lambda x: x + x, "scale", ""),
    "twice-shift": (lambda x: x + x, "any", "shared-output"),
    "scaled-sum": (lambda x: torch.add(x, x, alpha=2), "any", "no-linear-operator"),
    "sigmoid": (torch.sigmoid, "any", "no-linear-operator"),
}


@pytest.mark.parametrize("name", list(BEHIND))
def test_a_norm_behind_an_operator(name):
    op, kind, code, *rest = BEHIND[name]
    module = behind(op, kind, *rest)
    codes = [code] if code else []
    fold(module, X, folds=not code, codes=codes, others=shapes(op))
    program(module, X)


MASK = torch.ones(C * C, C * C, dtype=torch.bool).tril()


def test_a_sum_of_fixed_sizes_takes_the_shift_too():
    """Of a program the number of summands is known; of a module it is that of one example."""
    module = behind(lambda x: x.sum((2, 3)), channels=C, rank=2)
    program(module, X, folds=1)
    dynamic = program(module, X, dynamic_shapes=({2: torch.export.Dim("n", min=2)},))
    assert "aten.add" in str(dynamic.graph)


class Branches(nn.Module):
    """Several convs (or the input itself), an operator, and a norm."""

    def __init__(self, op, channels=C, rank=4, inputs=2, wide=1):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(C, wide * C, 1) for _ in range(inputs))
        self.norm = (nn.BatchNorm1d if rank < 4 else nn.BatchNorm2d)(channels)
        self.op = op

    def forward(self, x):
        result = self.op(x, *(conv(x) for conv in self.convs))
        first, *rest = result if isinstance(result, tuple) else (result,)
        return (self.norm(first), *rest)


BRANCHES = {
    # operator, kind, what stops it, and what the network has of it
    "cat": (lambda x, a, b: torch.cat((a, b), 1), "any", "", {"channels": 2 * C}),
    "cat-along-space": (lambda x, a, b: torch.cat((a, b), -1), "any", "", {}),
    "cat-with-input": (
        lambda x, a, b: torch.cat((a, x), 1),
        "any",
        "shared-output",
        {"channels": 2 * C},
    ),
    "split": (lambda x, a: a.split(C, 1), "any", "", {"inputs": 1, "wide": 2}),
    "split-uneven": (lambda x, a: a.split((C, 3, 1), 1), "any", "", {"inputs": 1, "wide": 2}),
    "split-space": (lambda x, a: a.split(2, 2), "any", "not-carried", {"inputs": 1}),
    "chunk-last": (lambda x, a: a.chunk(2, 1)[1], "any", "", {"inputs": 1, "wide": 2}),
    "part-twice": (
        lambda x, a: (lambda p: (p[1], p[1] + p[0]))(a.chunk(2, 1)),
        "any",
        "shared-output",
        {"inputs": 1, "wide": 2},
    ),
    "unbind": (
        lambda x, a: a.unflatten(1, (2, C)).unbind(1)[0],
        "any",
        "",
        {"inputs": 1, "wide": 2},
    ),
    "unbind-all": (
        lambda x, a: a.unflatten(1, (2, C)).unbind(1),
        "any",
        "not-carried",
        {"inputs": 1, "wide": 2},
    ),
    "add": (lambda x, a, b: a + b, "any", "", {}),
    "add-in-place": (lambda x, a, b: a.add_(b), "any", "", {}),
    "sub": (lambda x, a, b: a - b, "any", "", {}),
    "sub-from-relu": (lambda x, a, b: a.relu() - b, "positive", "", {}),
    "rsub": (lambda x, a, b: torch.rsub(a, b), "any", "", {}),
    "add-less": (lambda x, a, b: torch.add(a, b, alpha=-1), "any", "", {}),
    "sub-less": (lambda x, a, b: torch.sub(a, b, alpha=-1), "any", "", {}),
    "rsub-less": (lambda x, a, b: torch.rsub(a, b, alpha=-1), "any", "", {}),
    "add-input": (lambda x, a: a + x, "any", "shared-output", {"inputs": 1}),
    "add-more": (lambda x, a, b: torch.add(a, b, alpha=2), "any", "no-linear-operator", {}),
    "add-broadcast": (lambda x, a, b: a + b.mean((2, 3), True), "any", "", {}),
    "add-vector": (lambda x, a, b: a + b.mean((0, 1, 2)), "any", "not-carried", {}),
    "mul": (lambda x, a, b: a * b.sigmoid(), "scale", "", {}),
    "mul-square": (lambda x, a: a * a, "scale", "shared-output", {"inputs": 1}),
    "div": (lambda x, a, b: a / b.exp(), "scale", "", {}),
    "divisor": (lambda x, a, b: b.sigmoid() / a.exp(), "scale", "no-linear-operator", {}),
    "matmul-rows": (
        lambda x, a, b: a.flatten(2) @ b.flatten(2).transpose(1, 2).softmax(-1),
        "scale",
        "",
        {"rank": 3},
    ),
    "attention": (
        lambda x, a, b: (
            F.scaled_dot_product_attention(x.flatten(2).mT, a.flatten(2).mT, b.flatten(2).mT).mT
        ),
        "any",
        "",
        {"rank": 3},
    ),
    "attention-masked": (
        lambda x, a, b: (
            F.scaled_dot_product_attention(
                x.flatten(2).mT, a.flatten(2).mT, b.flatten(2).mT, attn_mask=MASK
            ).mT
        ),
        "scale",
        "",
        {"rank": 3},
    ),
    "attention-masked-shift": (
        lambda x, a, b: (
            F.scaled_dot_product_attention(
                x.flatten(2).mT, a.flatten(2).mT, b.flatten(2).mT, attn_mask=MASK
            ).mT
        ),
        "any",
        "zero-padding",
        {"rank": 3},
    ),
}


@pytest.mark.parametrize("name", list(BRANCHES))
def test_a_norm_behind_branches(name):
    op, kind, code, options = BRANCHES[name]
    module = ready(Branches(op, **options))
    normed(module.norm, kind)
    fold(module, X, folds=not code, codes=[code] if code else [])
    program(module, X)


class Written(nn.Module):
    """Two norms of one tensor, one of them written into by what follows."""

    def __init__(self, write):
        super().__init__()
        self.one, self.two = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
        self.a, self.b = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)
        self.write = write

    def forward(self, x):
        x = x.sigmoid()
        y = self.write(self.one(x))
        return self.a(y) + self.b(self.two(x))


def later(x):
    x.relu_()
    return x


def through_a_view(x):
    x.view(-1).relu_()
    return x


@pytest.mark.parametrize("write", [F.relu, F.relu_, later, through_a_view, lambda x: x.mul_(2)])
def test_a_norm_that_made_a_copy_which_is_written_into(write):
    """Without the first norm the write would reach what the second one reads."""
    module = ready(Written(write))
    normed(module.one, "positive scale")
    done = fold(module, X, folds=2 if write is F.relu else None)
    assert len(done.folded) < 3
    program(module, X)


def test_the_callers_tensor_is_not_written_into():
    module = ready(nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(inplace=True), nn.Conv2d(C, C, 1)))
    normed(module[0], "positive scale")
    x = X.clone()
    done = fold(module, x)
    done.module(x), program(module, x).module()(x)
    assert torch.equal(x, X)


class Doubled(nn.Module):
    """A product in place, of which another name is read afterwards."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)

    def forward(self, x):
        y = self.conv(x)
        z = y.view(C, -1)
        return self.norm(y.mul_(3).mul(2)), z


def test_a_product_in_place_that_others_see():
    fold(ready(Doubled()), X)
    program(ready(Doubled()), X)


@pytest.mark.parametrize("where", ["pool", "conv"])
def test_hooks_see_what_they_saw(where):
    module = ready(
        nn.Sequential(nn.Conv2d(C, C, 1), nn.AvgPool2d(2), nn.Identity(), nn.BatchNorm2d(C))
    )
    seen = []
    part = module[1 if where == "pool" else 0]
    part.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    done = fold(module, X, folds=0, codes=["shared-output"])
    seen.clear()
    module(X), done.module(X)
    assert torch.equal(*seen)


def test_a_pre_hook_on_the_operator_in_between():
    module = ready(nn.Sequential(nn.Conv2d(C, C, 1), nn.AvgPool2d(2), nn.BatchNorm2d(C)))
    module[1].register_forward_pre_hook(lambda m, i: None)
    fold(module, X, folds=0, codes=["shared-output"])
    copied = copy.deepcopy(module)
    copied[1]._forward_pre_hooks.clear()
    fold(copied, X, folds=1)


class Scaled(nn.Module):
    """A number times and plus, in the module's own code, behind an operator with numbers."""

    def __init__(self, op):
        super().__init__()
        self.conv, self.op = nn.Conv2d(C, C, 1), op

    def forward(self, x):
        return self.op(self.conv(x)) * 1.7 + 0.4


NUMBERS = {
    "relu6": (F.relu6, "hardtanh"),
    "relu6_": (nn.ReLU6(inplace=True), "hardtanh_"),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.75), "hardtanh"),
    "clamp": (lambda x: x.clamp(-0.5, 0.75), "clamp"),
    "clamp-min": (lambda x: x.clamp(min=-0.5), "clamp"),
    "clamp-max": (lambda x: x.clamp(max=0.5), "clamp"),
    "clamp_min": (lambda x: torch.clamp_min(x, -0.5), "clamp_min"),
    "clamp_max_": (lambda x: torch.clamp_max_(x, 0.5), "clamp_max_"),
    "threshold": (lambda x: F.threshold(x, -0.2, 0.5), "threshold"),
    "threshold_": (nn.Threshold(0.25, -3, inplace=True), "threshold_"),
    "pad": (lambda x: F.pad(x, (1, 0, 0, 2), value=0.25), "pad"),
    "pad-zeros": (lambda x: F.pad(x, (1, 0, 0, 2)), "pad"),
}


@pytest.mark.parametrize("name", list(NUMBERS))
def test_numbers_of_operators_change_in_a_program_and_not_in_a_module(name):
    op, kind = NUMBERS[name]
    module = ready(Scaled(op))
    folded = program(module, X, folds=2)
    kinds = [str(n.target).split(".")[1] for n in folded.graph.nodes if n.op == "call_function"]
    assert kinds == ["conv2d", kind]
    fold(module, X, folds=0)


class ScaledFirst(Scaled):
    """The same numbers ahead of the operator, as far as they are of one sign."""

    def __init__(self, op, scale=1.7):
        super().__init__(op)
        self.scale = scale

    def forward(self, x):
        return self.conv(self.op(x * self.scale + 0.4))


def test_a_threshold_and_its_value_move_ahead_too():
    """One scale above 0 for all and a shift: a scale below 0 turns the order round, and one for
    each channel has no place.
    """
    op = nn.Threshold(0.5, 0.0)
    folded = program(ready(ScaledFirst(op)), X, folds=2)
    assert "threshold" in str(folded.graph) and "mul" not in str(folded.graph)
    assert "mul" in str(program(ready(ScaledFirst(op, -1.7)), X).graph)
    each = torch.linspace(0.5, 2, C, dtype=X.dtype).reshape(-1, 1, 1)
    assert "mul" in str(program(ready(ScaledFirst(op, each)), X).graph)


@pytest.mark.parametrize(("value", "stays"), [(0.0, True), (-40.0, False)])
def test_the_value_of_a_threshold_is_not_lost_beside_a_shift(value, stays):
    """A shift of −100 holds every x at the value, which ``(value + 100) − 100`` would round."""
    module = ready(ScaledFirst(nn.Threshold(0.5, value)))
    module.forward = lambda x: module.conv(module.op(x - 100))
    assert ("sub" in str(program(module, X).graph)) == stays


def test_bounds_that_are_tensors_let_nothing_pass():
    module = ready(Scaled(lambda x: x.clamp(x.new_tensor(-0.5), x.new_tensor(0.75))))
    assert "mul" in str(program(module, X).graph)


def test_an_operator_that_changes_the_type_lets_nothing_pass():
    module = behind(lambda x: x.mean(3, dtype=torch.float32), rank=3)
    module.norm.float()
    (kept,) = bnfold.plan(module, (X,)).kept
    assert (kept.code, kept.at) == ("no-linear-operator", "mean")


class Parts(nn.Module):
    def forward(self, x):
        return x.split(C, 1)


class OfParts(nn.Module):
    """A norm of one of the tensors that a module gives in a list."""

    def __init__(self):
        super().__init__()
        self.conv, self.parts, self.norm = nn.Conv2d(C, 2 * C, 1), Parts(), nn.BatchNorm2d(C)

    def forward(self, x):
        first, second = self.parts(self.conv(x))
        return self.norm(first), second


def test_a_hook_sees_the_list_it_saw():
    module, seen = ready(OfParts()), []
    fold(module, X, folds=1)
    module.parts.register_forward_hook(lambda m, i, o: seen.append([each.clone() for each in o]))
    done = fold(module, X, folds=0, codes=["shared-output"])
    seen.clear()
    module(X), done.module(X)
    assert all(map(torch.equal, *seen))
