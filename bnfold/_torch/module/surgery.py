"""Write a plan into a copy of the user's own module.

The class, the names of submodules and their order stay. A folded module becomes an Identity, with
the hooks it had; a missing bias becomes a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bnfold._core import absorbing
from bnfold._core import view as view_module
from bnfold._core.parameters import Parameter, Reading, Site
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber, Affine, View
from bnfold._errors import UsageError
from bnfold._plan.planner import Move, Moves, Sides
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.export import Calls
from bnfold._torch.read.graph import Graph, path_of, paths_of
from bnfold._torch.read.nodes import arguments, kind_of
from bnfold._torch.tensors import Array, from_numpy


class Surgery:
    """What can be written into one module, and how."""

    def __init__(
        self,
        module: nn.Module,
        graph: Graph,
        calls: Calls | None = None,
        again: Callable[[], ExportedProgram] | None = None,
    ) -> None:
        """Look at the module that a graph was read from.

        ``calls`` are its submodules' calls; without them only norms of PyTorch's own may go.
        ``again`` exports the module once more, to see what a bias would do that it does not have.
        """
        self._graph = graph
        self._calls = calls
        self._again = again
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._tensors: dict[str, Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        self._holders = _holders(module)
        self._users = self._find_users()
        self._hidden, self._blind = _hidden(graph)
        self._biased: set[str] | None = None

    @property
    def called(self) -> set[str]:
        """The modules that the network calls, by the names it calls them by."""
        return {path for node in self._graph.nodes for path in paths_of(node)} | self._hidden

    def objections(self, moves: Sequence[Move]) -> Mapping[int, Reason]:
        """Why a move cannot be written into modules, by its number."""
        gone = {self._graph.nodes[index] for move in moves for index in move.maps}
        found = {}
        for number, move in enumerate(moves):
            reason = self._objection(move, gone)
            if reason is not None:
                found[number] = reason
        return found

    def restricted(self, view: View) -> View:
        """A view in which nothing absorbs what cannot be written into its module's parameters.

        A norm goes as a whole or takes in what follows it: nothing else can stand in its place.
        """
        if not any(isinstance(node.role, Affine) for node in view.nodes):
            return view
        nodes = zip(view.nodes, self._graph.nodes, self._graph.readings, strict=True)
        return replace(view, nodes=tuple(self._restricted(*each) for each in nodes))

    def _restricted(self, seen: view_module.Node, node: Node, reading: Reading) -> view_module.Node:
        site, role = reading.site, seen.role
        if site is None or not isinstance(role, Absorber | Affine):
            return seen
        weight = self._unwritable(node, site, site.weight_value, "weight")
        bias = self._unwritable(node, site, site.bias_value, "bias")
        old = role.absorber if isinstance(role, Affine) else role
        assert old is not None
        scale = weight or (bias if site.bias_value is not None else None)
        ahead = old.ahead and replace(
            old.ahead,
            scale_blocked=old.ahead.scale_blocked or weight,
            shift_blocked=old.ahead.shift_blocked or bias,
        )
        new = replace(
            old,
            scale_blocked=old.scale_blocked or scale,
            shift_blocked=old.shift_blocked or bias,
            ahead=ahead,
        )
        if isinstance(role, Absorber):
            return replace(seen, role=new)
        whole = replace(role, absorber=new, composable=role.map.is_identity)
        return replace(seen, role=whole)

    def apply(self, module: nn.Module, moves: Moves) -> None:
        """Carry out all moves on a module of the structure that was planned."""
        with torch.no_grad():
            for index, sides in moves.sides.items():
                site = self._graph.readings[index].site
                if site is not None:
                    self._write(module, self._graph.nodes[index], site, sides)
            maps = [self._graph.nodes[index] for move in moves.moves for index in move.maps]
            gone = {path for node in maps if (path := self._home(node)) is not None}
            for part in [module.get_submodule(path) for path in sorted(gone)]:
                _clear(part)

    def _objection(self, move: Move, gone: set[Node]) -> Reason | None:
        view = self._graph.view
        last = view.nodes[move.maps[-1]].label
        source = view.values[view.nodes[move.maps[0]].inputs[0]]
        if move.law == "compose" and not move.stands:
            # An Identity gives its input itself: who writes into one would write into the other.
            reason = absorbing.unshared(view, source, move.maps[0])
            if source.producer is None:
                message = f"{last} changes nothing, but gives a copy of what the caller passes in"
                reason = Reason("not-a-module", last, message)
            if reason is not None:
                return reason
        if move.stands:
            ops = " and ".join(standing.op for standing in move.stands)
            return Reason("not-a-module", last, f"what is left of {last} would need a new {ops}")
        for index in move.maps:
            node = self._graph.nodes[index]
            problem = self._irreplaceable(node, gone)
            if problem is not None:
                where = view.nodes[index].label
                return Reason("not-a-module", where, f"{where} {problem}")
        return None

    def _irreplaceable(self, node: Node, gone: set[Node]) -> str | None:
        """Why the module of an affine operator cannot become an Identity."""
        path = self._home(node)
        if path is None:
            return "is part of a module's own code"
        module = self._modules[path]
        inside = self._inside(path)
        if not set(inside) <= gone or path in self._hidden:
            return "is part of a module's own code or has other work to do"
        if self._blind and not list(module.buffers()) and not list(module.parameters()):
            return "may be called in a branch or loop too"
        if self._is_read_elsewhere(path):
            return "has parameters that are used elsewhere too"
        norm = isinstance(module, _BatchNorm | _InstanceNorm)
        if self._calls is None:
            if not norm:
                return "is in a module of another kind than PyTorch's norms"
        elif not self._calls.are_plain(module):
            return "is in a module that takes or gives something else than one tensor"
        hooked = any(getattr(module, attribute) for attribute in _HOOKS)
        own = norm and all(kind_of(each) in ("batch_norm", "instance_norm") for each in inside)
        if isinstance(module, nn.Identity) or (hooked and not own):
            return "may be computed by a hook, which would stay"
        return None

    def _unwritable(
        self, node: Node, site: Site, old: Parameter | None, name: str
    ) -> Reason | None:
        """Why a new parameter of an operator has no place in a module."""
        if isinstance(old, Constant):
            return self._shared(old, node) or self._unbaked(old, node, name)
        if self._bias_owner(node, site) is None:
            message = f"the module of {site.label} has no bias to set"
            return Reason("not-a-module", site.label, message)
        return None

    def _shared(self, old: Constant, node: Node) -> Reason | None:
        """Whether anybody else uses a parameter, or what a computed one is computed from."""
        computing = set() if old.stored else self._computing(old)
        for name in old.sources:
            others = self._users.get(self._key(name), set()) - {node} - computing
            where = sorted(other.name for other in others)
            if old.stored:
                where += sorted(self._holders.get(self._key(name), set()) - {_owner(node)})
            several = len(self._holders.get(self._key(name), ())) > 1
            if where and (others or several):
                message = f"{name} is also used by {where[0]}: changing it would change both"
                message += ", unless clone=True lets them differ" if several else ""
                return Reason("shared-weight", name, message)
        return None

    def _computing(self, old: Constant) -> set[Node]:
        """The operators that compute constants of what a constant is computed from."""
        return {
            node
            for name in old.sources
            for node in self._users.get(self._key(name), ())
            if isinstance(self._graph.context.constants.find(node), Constant)
        }

    def _unbaked(self, old: Constant, node: Node, name: str) -> Reason | None:
        """A parameter must be a stored one of the module, or one that can be made so."""
        if old.stored:
            tensor = self._tensors.get(old.name)
            if tensor is None:
                message = f"{old.name} is neither a parameter nor a buffer of the module"
                return Reason("not-a-module", old.name, message)
            if any(
                step == 0 for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1
            ):
                message = f"elements of {old.name} share their memory"
                return Reason("shared-weight", old.name, message)
            return None
        module = self._modules.get(_owner(node))
        if module is not None and _is_computed(module, name, old):
            return None
        message = f"{old.name} is computed in a module's own code, not stored"
        return Reason("not-a-module", old.name, message)

    def _bias_owner(self, node: Node, site: Site) -> str | None:
        """The module whose ``bias`` is None and that the operator belongs to alone."""
        path = _owner(node)
        module = self._modules.get(path)
        if module is None or path in self._hidden or self._is_read_elsewhere(path):
            return None
        same = {name for name, other in self._modules.items() if other is module}
        targets = self._targets()
        if len([n for n in self._inside(path) if n in targets and _owner(n) in same]) != 1:
            return None
        if "bias" not in module._parameters or module.bias is not None:
            return None
        if not isinstance(getattr(module, "weight", None), Tensor):
            return None
        return path if _is_plain(module) or path in self._takers() else None

    def _takers(self) -> set[str]:
        """The modules whose own code hands a bias that they do not have yet to their operator.

        Found by exporting once more, with zeros for all biases that are missing.
        """
        if self._biased is None:
            self._biased = self._find_takers() if self._again is not None else set()
        return self._biased

    def _find_takers(self) -> set[str]:
        lacking: dict[int, str] = {}
        made: dict[int, nn.Parameter] = {}
        assert self._again is not None
        try:
            for place, (node, reading) in enumerate(
                zip(self._graph.nodes, self._graph.readings, strict=True)
            ):
                site, path = reading.site, _owner(node)
                module = self._modules.get(path)
                if site is None or site.bias_value is not None or site.bias_shape is None:
                    continue
                if module is None or "bias" not in module._parameters or _is_plain(module):
                    continue
                weight = getattr(module, "weight", None)
                if module.bias is None and isinstance(weight, Tensor):
                    zeros = torch.zeros(site.bias_shape, dtype=weight.dtype, device=weight.device)
                    made[place] = nn.Parameter(zeros)
                    lacking[place] = path
                    module.bias = made[place]
            program = self._again()
        except UsageError:
            return set()
        finally:
            for path in lacking.values():
                self._modules[path].bias = None
        nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        if [n.target for n in nodes] != [n.target for n in self._graph.nodes]:
            return set()
        stored = {
            node: program.state_dict.get(name)
            for node in program.graph.nodes
            if (name := program.graph_signature.inputs_to_parameters.get(node.name)) is not None
        }
        takers = set()
        for place, path in lacking.items():
            users = [user for n, t in stored.items() if t is made[place] for user in n.users]
            given = stored.get(arguments(nodes[place]).get("bias"))
            if users == [nodes[place]] and given is made[place]:
                takers.add(path)
        return takers

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
            and not isinstance(self._graph.context.constants.find(node), Constant)
        ]

    def _is_read_elsewhere(self, path: str) -> bool:
        """Whether code outside a module uses its parameters or buffers."""
        module = self._modules[path]
        same = {name for name, other in self._modules.items() if other is module}
        own = {
            self._key(f"{name}.{tensor}")
            for name in same
            for tensor, _ in (*module.named_parameters(), *module.named_buffers())
        }
        users = {user for key in own for user in self._users.get(key, ())}
        return any(not same & set(paths_of(user)) for user in users)

    def _find_users(self) -> dict[object, set[Node]]:
        """Which operators use each parameter and buffer, directly or through what it computes."""
        users: dict[object, set[Node]] = {}
        for node in self._graph.nodes:
            for source in node.all_input_nodes:
                found = self._graph.context.constants.find(source)
                names = found.sources if isinstance(found, Constant) else ()
                if source.op == "placeholder" and isinstance(found, Reason):
                    names = (found.at,)  # A buffer that changes while the model runs.
                for name in names:
                    users.setdefault(self._key(name), set()).add(node)
        return users

    def _key(self, name: str) -> object:
        """What tells a tensor from others: its memory, which tied parameters share."""
        tensor = self._tensors.get(name)
        return _memory(tensor) if tensor is not None else name

    def _write(self, module: nn.Module, node: Node, site: Site, sides: Sides) -> None:
        owner = module.get_submodule(_owner(node))
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


def _owner(node: Node) -> str:
    """The module that an operator's parameters belong to; parametrizations belong to it too."""
    return path_of(node).partition(".parametrizations.")[0]


