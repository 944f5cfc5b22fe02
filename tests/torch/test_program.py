"""Exported programs: folded in their graph, with PyTorch itself as the oracle."""

import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold._torch.program.draft import set_argument  # noqa: E402

from ..cli.command import bnfold as command  # noqa: E402
from ..cli.command import process, refused  # noqa: E402
from .merging import ops  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def lively(module: nn.Module) -> nn.Module:
    """Statistics and parameters that no mistake could hide behind."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator) + 0.25
                signs = torch.where(torch.rand(tensor.shape, generator=generator) < 0.4, -1.0, 1.0)
                tensor.copy_(drawn if "var" in name else drawn * signs)
    return module.eval()


def export(module, *args, **options):
    return torch.export.export(module, args, **options)


def same(program, folded, *args, rtol=1e-6):
    """Both in float64: all that may differ is the rounding of the folded weights."""
    wide = [arg.double() if arg.is_floating_point() else arg for arg in args]
    one, two = program.module().double()(*wide), folded.module().double()(*wide)
    one, two = (x if isinstance(x, tuple) else (x,) for x in (one, two))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(a.detach().abs().max()))


class Inline(nn.Module):
    """A scale in the module's own code, which replacing submodules cannot take away."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return 2 - self.bn(self.conv(x)) * self.gamma


def test_what_surgery_leaves_a_program_folds():
    module, x = lively(Inline()), torch.rand(4, 4, 6, 6)
    kept = {reason.code for reason in bnfold.plan(module, (x,)).kept}
    assert kept == {"not-a-module"}
    program = export(module, x)
    folded = bnfold.fold(program)
    assert ops(folded) == ["conv2d"]
    same(program, folded, x)
    assert bnfold.verify(program, folded).status == "pass"


def test_the_program_given_is_not_changed():
    module, x = lively(Inline()), torch.rand(4, 4, 6, 6)
    program = export(module, x)
    text, state = str(program), {k: v.clone() for k, v in program.state_dict.items()}
    folded = bnfold.fold(program)
    assert str(program) == text
    assert program.state_dict.keys() == state.keys()
    assert all(torch.equal(program.state_dict[k], v) for k, v in state.items())
    assert set(folded.state_dict) == {"conv.weight", "conv2d_bias"}


def test_nothing_of_torch_is_told_that_nobody_can_help():
    """A copy of what holds the structure of inputs asks for a class that torch has deprecated."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    example = (torch.randn(1, 3, 6, 6),)
    program = export(net, *example)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = bnfold.fold(program)
        assert bnfold.verify(program, folded).status == "pass"
        assert bnfold.verify(program.module(), folded, example).status == "pass"
        bnfold.fold(program.module(), example)


def test_a_weight_with_two_users_is_cloned():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.two(self.conv(torch.relu(self.one(self.conv(x)))))

    module, x = lively(Twice()), torch.rand(3, 3, 3, 3)
    program = export(module, x)
    folded = bnfold.fold(program)
    assert ops(folded) == ["conv2d", "relu", "conv2d"]
    same(program, folded, x)


def test_what_has_to_stand_stands_as_few_operators():
    class Standing(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x):
            return torch.relu(self.bn(x) * self.scale + 3.0)

    module, x = lively(Standing()), torch.rand(3, 3, 3, 3)
    program = export(module, x)
    folded = bnfold.fold(program)
    assert ops(folded) == ["batch_norm", "relu"]
    same(program, folded, x)
    (kept,) = bnfold.plan(program).kept
    assert kept.code == "no-linear-operator"


@pytest.mark.parametrize("ahead", [nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)])
@pytest.mark.parametrize(
    "behind",
    [
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3).half(),
        nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)),
    ],
)
def test_a_norm_that_is_left_is_one_operator(ahead, behind):
    """A norm ahead of it gives its shift away. As a mul and an add it would cost one more."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.ahead, self.behind = deepcopy(ahead), deepcopy(behind)

        def forward(self, x):
            return self.behind(self.ahead(x) + x)

    half = any(parameter.dtype == torch.half for parameter in behind.parameters())
    module, x = lively(Residual()), torch.rand(3, 3, 3, 3)
    program = export(module.half() if half else module, x.half() if half else x)
    folded = bnfold.fold(program)
    kind = "instance_norm" if isinstance(behind, nn.InstanceNorm2d) else "batch_norm"
    assert ops(folded) == ["mul", "add", kind]
    assert all(
        v.dtype == x.dtype or half for v in folded.state_dict.values() if v.is_floating_point()
    )
    assert bnfold.plan(folded).folds == ()
    same(program, folded, x, rtol=5e-3 if half else 1e-6)


def test_a_shift_without_a_place_is_left_as_an_add():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.bn(nn.functional.linear(x, self.weight)), x

    module, x = lively(Product()), torch.rand(4, 4)
    program = export(module, x)
    folded = bnfold.fold(program)
    assert ops(folded) == ["linear"]
    same(program, folded, x)


def test_dynamic_sizes_stay_dynamic():
    module, x = lively(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())), None
    x = torch.rand(2, 3, 8, 8)
    size = torch.export.Dim("size", min=4, max=64)
    program = export(module, x, dynamic_shapes=({2: size},))
    folded = bnfold.fold(program)
    assert "batch_norm" not in ops(folded)
    same(program, folded, torch.rand(2, 3, 11, 8))


