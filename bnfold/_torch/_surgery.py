"""Write a plan into a copy of the user's own module.

The class, the names of submodules and their order stay. A folded module becomes an Identity, with
the hooks it had; a missing bias becomes a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bnfold._plan._planner import Move
from bnfold._plan._reasons import Reason
from bnfold._sites import Site
from bnfold._torch._constants import Constant
from bnfold._torch._graph import Graph, path_of, paths_of
from bnfold._torch._tensors import Array, from_numpy


class Surgery:
    """What can be written into one module, and how."""

    def __init__(self, module: nn.Module, graph: Graph) -> None:
        self._graph = graph
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._users = _users(graph)

    def objections(self, moves: Sequence[Move]) -> Mapping[int, Reason]:
        """Why a move cannot be written into modules, by its number."""
        gone = {self._graph.nodes[index] for move in moves for index in move.maps}
        found = {}
        for number, move in enumerate(moves):
            reason = self._objection(move, gone)
            if reason is not None:
                found[number] = reason
        return found

    def apply(self, module: nn.Module, moves: Sequence[Move]) -> None:
        """Carry out all moves on a module of the structure that was planned."""
        with torch.no_grad():
            for move in moves:
                site = self._graph.readings[move.into].site
                if site is not None:
                    self._write(module, self._graph.nodes[move.into], site, move)
            for move in moves:
                for index in move.maps:
                    path = self._home(self._graph.nodes[index])
                    assert path is not None
                    _replace(module, path)

    def _objection(self, move: Move, gone: set[Node]) -> Reason | None:
        view = self._graph.view
        last = view.nodes[move.maps[-1]].label
        if move.stands:
            ops = " and ".join(standing.op for standing in move.stands)
            return Reason("not-a-module", last, f"what is left of {last} would need a new {ops}")
        for index in move.maps:
            node = self._graph.nodes[index]
            path = self._home(node)
            inside = self._inside(path) if path is not None else [node]
            if path is None or not set(inside) <= gone or self._is_read_elsewhere(path):
                where = view.nodes[index].label
                message = f"{where} is part of a module's own code or has other work to do"
                return Reason("not-a-module", where, message)
        site = self._graph.readings[move.into].site
        if move.law == "absorb" and site is not None:
            return self._unwritable(self._graph.nodes[move.into], site, move)
        return None

    def _unwritable(self, node: Node, site: Site, move: Move) -> Reason | None:
        """Why the new parameters of an operator have no place in a module."""
        weight, bias = site.new_weight(move.absorbed), site.new_bias(move.absorbed)
        for values, old in ((weight, site.weight_value), (bias, site.bias_value)):
            if values is None:
                continue
            if isinstance(old, Constant):
                reason = self._shared(old, node) or self._unbaked(old, node)
                if reason is not None:
                    return reason
            elif self._bias_owner(node, site) is None:
                message = f"the module of {site.label} has no bias to set"
                return Reason("not-a-module", site.label, message)
        return None

    def _shared(self, old: Constant, node: Node) -> Reason | None:
        for name in old.sources:
            others = self._users.get(name, set()) - {node}
            if old.stored and others:
                where = next(iter(sorted(other.name for other in others)))
                message = f"{name} is also used by {where}: changing it would change both"
                return Reason("shared-weight", name, message)
        return None

    def _unbaked(self, old: Constant, node: Node) -> Reason | None:
        """A computed weight can be set only where removing what computes it is known."""
        if old.stored or _baked_name(self._modules.get(_owner(node)), old) is not None:
            return None
        message = f"{old.name} is computed in a module's own code, not stored"
        return Reason("not-a-module", old.name, message)

    def _bias_owner(self, node: Node, site: Site) -> str | None:
        """The module whose ``bias`` is None and that the operator belongs to alone."""
        path = _owner(node)
        module = self._modules.get(path)
        calls = [n for n in self._inside(path) if n in self._targets()]
        if module is None or len(calls) != 1:
            return None
        return path if "bias" in module._parameters and module.bias is None else None

    def _targets(self) -> set[Node]:
        return {
            node
            for node, reading in zip(self._graph.nodes, self._graph.readings, strict=True)
            if reading.site is not None
        }

    def _home(self, node: Node) -> str | None:
        """The module to replace for an affine operator: the innermost that is not the whole."""
        path = path_of(node)
        return path if path in self._modules and path else None

    def _inside(self, path: str) -> list[Node]:
        """The operators of a module, in all its calls and under all its names, that depend on
        its input.
        """
        module = self._modules[path]
        same = {name for name, other in self._modules.items() if other is module}
        return [
            node
            for node in self._graph.nodes
            if same & set(paths_of(node))
            and not isinstance(self._graph.constants.find(node), Constant)
        ]

    def _is_read_elsewhere(self, path: str) -> bool:
        """Whether code outside a module uses its parameters or buffers."""
        return any(
            path not in paths_of(user)
            for name, users in self._users.items()
            if name.startswith(f"{path}.")
            for user in users
        )

    def _write(self, module: nn.Module, node: Node, site: Site, move: Move) -> None:
        owner = module.get_submodule(_owner(node))
        for values, old, name in (
            (site.new_weight(move.absorbed), site.weight_value, "weight"),
            (site.new_bias(move.absorbed), site.bias_value, "bias"),
        ):
            if values is None:
                continue
            if not isinstance(old, Constant):
                owner.bias = _parameter_like(values, owner.weight)
            elif old.stored:
                _set(module, old.name, values)
            else:
                _bake(owner, name)
                target = getattr(owner, name)
                target.copy_(from_numpy(values))


def _users(graph: Graph) -> dict[str, set[Node]]:
    """Which operators use each parameter and buffer, directly or through what it computes."""
    users: dict[str, set[Node]] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            found = graph.constants.find(source)
            if isinstance(found, Constant):
                for name in found.sources:
                    users.setdefault(name, set()).add(node)
    return users


def _owner(node: Node) -> str:
    """The module that an operator's parameters belong to; parametrizations belong to it too."""
    return path_of(node).partition(".parametrizations.")[0]


