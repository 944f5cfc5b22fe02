"""Branches of exported programs become one operator; each law, and one step outside of it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import bnfold  # noqa: E402

from .folding import rand, ready  # noqa: E402
from .merging import Net, apart, exported, fold, merges, ops, same  # noqa: E402

C = 4
X = rand(2, C, 6, 7)


def two(one: nn.Module, other: nn.Module, join=torch.add) -> Net:
    return Net(lambda m, x: join(m.a(x), m.b(x)), a=one, b=other)


def conv(kernel=3, outputs=C, **options):
    return nn.Conv2d(C, outputs, kernel, **options)


def argument(program, name, kind="conv2d"):
    (node,) = (n for n in program.graph.nodes if kind in str(n.target))
    names = [argument.name for argument in node.target._schema.arguments]
    return node.args[names.index(name)]


# --- side by side ------------------------------------------------------------------------------

PAIRS = {
    "3x3-and-1x1": (lambda: (conv(padding=1), conv(1)), [3, 3], 1),
    "3x3-and-3x3": (lambda: (conv(padding=1, outputs=5), conv(padding=1, outputs=5)), [3, 3], 1),
    "3x3-and-1x3": (lambda: (conv(padding=1), conv((1, 3), padding=(0, 1))), [3, 3], 1),
    "5x5-and-3x3": (lambda: (conv(5, padding=2), conv(padding=1)), [5, 5], 1),
    "dilated-and-1x1": (lambda: (conv(dilation=2, padding=2), conv(1)), [3, 3], 1),
    "strided": (lambda: (conv(stride=2, padding=1), conv(1, stride=2)), [3, 3], 1),
    "depthwise": (lambda: (conv(padding=1, groups=C), conv(1, groups=C)), [3, 3], C),
    "depthwise-in-dense": (lambda: (conv(padding=1), conv(padding=1, groups=C)), [3, 3], 1),
    "grouped-in-dense": (lambda: (conv(padding=1), conv(1, groups=2)), [3, 3], 1),
    "same": (lambda: (conv(padding="same"), conv(1, padding="valid")), [3, 3], 1),
    "even": (lambda: (conv(2, padding="same"), conv(2, padding="same")), [2, 2], 1),
    "even-and-1x1": (lambda: (conv(4, padding="same"), conv(1)), [4, 4], 1),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("turned", [False, True])
def test_two_convolutions_are_one(name, turned):
    make, kernel, groups = PAIRS[name]
    pair = make()[::-1] if turned else make()
    folded = merges(two(*pair), X, "conv2d")
    assert list(argument(folded, "weight").meta["val"].shape[2:]) == kernel
    assert argument(folded, "groups") == groups


JOINS = {
    "add": torch.add,
    "sub": torch.sub,
    "rsub": torch.rsub,
    "minus": lambda a, b: torch.add(a, b, alpha=-1),
    "in-place": lambda a, b: a.add_(b),
    "minus-in-place": lambda a, b: a.sub_(b),
    "sum": lambda a, b: sum([a, b]),
}


@pytest.mark.parametrize("join", JOINS)
def test_added_in_any_way(join):
    merges(two(conv(padding=1), conv(1), JOINS[join]), X, "conv2d")


def test_where_all_sizes_agree():
    pair = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
    merges(two(*pair), rand(3, 3, 3, 3), "conv2d")


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("batch", [True, False])
def test_any_rank_with_a_batch_or_without(rank, batch):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    x = rand(*([2] if batch else []), C, *(5, 6, 7)[:rank])
    net = two(kind(C, C, 3, padding=1), kind(C, C, 1), lambda a, b: a + b * 2)
    merges(net, x, f"conv{rank}d")


@pytest.mark.parametrize("skip", ["x", "norm", "minus", "scaled", "twice"])
@pytest.mark.parametrize("groups", [1, 2, C])
def test_a_skip_is_a_kernel(skip, groups):
    code = {
        "x": lambda m, x: x + m.a(x),
        "norm": lambda m, x: m.norm(x) + m.a(x),
        "minus": lambda m, x: m.a(x) - x,
        "scaled": lambda m, x: x * m.gamma - m.a(x),
        "twice": lambda m, x: x + m.a(x) + x,
    }[skip]
    net = Net(
        code,
        a=conv(padding=1, groups=groups),
        norm=nn.BatchNorm2d(C),
        gamma=torch.ones(C, 1, 1),
    )
    merges(net, X, "conv2d")


def test_other_terms_are_left():
    """In any association; the signs of what is left are right."""
    part = {"a": conv(padding=1), "b": conv(1), "c": conv(1)}
    merges(
        Net(lambda m, x: m.a(x) + x.relu() - m.b(x) + x.sin() - m.c(x), **part),
        X,
        *["conv2d", "relu", "sin", "add", "add"],
    )
    merges(
        Net(lambda m, x: x.relu() - (m.a(x) + (x.sin() - m.b(x))), **part),
        X,
        *["relu", "conv2d", "sin", "sub", "sub"],
    )


def test_linear_layers():
    x = rand(4, 4, 4)
    wide = nn.Linear(4, 4)
    merges(two(wide, nn.Linear(4, 4, bias=False)), x, "linear")
    merges(Net(lambda m, x: x + m.a(x), a=wide), x, "linear")
    merges(Net(lambda m, x: m.a(x) + x @ m.w, a=wide, w=torch.ones(4, 4)), x, "linear")
    low = Net(
        lambda m, x: m.a(x) + (x @ m.down) @ m.up * 0.5,
        a=wide,
        down=torch.ones(4, 2),
        up=torch.ones(2, 4),
    )
    merges(low, x, "linear")
    merges(Net(lambda m, x: x @ m.v + x @ m.w, v=torch.ones(4, 4), w=torch.ones(4, 4)), x, "linear")
    # The norm is on axis 1, the layer on the last.
    norm = Net(lambda m, x: m.a(x) + m.n(x), a=wide, n=nn.BatchNorm1d(4))
    apart(norm, x, "axis-mismatch")


@pytest.mark.parametrize(
    "pool, fits",
    [
        (lambda x: F.avg_pool2d(x, 3, 1, 1), True),
        (lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), False),
        (lambda x: F.avg_pool2d(x, 3, 1, 1, ceil_mode=True), False),
        (lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=2), False),
    ],
)
def test_an_average(pool, fits):
    net = Net(lambda m, x: m.a(x) + pool(x), a=conv(padding=1))
    if fits:
        merges(net, X, "conv2d")
    else:
        apart(net, X, "not-mergeable")


def test_an_average_without_a_stride_strides_by_its_size():
    net = Net(lambda m, x: m.a(x) + F.avg_pool2d(x, 2), a=conv(2, stride=2))
    merges(net, rand(2, C, 6, 8), "conv2d")


def test_a_token_mixer_in_a_network_with_dropout():
    net = Net(
        lambda m, x: x + m.gamma * (m.drop(m.an(m.a(x))) + m.bn(m.b(x)) + m.n(x) - m.nn(x)),
        a=conv(padding=1, groups=C, bias=False),
        an=nn.BatchNorm2d(C),
        b=conv(1, groups=C, bias=False),
        bn=nn.BatchNorm2d(C),
        n=nn.BatchNorm2d(C),
        nn=nn.BatchNorm2d(C),
        gamma=torch.ones(C, 1, 1),
        drop=nn.Dropout(),
    )
    folded = merges(net, X, "conv2d")
    assert argument(folded, "groups") == C


def test_weights_are_rounded_once():
    """Norms on both branches and one behind the sum: one rounding of all of it."""
    net = Net(
        lambda m, x: m.n(m.an(m.a(x)) + m.bn(m.b(x))),
        a=conv(padding=1, bias=False),
        an=nn.BatchNorm2d(C),
        b=conv(1),
        bn=nn.BatchNorm2d(C),
        n=nn.BatchNorm2d(C),
    )
    net = ready(net, torch.float32)
    folded = fold(net, X.float(), 1e-5)

    def norm(part):
        scale = part.weight.double() / (part.running_var.double() + part.eps).sqrt()
        return scale, part.bias.double() - part.running_mean.double() * scale

    (s, t), (a, c), (b, d) = norm(net.n), norm(net.an), norm(net.bn)
    wanted = net.a.weight.double() * a.reshape(-1, 1, 1, 1)
    wanted[:, :, 1, 1] += (net.b.weight.double() * b.reshape(-1, 1, 1, 1))[:, :, 0, 0]
    weight, bias = (folded.state_dict[name] for name in ("a_weight", "a_bias"))
    assert weight.dtype == torch.float32 and isinstance(weight, nn.Parameter)
    wanted *= s.reshape(-1, 1, 1, 1)
    shift = s * (c + b * net.b.bias.double() + d) + t
    for made, exact in ((weight, wanted), (bias, shift)):
        spacing = torch.finfo(torch.float32).eps * exact.abs()
        assert bool(((made.double() - exact).abs() <= 0.5001 * spacing).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_type(dtype):
    net = ready(two(conv(padding=1), conv(1)), dtype)
    x = rand(2, C, 6, 7, dtype=dtype)
    program = exported(net, x)
    folded = bnfold.fold(program)
    assert ops(folded) == ["conv2d"]
    assert folded.state_dict["a_weight"].dtype == dtype
    same(program, folded, x, 8 * torch.finfo(dtype).eps)


def test_what_would_overflow_stays():
    net = ready(two(conv(padding=1), conv(padding=1)), torch.float16)
    with torch.no_grad():
        net.a.weight.fill_(6e4)
        net.b.weight.fill_(6e4)
    plan = bnfold.plan(exported(net, rand(1, C, 6, 7, dtype=torch.float16)))
    assert (plan.folds, [kept.code for kept in plan.kept]) == ((), ["overflow"])


# --- one step outside ----------------------------------------------------------------------------


def test_strides_differ():
    net = Net(lambda m, x: m.a(x) + m.b(x)[:, :, ::2, ::2], a=conv(1, stride=2), b=conv(1))
    apart(net, X)
    net = two(conv(1, stride=(1, 3)), conv(1, stride=(1, 2)))
    apart(net, rand(2, C, 6, 1), "not-mergeable")


def test_windows_shifted_against_each_other_are_one_where_one_kernel_holds_both():
    """5×5 of dilation 2 and 3×3 of dilation 4 read every second and every fourth input."""
    pair = conv(5, padding=4, dilation=2), conv(3, padding=4, dilation=4)
    folded = merges(two(*pair), rand(1, C, 9, 9), "conv2d")
    assert argument(folded, "dilation") == [2, 2]


def test_dilations_without_a_common_kernel_cost_more():
    pair = conv(3, padding=2, dilation=2), conv(3, padding=3, dilation=3)
    apart(two(*pair), X, "merge-cost")


def test_output_sizes_differ_and_broadcast():
    """One writes a single row, which broadcasts over the rows of the other."""
    pair = conv(1), conv((6, 1))
    apart(two(*pair), X, "not-mergeable")


def test_channels_differ_and_broadcast():
    apart(two(conv(1), conv(1, outputs=1)), X, "not-mergeable")


def test_padding_that_the_second_would_see():
    net = Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(8, C, 1), b=nn.Conv2d(C, 8, 3, padding=1))
    apart(net, rand(1, 8, 5, 5), "merge-cost")
    wide = Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(C, 16, 1), b=nn.Conv2d(16, C, 3, padding=1))
    apart(wide, X, "zero-padding")


def test_series():
    wide = Net(lambda m, x: m.b(m.n(m.a(x))), a=conv(1, 16), n=nn.BatchNorm2d(16), b=None)
    wide.b = nn.Conv2d(16, C, 3)
    merges(wide, X, "conv2d")
    wide.b = nn.Conv2d(16, C, 3, padding=1)
    wide.a, wide.n = conv(1, 16, bias=False), nn.Identity()
    merges(wide, X, "conv2d")
    merges(nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3)), rand(4, 4, 4), "linear")


def test_an_activation_in_a_branch():
    apart(two(conv(padding=1), nn.Sequential(conv(1), nn.ReLU())), X, "not-mergeable")


def test_somebody_else_reads_a_branch():
    net = Net(lambda m, x: ((y := m.a(x)) + m.b(x), y.sin()), a=conv(padding=1), b=conv(1))
    apart(net, X, "shared-output")


def test_a_branch_is_an_output():
    net = Net(lambda m, x: ((y := m.a(x)) + m.b(x), y), a=conv(padding=1), b=conv(1))
    apart(net, X, "graph-output")


def test_a_sum_with_a_factor():
    apart(two(conv(padding=1), conv(1), lambda a, b: torch.add(a, b, alpha=2)), X)


def test_types_that_widen():
    net = ready(Net(lambda m, x: m.a(x).double() + m.b(x), a=conv(1), b=conv(1)), torch.float32)
    assert bnfold.plan(exported(net, X.float())).folds == ()
    net.code = lambda m, x: m.a(x) + x.double().sin() + m.b(x)
    assert bnfold.plan(exported(net, X.float())).folds == ()


def test_training_mode():
    net = ready(two(nn.Sequential(conv(1), nn.BatchNorm2d(C)), conv(1)))
    net.a[1].train()
    plan = bnfold.plan(exported(net, X))
    assert plan.folds == ()


def test_a_weight_that_the_program_changes():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = conv(1)
            self.register_buffer("w", torch.ones(C, C, 1, 1))

        def forward(self, x):
            y = F.conv2d(x, self.w) + self.b(x)
            self.w.add_(1)
            return y

    program = exported(ready(Counting()), X)
    assert not [f for f in bnfold.plan(program).folds if f.merges]


def test_complex_numbers_stay():
    net = two(nn.Conv2d(C, C, 1, dtype=torch.complex64), nn.Conv2d(C, C, 1, dtype=torch.complex64))
    program = exported(net.eval(), torch.randn(1, C, 4, 4, dtype=torch.complex64))
    assert bnfold.plan(program).folds == ()


# --- memory --------------------------------------------------------------------------------------


def test_an_input_that_is_added_to_in_place():
    """Nobody sees what the sum was written into."""
    net = Net(lambda m, x: (y := x.sin()).add_(m.a(y)), a=conv(padding=1))
    merges(net, X, "sin", "conv2d")


def test_the_callers_own_input_is_written_into():
    net = ready(Net(lambda m, x: x.add_(m.a(x)), a=conv(padding=1)))
    program = exported(net, X)
    folded = bnfold.fold(program)
    assert ops(folded) == ops(program)


def test_a_sum_that_is_seen_by_an_older_name():
    def code(m, x):
        y = x.sin()
        z = y.view(2, C, -1)
        return y.add_(m.a(y)), z.cos()

    apart(Net(code, a=conv(padding=1)), X)


def test_a_source_that_is_written_over_between_reads():
    def code(m, x):
        y = x.sin()
        a = m.a(y)
        y.view(-1).mul_(2)
        return a + m.b(y)

    apart(Net(code, a=conv(padding=1), b=conv(1)), X, "shared-output")


def test_a_merged_tensor_that_is_written_over_between_reads():
    def code(m, x):
        y = m.a(x) + m.b(x)
        c = m.c(y)
        y.view(-1).mul_(2)
        return c + m.d(y)

    parts = {name: conv(1) for name in "abcd"}
    folded = fold(ready(Net(code, **parts)), X)
    assert ops(folded) == ["conv2d", "conv2d", "view", "mul_", "conv2d", "add"]


def test_a_source_that_is_written_over_on_its_way_into_a_branch():
    def code(m, x):
        y = x.sin()
        a = m.a(y)
        return a + m.b(y.mul_(2))

    merges(Net(code, a=conv(padding=1), b=conv(1)), X, "sin", "conv2d")


def test_a_term_that_is_written_over_before_it_would_be_read():
    """Without the sum with the first branch the term would be read after it has changed."""

    def code(m, x):
        y = x.sin()
        term = x.cos()
        part = m.a(y) + term
        term.relu_()
        return part + m.b(y), term * 1.5

    apart(Net(code, a=conv(padding=1), b=conv(1)), X, "shared-output")


def test_a_branch_that_is_written_into_on_its_way():
    net = two(conv(padding=1), conv(1), lambda a, b: a.mul_(3).add_(1) + b.sub_(2))
    merges(net, X, "conv2d")


def test_a_view_that_needs_the_order_in_memory():
    """``contiguous`` between the two gives a view its order; one convolution would not."""
    net = Net(
        lambda m, x: m.b(m.a(x).contiguous()).view(2, C, -1), a=conv(1, 16), b=nn.Conv2d(16, C, 1)
    )
    last = X.contiguous(memory_format=torch.channels_last)
    apart(net, last, "not-mergeable")
    merges(net, X, "conv2d", "view")


def test_channels_last_stays():
    net = ready(two(conv(padding=1), conv(1))).to(memory_format=torch.channels_last)
    folded = fold(net, X.contiguous(memory_format=torch.channels_last))
    assert ops(folded) == ["conv2d"]
    weight = folded.state_dict["a_weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


# --- parameters and sizes ------------------------------------------------------------------------


def test_a_layer_that_is_called_twice_is_one():
    net = ready(Net(lambda m, x: m.a(x) + 2 * m.a(x), a=conv(padding=1)))
    folded = fold(net, X)
    assert ops(folded) == ["conv2d"]
    assert torch.allclose(folded.state_dict["a_weight"], 3 * net.a.weight)


def test_a_layer_that_is_used_elsewhere_stays_there():
    net = ready(Net(lambda m, x: m.a(x.sin() + m.a(x) + m.b(x)), a=conv(padding=1), b=conv(1)))
    folded = fold(net, X)
    assert ops(folded) == ["sin", "conv2d", "add", "conv2d"]
    assert torch.equal(folded.state_dict["a.weight"], net.a.weight)


def test_the_program_given_is_not_changed():
    program = exported(ready(two(conv(padding=1), conv(1))), X)
    state = {name: value.clone() for name, value in program.state_dict.items()}
    bnfold.fold(program)
    assert program.state_dict.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in program.state_dict.items())


@pytest.mark.parametrize("axes", [{0: 2}, {2: 4, 3: 4}, {0: 2, 2: 4, 3: 4}])
@pytest.mark.parametrize("stride", [1, 2])
def test_sizes_may_vary(axes, stride):
    net = ready(two(conv(padding=1, stride=stride), conv(1, stride=stride)))
    sizes = {axis: torch.export.Dim(f"d{axis}", min=low) for axis, low in axes.items()}
    program = exported(net, X, dynamic_shapes=(sizes,))
    folded = bnfold.fold(program)
    assert ops(folded) == ["conv2d"]
    for shape in (X.shape, [9 if k in axes else n for k, n in enumerate(X.shape)]):
        same(program, folded, rand(*shape), 1e-10)


def test_a_merged_program_can_be_saved_lowered_and_read(tmp_path):
    folded = fold(ready(two(conv(padding=1), conv(1))), X)
    torch.export.save(folded, tmp_path / "folded.pt2")
    again = torch.export.load(tmp_path / "folded.pt2")
    torch.testing.assert_close(again.module()(X), folded.module()(X))
    torch.testing.assert_close(folded.run_decompositions().module()(X), folded.module()(X))


# --- modules -------------------------------------------------------------------------------------


def test_a_module_says_what_a_program_can():
    net = ready(Net(lambda m, x: m.a(x) + m.b(x) + m.c(x), a=conv(padding=1), b=conv(1), c=None))
    net.c = ready(nn.Sequential(conv(1, 8), nn.Conv2d(8, C, 1)))
    (kept,) = bnfold.plan(net, (X,)).kept
    assert (kept.node, kept.op, kept.code, kept.kind) == ("a", "conv2d", "not-a-module", "merge")
    assert kept.message == (
        "a could become one operator with b, c.0, c.1, which replacing submodules cannot "
        "express: merge=True can where a submodule is a sum of branches, "
        "bnfold.fold(exported_program) anywhere"
    )
    assert torch.equal(bnfold.fold(net, (X,))(X), net(X))


def test_a_module_without_branches_says_nothing():
    net = ready(nn.Sequential(conv(1), nn.ReLU(), conv(1)))
    assert bnfold.plan(net, (X,)).kept == ()
