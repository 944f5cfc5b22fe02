"""Programs whose weights are integers, or rounded to integers: they stay so, and scales move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.export import ExportedProgram  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import bnfold  # noqa: E402
from bnfold._proof.torch_certificate import certify_program  # noqa: E402
from bnfold._torch.program.fold import PlannedProgram  # noqa: E402
from bnfold._torch.read.quantized import Rounded  # noqa: E402

from .folding import rand, ready  # noqa: E402
from .merging import ops  # noqa: E402

pytest.importorskip("torch.ao.quantization.fx._decomposed")  # It defines the operators.
aten, Q = torch.ops.aten, torch.ops.quantized_decomposed
C = 8  # As many inputs as outputs, and as many rows.
LIMITS = (-128, 127, torch.int8)
Weight = Callable[["Stored"], Tensor]


class Stored(nn.Module):
    """Integers with scales per tensor, for each output, for each input and for groups of inputs."""

    def __init__(self, weight: Weight, use: Any, size: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        whole = torch.randint(-100, 101, size, generator=generator, dtype=torch.int8)
        self.register_buffer("w", whole)
        self.register_buffer("few", torch.rand(C, generator=generator) * 0.01 + 0.001)
        self.register_buffer("groups", torch.rand(C, 2, generator=generator) * 0.01 + 0.001)
        self.register_buffer("one", torch.tensor(0.02))
        self.register_buffer("z", torch.arange(C) - 3)
        self.register_buffer("zeros", torch.zeros(C, 2, dtype=torch.int64))
        self.v = nn.Parameter(torch.randn(size, generator=generator))
        self.norm = nn.BatchNorm2d(C) if len(size) == 4 else nn.BatchNorm1d(C)
        self.weight, self.use = weight, use

    def forward(self, x: Tensor) -> Any:
        return self.use(self, x, self.weight(self))


def conv(m: Stored, x: Tensor, w: Tensor) -> Any:
    return m.norm(F.conv2d(x, w))


def transposed(m: Stored, x: Tensor, w: Tensor) -> Any:
    return m.norm(F.conv_transpose2d(x, w))


def linear(m: Stored, x: Tensor, w: Tensor) -> Any:
    return m.norm(F.linear(x, w))


def ahead(m: Stored, x: Tensor, w: Tensor) -> Any:
    return F.linear(m.norm(x), w)


def in_groups(scale: Callable[[Stored], Tensor], zeros: int | None = None) -> Weight:
    """As torchao's operators come apart: groups of inputs have an axis of their own."""

    def weight(m: Stored) -> Tensor:
        q = m.w.view(C, 2, 4).to(torch.float32)
        if zeros is not None:
            q = q - (m.zeros + zeros).view(C, 2, 1).to(torch.float32)
        return (q * scale(m)).view(C, C)

    return weight


IMAGE, ROWS = (C, C, 4, 4), (C, C)
KERNEL, MATRIX = (C, C, 3, 3), (C, C)


def per_tensor(m: Stored) -> Tensor:
    return Q.dequantize_per_tensor(m.w, 0.01, 2, *LIMITS)


def per_channel(axis: int) -> Weight:
    return lambda m: Q.dequantize_per_channel(m.w, m.few, m.z * 0, axis, *LIMITS)


def grouped(m: Stored) -> Tensor:
    return Q.dequantize_per_channel_group(
        m.w, m.groups, m.zeros, -128, 127, torch.int8, 4, torch.float32
    )


def times(shape: tuple[int, ...]) -> Weight:
    return lambda m: m.w.to(torch.float32) * m.few.reshape(shape)


def fake(m: Stored) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(m.v, 0.02, 1, -128, 127)


def fake_of(axis: int) -> Weight:
    return lambda m: torch.fake_quantize_per_channel_affine(
        m.v, m.few, (m.z * 0).to(torch.int32), axis, -128, 127
    )


def rounded(m: Stored) -> Tensor:
    q = Q.quantize_per_channel(m.v, m.few, m.z * 0, 0, *LIMITS)
    return Q.dequantize_per_channel(q, m.few, m.z * 0, 0, *LIMITS)


def by_hand(m: Stored) -> Tensor:
    """As Brevitas exports it."""
    scale = m.few.reshape(-1, 1, 1, 1)
    return torch.clamp(torch.round(m.v / scale), -128, 127) * scale


