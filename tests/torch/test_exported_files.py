"""Is this file what my module computes? A right one passes in every type, a wrong one never.

Caught here and nowhere else: a comparison across runtimes that pairs inputs or outputs wrongly, or
passes what it could not have seen. The files come from PyTorch's own exporter; errors are planted
in them with nothing but the onnx package.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections import namedtuple

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from click.testing import CliRunner  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold._command.cli import main  # noqa: E402

from .folding import rand, ready  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Exporting a model to ONNX:UserWarning"),
]

X = rand(2, 3, 9, 9, dtype=torch.float32)
UNFOLDED = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Unregistered:
    """What torch.export does not know."""

    first: torch.Tensor
    second: torch.Tensor


class Net(nn.Module):
    """Two convolutions with their norms, a linear layer, and what the test makes of its output."""

    def __init__(self, act, made):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8)
        self.head, self.act, self.made = nn.Linear(8, 5), act, made

    def forward(self, x):
        y = self.act(self.norm_a(self.a(x)))
        return self.made(self.head(self.act(self.norm_b(self.b(y))).mean((2, 3))))


def net(act=None, made=lambda y: y, dtype=torch.float32):
    return ready(Net(act or nn.LeakyReLU(0.1), made), dtype)


class Coded(nn.Module):
    """A convolution, and code that uses it."""

    def __init__(self, forward):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.forward = forward.__get__(self)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        y = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v
        return x + nn.functional.gelu(self.out(y))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.norm = nn.LSTM(8, 6, batch_first=True), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.lstm(x)[0].transpose(1, 2))


@pytest.fixture
def export(tmp_path):
    def write(module, args=(X,), **options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        own = copy.deepcopy(module)
        torch.onnx.export(own, args, str(path), dynamo=False, opset_version=17, **options)
        return path

    return write


def status(module, file, args=(X,), **options):
    return bnfold.verify(module, file, args, **options).status


def changed(path, change):
    model = onnx.load(path)
    change(model.graph)
    return model


def off(factor, which):
    """One output channel of a weight is wrong; ``which`` counts among those of two axes or more."""

    def change(graph):
        tensor = [each for each in graph.initializer if len(each.dims) > 1][which]
        values = numpy_helper.to_array(tensor).copy()
        at = (1,) if len(values) > 1 else (0, 1)
        values[at] = (values[at].astype(np.float64) * factor).astype(values.dtype)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def swapped(field):
    def change(graph):
        values = list(getattr(graph, field))[::-1]
        del getattr(graph, field)[:]
        getattr(graph, field).extend(values)

    return change


def other_slope(graph):
    (first, *_) = [node for node in graph.node if node.op_type == "LeakyRelu"]
    first.attribute[0].f *= 1.1


# --- right files pass, wrong ones fail ---------------------------------------------------------


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("options", [{}, UNFOLDED], ids=["folded", "unfolded"])
def test_one_wrong_channel_in_any_layer(export, options, which):
    module = net()
    path = export(module, **options)
    assert status(module, path) == "pass"
    assert status(module, changed(path, off(1.01, which))) == "fail"


@pytest.mark.parametrize("options", [{}, UNFOLDED], ids=["folded", "unfolded"])
def test_a_wrong_constant_of_an_activation(export, options):
    module = net()
    assert status(module, changed(export(module, **options), other_slope)) == "fail"


def test_a_bound_that_only_large_inputs_reach(export):
    module, other = net(nn.ReLU6()), net(nn.Hardtanh(0.0, 20.0))
    assert status(module, export(module)) == "pass"
    assert status(module, export(other)) == "fail"


@pytest.mark.parametrize(
    "module, x",
    [
        (Attention(), rand(2, 5, 8, dtype=torch.float32)),
        (Recurrent(), rand(2, 5, 8, dtype=torch.float32)),
        (Net(nn.GELU(), lambda y: y.softmax(1)), X),
        (Net(nn.ELU(0.7), torch.tanh), X),
    ],
    ids=["attention", "lstm", "softmax", "tanh"],
)
def test_other_networks(export, module, x):
    module = ready(module, torch.float32)
    path = export(module, (x,))
    assert status(module, path, (x,)) == "pass"
    assert status(module, changed(path, off(1.01, -1)), (x,)) == "fail"


def test_a_sigmoid_that_another_runtime_computes_otherwise(export):
    """Near 0 onnxruntime's is off by a rounding of 1, far more than a rounding of the output."""
    module = net(made=lambda y: (y - 12).sigmoid())
    path = export(module)
    assert status(module, path) == "pass"
    assert status(module, changed(path, off(1.01, 0))) == "fail"


