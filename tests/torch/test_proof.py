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