FOLDED: dict[str, tuple[Weight, Any, tuple[int, ...], tuple[int, ...]]] = {
    "one scale becomes one for each channel": (per_tensor, conv, KERNEL, IMAGE),
    "a scale for each channel": (per_channel(0), conv, KERNEL, IMAGE),
    "of a transposed convolution": (per_channel(1), transposed, KERNEL, IMAGE),
    "linear": (per_channel(0), linear, MATRIX, ROWS),
    "ahead of a linear": (per_channel(1), ahead, MATRIX, ROWS),
    "groups of inputs": (grouped, linear, MATRIX, ROWS),
    "groups of inputs, apart": (
        in_groups(lambda m: m.groups.view(C, 2, 1)),
        linear,
        MATRIX,
        ROWS,
    ),
    "groups with zero points, apart": (
        in_groups(lambda m: m.groups.view(C, 2, 1), 3),
        linear,
        MATRIX,
        ROWS,
    ),
    "one group for each output, apart": (
        in_groups(lambda m: m.few.view(C, 1, 1)),
        linear,
        MATRIX,
        ROWS,
    ),
    "groups of inputs, apart, for each tap": (
        lambda m: (
            m.w.view(C, 2, 4, 3, 3) * m.groups.view(C, 2, 1, 1, 1).expand(C, 2, 1, 3, 3)
        ).view(C, C, 3, 3),
        conv,
        KERNEL,
        IMAGE,
    ),
    "a factor": (times((-1, 1, 1, 1)), conv, KERNEL, IMAGE),
    "a factor that is one number": (lambda m: m.w * 0.02, linear, MATRIX, ROWS),
    "a factor on the left": (lambda m: m.one * m.w.to(torch.float32), linear, MATRIX, ROWS),
    "behind a permutation": (
        lambda m: per_channel(1)(m).t().contiguous(),
        linear,
        MATRIX,
        ROWS,
    ),
    "zero points": (
        lambda m: Q.dequantize_per_channel(m.w, m.few, m.z, 0, *LIMITS),
        conv,
        KERNEL,
        IMAGE,
    ),
    "a fake quantizer": (fake, conv, KERNEL, IMAGE),
    "a fake quantizer with a scale for each channel": (fake_of(0), linear, MATRIX, ROWS),
    "a quantizer and its dequantizer": (rounded, conv, KERNEL, IMAGE),
    "rounded by hand": (by_hand, conv, KERNEL, IMAGE),
}
KEPT: dict[str, tuple[Weight, Any, tuple[int, ...], tuple[int, ...]]] = {
    "scales of inputs, a map of outputs": (per_channel(1), conv, KERNEL, IMAGE),
    "scales of outputs, a map of inputs": (per_channel(0), ahead, MATRIX, ROWS),
    "groups of inputs, a map of inputs": (grouped, ahead, MATRIX, ROWS),
    "groups of inputs, apart, a map of inputs": (
        in_groups(lambda m: m.groups.view(C, 2, 1)),
        ahead,
        MATRIX,
        ROWS,
    ),
    "groups of inputs, apart, with one scale": (in_groups(lambda m: m.one), linear, MATRIX, ROWS),
    "scales of the places within groups": (
        in_groups(lambda m: m.few[:4]),
        linear,
        MATRIX,
        ROWS,
    ),
    "scales of each output and place within groups": (
        in_groups(lambda m: m.few.view(C, 1, 1) * m.few[:4]),
        linear,
        MATRIX,
        ROWS,
    ),
    "groups of outputs": (
        lambda m: (m.w.view(2, 4, C) * m.few[:2].view(2, 1, 1)).view(C, C),
        linear,
        MATRIX,
        ROWS,
    ),
    "groups that are no parts of an axis": (
        lambda m: (m.w.view(2 * C, 4) * m.groups.view(2 * C, 1)).view(C, C),
        linear,
        MATRIX,
        ROWS,
    ),
    "groups behind a permutation, and turned": (
        lambda m: (m.w.view(C, 2, 4) * m.groups.view(C, 2, 1)).permute(0, 2, 1).reshape(C, C),
        linear,
        MATRIX,
        ROWS,
    ),
    "a factor of inputs": (times((1, -1, 1, 1)), conv, KERNEL, IMAGE),
    "integers alone": (lambda m: m.w.to(torch.float32), linear, MATRIX, ROWS),
    "a shift behind the scale": (
        lambda m: m.w * m.few.reshape(-1, 1) + 1,
        linear,
        MATRIX,
        ROWS,
    ),
    "another quotient": (lambda m: m.w / 3.0, linear, MATRIX, ROWS),
}