def _memory(tensor: Tensor) -> object:
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.untyped_storage()._cdata


def _holders(module: nn.Module) -> dict[object, set[str]]:
    """The modules that hold each tensor as a parameter or buffer, under one name each."""
    holders: dict[object, set[str]] = {}
    for path, part in module.named_modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                holders.setdefault(_memory(tensor), set()).add(path)
    return holders


def _hidden(graph: Graph) -> tuple[set[str], bool]:
    """The modules that are called in a branch or loop body, which the graph does not show, and
    whether there are bodies that do not tell.
    """
    bodies = [
        part for part in graph.program.graph_module.modules() if isinstance(part, GraphModule)
    ]
    nodes = [
        node
        for body in bodies
        if body is not graph.program.graph_module
        for node in body.graph.nodes
        if node.op == "call_function"
    ]
    return {path for node in nodes for path in paths_of(node) if path}, any(
        not paths_of(node) for node in nodes
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether a module runs PyTorch's own code, which adds a bias where there is one."""
    if "forward" in module.__dict__ or "_conv_forward" in module.__dict__:
        return False
    kind = type(module)
    own = next((known for known in _KNOWN if kind.forward is known.forward), None)
    if own is None or not isinstance(module, own):
        return False
    return getattr(kind, "_conv_forward", None) is getattr(own, "_conv_forward", None)


def _is_computed(module: nn.Module, name: str, old: Constant) -> bool:
    """Whether a constant is the parameter that a parametrization or hook of a module computes."""
    with torch.no_grad():
        if parametrize.is_parametrized(module, name):
            value = getattr(module, name)
        else:
            hooks = _computing_hooks(module)
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


def _computing_hooks(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)]


