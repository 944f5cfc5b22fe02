"""What PyTorch cannot trace, or bnfold not read, is one line that says what to do, and no more."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.export import Dim  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import bnfold  # noqa: E402
from bnfold import UsageError  # noqa: E402

from .folding import fold, rand, ready  # noqa: E402


def block() -> nn.Sequential:
    return ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))


X = rand(2, 4, 3, 3)


def refused(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


class Around(nn.Module):
    """A network whose forward is a function of its block and its inputs."""

    def __init__(self, code: Any) -> None:
        super().__init__()
        self.block, self.code = block(), code

    def forward(self, x: Any) -> Any:
        return self.code(self.block, x)


@dataclasses.dataclass
class Boxes:
    scores: Any


class Result:
    def __init__(self, scores: Any) -> None:
        self.scores = scores


def by_sum(part, x):
    if x.sum() > 0:
        return part(x)
    return x


def by_slice(part, x):
    return part(x)[:, : int(x.argmax())]


def by_mask(part, x):
    return part(x[x.sum((1, 2, 3)) > 0])


def by_numpy(part, x):
    return part(x) + float(x.numpy().sum())


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (by_sum, "if x.sum() > 0:"),
        (by_slice, "return part(x)[:, : int(x.argmax())]"),
        (by_mask, "return part(x[x.sum((1, 2, 3)) > 0])"),
        (by_numpy, "return part(x) + float(x.numpy().sum())"),
    ],
)
def test_code_that_depends_on_values(code, line, capfd):
    text = refused(bnfold.fold, Around(code).eval(), (X,))
    assert f"{__file__}:" in text and f"in {code.__name__} ({line})" in text
    assert "torch.cond" in text and "model.part" in text
    said = capfd.readouterr()
    assert not said.out and not said.err


def noisy(part, x):
    print("a word of the model's own", file=sys.stderr)
    return by_sum(part, x) if x.shape[0] == 2 else part(x)


def test_what_the_model_prints_is_not_lost(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    for x, fails in ((X, True), (rand(3, 4, 3, 3), False)):
        module = Around(noisy).eval()
        assert "torch.cond" in refused(bnfold.fold, module, (x,)) if fails else fold(module, x)
        lines = [line for line in capfd.readouterr().err.splitlines() if line]
        assert set(lines) == {"a word of the model's own"}


def test_any_other_error_names_the_line_of_the_model():
    text = refused(bnfold.fold, Around(lambda part, x: part(x) + x[:, :3]).eval(), (X,))
    assert f"{__file__}:" in text and "part(x) + x[:, :3]" in text
    # The error of an operator inside of PyTorch's own module names the line that calls it.
    text = refused(bnfold.fold, Around(lambda part, x: part(x[:, :3])).eval(), (X,))
    assert "part(x[:, :3])" in text
    assert __file__ not in refused(bnfold.fold, block(), (rand(2, 3, 3, 3),))


@pytest.mark.parametrize("kind", [Boxes, Result])
def test_classes_that_torch_does_not_know(kind):
    gives = Around(lambda part, x: {"all": [kind(part(x))]}).eval()
    takes = Around(lambda part, x: part(x.scores)).eval()
    for text in (refused(bnfold.fold, gives, (X,)), refused(bnfold.plan, takes, (kind(X),))):
        assert f"torch.export.register_dataclass({kind.__name__})" in text
        assert f"register_pytree_node({kind.__name__}, …)" in text
    assert "gives back" in refused(bnfold.fold, gives, (X,))
    assert "example inputs hold" in refused(bnfold.fold, takes, (kind(X),))


def test_the_guard_that_dynamic_shapes_violate():
    module = Around(lambda part, x: part(x) if x.shape[-1] >= 8 else x).eval()
    shapes = {"x": {3: Dim("width", min=4, max=64)}}
    text = refused(bnfold.fold, module, (rand(2, 4, 3, 9),), dynamic_shapes=shapes)
    assert "8 <= x.size()[3]" in text and "width = Dim('width', min=8, max=64)" in text
    module = Around(lambda part, x: part(x).reshape(2, -1)).eval()
    text = refused(bnfold.fold, module, (X,), dynamic_shapes={"x": {0: Dim("batch")}})
    assert "batch" in text and "constant (2)" in text and "possible: batch = 2" in text
    assert "TORCH_LOGS" not in text and "mark_dynamic" not in text


def test_other_mistakes_in_dynamic_shapes():
    module = Around(lambda part, x: part(x)).eval()
    text = refused(bnfold.fold, module, (X,), dynamic_shapes={"y": {0: Dim("batch")}})
    assert "['x']" in text and "http" not in text


def test_an_error_of_several_lines():
    def fails(part, x):
        raise ValueError("first\nsecond")

    module = Around(fails).eval()
    assert "ValueError: first, at " in refused(bnfold.fold, module, (X,))
    assert refused(bnfold.verify, module, module, (X,)).endswith("inputs: first")


def test_pruned_modules():
    module = nn.Sequential(block(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval().double()
    prune.l1_unstructured(module[0][0], "weight", 0.5)
    for ran in (False, True):
        for call in (bnfold.fold, bnfold.plan):
            text = refused(call, module, (X,))
            assert "0.0.weight is pruned" in text
            assert 'torch.nn.utils.prune.remove(model.get_submodule("0.0"), "weight")' in text
        assert "prune.remove" in refused(bnfold.fold, module)
        if not ran:
            with torch.no_grad():
                module(X)
    prune.random_unstructured(module[1], "bias", 2)
    prune.random_unstructured(module[1], "bias", 1)  # now a container of two methods
    assert "and 1 more are" in refused(bnfold.fold, module, (X,))
    assert bnfold.verify(module, module, (X,)).status == "pass"
    prune.remove(module.get_submodule("0.0"), "weight")
    prune.remove(module[1], "bias")
    assert (fold(module, X, folds=2).module[0][0].weight == 0).sum() == 8


def test_a_pruned_module_that_is_the_whole():
    conv = prune.identity(nn.Conv2d(4, 4, 1), "weight").eval()
    assert 'prune.remove(model, "weight")' in refused(bnfold.fold, conv, (X,))


def test_a_module_that_keeps_a_result():
    def keeping(part, x):
        part.last = part(x)
        return part.last

    module = Around(keeping).eval()
    module(X)
    last = module.block.last
    assert last.grad_fn is not None
    folded = bnfold.fold(module, (X,))
    assert module.block.last is last and last.grad_fn is not None
    assert torch.allclose(folded(X), last)


class Distributed(nn.parallel.DistributedDataParallel):
    """A wrapper that needs no group of processes."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize("wrapper", [nn.DataParallel, Distributed])