def program_of(case: tuple[Weight, Any, tuple[int, ...], tuple[int, ...]]) -> Any:
    weight, use, size, shape = case
    module = ready(Stored(weight, use, size), torch.float32)
    x = rand(*shape, dtype=torch.float32)
    return torch.export.export(module, (x,)), x


def same(before: ExportedProgram, after: ExportedProgram, x: Tensor) -> None:
    wanted, found = before.module()(x), after.module()(x)
    assert float((wanted - found).abs().max()) <= 2e-6 * float(wanted.abs().max()) * C


def floats(program: ExportedProgram) -> list[int]:
    """How many floats each parameter and buffer has that the program reads."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    used = [n.name for n in program.graph.nodes if n.op == "placeholder" and n.users]
    held = [program.state_dict[names[name]] for name in used if name in names]
    return [t.numel() for t in held if t.dtype.is_floating_point and t.dtype.itemsize > 1]


def folded(program: ExportedProgram, x: Tensor) -> tuple[bnfold.Plan, ExportedProgram]:
    """Fold; all certificates hold, and PyTorch gives the same."""
    planned = PlannedProgram(program)
    told = planned.apply_told()
    certificates = certify_program(told.applied)
    assert [each for each in certificates if not each.holds or each.unchecked] == []
    same(program, told.program, x)
    return planned.plan, told.program


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("name", FOLDED)
def test_integers_stay_and_scales_take_maps_in(name, lowered):
    program, x = program_of(FOLDED[name])
    program = program.run_decompositions() if lowered else program
    plan, after = folded(program, x)
    assert plan.kept == ()
    assert not any("batch_norm" in op for op in ops(after))
    before = {n: t for n, t in program.state_dict.items() if t.dtype == torch.int8}
    if not name.startswith(("a fake", "a quant", "rounded")):
        assert max(floats(after)) < before["w"].numel()
        assert after.state_dict["w"].dtype == torch.int8
    else:
        assert [op for op in ops(after) if "quant" in op or op == "round"] != []


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("name", KEPT)
def test_integers_that_no_scale_stands_behind_stay_with_a_reason(name, lowered):
    program, x = program_of(KEPT[name])
    program = program.run_decompositions() if lowered else program
    plan, after = folded(program, x)
    assert {kept.code for kept in plan.kept} == {"quantized-weight"}
    assert torch.equal(after.state_dict["w"], program.state_dict["w"])
    assert any("batch_norm" in op for op in ops(after))


def folds(module: nn.Module, x: Tensor) -> tuple[bnfold.Plan, ExportedProgram]:
    return folded(torch.export.export(module, (x,)), x)


def test_a_weight_of_two_operators_is_scaled_for_each():
    """They share integers and scales; each has its own map."""

    def use(m: Stored, x: Tensor, w: Tensor) -> Any:
        return m.norm(F.conv2d(x, w)), F.conv2d(x, w) * m.few.reshape(-1, 1, 1), F.conv2d(x, w)

    for weight in (per_tensor, fake):
        program, x = program_of((weight, use, KERNEL, IMAGE))
        planned = PlannedProgram(program)
        told = planned.apply_told()
        assert all(each.holds for each in certify_program(told.applied))
        for one, other in zip(program.module()(x), told.program.module()(x), strict=True):
            assert float((one - other).abs().max()) <= 2e-6 * float(one.abs().max()) * C
        assert len(planned.plan.folds) == 2
        integers = [t for t in told.program.state_dict.values() if t.dtype == torch.int8]
        assert len(integers) <= 3  # One more where signs turn.


@pytest.mark.parametrize(("lowest", "kept"), [(-128, 1), (-127, 0)])
def test_the_smallest_integer_has_no_negative(lowest, kept):
    module = ready(Stored(per_channel(0), conv, KERNEL), torch.float32)
    module.w[0, 0, 0, 0] = lowest
    with torch.no_grad():
        module.norm.weight[0] = -1.0
    plan, _ = folds(module, rand(*IMAGE, dtype=torch.float32))
    assert [each.code for each in plan.kept] == ["quantized-weight"] * kept


@pytest.mark.parametrize(("limits", "kept"), [((-8, 7), 1), ((-7, 7), 0)])
def test_limits_of_a_fake_quantizer_have_a_negative(limits, kept):
    def weight(m: Stored) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(m.v, 0.2, 0, *limits)

    module = ready(Stored(weight, conv, KERNEL), torch.float32)
    with torch.no_grad():
        module.v[0, 0, 0, 0] = -9.0
        module.norm.weight[0] = -1.0
    plan, _ = folds(module, rand(*IMAGE, dtype=torch.float32))
    assert [each.code for each in plan.kept] == ["quantized-weight"] * kept


def test_numbers_near_the_border_of_two_integers_keep_their_side():
    """``v·a`` over ``s·a`` may fall to the other side. v moves to the integer itself there."""
    module = ready(Stored(fake, linear, MATRIX), torch.float32)
    steps = torch.arange(-30, 34).reshape(C, C) + 0.5
    with torch.no_grad():
        module.v.copy_(torch.nextafter(steps * 0.02, torch.tensor(9.0)))
    program = torch.export.export(module, (rand(*ROWS, dtype=torch.float32),))
    plan = bnfold.plan(program)
    (kept,) = plan.kept  # Where float32 and float64 disagree, nobody knows which it is.
    assert kept.code == "quantized-weight" and "border" in kept.message
    with torch.no_grad():
        module.v.copy_(steps * 0.02 + 1e-5)
    plan, _ = folds(module, rand(*ROWS, dtype=torch.float32))
    assert plan.kept == ()


def test_integers_are_those_that_pytorch_rounds_to():
    """Near the border of two, its float32 may fall to either side: none is known there."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(1000, 1, generator=generator) + 0.01
    zeros = torch.zeros(1000, dtype=torch.int32)
    borders = (torch.arange(-100, 100) + 0.5) * scales
    above = torch.nextafter(borders, torch.tensor(torch.inf))
    for numbers, known in ((borders, False), (above, False), (borders + scales / 100, True)):
        rounding = Rounded(None, -128, 127)
        found = rounding.integers(numbers.numpy(), scales.numpy(), np.zeros((1000, 1)))
        assert np.isnan(found).mean() == (not known)
        integers = Q.quantize_per_channel(numbers, scales[:, 0], zeros, 0, *LIMITS)
        sure = ~np.isnan(found)
        assert np.array_equal(integers.numpy()[sure], found[sure])


