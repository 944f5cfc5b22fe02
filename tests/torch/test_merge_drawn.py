"""Drawn sums of branches and drawn series in exported programs, sizes agreeing by accident."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import event, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import bnfold  # noqa: E402

from ..searches import ANEW, ONCE  # noqa: E402
from .folding import assert_close, outputs, outputs_of, rand, ready, wide  # noqa: E402
from .merging import exported, ops, planned_and_folded  # noqa: E402

SIZE = 5


class Drawn(nn.Module):
    """A program of steps on numbered tensors: each computes a new one from earlier ones."""

    def __init__(self, parts: list[nn.Module], steps: list[Any], out: list[int]) -> None:
        super().__init__()
        self.parts, self.steps, self.out = nn.ModuleList(parts), steps, out
        self.factor = nn.Parameter(torch.ones(()))

    def extra_repr(self) -> str:
        return f"{self.steps}, out={self.out}"

    def forward(self, x):
        values = [x.sin()]
        for kind, *which in self.steps:
            if kind == "call":
                part, source = which
                values.append(self.parts[part](values[source]))
            elif kind in ("add", "sub", "rsub"):
                a, b = (values[k] for k in which)
                values.append(getattr(torch, kind)(a, b))
            elif kind in ("add_", "sub_"):
                a, b = (values[k] for k in which)
                values.append(getattr(a, kind)(b))
            elif kind == "write":
                values[which[0]].view(-1).mul_(0.5)
            else:
                values.append(FUNCTIONS[kind](self, values[which[0]]))
        return tuple(values[k] for k in self.out)


FUNCTIONS = {
    "relu": lambda m, x: x.relu(),
    "relu_": lambda m, x: F.relu(x, inplace=True),
    "scale": lambda m, x: x * 1.5,
    "scale_": lambda m, x: x.mul_(m.factor),
    "shift": lambda m, x: 2 - x,
    "pool": lambda m, x: POOLS[x.dim()](x, 3, 1, 1),
    "uncounted": lambda m, x: POOLS[x.dim()](x, 3, 1, 1, count_include_pad=False),
}
POOLS = {3: F.avg_pool1d, 4: F.avg_pool2d}
CONVS = {3: nn.Conv1d, 4: nn.Conv2d}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}


class Drawing:
    """Steps and parts as they are drawn; each tensor has so many channels."""

    def __init__(self, draw: Any, rank: int, channels: int) -> None:
        self.draw, self.rank = draw, rank
        self.parts: list[nn.Module] = []
        self.steps: list[Any] = []
        self.widths = [channels]

    def chance(self, out_of: int) -> bool:
        return self.draw(st.integers(1, out_of)) == 1

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def step(self, width: int, *what: Any) -> int:
        self.steps.append(what)
        self.widths.append(width)
        return len(self.widths) - 1

    def call(self, part: nn.Module, width: int, source: int) -> int:
        self.parts.append(part)
        return self.step(width, "call", len(self.parts) - 1, source)

    def linear(self, source: int, wide: int, exact: bool = True) -> int:
        """A layer, which leaves sizes of space as they are if it is to be ``exact``."""
        width = self.widths[source]
        if self.parts and self.chance(12):
            again = self.draw(st.integers(0, len(self.parts) - 1))
            weight = getattr(self.parts[again], "weight", None)
            groups = getattr(self.parts[again], "groups", 1)
            if weight is not None and weight.dim() > 1:
                shape = weight.shape[0], weight.shape[1] * groups
                if shape == (wide, width):
                    return self.step(wide, "call", again, source)
        bias = self.chance(2)
        if self.rank == 2 or (self.rank == 3 and self.rows):
            return self.call(nn.Linear(width, wide, bias=bias), wide, source)
        groups = self.one_of(*(g for g in (1, 1, 2, width) if width % g == wide % g == 0))
        kernel, step = self.one_of(1, 1, 2, 3, 3, 5), self.one_of(1, 1, 2)
        padding: Any = "same" if kernel % 2 == 0 or self.chance(3) else step * (kernel // 2)
        options = {"dilation": step, "padding": padding, "groups": groups, "bias": bias}
        return self.call(CONVS[self.rank](width, wide, kernel, **options), wide, source)

    rows = False

    def branch(self, source: int, wide: int) -> int:
        width = self.widths[source]
        if width == wide and self.chance(5):
            return source
        y = source
        if width == wide and self.chance(5):
            y = self.affine(y)
        elif self.chance(3):
            y = self.linear(self.affine(self.linear(y, self.one_of(1, 2, width, 9))), wide)
        elif self.rank > 2 and not self.rows and width == wide and self.chance(6):
            y = self.step(wide, self.one_of("pool", "pool", "uncounted"), y)
        else:
            y = self.linear(y, wide)
        if self.chance(2):
            y = self.affine(y)
        if self.chance(10):
            y = self.step(wide, self.one_of("relu", "relu_") if y != source else "relu", y)
        return y

    def affine(self, source: int) -> int:
        width = self.widths[source]
        kinds = ["scale", "shift", "norm", "identity"] + ["scale_"] * (source > 0)
        kind = self.one_of(*kinds)
        if kind == "identity":
            return self.call(nn.Dropout(), width, source)
        if kind == "norm" and not self.rows:
            return self.call(NORMS[self.rank](width), width, source)
        return self.step(width, "scale" if kind == "norm" else kind, source)

    def block(self, source: int) -> int:
        width = self.widths[source]
        wide = width if self.chance(2) else self.one_of(1, 2, 3, 4)
        terms = []
        for _ in range(self.one_of(1, 2, 3, 4)):
            terms.append(self.branch(source, wide))
            if self.chance(12):
                self.steps.append(("write", self.draw(st.integers(0, len(self.widths) - 1))))
        while len(terms) > 1:
            a, b = (terms.pop(self.draw(st.integers(0, len(terms) - 1))) for _ in "ab")
            kind = self.one_of("add", "add", "sub", "rsub", "add_", "sub_")
            terms.append(self.step(wide, kind, a, b))
        y = self.affine(terms[0]) if self.chance(3) else terms[0]
        return y if self.chance(3) else self.step(wide, self.one_of("relu", "relu_"), y)


@st.composite
def networks(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    rank, channels = draw(st.sampled_from([2, 3, 4, 4])), draw(st.sampled_from([1, 2, 4, SIZE]))
    drawing = Drawing(draw, rank, channels)
    drawing.rows = rank == 2 or (rank == 3 and drawing.chance(2))
    batch = draw(st.sampled_from([1, 2, channels]))
    shape = (batch, SIZE, channels) if rank == 3 and drawing.rows else None
    y = 0
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        y = drawing.block(y)
    out = [y]
    if drawing.chance(4):
        out.append(draw(st.integers(0, len(drawing.widths) - 1)))
    module = ready(Drawn(drawing.parts, drawing.steps, out), seed=draw(st.integers(0, 99)))
    return module, shape or (batch, channels, *(SIZE, SIZE + 1)[: rank - 2])


def program_of(case: tuple[nn.Module, tuple[int, ...]]) -> Any:
    """What a case exports to; None for the few that PyTorch refuses, such as writing into views
    that are expanded, or for what broadcasts in place.
    """
    module, shape = case
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(rand(*shape))
            return exported(module, rand(*shape))
    except (RuntimeError, ValueError):
        return None


def check(case: tuple[nn.Module, tuple[int, ...]]) -> bnfold.Plan | None:
    """What must hold of any case; its plan, where PyTorch takes it."""
    module, shape = case
    program = program_of(case)
    if program is None:
        event("refused")
        return None
    plan, folded = planned_and_folded(program)
    before, after = wide(program), wide(folded)
    for seed in (1, 2):
        args = (rand(*shape, seed=seed),)
        wanted, made = outputs_of(before, args, {}), outputs_of(after, args, {})
        assert_close(outputs(module, args, {}), wanted)
        assert_close(wanted, made, 1e-8)
    assert len(ops(folded)) <= len(ops(program))
    assert bnfold.plan(folded).folds == ()
    return plan


def test_drawn_networks():
    """And a search whose networks never merge would prove nothing."""
    merged, kept = [], []

    @settings(ONCE, max_examples=30)
    @given(networks())
    def look(case):
        plan = check(case)
        merged.append(plan is not None and any(fold.merges for fold in plan.folds))
        kept.append(plan is not None and any(each.kind == "merge" for each in plan.kept))

    look()
    assert sum(merged) >= len(merged) // 4
    assert any(kept)


@pytest.mark.slow
@settings(ANEW, max_examples=500)
@given(networks())
def test_many_drawn_networks(case):
    check(case)