def test_wrappers(wrapper):
    module = wrapper(block()).eval()
    for call in (bnfold.fold, bnfold.plan):
        assert "model.module" in refused(call, module, (X,))
    assert "model.module" in refused(bnfold.verify, module, module.module, (X,))
    fold(module.module, X, folds=1)


def test_compiled_modules():
    compiled = torch.compile(block(), backend="eager")
    folded = bnfold.fold(compiled, (X,))
    assert type(folded) is type(compiled) and isinstance(folded._orig_mod[1], nn.Identity)
    assert torch.allclose(folded(X), compiled(X))
    inner = nn.Sequential(block()).eval()
    inner[0].forward = torch.compile(inner[0].forward, backend="eager")
    text = refused(bnfold.fold, inner, (X,))
    assert "the forward of 0 is compiled" in text and "compile what bnfold.fold gives" in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_a_part_in_torchscript(way):
    part = torch.jit.script(block()) if way == "script" else torch.jit.trace(block(), (X,))
    text = refused(bnfold.fold, nn.Sequential(block(), part).eval(), (X,))
    assert "1 is a TorchScript module" in text
    scripted = nn.Sequential(block(), torch.jit.script(nn.ReLU())).eval()
    assert len(bnfold.plan(scripted, (X,)).folds) == 1
