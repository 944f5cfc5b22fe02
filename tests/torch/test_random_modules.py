"""Whole modules drawn at random, in sizes that all agree by accident."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import event, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.parametrizations import weight_norm  # noqa: E402

import bnfold  # noqa: E402

from ..searches import ANEW, ONCE  # noqa: E402
from .carrying import normed  # noqa: E402
from .folding import (  # noqa: E402
    assert_close,
    outputs,
    outputs_of,
    planned_and_folded,
    rand,
    ready,
    wide,
)

N = 4
LINEAR = "conv conv transpose linear layer group norm"
AFFINE = "norm norm norm constant instance"
CROSSED = "leaky relu6 abs pool pool mean pad turn swap shuffle upsample"
ANY = f"{LINEAR} {AFFINE} identity relu dropout {CROSSED}"
NOT_FLAT = ("conv", "transpose", "instance", "group", "pool", "pad", "shuffle", "upsample")
OPS = ("mul", "add", "sub", "div", "rsub", "mul_", "add_")


class Constant(nn.Module):
    """Arithmetic with a parameter of any shape that broadcasts, or with a number."""

    def __init__(self, op: str, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.op = op
        self.value = 1.5 if shape is None else nn.Parameter(torch.ones(shape))

    def forward(self, x):
        if self.op == "rsub":
            return self.value - x
        if self.op.endswith("_"):
            return getattr(x, self.op)(self.value)
        return getattr(torch, self.op)(x, self.value)


class Function(nn.Module):
    """An operator without parameters that keeps shapes."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def crossed(kind: str, rank: int, flag: bool) -> nn.Module:
    """An operator that maps may cross."""
    space = (1,) * (2 * (rank - 2))
    size = 2 if rank > 2 else 1
    return {
        "leaky": lambda: nn.LeakyReLU(0.1, inplace=flag),
        "relu6": lambda: nn.ReLU6(inplace=flag),
        "abs": lambda: Function(torch.abs),
        "pool": lambda: Function(pools(rank, flag)),
        "mean": lambda: Function(lambda x: x.mean(-1, keepdim=True).expand_as(x)),
        "pad": lambda: Function(
            lambda x: nn.functional.pad(x, space, mode="constant" if flag else "replicate")[
                (..., *[slice(1, -1)] * (rank - 2))
            ]
        ),
        "turn": lambda: Function(lambda x: x.transpose(-1, -2)),
        "swap": lambda: Function(lambda x: torch.cat(x.split((1, N - 1), 1)[::-1], 1)),
        "shuffle": lambda: Function(lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)),
        "upsample": lambda: Function(
            lambda x: nn.functional.interpolate(x, scale_factor=size)[
                (..., *[slice(None, N)] * (rank - 2))
            ]
        ),
    }[kind]()


def pools(rank: int, largest: bool) -> Any:
    kind = "max" if largest else "avg"
    pool = getattr(nn.functional, f"{kind}_pool{rank - 2}d")
    return lambda x: pool(x, 3, 1, 1)


class Drawn(nn.Module):
    """Runs steps, each of which calls a module on an earlier value or joins two of them."""

    def __init__(self, parts: list[nn.Module], steps: list[Any], out: list[int]) -> None:
        super().__init__()
        self.parts, self.steps, self.out = nn.ModuleList(parts), steps, out
        self.gamma = nn.Parameter(torch.ones(N))

    def forward(self, x):
        values = [x.clone()]
        for kind, which, source, other in self.steps:
            y, z = (values[-1 - k % len(values)] for k in (source, other))
            if kind == "call":
                values.append(self.parts[which % len(self.parts)](y))
            elif kind == "join":
                values.append(y * z.sigmoid() if which % 3 == 0 else y + z)
            elif kind == "sigmoid":
                values.append(y.sigmoid())
            elif kind == "inline":
                values.append(y * self.gamma)
            elif kind == "write":
                y.view(-1).relu_()
            else:
                values.append(y.transpose(-1, -2))
        return tuple(values[-1 - k % len(values)] for k in self.out)


