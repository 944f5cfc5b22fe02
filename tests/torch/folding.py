"""What every test of a folded module asks: the same function, and an input nobody touched."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

import bnfold
from bnfold._pipeline import any_kind
from bnfold._pipeline.module_options import ModuleOptions


def ready(module: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A module in eval with parameters and statistics that leave nothing at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(low + (high - low) * values)

    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if name.endswith(("var", "weight_g", "original0")):
                draw(tensor, 0.5, 2.0)
            elif tensor.ndim < 2:
                draw(tensor, 0.3, 1.6)
                tensor *= torch.where(torch.rand(tensor.shape, generator=generator) < 0.5, -1, 1)
            else:
                draw(tensor, -1.0, 1.0)
    return module.to(dtype).eval()


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def outputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a module puts out in float64, on inputs that it may change."""
    return outputs_of(copied(module).double(), args, kwargs)


def outputs_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The same of a module in float64, which may change as it runs."""
    args, kwargs = copy.deepcopy((args, kwargs))

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = pytree.tree_map(wide, (args, kwargs))
    with torch.no_grad():
        result = module(*args, **kwargs)
    return [leaf.clone() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def wide(program: ExportedProgram) -> nn.Module:
    """A program as a module in float64, with tensors of its own."""
    module = program.module()
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    real = tensor.is_floating_point()
                    held[name] = (tensor.double() if real else tensor).detach().clone()
    return module


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also where a hook has left a weight with a history."""
    for part in module.modules():
        for name, value in part.__dict__.items():
            if isinstance(value, Tensor):
                part.__dict__[name] = value.detach()
    return copy.deepcopy(module)


def assert_close(wanted: list[Any], made: list[Any], within: float = 1e-10) -> None:
    assert len(wanted) == len(made)
    for a, b in zip(wanted, made):
        assert a.shape == b.shape
        bound = within * (1.0 + float(a.abs().max()) if a.numel() else 1.0)
        assert float((a - b).abs().max() if a.numel() else 0.0) <= bound


@dataclass
class Folded:
    """A folded module with the plan, counts of what folded and the codes of maps that stayed."""

    module: Any
    plan: bnfold.Plan
    folded: list[str]
    codes: list[str]


def fold(
    module: nn.Module,
    *args: Any,
    folds: int | None = None,
    codes: list[str] | None = None,
    kwargs: dict[str, Any] | None = None,
    within: float = 1e-10,
    others: tuple[tuple[Any, ...], ...] = (),
    **options: Any,
) -> Folded:
    """Fold a copy and hold it against the original in float64, on these inputs and on others."""
    kwargs = kwargs or {}
    given = copy.deepcopy((args, kwargs))
    before = state(module)
    plan, made = planned_and_folded(module, args, kwargs, **options)
    assert_untouched(module, before)
    same = pytree.tree_map(lambda a, b: a is b or torch.equal(a, b), given, (args, kwargs))
    assert all(pytree.tree_leaves(same))
    assert made is not module and type(made) is type(module)
    assert not made.training
    for inputs in (args, *others):
        assert_close(outputs(module, inputs, kwargs), outputs(made, inputs, kwargs), within)
    assert_untouched(module, before)
    folded = [node for each in plan.folds for node in each.nodes]
    found = [kept.code for kept in plan.kept if kept.kind == "map"]
    if folds is not None:
        assert len(folded) == folds, (plan.folds, plan.kept)
    if codes is not None:
        assert found == codes, plan.kept
    return Folded(made, plan, folded, found)


def planned_and_folded(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    dynamic_shapes: Any = None,
    as_eval: bool = False,
    clone: bool = False,
    merge: bool = False,
    keep: tuple[str, ...] = (),
    depthwise: bool = False,
) -> tuple[bnfold.Plan, nn.Module]:
    """What ``bnfold.plan`` and ``bnfold.fold`` give, of one export: most of the time goes there."""
    options = ModuleOptions(args, kwargs, dynamic_shapes, as_eval, clone, keep=keep, merge=merge)
    ready = any_kind._prepare_module(module, options, depthwise)
    return ready.plan, ready.apply(inplace=False)


def state(module: nn.Module) -> dict[str, Any]:
    """All that folding a copy must leave alone."""
    return {
        "values": {k: v.clone() for k, v in module.state_dict().items()},
        "objects": dict(module.named_parameters()),
        "grad": {k: p.requires_grad for k, p in module.named_parameters()},
        "modules": {k: (m, type(m), m.training) for k, m in module.named_modules()},
        "hooks": {
            k: [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]
            for k, m in module.named_modules()
        },
        "attributes": {k: sorted(m.__dict__) for k, m in module.named_modules()},
    }


def assert_untouched(module: nn.Module, before: dict[str, Any]) -> None:
    after = state(module)
    assert before["values"].keys() == after["values"].keys()
    for name, values in before["values"].items():
        now = after["values"][name]
        assert values.dtype == now.dtype and values.shape == now.shape
        assert torch.equal(bits(values), bits(now)), name
    for name, tensor in before["objects"].items():
        assert after["objects"][name] is tensor
    for what in ("grad", "modules", "hooks", "attributes"):
        assert before[what] == after[what]


def bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor, so that NaN equals itself."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def kinds(module: nn.Module) -> Counter[str]:
    return Counter(type(part).__name__ for part in module.modules())