def _baked_name(module: nn.Module | None, old: Constant) -> str | None:
    """The name of a computed parameter that a module knows how to make a plain one."""
    if module is None:
        return None
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(module, name):
            return name
    hooks = [
        hook
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm | SpectralNorm)
    ]
    return hooks[0].name if len(hooks) == 1 else None


def _bake(module: nn.Module, name: str) -> None:
    """Make a computed parameter a plain one, by the way PyTorch has for it.

    A parametrized module has a class of its own, from which removal takes the parameter's property.
    Deep copies share that class, so the module gets another one like it first.
    """
    if parametrize.is_parametrized(module, name):
        own = type(module)
        body = {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(own.__name__, own.__bases__, body)
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        return
    hooks = module._forward_pre_hooks.values()
    if any(isinstance(hook, WeightNorm) for hook in hooks):
        remove_weight_norm(module, name)
    else:
        remove_spectral_norm(module, name)


def _set(module: nn.Module, name: str, values: Array) -> None:
    """Write a parameter or buffer where it lies: device, memory format and gradients stay."""
    prefix, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(prefix), attribute)
    tensor.copy_(from_numpy(values))


def _parameter_like(values: Array, other: object) -> nn.Parameter:
    """A new parameter on the device of another, learning if that one does."""
    assert isinstance(other, Tensor)
    return nn.Parameter(from_numpy(values).to(other.device, other.dtype), other.requires_grad)


def _replace(module: nn.Module, path: str) -> None:
    """Put an Identity in a module's place, under all its names, with its hooks."""
    old = module.get_submodule(path)
    if isinstance(old, nn.Identity):
        return
    new = nn.Identity()
    new.train(old.training)
    for attribute in _HOOKS:
        setattr(new, attribute, getattr(old, attribute))
    for parent in module.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