@st.composite
def parts(draw: Any, rank: int, kinds: str = ANY) -> nn.Module:
    wide = [kind for kind in kinds.split() if rank > 2 or kind not in NOT_FLAT]
    kind, bias = draw(st.sampled_from(wide or ["linear"])), draw(st.booleans())
    dims = max(rank - 2, 1)
    groups = draw(st.sampled_from([1, 2, 4]))
    if kind == "conv":
        size = draw(st.sampled_from([1, 3, 3]))
        conv = getattr(nn, f"Conv{dims}d")(N, N, size, padding=size // 2, groups=groups, bias=bias)
        return weight_norm(conv) if draw(st.integers(0, 5)) == 0 else conv
    if kind == "transpose":
        return getattr(nn, f"ConvTranspose{dims}d")(N, N, 3, padding=1, groups=groups, bias=bias)
    if kind == "norm":
        norm = getattr(nn, f"BatchNorm{dims}d")(N, affine=bias)
        norm.kind = draw(st.sampled_from(["any", "any", "positive", "scale", "positive scale"]))
        return norm
    if kind == "instance":
        tracked = draw(st.booleans())
        return getattr(nn, f"InstanceNorm{dims}d")(N, affine=bias, track_running_stats=tracked)
    if kind == "constant":
        sizes = draw(st.lists(st.sampled_from([1, N]), max_size=rank))
        shape = None if draw(st.integers(0, 4)) == 0 else tuple(sizes)
        return Constant(draw(st.sampled_from(OPS)), shape)
    if kind == "relu":
        return nn.ReLU(inplace=bias)
    if kind in CROSSED.split():
        return crossed(kind, rank, bias)
    simple = {
        "linear": lambda: nn.Linear(N, N, bias=bias),
        "identity": nn.Identity,
        "dropout": nn.Dropout,
        "layer": lambda: nn.LayerNorm(N, bias=bias),
        "group": lambda: nn.GroupNorm(2, N),
    }
    return simple[kind]()


KINDS = ["call"] * 12 + ["join", "join", "inline", "write", "turn"]
NEAR = st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, 2])
STEPS = st.tuples(st.sampled_from(KINDS), st.integers(0, 40), NEAR, NEAR)


@st.composite
def modules(draw: Any) -> tuple[nn.Module, int]:
    """A module, and the rank of its input."""
    rank = draw(st.sampled_from([2, 3, 4]))
    some: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        some += [draw(parts(rank, LINEAR)), draw(parts(rank, AFFINE)), draw(parts(rank))]
    steps = [("call", k, 0, 0) for k in range(len(some))]
    for _ in range(draw(st.integers(0, 3))):
        steps.insert(draw(st.integers(0, len(steps))), draw(STEPS))
    if draw(st.booleans()):
        steps.insert(0, ("sigmoid", 0, 0, 0))
    out = [0, *draw(st.lists(st.integers(1, 4), max_size=1))]
    module = ready(Drawn(some, steps, out), seed=draw(st.integers(0, 99)))
    for part in some:
        if isinstance(getattr(part, "weight", None), nn.Parameter) and hasattr(part, "kind"):
            normed(part, part.kind)
    if draw(st.integers(0, 3)) == 0:
        hooked = module.parts[draw(st.integers(0, len(some) - 1))]
        hook = draw(st.sampled_from([lambda m, i, o: None, lambda m, i, o: o * 3]))
        hooked.register_forward_hook(hook)
    return module, rank


def exported(module: nn.Module, x: torch.Tensor) -> Any:
    """What a module exports to; None where PyTorch itself does not run or export it. Of those drawn
    it refuses a few, such as in-place operators that widen a tensor, or that write to an expanded
    one.
    """
    try:
        module(x.clone())
        with torch.no_grad():
            return torch.export.export(module, (x.clone(),), strict=False)
    except (RuntimeError, ValueError):
        return None


def check(drawn: tuple[nn.Module, int], again: bool = False) -> bool:
    """Hold a module's fold to the module, and its program's to the program, whose graph can be
    written in more ways. Whether anything folds in the module.
    """
    module, rank = drawn
    x = rand(*[N] * rank)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    program = exported(module, x)
    if program is None:
        event("refused")
        return False
    plan, folded = planned_and_folded(module, (x,), {})
    for seed in (1, 2):
        args = (rand(*[N] * rank, seed=seed),)
        assert_close(outputs(module, args, {}), outputs(folded, args, {}), 1e-8)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    before, after = wide(program), wide(bnfold.fold(program))
    for seed in (1, 2):
        args = (rand(*[N] * rank, seed=seed),)
        assert_close(outputs_of(before, args, {}), outputs_of(after, args, {}), 1e-8)
    if again:
        placed = bnfold.fold(module, (x,), inplace=True)
        assert_close(outputs(folded, (x,), {}), outputs(placed, (x,), {}), 0.0)
    return bool(plan.folds)


def test_random_modules():
    """And the drawing folds often enough to mean something."""
    folds = []

    @settings(ONCE, max_examples=16)
    @given(modules())
    def look(drawn):
        folds.append(check(drawn))

    look()
    assert sum(folds) >= len(folds) // 3


@pytest.mark.slow
@settings(ANEW, max_examples=800)
@given(modules())
def test_many_random_modules(drawn):
    check(drawn, again=True)