def test_a_fold_at_the_output_keeps_the_signature():
    module, x = lively(nn.Sequential(nn.Conv1d(3, 3, 3), nn.BatchNorm1d(3))), torch.rand(3, 3, 5)
    program = export(module, x)
    folded = bnfold.fold(program)
    named = [spec.arg.name for spec in folded.graph_signature.output_specs]
    (output,) = (node for node in folded.graph.nodes if node.op == "output")
    assert named == [node.name for node in output.all_input_nodes]
    same(program, folded, x)


class Across(nn.Module):
    """Maps that have to cross operators, some of which change their numbers, in both directions."""

    def __init__(self):
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, bias=False)
        self.second, self.last = nn.BatchNorm2d(8), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        y = nn.functional.relu6(
            self.conv(nn.functional.pad(self.first(x), (1, 1, 0, 0), mode="reflect"))
        )
        a, b = (y * 2 + 1).split((3, 5), 1)
        return self.last(self.second(torch.cat((b, a), 1)).mean((2, 3)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_maps_cross_operators(dynamic):
    module, x = lively(Across()), torch.rand(4, 4, 6, 6)
    sizes = {0: torch.export.Dim("n", min=2), 2: torch.export.Dim("h", min=4)}
    program = export(module, x, dynamic_shapes=(sizes,) if dynamic else None)
    folded = bnfold.fold(program)
    wanted = ["pad", "conv2d", "hardtanh", "split_with_sizes", "getitem", "getitem", "cat", "mean"]
    assert ops(folded) == [*wanted, "linear"]
    same(program, folded, x)
    if dynamic:
        same(program, folded, torch.rand(3, 4, 9, 6))
    assert bnfold.verify(program, folded).status == "pass"
    assert bnfold.plan(folded).folds == ()
    assert set(folded.state_dict) >= {"conv.weight", "conv2d_bias", "last.weight", "linear_bias"}


def test_a_layer_that_two_norms_go_into_is_cloned():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 2)
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(self.one(x)), self.conv(self.two(x.sin()))

    module, x = lively(Twice()), torch.rand(3, 3, 3, 3)
    program = export(module, x)
    folded = bnfold.fold(program)
    assert ops(folded) == ["conv2d", "sin", "conv2d"]
    same(program, folded, x)


def test_a_folded_program_is_settled():
    program = export(lively(Inline()), torch.rand(4, 4, 6, 6))
    assert bnfold.plan(bnfold.fold(program)).folds == ()


def test_a_folded_program_can_be_saved_lowered_and_exported(tmp_path):
    module, x = lively(Inline()), torch.rand(4, 4, 6, 6)
    folded = bnfold.fold(export(module, x))
    torch.export.save(folded, tmp_path / "folded.pt2")
    again = torch.export.load(tmp_path / "folded.pt2")
    torch.testing.assert_close(again.module()(x), folded.module()(x))
    lowered = folded.run_decompositions()
    torch.testing.assert_close(lowered.module()(x), folded.module()(x))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.pt2"
    torch.export.save(export(lively(Inline()), torch.rand(4, 4, 6, 6)), path)
    return path


@pytest.mark.parametrize("run", [command, pytest.param(process, marks=pytest.mark.slow)])
def test_command(run, saved, tmp_path):
    output = tmp_path / "fused.pt2"
    done = run(saved, "-o", output)
    assert (done.code, done.err) == (0, "")
    assert "batch_norm" in done.out
    assert "verification: pass" in done.out
    assert ops(torch.export.load(output)) == ["conv2d"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fused.pt2", "model.pt2"]
    again = command(output)
    assert "nothing to fold" in again.out


def test_command_on_what_is_no_program(tmp_path):
    path = tmp_path / "bad.pt2"
    path.write_bytes(b"no program")
    refused(command(path, "-o", tmp_path / "out.pt2"), f"error: {path} is not a .pt2 file")
    assert list(tmp_path.iterdir()) == [path]


def test_command_without_torch_says_what_to_install(saved):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['bnfold', sys.argv[1]]; "
        "from bnfold._command.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr == "error: a .pt2 file takes PyTorch: pip install 'bnfold[torch]'\n"


def test_a_wrong_program_is_not_the_same_function():
    module, x = lively(Inline()), torch.rand(4, 4, 6, 6)
    program = export(module, x)
    folded = bnfold.fold(program)
    with torch.no_grad():
        folded.state_dict["conv.weight"][1] *= 1.01
    assert bnfold.verify(program, folded).status == "fail"


def test_a_path_is_needed_for_other_kinds():
    with pytest.raises(TypeError, match="expected a path"):
        bnfold.fold(torch.zeros(3))


class Standardized(nn.Conv2d):
    """As in NFNet: a norm in training mode makes the weight, from the weight alone."""

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(rows, None, None, training=True, momentum=0.0)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


def test_a_norm_of_a_weight_is_none_of_data():
    """It goes with the weight that it makes, and has no mode to be blamed for."""
    x = torch.randn(2, 4, 5, 5)
    program = export(lively(nn.Sequential(Standardized(4, 4, 3), nn.BatchNorm2d(4))), x)
    folded = bnfold.fold(program)
    assert ops(folded) == ["conv2d"]
    assert not bnfold.plan(program).kept
    same(program, folded, x)


def test_an_argument_that_has_a_name_alone():
    """An operator refuses it at a position, or takes another for it."""
    graph = torch.fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    node = graph.call_function(torch.ops.aten.add.Tensor, (x, y))
    graph.output(node)
    set_argument(node, "alpha", 2)
    set_argument(node, "other", x)
    found = torch.fx.GraphModule(nn.Module(), graph)(torch.tensor(1.0), torch.tensor(10.0))
    assert float(found) == 3.0