@pytest.mark.parametrize(
    "made",
    [
        lambda y: (y, 2 * y),
        lambda y: [y, (2 * y,)],
        lambda y: {"first": y, "second": 2 * y},
        lambda y: Pair(y, 2 * y),
        lambda y: Unregistered(y, 2 * y),
    ],
    ids=["tuple", "nested", "dict", "namedtuple", "dataclass"],
)
def test_outputs_are_paired_by_position(export, made):
    module = net(made=made)
    path = export(net(made=lambda y: (y, 2 * y)), output_names=["some", "other"])
    assert status(module, path) == "pass"
    assert status(module, changed(path, swapped("output"))) == "fail"


def test_another_number_or_type_of_outputs(export):
    two = export(net(made=lambda y: (y, y)))
    result = bnfold.verify(net(), two, (X,))
    assert result.status == "fail"
    assert result.notes == ("the file puts out 2 tensors, the module 1",)
    assert status(net(made=lambda y: y.double()), export(net())) == "fail"


# --- inputs go in by order ----------------------------------------------------------------------


def difference(self, x, y, flag=True):
    return self.conv(x) - 2 * self.conv(y)


def test_inputs_by_order(export):
    module, y = Coded(difference).eval(), rand(2, 3, 9, 9, seed=2, dtype=torch.float32)
    path = export(module, (X, y), input_names=["first", "second"])
    assert status(module, path, (X, y)) == "pass"
    assert status(module, path, (X, y, True)) == "pass"
    assert status(module, path, (), kwargs={"y": y, "x": X}) == "pass"
    assert status(module, changed(path, swapped("input")), (X, y)) == "fail"


def test_keywords_by_name(export):
    """One exporter has them in the order of the call, another in that of the signature."""

    def forward(self, x, a, b):
        return self.conv(x + a - 2 * b)

    module = Coded(forward).eval()
    a, b = (rand(2, 3, 9, 9, seed=seed, dtype=torch.float32) for seed in (2, 3))
    by_call, by_signature = {"b": b, "a": a}, {"a": a, "b": b}
    names = ["x", "a", "b"]
    path = export(module, (X,), kwargs=by_signature, input_names=names)
    for kwargs in (by_call, by_signature):
        program = torch.export.export(module, (X,), kwargs)
        for order in ([0, 1, 2], [0, 2, 1]):
            made = changed(path, lambda graph, order=order: reordered(graph, order))
            assert status(module, made, (X,), kwargs=kwargs) == "pass"
            assert bnfold.verify(program, made).status == "pass"
            other_names(made.graph)
            wanted = "pass" if order == [0, 1, 2] else "fail"
            assert status(module, made, (X,), kwargs=kwargs) == wanted


def reordered(graph, order):
    values = [graph.input[number] for number in order]
    del graph.input[:]
    graph.input.extend(values)


