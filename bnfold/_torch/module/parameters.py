"""Writes new parameters into modules: stored ones, computed ones, and missing biases."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bnfold._core.parameters import Site
from bnfold._plan.planner import Sides
from bnfold._torch.read.constants import Constant
from bnfold._torch.tensors import Array, from_numpy


def write_parameters(module: nn.Module, path: str, site: Site, sides: Sides) -> None:
    """Give an operator of the submodule at ``path`` the new weight and bias of a site, in place."""
    owner = module.get_submodule(path)
    for values, old, name in (
        (site.new_weight(sides.behind, sides.ahead), site.weight_value, "weight"),
        (site.new_bias(sides.behind, sides.ahead), site.bias_value, "bias"),
    ):
        if values is None:
            continue
        if not isinstance(old, Constant):
            owner.bias = _parameter_like(values, owner.weight)
        elif old.stored:
            _set(module, old.name, values)
        else:
            _bake(owner, name)
            getattr(owner, name).copy_(from_numpy(values))


def stored(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module under all their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def is_computed(module: nn.Module, name: str, old: Constant) -> bool:
    """Whether a parametrization or a hook of a module computes a constant, as its parameter."""
    with torch.no_grad():
        if parametrize.is_parametrized(module, name):
            value = getattr(module, name)
        else:
            hooks = computing_hooks(module)
            if len(hooks) != 1 or hooks[0].name != name:
                return False
            hook = hooks[0]
            if isinstance(hook, WeightNorm):
                value = hook.compute_weight(module)
            else:
                value = hook.compute_weight(module, do_power_iteration=False)
    wanted = old.tensor()
    return (
        value.shape == wanted.shape
        and value.dtype == wanted.dtype
        and bool(torch.equal(value.cpu(), wanted.cpu()))
    )


def computing_hooks(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    """The old-style hooks of a module that compute a parameter of it."""
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)]


def _bake(module: nn.Module, name: str) -> None:
    """Make a computed parameter a plain one, by PyTorch's own functions.

    A parametrized module has a class of its own. Removal deletes the parameter's property from that
    class. Deep copies share the class, so the module first gets a copy of the class.
    """
    if parametrize.is_parametrized(module, name):
        own = type(module)
        body = {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(own.__name__, own.__bases__, body)
        with torch.enable_grad():  # The value's history tells whether the parameter learns.
            learns = bool(getattr(module, name).requires_grad)
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    else:
        hook = computing_hooks(module)[0]
        parts = (getattr(module, f"{name}_{part}", None) for part in ("g", "v", "orig"))
        learns = any(part is not None and part.requires_grad for part in parts)
        remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
        remove(module, name)
    value = getattr(module, name).detach()
    if name in module._buffers or name not in module._parameters:
        delattr(module, name)
        module.register_parameter(name, nn.Parameter(value, learns))
    module._parameters[name].requires_grad_(learns)  # type: ignore[union-attr]


def _set(module: nn.Module, name: str, values: Array) -> None:
    """Write a parameter or buffer where it lies: device, memory format and gradients stay."""
    prefix, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(prefix), attribute)
    tensor.copy_(from_numpy(values))


def _parameter_like(values: Array, other: object) -> nn.Parameter:
    """A new parameter with the device, the type and ``requires_grad`` of another one."""
    assert isinstance(other, Tensor)
    return nn.Parameter(from_numpy(values).to(other.device, other.dtype), other.requires_grad)
