"""Modules that PyTorch made of programs, and norms in code that programs call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.export import Dim  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

import bnfold  # noqa: E402

from .. import graphs  # noqa: E402
from .folding import rand, ready  # noqa: E402
from .merging import ops  # noqa: E402


class Named(nn.Module):
    """Inputs in a dict and by name, outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, more: dict[str, Tensor], *, y: Tensor) -> dict[str, Tensor]:
        return {"out": self.norm(self.conv(x + more["k"])) + y.sum()}


X = rand(2, 3, 8, 8, dtype=torch.float32)
CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = {
    "fixed sizes": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (X,), {}, None),
    "sizes that vary": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        (X,),
        {},
        ({0: Dim.AUTO, 2: Dim.AUTO},),
    ),
    "inputs by name": (Named, (X, {"k": X}), {"y": X}, None),
    "sizes of inputs by name that vary": (
        Named,
        (X, {"k": X}),
        {"y": X},
        {"x": {0: Dim.AUTO}, "more": {"k": {0: Dim.AUTO}}, "y": {1: Dim.AUTO}},
    ),
}


def leaves(value: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(value)


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_graph_module_folds_as_a_program(name, lowered):
    make, args, kwargs, shapes = CASES[name]
    module = ready(make(), torch.float32)
    program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
    given = (program.run_decompositions() if lowered else program).module()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    found = [bnfold.fold(given, args, kwargs=kwargs)]
    found += [bnfold.fold(given)]
    for folded in found:
        called = [str(node.target) for node in folded.graph.nodes]
        assert not any("batch_norm" in each for each in called)
        assert folded.state_dict().keys() < given.state_dict().keys()
        for one, other in zip(
            leaves(module(*args, **kwargs)), leaves(folded(*args, **kwargs)), strict=True
        ):
            assert torch.allclose(one, other, atol=2e-5, rtol=1e-5)
    assert len(bnfold.plan(given, args, kwargs=kwargs).folds) == 1
    assert all(torch.equal(given.state_dict()[name], value) for name, value in before.items())
    assert bnfold.verify(given, found[0], args, kwargs=kwargs).status == "pass"


def test_sizes_that_vary_still_do():
    """Whatever the size of the example is: its own export would fix it."""
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.float32)
    sizes = ({0: Dim.AUTO, 2: Dim.AUTO},)
    given = torch.export.export(module, (X,), dynamic_shapes=sizes).module()
    other = rand(5, 3, 6, 8, dtype=torch.float32)
    for folded in (bnfold.fold(given), bnfold.fold(given, (X,))):
        assert torch.allclose(folded(other), module(other), atol=2e-5, rtol=1e-5)


class ByName(nn.Module):
    """Two inputs by name, one of them a dictionary, whose sizes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, *, a: dict[str, Tensor], b: Tensor) -> tuple[Tensor, ...]:
        return self.norm(self.conv(a["x"])), b * 2, a["y"] + 1


def test_names_in_any_order():
    """They say which input is which, and the sizes of which vary."""
    module, auto = ready(ByName(), torch.float32), Dim.AUTO
    y, b = rand(2, 6, dtype=torch.float32), rand(3, 5, dtype=torch.float32)
    sizes = {"a": {"x": {0: auto, 3: auto}, "y": None}, "b": {1: auto}}
    program = torch.export.export(module, (), {"a": {"x": X, "y": y}, "b": b}, dynamic_shapes=sizes)
    other = {
        "b": rand(3, 9, dtype=torch.float32),
        "a": {"y": y, "x": X[:1, ..., :6].repeat(5, 1, 1, 1)},
    }
    for kwargs in ({"a": {"x": X, "y": y}, "b": b}, {"b": b, "a": {"y": y, "x": X}}):
        folded = bnfold.fold(program.module(), kwargs=kwargs)
        for given in (kwargs, other):
            for one, two in zip(module(**given), folded(**given), strict=True):
                assert torch.allclose(one, two, atol=2e-5, rtol=1e-5)
    with pytest.raises(bnfold.UsageError):
        bnfold.fold(program.module(), (b,), kwargs={"a": {"x": X, "y": y}})


class GuardsFn(nn.Module):
    """Has the name of a part that PyTorch writes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def test_a_module_is_not_known_by_its_name():
    graph = torch.fx.Graph()
    called = graph.call_module("part", (graph.placeholder("x"),))
    graph.output(graph.call_function(torch.ops.aten.relu.default, (called,)))
    module = torch.fx.GraphModule({"part": ready(GuardsFn(), torch.float32)}, graph).eval()
    folded = bnfold.fold(module, (X,))
    assert isinstance(folded.get_submodule("part.norm"), nn.Identity)
    assert torch.allclose(folded(X), module(X), atol=2e-5, rtol=1e-5)


