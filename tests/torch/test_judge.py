"""Modules and programs are judged as files are: planted errors, float64, what does not run.

Caught here and nowhere else: a comparison in PyTorch that would pass what it could not have seen.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold._judge.power import RestingFold  # noqa: E402
from bnfold._pipeline.modules import compare_programs  # noqa: E402
from bnfold._run.torch_model import Call, TorchModel  # noqa: E402
from bnfold._run.torch_trace import RANDOM  # noqa: E402
from bnfold._torch.module.fold import Example  # noqa: E402

from .folding import rand, ready  # noqa: E402
from .merging import exported  # noqa: E402

X = rand(2, 4, 6, 6, dtype=torch.float32)


class Coded(nn.Module):
    """Some layers, and code that uses them."""

    def __init__(self, code, **parts):
        super().__init__()
        self.code = code
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.code(self, x)


def net(code, **more):
    parts = {"a": nn.Conv2d(4, 4, 3), "norm": nn.BatchNorm2d(4), "b": nn.Conv2d(4, 4, 1), **more}
    return ready(Coded(code, **parts), torch.float32)


def plain(self, x):
    return self.b(F.relu(self.norm(self.a(x))))


def shut(self, x):
    """Nothing of the layers shows, in float64 either."""
    return self.b(F.relu(self.norm(self.a(x)))) * 1e-30 + x[:, :, 2:, 2:]


def opaque(self, x):
    """What the exporter to ONNX has no operator for."""
    return torch.special.bessel_j0(plain(self, x))


def off(module, name="b.weight", channel=1, factor=1.01):
    wrong = copy.deepcopy(module)
    with torch.no_grad():
        dict(wrong.named_parameters())[name][channel] *= factor
    return wrong


# --- planted errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("code, status", [(plain, "pass"), (shut, "inconclusive")])
def test_a_program_that_shows_no_error_is_not_passed(code, status):
    """By a run: the weights may prove it."""
    program = exported(net(code), X)
    result = compare_programs(program, program, 0)
    assert result.status == status
    assert bnfold.verify(program, program).status == "pass"
    assert all(part.noticed for part in result.power) == (status == "pass")
    assert any("planted error" in check.note for check in result.checks) == (status != "pass")


def test_a_wrong_layer_that_does_not_show_is_not_passed():
    program = exported(net(shut), X)
    wrong = copy.deepcopy(program)
    with torch.no_grad():
        wrong.state_dict["b.weight"][1] *= 2
    assert bnfold.verify(program, wrong).status == "inconclusive"


def test_a_module_on_an_example_that_shows_nothing():
    """The drawn inputs of onnxruntime do show it, where they may vary."""
    module = net(plain)
    assert bnfold.verify(module, module, (torch.zeros_like(X) - 50,)).status == "pass"
    assert bnfold.verify(module, off(module), (torch.zeros_like(X) - 50,)).status == "fail"
    module = net(shut)
    assert bnfold.verify(module, off(module), (X,)).status == "inconclusive"


def test_a_module_that_cannot_be_exported_is_compared_as_it_is():
    module = net(opaque)
    result = bnfold.verify(module, module, (X,))
    assert result.status == "pass"
    assert any("not compared in onnxruntime" in note for note in result.notes)
    assert {check.inputs for check in result.checks} >= {"example", "signed", "structured"}
    assert bnfold.verify(module, off(module), (X,)).status == "fail"


def test_a_release_without_a_log_of_its_own(monkeypatch):
    monkeypatch.delattr(torch._C, "_jit_onnx_log")
    module = net(plain)
    assert bnfold.verify(module, module, (X,)).notes == ()


@pytest.mark.parametrize("change", [lambda outputs: outputs.pop(), lambda outputs: outputs.add()])
def test_a_file_with_other_outputs_is_no_file_of_a_module(change, monkeypatch):
    """Which of them belong together nobody knows: PyTorch alone judges, and says why."""
    real = torch.onnx.export

    def export(module, args, path, **options):
        real(module, args, path, **options)
        model = onnx.load(path)
        change(model.graph.output)
        onnx.save(model, path)

    monkeypatch.setattr(torch.onnx, "export", export)
    module = net(lambda self, x: (plain(self, x), x + 1))
    result = bnfold.verify(module, module, (X,))
    assert any("outputs, and it has 2" in note for note in result.notes), result.notes


def test_an_export_that_fails_prints_nothing(capfd):
    @torch.library.custom_op("bnfold_judge::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_fake(torch.empty_like)

    class Twice(nn.Sequential):
        def forward(self, x):
            return twice(super().forward(x))

    net, args = (
        ready(Twice(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.float32),
        (rand(2, 3, 5, 5, dtype=torch.float32),),
    )
    assert bnfold.verify(net, bnfold.fold(net, args), args).status == "pass"
    assert capfd.readouterr() == ("", "")


def test_inputs_that_are_left_out_are_told():
    module = net(lambda self, x: torch.exp(40 * plain(self, x)))
    result = bnfold.verify(module, module, (X,))
    assert "large" not in {check.inputs for check in result.checks}
    assert any("left out" in note for note in result.notes)
    result = bnfold.verify(net(plain), net(plain), (X,))
    assert "large" in {check.inputs for check in result.checks} and not result.notes


def test_an_output_that_no_layer_reaches():
    """It shows no error, and need not."""

    def code(self, x):
        return plain(self, x), x * 2

    program = exported(net(code), X)
    result = bnfold.verify(program, program)
    assert result.status == "pass"
    notes = {check.note for check in result.checks if check.output == "output 1"}
    assert notes == {"no folded layer reaches this output"}


# --- float64 and the models' own type ----------------------------------------------------------


def narrow(self, x):
    """Its code refuses any other type."""
    if x.dtype != torch.float32:
        raise TypeError(f"{x.dtype} is not for me")
    return plain(self, x)


@pytest.mark.parametrize("wrong, status", [(False, "pass"), (True, "fail")])
def test_what_does_not_run_in_float64_is_compared_as_it_is(wrong, status):
    module = net(narrow)
    other = off(module) if wrong else bnfold.fold(module, (X,))
    result = bnfold.verify(module, other, (X,))
    assert result.status == status
    assert any("in float64" in note for note in result.notes)


def test_a_program_that_runs_in_float64_alone_fails():
    """As if a fold had stored a number in another type."""
    program = exported(net(plain), X)
    wrong = copy.deepcopy(program)
    wrong._state_dict = {**wrong.state_dict}
    wrong._state_dict["b.bias"] = nn.Parameter(wrong.state_dict["b.bias"].double())
    assert bnfold.verify(program, wrong).status == "fail"


def test_a_float64_module_passes():
    module = net(plain).double()
    result = bnfold.verify(module, bnfold.fold(module, (X.double(),)), (X.double(),))
    assert result.status == "pass"
    assert bnfold.verify(module, off(module), (X.double(),)).status == "fail"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_few_digits_weights_are_the_witness(dtype):
    """Outputs show no error of 1 %, the weights do; what rests on the outputs is not proved."""
    torch.manual_seed(0)
    layers = [
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(128, 5)),
    ]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.1, 2)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    module = nn.Sequential(*layers).eval().to(dtype)
    program = exported(module, torch.randn(2, 3, 8, 8).to(dtype))
    folded = bnfold.fold(program)
    result = bnfold.verify(program, folded)
    assert result.status == "pass"
    assert dtype == torch.float16 or not all(part.noticed for part in result.power)
    wrong = copy.deepcopy(folded)
    with torch.no_grad():
        wrong.state_dict["0.weight"][1] *= 1.01
    assert bnfold.verify(program, wrong).status != "pass"
    resting = [RestingFold("fold", {"0"})]
    rests = compare_programs(program, folded, 0, False, resting).status
    assert rests == ("pass" if dtype == torch.float16 else "inconclusive")
    assert compare_programs(program, wrong, 0, False, resting).status != "pass"


def test_another_number_of_outputs_fails():
    program, other = exported(net(plain), X), exported(net(lambda s, x: (plain(s, x), x)), X)
    assert bnfold.verify(program, other).status == "fail"


def test_random_numbers_prove_nothing():
    """To a run: the weights prove that both do the same with the same draws."""
    module = net(lambda self, x: plain(self, x) + torch.rand(1))
    program = exported(module, X)
    result = compare_programs(program, program, 0)
    assert result.status == "inconclusive"
    assert "random numbers" in result.checks[0].note
    assert bnfold.verify(program, program).status == "pass"
    assert bnfold.verify(program, exported(off(module), X)).status == "fail"


# --- what a trace tells -------------------------------------------------------------------------


def traced(module, *args):
    return TorchModel(module, Call(Example(args, {})), double=True)


def test_layers_are_those_that_read_weights_in_their_order():
    """Weights that are computed count by what they come from, products by their output channels."""
    parts = {
        "up": nn.ConvTranspose2d(4, 6, 2),
        "normed": nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
        "square": nn.Linear(3, 3),
        "factor": nn.Parameter(torch.rand(3)),
    }

    def code(self, x):
        y = self.up(plain(self, x)).mean((2, 3))
        return self.square(self.normed(y)) * self.factor

    model = traced(net(code, **parts), X)
    found = [(layer.label, layer.axis) for layer in model.layers(model.plantable_weights())]
    assert found == [
        ("a", 0),
        ("norm", 0),
        ("b", 0),
        ("up", 1),
        ("normed.parametrizations.weight", 0),
        ("square", 0),
    ]
    assert "factor" in model.weights
    assert "factor" not in model.plantable_weights()


def test_outputs_depend_on_what_computes_them():
    """Through indices and detached tensors, too; nothing but random numbers is random."""

    def code(self, x):
        y = self.norm(self.a(x))
        return y.argmax(1), self.b(y.detach()), x.abs(), torch.rand(2)

    model = traced(net(code), X)
    assert model.reached(["a.weight"]) == {0, 1}
    assert model.reached(["b.bias"]) == {1}
    assert model.reached([RANDOM]) == model.random() == {3}


def into_a_part(self, x, y):
    made = torch.zeros_like(x[:, :, 2:, 2:])
    made[:, 1:3] = y[:, 1:3]
    return made


def into_a_view(self, x, y):
    made = torch.zeros_like(x[:, :, 2:, 2:])
    view = made.flatten()
    view += y.flatten()
    return made


def into_several(self, x, y):
    made = [torch.zeros_like(y), torch.zeros_like(y)]
    torch._foreach_add_([each.view(-1) for each in made], [x[:, :, 2:, 2:].flatten(), y.flatten()])
    return made[1]


def into_what_is_given(self, x, y):
    made = torch.zeros_like(y)
    torch.mul(y, 2, out=made.view(-1).view_as(y))
    return made


@pytest.mark.parametrize(
    "write", [into_a_part, into_a_view, into_several, into_what_is_given], ids=lambda w: w.__name__
)
def test_what_is_written_into_a_part_of_a_tensor_counts_for_the_tensor(write):
    module = net(lambda self, x: write(self, x, plain(self, x)))
    assert traced(module, X).reached(["a.weight"]) == {0}
    hidden = net(lambda self, x: write(self, x, (plain(self, x) > -1e9).to(x.dtype)))
    assert bnfold.verify(hidden, off(hidden), (X,)).status == "inconclusive"


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: tensor.item(),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.numpy().item(),
        lambda tensor: np.asarray(tensor).item(),
        lambda tensor: np.from_dlpack(tensor).item(),
        lambda tensor: tensor.storage()[0],
    ],
    ids=["item", "list", "numpy", "array", "dlpack", "storage"],
)
def test_outputs_depend_on_the_numbers_that_code_reads(read):
    """No operator takes what a layer puts out to the output, and none shows an error of it."""
    ways = (
        lambda x, number: x * 2 if number > -1e9 else x * 3,
        lambda x, number: x if number > -1e9 else x * 3,
        lambda x, number: x * round(number / 1e9),
    )
    for way in ways:
        module = net(lambda self, x, way=way: way(x, read(plain(self, x).mean())))
        model = traced(module, X)
        assert model.reached(["a.weight"]) == model.reached(["b.bias"]) == {0}
        assert model.reached(["other"]) == set()
    result = bnfold.verify(module, off(module), (X,))
    assert result.status == "inconclusive"
    assert any("reads numbers out of tensors" in note for note in result.notes), result.notes


SIZED = {
    "nonzero": lambda y: (y > 0).nonzero().shape[0],
    "mask": lambda y: len(y[y > 0]),
    "rows": lambda y: y[y[:, 0, 0, 0] > -1e9].size(0),
    "selected": lambda y: y.masked_select(y > 0).numel(),
    "unique": lambda y: len(y.relu().unique()),
    "repeated": lambda y: len(y.repeat_interleave((y.flatten()[:2] > 0).long(), 0)),
}


@pytest.mark.parametrize("name", SIZED)
def test_outputs_depend_on_sizes_that_follow_from_values(name):
    """No operator takes a size to the output."""
    module = net(lambda self, x: x * 2 if SIZED[name](plain(self, x)) < 1e6 else x * 3)
    model = traced(module, X)
    assert model.reached(["a.weight"]) == model.reached(["b.bias"]) == {0}
    assert model.reached(["other"]) == set()
    result = bnfold.verify(module, off(module), (X,))
    assert result.status == "inconclusive"
    assert any("sizes that follow from such numbers" in note for note in result.notes)


def test_sizes_that_no_value_decides():
    """By places there are as many as places, and a mask that is fixed has as many as it has."""
    places, mask = torch.tensor([0, 1, 1]), torch.tensor([True, False, True])

    def code(self, x):
        y = plain(self, x)
        return x * y[:, places].shape[1], x + y[:, :3][:, mask].shape[1]

    model = traced(net(code), X)
    assert model.reached(["a.weight"]) == set()
    assert not model.reads_numbers()


def test_the_inputs_of_the_user_are_not_written_into():
    module = net(lambda self, x: self.b(x.relu_()))
    given = X.clone()
    for double in (True, False):
        model = TorchModel(module, Call(Example((given,), {})), double=double)
        first = model.run({})
        assert np.array_equal(first[0], model.run(Call(Example((given,), {})).feeds())[0])
    assert torch.equal(given, X)


def dead(self, x):
    """A branch that is multiplied by zero."""
    return self.b(F.relu(self.norm(self.a(x)))) * 0 + self.c(x)[:, :, 2:, 2:]


@pytest.mark.parametrize("kind", ["module", "program"])
def test_a_layer_that_is_multiplied_by_zero_is_dead(kind):
    """It hides nothing: what is not zero in the other model shows."""
    module = net(dead, c=nn.Conv2d(4, 4, 1))
    wrong = off(module, "c.weight")
    given = [module, module, wrong]
    if kind == "program":
        given = [exported(each, X) for each in given]
    example = ((X,),) if kind == "module" else ()
    assert bnfold.verify(*given[:2], *example).status == "pass"
    assert bnfold.verify(given[0], given[2], *example).status == "fail"


@pytest.mark.parametrize("norm", ["norm", "b"])
def test_a_norm_or_convolution_of_zeros(norm):
    """As networks are initialized: the last scale of each residual branch is zero."""
    module = net(lambda self, x: self.b(F.relu(self.norm(self.a(x)))) + self.c(x)[:, :, 2:, 2:],
                 c=nn.Conv2d(4, 4, 1))  # fmt: skip
    with torch.no_grad():
        getattr(module, norm).weight.zero_()
    program = exported(module, X)
    assert bnfold.verify(program, program).status == "pass"
    alive = copy.deepcopy(program)
    with torch.no_grad():
        alive.state_dict[f"{norm}.weight"][1] += 0.5
    assert bnfold.verify(program, alive).status == "fail"


# --- what outputs do not show -------------------------------------------------------------------


def test_an_output_that_is_always_empty():
    """It passes if its weights show elsewhere; what no input of these sizes fills is no error."""
    both = net(lambda self, x: (plain(self, x), plain(self, x)[:, 4:], x[:0]))
    result = bnfold.verify(both, bnfold.fold(both, (X,)), (X,))
    assert result.status == "pass"
    assert any("empty on all inputs of these sizes" in check.note for check in result.checks)
    assert bnfold.verify(both, off(both), (X,)).status == "fail"
    program = exported(both, X)
    assert bnfold.verify(program, bnfold.fold(program)).status == "pass"
    hidden = net(lambda self, x: (F.relu(self.norm(self.a(x))), plain(self, x)[:, 4:]))
    pair = exported(hidden, X), exported(off(hidden), X)
    assert compare_programs(*pair, 0).status == "inconclusive"


def test_an_output_that_data_leave_empty():
    """Another input may fill it, and no batch at all shows nothing."""

    def code(self, x):
        y = plain(self, x)
        return y, (y > 1e9).nonzero()

    program = exported(net(code), X)
    assert compare_programs(program, program, 0).status == "inconclusive"
    assert bnfold.verify(program, program).status == "pass"
    module = net(lambda self, x: (plain(self, x), x.mean((2, 3)).sum(0)))
    assert bnfold.verify(module, off(module), (X[:0],)).status != "pass"


@pytest.mark.parametrize("wrong, status", [(False, "pass"), (True, "fail")])
@pytest.mark.parametrize(
    "code",
    [
        lambda self, x: plain(self, (x * 9).to(torch.uint8).float() / 255),
        lambda self, x: plain(self, x) @ torch.ones(4, 2),
        lambda self, x: plain(self, x.half().float()).to(torch.float32),
        lambda self, x: plain(self, torch.zeros_like(x, dtype=torch.float32) + x),
    ],
    ids=["bytes", "made", "half", "like"],
)
def test_code_that_fixes_float32_runs_in_float64(code, wrong, status):
    """Whatever it asks for; where it does not, there is no truth to hold roundings against."""
    module = net(code)
    other = off(module) if wrong else bnfold.fold(module, (X,))
    for pair in ((module, other), (exported(module, X), exported(other, X))):
        result = bnfold.verify(*pair, (X,))
        assert result.status == status
        assert not any("in float64" in note for note in result.notes)
        assert any(check.note == "in float64" for check in result.checks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    def code(self, x):
        with torch.autocast("cpu", dtype=dtype):
            return plain(self, x)

    module = net(code)
    assert bnfold.verify(module, bnfold.fold(module, (X,)), (X,)).status == "pass"
    assert bnfold.verify(module, off(module), (X,)).status == "fail"


def test_a_network_of_few_digits_between_conversions():
    """Its weights are compared though its code asks for a type."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(plain).half()

        def forward(self, x):
            return self.net(x.half()).float()

    module = Half().eval()
    folded = bnfold.fold(module, (X,))
    assert bnfold.verify(module, folded, (X,)).status == "pass"
    for factor in (1.01, 1.1):
        wrong = off(folded, "net.b.weight", factor=factor)
        assert bnfold.verify(module, wrong, (X,)).status != "pass"
    program = exported(module, X)
    assert bnfold.verify(program, bnfold.fold(program)).status == "pass"