def _bake(module: nn.Module, name: str) -> None:
    """Make a computed parameter a plain one, by the way PyTorch has for it.

    A parametrized module has a class of its own, from which removal takes the parameter's property.
    Deep copies share that class, so the module gets another one like it first.
    """
    if parametrize.is_parametrized(module, name):
        own = type(module)
        body = {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(own.__name__, own.__bases__, body)
        with torch.enable_grad():  # By the value's history it tells whether to learn.
            learns = bool(getattr(module, name).requires_grad)
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    else:
        hook = _computing_hooks(module)[0]
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
    """A new parameter on the device of another, learning if that one does."""
    assert isinstance(other, Tensor)
    return nn.Parameter(from_numpy(values).to(other.device, other.dtype), other.requires_grad)


def _clear(module: nn.Module) -> None:
    """Make a module an Identity, under all its names and for all who hold it, with its hooks.

    Its plain attributes stay too, for code that asks for a norm's ``num_features``.
    """
    state = nn.Identity().__dict__
    for name, value in module.__dict__.items():
        plain = name not in state and isinstance(value, bool | int | float | str | tuple | None)
        if name in _HOOKS or name == "training" or (plain and name != "forward"):
            state[name] = value
    module.__class__ = nn.Identity
    module.__dict__.clear()
    module.__dict__.update(state)


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)

# Modules whose code hands ``self.bias`` to their one operator.
_KNOWN = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.LayerNorm,
)
