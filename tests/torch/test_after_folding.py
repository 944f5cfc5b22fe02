"""What can be done with a folded module: all that could be done before."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")


import onnxruntime  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold._torch.program.fold import PlannedProgram  # noqa: E402

from .folding import assert_close, fold, outputs, rand, ready  # noqa: E402


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        y = self.stem(x)
        return self.head(torch.relu(self.body(y)) + y)


@pytest.fixture
def net():
    return ready(Net(), torch.float32)


@pytest.fixture
def x():
    return rand(3, 3, 6, 6, dtype=torch.float32)


@pytest.fixture
def folded(net, x):
    return bnfold.fold(net, (x,))


def test_all_folds(net, x):
    done = fold(net, x, folds=3, codes=[], within=1e-5)
    assert repr(done.module.stem[1]) == "Identity()"
    assert len(done.module.stem) == 3 and isinstance(done.module.stem[2], nn.ReLU)
    assert list(dict(done.module.named_modules())) == list(dict(net.named_modules()))
    assert bnfold.verify(net, done.module, (x,)).status == "pass"


def test_what_other_tests_take_of_one_export_is_what_the_functions_give(net, x, folded):
    """And of a program, that planning and folding give the same each time."""
    done = fold(net, x, within=1e-5)
    assert bnfold.plan(net, (x,)) == done.plan
    assert repr(folded) == repr(done.module)
    for name, value in folded.state_dict().items():
        assert torch.equal(value, done.module.state_dict()[name])
    program = torch.export.export(net, (x,))
    once = PlannedProgram(program)
    assert bnfold.plan(program) == once.plan
    assert str(bnfold.fold(program)) == str(once.apply())


def test_verify_sees_a_wrong_fold(net, x, folded):
    with torch.no_grad():
        folded.body[0].weight[1] *= 1.01
    assert bnfold.verify(net, folded, (x,)).status == "fail"


def test_state_dict_loads_into_another_folded_module(net, x, folded):
    file = io.BytesIO()
    torch.save(folded.state_dict(), file)
    file.seek(0)
    other = bnfold.fold(ready(Net(), torch.float32, seed=9), (x,))
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), folded(x))
    assert not [name for name in folded.state_dict() if "running" in name]


def test_deepcopy_and_pickle(x, folded):
    assert torch.equal(copy.deepcopy(folded)(x), folded(x))
    assert torch.equal(pickle.loads(pickle.dumps(folded))(x), folded(x))


def test_folding_again_changes_nothing(x, folded):
    assert not bnfold.plan(folded, (x,)).folds
    again = bnfold.fold(folded, (x,))
    assert torch.equal(again(x), folded(x))


def test_torch_export(x, folded):
    program = torch.export.export(folded, (x,))
    assert not [n for n in program.graph.nodes if "batch_norm" in str(n.target)]
    assert torch.equal(program.module()(x), folded(x))


def test_torch_compile(x, folded):
    compiled = torch.compile(folded, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(x), folded(x), atol=1e-6)


def test_trace(x, folded):
    assert torch.equal(torch.jit.trace(folded, (x,))(x), folded(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_exporters(x, folded, dynamo, tmp_path):
    if dynamo:
        pytest.importorskip("onnxscript")
    path = tmp_path / "net.onnx"
    torch.onnx.export(folded, (x,), path, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(result), folded(x), atol=1e-4)
    assert not bnfold.plan(path).folds


def test_gradients_flow_and_start_afresh(net, x, folded):
    assert all(p.is_leaf and p.grad_fn is None and p.requires_grad for p in folded.parameters())
    assert all(isinstance(p, nn.Parameter) for p in folded.parameters())
    folded(x).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())
    assert all(p.grad is None for p in net.parameters())
    torch.optim.SGD(folded.parameters(), 0.1).step()


def test_gradient_of_the_input_stays(net, x):
    folded = bnfold.fold(net.double(), (x.double(),))
    one, two = x.double().requires_grad_(), x.double().requires_grad_()
    net(one).pow(2).sum().backward(), folded(two).pow(2).sum().backward()
    assert torch.allclose(one.grad, two.grad, rtol=1e-8, atol=1e-8)


def test_training_mode_brings_no_statistics_back(net, x):
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    folded = bnfold.fold(net, (x,))
    wanted = folded(x)
    folded.train()
    assert torch.equal(folded(x), wanted) and torch.equal(folded(x + 1), folded(x + 1))
    assert folded.stem[1].training
    folded.eval()
    assert torch.equal(folded(x), wanted)


def test_in_place_gives_the_same_object(net, x):
    wanted, before = outputs(net, (x,), {}), net.stem[0].weight
    assert bnfold.fold(net, (x,), inplace=True) is net
    assert net.stem[0].weight is before
    assert isinstance(net.stem[1], nn.Identity)
    assert_close(wanted, outputs(net, (x,), {}), 1e-5)


def test_frozen_parameters_stay_frozen(net, x):
    net.stem.requires_grad_(False)
    done = fold(net, x, within=1e-5).module
    assert not done.stem[0].weight.requires_grad and not done.stem[0].bias.requires_grad
    assert done.body[0].weight.requires_grad and done.body[0].bias.requires_grad


def test_tied_parameters_and_order_of_names_stay(net, x):
    done = fold(net, x, within=1e-5).module
    names = [name for name, _ in done.named_parameters()]
    assert names == [f"{m}.{p}" for m in ("stem.0", "body.0", "head.1") for p in ("weight", "bias")]


def test_under_no_grad_and_inference_mode(net, x):
    with torch.no_grad():
        one = bnfold.fold(net, (x,))
    with torch.inference_mode():
        two = bnfold.fold(net, (x,))
        got = two(x)
    assert one.stem[0].bias.requires_grad
    assert torch.equal(one(x), got)


def test_grad_mode_is_left_as_it_was(net, x):
    bnfold.fold(net, (x,))
    assert torch.is_grad_enabled()
    assert net(x).requires_grad


class Remembers(nn.Module):
    """Leaves traces of every call in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.weight_norm(nn.Conv2d(3, 3, 1))
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.calls, self.seen = 0, []

    def forward(self, x):
        self.calls += 1
        self.seen.append(x.shape)
        return self.block(self.conv(x).relu())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inplace", [True, False])
def test_reading_a_module_leaves_no_traces(inplace):
    module, x = ready(Remembers(), torch.float32), rand(2, 3, 4, 4, dtype=torch.float32)
    with torch.no_grad():
        wanted = module(x)
    folded = bnfold.fold(module, (x,), inplace=inplace)
    assert isinstance(folded.block[1], nn.Identity)
    assert folded.calls == module.calls == 1 and len(folded.seen) == len(module.seen) == 1
    assert torch.allclose(copy.deepcopy(folded)(x), wanted, atol=1e-5)
    assert torch.allclose(pickle.loads(pickle.dumps(folded))(x), wanted, atol=1e-5)
