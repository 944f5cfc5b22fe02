"""Programs around quantization by torchao, in eager mode and of exported programs (pt2e)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
torchao = pytest.importorskip("torchao", reason="torchao is not installed")

from torch import Tensor, nn  # noqa: E402
from torch.fx._lazy_graph_module import _use_lazy_graph_module  # noqa: E402
from torchao import quantization as Q  # noqa: E402
from torchao.quantization.pt2e import quantize_pt2e  # noqa: E402
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as X86  # noqa: E402

import bnfold  # noqa: E402

from .folding import rand, ready  # noqa: E402
from .merging import ops  # noqa: E402
from .test_program_quantized import floats, folded  # noqa: E402


def network() -> nn.Module:
    layers = (nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    module = ready(nn.Sequential(*layers, nn.BatchNorm1d(8)), torch.float32)
    with torch.no_grad():
        for norm in (module[1], module[4]):  # torchao's int8 has a -128, whose sign cannot turn.
            norm.weight.abs_()
    return module


def exported(module: nn.Module, x: Tensor, lowered: bool) -> Any:
    program = torch.export.export(module, (x,))
    return program.run_decompositions() if lowered else program


CONFIGS: dict[str, Callable[[], Any]] = {
    "int8": Q.Int8WeightOnlyConfig,
    "intx": Q.IntxWeightOnlyConfig,
    "groups": lambda: Q.IntxWeightOnlyConfig(torch.int4, Q.PerGroup(8)),
    "groups of int8": lambda: Q.Int8WeightOnlyConfig(granularity=Q.PerGroup(8)),
    "float8": Q.Float8WeightOnlyConfig,
    "dynamic": Q.Int8DynamicActivationInt8WeightConfig,
}


WANTED = {
    ("int8", False): (4, {"no-gain": 2}, 2),
    ("int8", True): (6, {"no-gain": 2}, 2),
    ("intx", False): (2, {}, 0),
    ("intx", True): (2, {}, 0),
    ("groups", False): (2, {}, 0),
    ("groups", True): (2, {}, 0),
    ("groups of int8", False): (2, {}, 0),
    ("groups of int8", True): (4, {}, 0),
    ("float8", False): (2, {"no-gain": 2}, 0),
    ("float8", True): (2, {}, 0),
    ("dynamic", False): (4, {"not-carried": 2}, 2),
    ("dynamic", True): (8, {"no-linear-operator": 4, "not-carried": 2}, 2),
}
"""How many folds, what is kept for which reason, and how many norms are left (torchao 0.18)."""


@pytest.mark.parametrize(("name", "lowered"), WANTED)
def test_weights_stay_narrow(name, lowered):
    """torchao keeps a scale in the weight's operator, or in a product behind the linear one."""
    module, x = network(), rand(4, 32, dtype=torch.float32)
    Q.quantize_(module, CONFIGS[name]())
    program = exported(module, x, lowered)
    plan, after = folded(program, x)
    norms = sum("norm" in op for op in ops(after))
    assert (len(plan.folds), Counter(kept.code for kept in plan.kept), norms) == WANTED[
        name, lowered
    ]
    assert max(floats(after)) < 16 * 8 or not lowered


def test_a_verdict_on_weights_that_hold_others():
    """They are no floats that could move; the norms are. Half the scales are wrong in the end."""
    module, x = network(), rand(16, 32, dtype=torch.float32)
    Q.quantize_(module, CONFIGS["groups"]())
    program = exported(module, x, False)
    after = bnfold.fold(program)
    assert bnfold.verify(program, after).status == "pass"
    scales = [t for n, t in after.state_dict.items() if "weight" in n and hasattr(t, "scale")]
    assert scales
    with torch.no_grad():
        scales[0].scale[:8] *= 1.05
    assert bnfold.verify(program, after).status == "fail"


def test_a_module_with_narrow_weights_says_so():
    module, x = network(), rand(4, 32, dtype=torch.float32)
    Q.quantize_(module, Q.IntxWeightOnlyConfig())
    plan = bnfold.plan(module, (x,))
    assert [kept.code for kept in plan.kept] == ["quantized-weight"] * 2


def test_training_for_quantization_keeps_its_rounding():
    module, x = network().train(), rand(4, 32, dtype=torch.float32)
    base = Q.Int8DynamicActivationIntxWeightConfig(torch.int4, Q.PerAxis(0))
    Q.quantize_(module, Q.qat.QATConfig(base, step="prepare"))
    module.eval()
    for lowered in (False, True):
        program = exported(module, x, lowered)
        plan, after = folded(program, x)
        codes = Counter(kept.code for kept in plan.kept)
        if lowered:
            assert codes == {"no-linear-operator": 4}
        else:  # The rounded weights are computed by code that is not followed.
            assert codes == {"not-per-channel": 2, "dynamic-weight": 2}
        assert len(plan.folds) == 4
        assert [op for op in ops(after) if "batch_norm" in op] == ["batch_norm"] * 2 * (not lowered)
        assert ops(after).count("round") == ops(program).count("round")


def quantized_program(module: nn.Module, x: Tensor, dynamic: bool = False) -> Any:
    quantizer = X86.X86InductorQuantizer()
    quantizer.set_global(X86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    with _use_lazy_graph_module(False):  # pt2e reads the code of graphs.
        exported = torch.export.export(module, (x,)).module()
        prepared = quantize_pt2e.prepare_pt2e(exported, quantizer)
        prepared(x)
        return torch.export.export(quantize_pt2e.convert_pt2e(prepared), (x,))


class Behind(nn.Module):
    """What pt2e does not fold itself: a map of rows behind a linear layer, a norm ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.linear, self.gamma = nn.Linear(8, 8), nn.Parameter(torch.ones(8))
        self.last = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.last((self.linear(y) * self.gamma)[:, :, None, None])


@pytest.mark.parametrize("dynamic", [False, True])
def test_programs_that_pt2e_has_quantized(dynamic):
    module, x = ready(Behind(), torch.float32), rand(2, 8, 6, 6, dtype=torch.float32)
    with torch.no_grad():  # No sign turns: there is a -128.
        module.gamma.abs_()
        module.last.weight.abs_()
    program = quantized_program(module, x, dynamic)
    assert any(t.dtype == torch.int8 for t in program.state_dict.values())
    for each in (program, program.run_decompositions()):
        plan, after = folded(each, x)
        assert plan.folds
        assert plan.kept == ()
        assert not [op for op in ops(after) if "batch_norm" in op]
        narrow = [t.numel() for t in after.state_dict.values() if t.dtype == torch.int8]
        assert max(narrow) >= 64
        assert max(floats(after)) <= (8 * 8 * 9 if dynamic else 8)