def other_names(graph):
    names = {value.name: f"given {number}" for number, value in enumerate(graph.input)}
    for value in graph.input:
        value.name = names[value.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def test_an_input_that_the_exporter_left_out(export):
    def forward(self, x, unused, y):
        return self.conv(x) - 2 * self.conv(y)

    module, y = Coded(forward).eval(), rand(2, 3, 9, 9, seed=2, dtype=torch.float32)
    path = export(module, (X, torch.ones(3), y))
    assert len(onnx.load(path).graph.input) == 2
    assert status(module, path, (X, torch.ones(3), y)) == "pass"
    assert status(module, path, (y, torch.ones(3), X)) == "pass"
    result = bnfold.verify(net(), path, (X,))
    assert result.status == "fail" and "takes 2 inputs" in result.notes[-1]


def test_bytes_and_indices(export):
    """Bytes of an image are drawn, too: an example of zeros shows no weight."""

    def forward(self, image, ids):
        return self.conv(image.float() / 255)[:, ids]

    module, ids = Coded(forward).eval(), torch.tensor([2, 0])
    zeros = torch.zeros(2, 3, 9, 9, dtype=torch.uint8)
    path = export(module, (zeros, ids))
    assert status(module, path, (zeros, ids)) == "pass"
    assert status(module, changed(path, off(1.01, 0)), (zeros, torch.tensor([1, 1]))) == "fail"


def test_other_types_and_sizes_than_the_file_takes(export):
    module = net()
    path = export(module)
    assert status(copy.deepcopy(module).double(), path, (X.double(),)) == "fail"
    with pytest.raises(bnfold.UsageError, match=r"sizes \[2, 3, 9, 9\], and the example has \[1"):
        status(module, path, (X[:1],))
    free = export(module, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    assert status(module, free, (X[:1],)) == "pass"


# --- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, UNFOLDED], ids=["folded", "unfolded"])
def test_float64(export, options):
    """ε and α stand in the file in float32, and that is no error."""
    module, x = net(dtype=torch.float64), X.double()
    path = export(module, (x,), **options)
    assert status(module, path, (x,)) == "pass"
    assert status(module, changed(path, off(1.0001, 0)), (x,)) == "fail"
    assert status(module, changed(path, other_slope), (x,)) == "fail"


@pytest.mark.parametrize("options", [{}, UNFOLDED], ids=["folded", "unfolded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_few_digits(export, dtype, options):
    """Outputs show no wrong weight there; weights do, and with the file's all else is seen."""
    module, x = net(dtype=dtype), X.to(dtype)
    path = export(module, (x,), **options)
    assert status(module, path, (x,)) == "pass"
    small = 1.01 if dtype == torch.float16 else 1.04  # the exporter folds in the type itself
    for change in (off(small, 1), off(1.25, 0), other_slope):
        assert status(module, changed(path, change), (x,)) != "pass"


def test_few_digits_of_weights_that_are_alike(export):
    """Two layers of one shape: each weight is found, and not in the other layer's place."""

    def forward(self, x):
        y = self.one(x).relu()
        return self.conv(y.flatten(1).unflatten(1, (3, 3, 3))), self.two(self.one(y)) @ self.square

    def made():
        module = Coded(forward)
        module.one, module.two = nn.Linear(27, 27), nn.Linear(27, 27, bias=False)
        module.square = nn.Parameter(torch.zeros(27, 27))
        return ready(module, torch.float16)

    module, x = made(), rand(2, 27, dtype=torch.float16)
    path = export(module, (x,))
    assert status(module, path, (x,)) == "pass"
    other = copy.deepcopy(module)
    other.one.weight, other.two.weight = module.two.weight, module.one.weight
    assert status(other, path, (x,)) != "pass"
    for which in range(3):
        assert status(module, changed(path, off(1.01, which)), (x,)) != "pass"


# --- what is no proof ---------------------------------------------------------------------------


def test_an_output_that_hides_every_error(export):
    """Weights settle it, as far as rounding lets them."""
    module = net(made=lambda y: 1e-30 * y + 1)
    path = export(module)
    result = bnfold.verify(module, path, (X,))
    assert result.status == "pass" and result.proof.status == "proved"
    assert status(module, changed(path, other_slope)) == "inconclusive"
    assert status(module, changed(path, off(2.0, 0))) == "fail"


class Buffered(nn.Module):
    """Something of a norm's output, and something of stored numbers."""

    def __init__(self, held, code):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("held", held)
        self.code = code

    def forward(self, x):
        return self.code(self, self.norm(self.conv(x)))


SETTLED = {
    "places": lambda self, y: y.argmax(1),
    "signs": lambda self, y: (y > 0, y <= 0.5),
    "stored numbers": lambda self, y: (y, self.held),
    "places and stored numbers": lambda self, y: (y.argmax(1), self.held.float() * 2),
    "rounded": lambda self, y: ((y / 100).round(), self.held * y[:, 0, 0, :1] > 1e9),
    "nothing": lambda self, y: y[:0],
}
STORED = (torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("name", SETTLED)
def test_what_outputs_do_not_show_weights_do(export, name, dtype):
    """As `bnfold.verify` of two modules has it. Stored numbers of few digits, which both hold, are
    no weights that rounding hides.
    """
    torch.manual_seed(0)
    module = ready(Buffered(torch.arange(4), SETTLED[name]), torch.float32)
    module.held = module.held.to(dtype)
    path = export(module)
    result = bnfold.verify(module, path, (X,))
    assert result.status == "pass"
    assert status(module, changed(path, off(1.02, 0))) != "pass"


OPEN = {**UNFOLDED, "keep_initializers_as_inputs": True}


@pytest.mark.parametrize(
    "options, which",
    [({}, 2), (UNFOLDED, 1), (OPEN, 1)],
    ids=["folded", "unfolded", "open to others"],
)
def test_a_channel_that_hardly_counts(export, options, which):
    """No output shows that it is wrong; the other channels of the weight are the module's."""
    module = net()
    with torch.no_grad():
        module.head.weight[:, 1] *= 1e-8
    path = export(module, **options)
    assert status(module, path) == "pass"
    result = bnfold.verify(module, changed(path, off(1.01, which)), (X,))
    assert result.status == "fail" and "b.weight is off by 1 %" in result.notes[-1]


def in_a_branch(graph):
    """The weight stands in a branch alone."""
    chosen_weight(graph)
    weight = graph.initializer[0]
    for attribute in graph.node[0].attribute:
        attribute.g.initializer.append(weight)
    del graph.initializer[0]


def one_channel_scaled():
    """Folding changes one channel of its weight, and no other by more than ε does."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    with torch.no_grad():
        module[1].weight[0] = 3.0
    return module


def chosen_weight(graph):
    """The weight comes from a branch, which does not fold, and is what it was."""
    (conv,) = [node for node in graph.node if node.op_type == "Conv"]
    name = conv.input[1]
    branch = helper.make_graph([helper.make_node("Identity", [name], ["got"])], "b", [], [])
    branch.output.append(helper.make_empty_tensor_value_info("got"))
    true = numpy_helper.from_array(np.array(True), "true")
    graph.initializer.append(true)
    chosen = helper.make_node("If", ["true"], ["chosen"], then_branch=branch, else_branch=branch)
    conv.input[1] = "chosen"
    graph.node.insert(0, chosen)


def test_a_norm_that_the_file_keeps_and_the_module_need_not(export):
    module = one_channel_scaled()
    open_to_others = export(module, **OPEN)
    assert len(onnx.load(open_to_others).graph.input) > 1
    computed = changed(export(module, **UNFOLDED), chosen_weight)
    for file in (open_to_others, computed):
        assert bnfold.plan(file).kept
        found = bnfold.verify(module, file, (X,))
        assert (found.status, found.notes) == ("pass", ())
    assert status(module, changed(open_to_others, off(1.01, 0))) == "fail"


class Gated(nn.Module):
    """A norm that folds, and far behind it a map that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = one_channel_scaled(), nn.Conv2d(8, 8, 1, bias=False)
        self.gate = nn.Parameter(torch.rand(8, 1, 1))
        with torch.no_grad():
            self.head.weight[:, 0] *= 1e-8

    def forward(self, x):
        y = self.head(self.body(x))
        return torch.sigmoid(y) * y * torch.sigmoid(y * self.gate)


def no_scale(graph):
    """The norm behind the first convolution is as if it had not scaled its channel."""
    (norm,) = [node for node in graph.node if node.op_type == "BatchNormalization"]
    (scale,) = [each for each in graph.initializer if each.name == norm.input[1]]
    values = numpy_helper.to_array(scale).copy()
    values[0] = 1.0
    scale.CopyFrom(numpy_helper.from_array(values, scale.name))


def test_a_map_that_stays_elsewhere_excuses_no_weight(export):
    """One that has not taken in its norm shows in no output, and is wrong."""
    module = Gated().eval()
    path = export(module, **UNFOLDED)
    assert bnfold.plan(path).kept
    assert bnfold.verify(module, path, (X,)).status == "pass"
    result = bnfold.verify(module, changed(path, no_scale), (X,))
    assert result.status == "fail" and "in the file, which no output shows" in result.notes[-1]


def test_weights_that_were_not_compared_are_told(export):
    """What cannot be exported, or whose weights the file does not hold, has none to compare."""

    class Asks(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y * 2 if float(x.detach().flatten()[0]) > 1e9 else y

    module, x = ready(Asks(6, 6), torch.float32), rand(4, 6, dtype=torch.float32)
    result = bnfold.verify(module, export(module, (x,)), (x,))
    assert result.status == "pass" and "weights were not compared: torch.export" in result.notes[-1]

    plain = ready(nn.Conv2d(3, 4, 3, bias=False), torch.float32)
    result = bnfold.verify(plain, changed(export(plain), in_a_branch), (X,))
    assert result.status == "pass"
    assert result.notes == (
        "weights were not compared: the file holds none of them as a constant of its main graph",
    )


def test_a_bias_whose_terms_cancel(export):
    """What is left of them may be off by far more than a rounding, in a right file."""
    module = net()
    with torch.no_grad():
        module.norm_a.bias.copy_(3e3 * torch.arange(8.0))
        scale = module.norm_a.weight / (module.norm_a.running_var + module.norm_a.eps).sqrt()
        module.norm_a.running_mean.copy_((module.norm_a.bias - 0.1) / scale)
    assert status(module, export(module)) == "pass"


def test_a_file_that_nothing_runs(export):
    def change(graph):
        graph.node[0].domain, graph.node[0].op_type = "some.where", "Unknown"

    assert status(net(), changed(export(net()), change)) == "inconclusive"


# --- the other doors ----------------------------------------------------------------------------


def test_a_program_a_protobuf_and_either_order(export):
    module = net()
    path, program = export(module), torch.export.export(module, (X,))
    wrong = changed(path, off(1.01, 1))
    assert bnfold.verify(program, path).status == "pass"
    assert bnfold.verify(program, wrong).status == "fail"
    assert status(onnx.load(path), module) == "pass"
    assert status(wrong, module) == "fail"


def test_a_module_and_a_program():
    module = net()
    program, folded = torch.export.export(module, (X,)), bnfold.fold(module, (X,))
    wrong = copy.deepcopy(folded)
    with torch.no_grad():
        wrong.a.weight[1] *= 1.01
    assert status(module, bnfold.fold(program)) == "pass"
    assert bnfold.verify(program, folded).status == "pass"
    assert bnfold.verify(program, wrong).status == "fail"
    assert status(wrong, program) == "fail"


def test_outputs_with_names_are_paired_by_name():
    """Of two modules: a dictionary has no order that callers see."""
    module = net(made=lambda y: {"first": y, "second": 2 * y})
    other = net(made=lambda y: {"second": 2 * y, "first": y})
    swapped_names = net(made=lambda y: {"second": y, "first": 2 * y})
    others = net(made=lambda y: {"first": y, "third": 2 * y})
    plain = net(made=lambda y: (y, 2 * y))
    found = [bnfold.verify(module, m, (X,)) for m in (other, swapped_names, others, plain)]
    assert [result.status for result in found] == ["pass", "fail", "fail", "pass"]
    assert {check.output for check in found[0].checks} >= {"first", "second"}


@pytest.mark.parametrize(
    "made",
    [
        lambda one, other: [{"first": one, "second": other}],
        lambda one, other: (one, {"first": one, "second": other}),
        lambda one, other: {"output first": one, "output second": other},
        lambda one, other: {"output 0": one, "output 1": other},
        lambda one, other: {"output 0[0]": one, "output 1": other},
        lambda one, other: {1: one, "1": other},
        lambda one, other: {"first.of": one, "first": {"of": other}},
    ],
)
def test_names_tell_wherever_they_stand(made):
    """Names inside of a list, and names that read like positions or like one another."""

    def swapped(one, other):
        def back(result):
            if isinstance(result, dict):
                return dict(reversed(result.items()))
            return type(result)(map(back, result)) if isinstance(result, list | tuple) else result

        return back(made(one, other))

    module = net(made=lambda y: made(y, 2 * y))
    same = net(made=lambda y: swapped(y, 2 * y))
    other = net(made=lambda y: swapped(2 * y, y))
    assert [bnfold.verify(module, m, (X,)).status for m in (same, other)] == ["pass", "fail"]


class Stage(str, enum.Enum):
    FIRST = "first"


@pytest.mark.parametrize(
    "keys, others, wanted",
    [
        ((1, 2), (1, 2), "pass"),
        ((1, 2), ("1", "2"), "fail"),
        ((None, (1, 2)), ("None", "(1, 2)"), "fail"),
        ((1, "second"), ("second", 1), "fail"),
        ((Stage.FIRST, "second"), ("first", "second"), "pass"),
    ],
)
def test_keys_are_other_ones_than_what_is_written_like_them(keys, others, wanted):
    """Who asks for 1 does not find "1"."""
    one, other = (
        net(made=lambda y, names=names: dict(zip(names, (y, 2 * y), strict=True)))
        for names in (keys, others)
    )
    assert status(one, other) == wanted


def test_keys_that_are_made_anew_in_each_run():
    """Each has the address that another one had before."""
    module = net(made=lambda y: {object(): y, object(): 2 * y})
    with pytest.raises(bnfold.UsageError, match="names for keys"):
        bnfold.verify(module, module, (X,))


def test_a_key_that_cannot_be_written():
    class Key:
        def __repr__(self):
            raise RuntimeError("no name")

    module = net(made=lambda y: {Key(): y})
    with pytest.raises(bnfold.UsageError, match="no text: no name"):
        bnfold.verify(module, module, (X,))


def test_keys_that_nothing_tells_apart():
    class Key:
        def __repr__(self):
            return "key"

    one, other = Key(), Key()
    module = net(made=lambda y: {one: y, other: 2 * y})
    with pytest.raises(bnfold.UsageError, match=r"several keys that are written \[key\]"):
        bnfold.verify(module, module, (X,))


def test_numbers_and_other_things_among_the_outputs():
    def status_of(one, other):
        return status(net(made=one), net(made=other))

    assert status_of(lambda y: (y, 3, "a", None), lambda y: (y, 3, "a", None)) == "pass"
    assert status_of(lambda y: (y, 3), lambda y: (y, 4)) == "fail"
    assert status_of(lambda y: (y, 2**70), lambda y: (y, 2**70)) == "pass"
    assert status_of(lambda y: (y, 2**70), lambda y: (y, 2**70 + 1)) == "fail"
    assert status_of(lambda y: (y, 2**70), lambda y: (y, 1)) == "fail"
    assert status_of(lambda y: (y, y.sum().item()), lambda y: (y, y.sum().item())) == "pass"
    assert status_of(lambda y: (y, y.sum().item()), lambda y: (y, 2 * y.sum().item())) == "fail"
    with pytest.raises(bnfold.UsageError, match="puts out a Hidden"):
        status_of(Hidden, Hidden)


class Hidden:
    """Holds a tensor that nobody can see."""

    def __init__(self, y):
        self.y = y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_module_and_a_program_of_few_digits(dtype):
    module, x = net(dtype=dtype), (X.to(dtype),)
    program = torch.export.export(module, x)
    assert status(module, bnfold.fold(program), x) == "pass"
    wrong = bnfold.fold(module, x)
    with torch.no_grad():
        wrong.a.weight[1] *= 1.02
    assert bnfold.verify(program, wrong).status != "pass"


def test_the_command(export, tmp_path):
    module = net()
    path, program = export(module), torch.export.export(module, (X,))
    torch.export.save(program, tmp_path / "a.pt2")
    torch.export.save(bnfold.fold(program), tmp_path / "b.pt2")
    onnx.save(changed(path, off(1.01, 0)), tmp_path / "wrong.onnx")

    def run(*arguments):
        names = [name if name.startswith("-") else str(tmp_path / name) for name in arguments]
        return CliRunner().invoke(main, ["verify", *names])

    assert run("a.pt2", "b.pt2").exit_code == 0
    assert run("a.pt2", path.name).exit_code == 0
    assert run("a.pt2", "wrong.onnx").exit_code == 1
    assert run("wrong.onnx", "b.pt2").exit_code == 1
    assert run("a.pt2", "none.pt2").exit_code == 2
    refused = run("a.pt2", path.name, "--bisect")
    assert refused.exit_code == 2 and "bisect: not for models of PyTorch" in refused.output


def test_what_is_to_be_said(export):
    module = net()
    path = export(module)
    with pytest.raises(bnfold.UsageError, match="needs example inputs"):
        bnfold.verify(module, path)
    with pytest.raises(bnfold.UsageError, match="training mode"):
        status(copy.deepcopy(module).train(), path)
    with pytest.raises(bnfold.UsageError, match="does not run on these inputs"):
        status(module, path, (X[:, :2],))
    with pytest.raises(bnfold.UsageError, match="dims"):
        status(module, path, dims={"n": 2})
    assert status(module, path, rtol=1e-4) == "pass"
    assert bnfold.verify(module, path, (X,), power=True).power[0].noticed


def test_what_a_look_in_float64_repeats_is_told_once(export):
    module = ready(nn.Conv2d(3, 4, 3), torch.float16)
    x = X.half()
    result = bnfold.verify(module, export(module, (x,)), (x,))
    assert result.status == "pass" and "half precision" in result.notes[0]
    assert len(set(result.notes)) == len(result.notes)