def quantized(y: Tensor) -> Tensor:
    return Q.dequantize_per_tensor(Q.quantize_per_tensor(y, 0.05, 0, *LIMITS), 0.05, 0, *LIMITS)


@pytest.mark.parametrize(
    "round_",
    [
        quantized,
        lambda y: torch.fake_quantize_per_tensor_affine(y, 0.05, 0, -128, 127),
        lambda y: torch.fake_quantize_per_channel_affine(
            y, torch.full((C,), 0.05), torch.zeros(C, dtype=torch.int32), 1, -128, 127
        ),
    ],
)
@pytest.mark.parametrize("lowered", [False, True])
def test_data_that_are_rounded_stop_maps_and_say_so(round_, lowered):
    def use(m: Stored, x: Tensor, w: Tensor) -> Any:
        return F.conv2d(round_(m.norm(round_(F.conv2d(x, w)))), w)

    program, _ = program_of((per_tensor, use, (C, C, 1, 1), IMAGE))
    program = program.run_decompositions() if lowered else program
    plan = bnfold.plan(program)
    assert [kept.code for kept in plan.kept] == ["quantizer-between"]
    assert plan.folds == ()


def test_a_module_says_that_its_weights_are_quantized():
    module = ready(Stored(per_channel(0), conv, KERNEL), torch.float32)
    plan = bnfold.plan(module, (rand(*IMAGE, dtype=torch.float32),))
    assert [kept.code for kept in plan.kept] == ["quantized-weight"]


def test_a_mask_of_integers_is_no_quantized_weight():
    def weight(m: Stored) -> Tensor:
        return m.v * (m.w > 0).to(torch.int8)

    program, x = program_of((weight, conv, KERNEL, IMAGE))
    plan, _ = folded(program, x)
    assert plan.kept == ()