def test_a_graph_that_takes_its_inputs_one_by_one():
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.float32)
    given = make_fx(module, tracing_mode="fake", _allow_non_fake_inputs=True)(X)
    folded = [bnfold.fold(given, (X,)), bnfold.fold(given)]
    assert all(torch.allclose(each(X), module(X), atol=2e-5, rtol=1e-5) for each in folded)


def test_a_graph_module_in_training_mode_keeps_its_norm():
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.float32)
    given = torch.export.export(module.train(), (X,)).module()
    assert [kept.code for kept in bnfold.plan(given, (X,)).kept] == ["training-mode"]


@pytest.mark.parametrize(
    "option",
    [{name: True} for name in ("as_eval", "clone", "inplace", "merge")] + [{"keep": ("0",)}],
)
def test_what_a_graph_module_cannot_do(option):
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.float32)
    program = torch.export.export(module, (X,))
    says = f"{next(iter(option))}: a graph of operators folds as a program; leave it out"
    with pytest.raises(bnfold.UsageError, match=says):
        bnfold.fold(program.module(), (X,), **option)
    with pytest.raises(bnfold.UsageError, match="program it was made from"):
        bnfold.fold(torch.export.unflatten(program), (X,))


def test_a_traced_module_stays_one_of_modules():
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.float32)
    folded = bnfold.fold(torch.fx.symbolic_trace(module), (X,))
    assert isinstance(folded.get_submodule("1"), nn.Identity)


class Called(nn.Module):
    """A norm without gradients, with autocast, or in a branch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.norm, self.kind = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), kind

    def forward(self, x: Tensor) -> Any:
        if self.kind == "branch":
            return torch.cond(
                x.sum() > 0,
                lambda y: self.norm(self.conv(y)).sum((2, 3)),
                lambda y: self.conv(y).sum((2, 3)),
                (x,),
            )
        part = (
            torch.no_grad() if self.kind == "no gradients" else torch.autocast("cpu", enabled=False)
        )
        with part:
            y = self.norm(self.conv(x))
        return y.relu()


@pytest.mark.parametrize("kind", ["no gradients", "autocast", "branch"])
def test_a_norm_in_called_code_says_why_it_stays(kind):
    module = ready(Called(kind), torch.float32)
    program = torch.export.export(module, (X,))
    plan = bnfold.plan(program)
    assert [kept.code for kept in plan.kept] == ["unread-code"]
    inline = bnfold.plan(program.run_decompositions())
    if kind == "branch":
        assert [kept.code for kept in inline.kept] == ["unread-code"]
    else:  # What the advice says helps.
        assert len(inline.folds) == 1
        assert inline.kept == ()
    told = bnfold.plan(module, (X,))
    if kind == "no gradients":  # A module's own export writes it in line.
        assert len(told.folds) == 1
        assert told.kept == ()
    else:
        assert [kept.code for kept in told.kept] == ["unread-code"]


def test_a_norm_of_another_library_says_why_it_stays():
    @torch.library.custom_op("bnfold_test::fast_batch_norm", mutates_args=())
    def fast(x: Tensor) -> Tensor:
        return x.clone()

    fast.register_fake(torch.empty_like)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.bnfold_test.fast_batch_norm(x)

    program = torch.export.export(Net(), (X,))
    assert "fast_batch_norm" in ops(program)
    assert [kept.code for kept in bnfold.plan(program).kept] == ["unread-code"]


@pytest.mark.parametrize("kind", ["a model of ONNX", "a program", "a graph module", "a module"])
def test_options_for_other_kinds_are_refused_whatever_they_hold(kind):
    """Example inputs are arrays, which are neither true nor false."""
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.float32)
    program = torch.export.export(module, (X,))
    graph = graphs.model(graphs.conv("c", "x", "y", (4, 3, 3, 3)))
    models = {"a module": module, "a program": program, "a graph module": program.module()}
    given = models.get(kind, graph)
    for shapes in (np.ones(2), np.ones(1), torch.ones(2), {"x": {0: 1}}):
        if kind in ("a model of ONNX", "a program"):
            with pytest.raises(bnfold.UsageError, match=r"^dynamic_shapes: this is for a torch"):
                bnfold.plan(given, dynamic_shapes=shapes)
    for named in (np.ones(2), torch.ones(2), [X]):
        with pytest.raises(TypeError, match="expected a mapping from names to inputs for kwargs"):
            bnfold.plan(given, kwargs=named)
    for option in ({"base_dir": "."}, {"follow_links": True}):
        if given is not graph:
            with pytest.raises(bnfold.UsageError, match=f"^{next(iter(option))}: this is for"):
                bnfold.plan(given, (X,) if kind != "a program" else None, **option)
