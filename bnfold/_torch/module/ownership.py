"""The module to which an operator belongs, and other users of that module and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bnfold._core.reasons import Reason
from bnfold._torch.module.keeping import kept_value
from bnfold._torch.module.parameters import stored
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.graph import Graph, path_of, paths_of
from bnfold._torch.read.nodes import arguments, values_read


class Ownership:
    """The modules and tensors of a network, by name, and the operators that use them.

    ``hidden`` are the modules that are called in the body of a branch or loop. If
    ``has_unknown_bodies``, some body does not tell which modules it calls.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: Graph,
        kept: Collection[str] = (),
        aliased: Collection[str] = (),
    ) -> None:
        """Look at the module that a graph was read from. ``kept`` tensors may not change;
        ``aliased`` ones, see `plain_attributes.Aliases`, could change more than themselves.
        """
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.tensors = stored(module)
        self._graph = graph
        self._kept = {self._key(name): name for name in kept}
        self._aliased = {self._key(name) for name in aliased}
        self._holders = _holders(module)
        self._users = self._find_users(lambda node: node.all_input_nodes)
        self._readers = self._find_users(values_read)
        self.hidden, self.has_unknown_bodies = _hidden(graph)

    @property
    def called(self) -> set[str]:
        """The modules that the network calls, by the names it calls them by."""
        return {path for node in self._graph.nodes for path in paths_of(node)} | self.hidden

    def names(self, path: str) -> set[str]:
        """All names of a module."""
        return self._names[id(self.modules[path])]

    @cached_property
    def _names(self) -> Mapping[int, set[str]]:
        found: dict[int, set[str]] = {}
        for name, module in self.modules.items():
            found.setdefault(id(module), set()).add(name)
        return found

    def home(self, node: Node) -> str | None:
        """The innermost module of an affine operator, to be replaced; None for the whole."""
        path = path_of(node)
        return path if path in self.modules and path else None

    def inside(self, path: str) -> list[Node]:
        """The operators of a module that depend on its input, in all its calls and names."""
        return self._inside.get(id(self.modules[path]), [])

    @cached_property
    def _inside(self) -> Mapping[int, list[Node]]:
        """The operators that depend on inputs, by the modules that they belong to."""
        found: dict[int, list[Node]] = {}
        for node in self._graph.nodes:
            if not isinstance(self._graph.context.constants.find(node), Constant):
                homes = {id(self.modules[path]) for path in paths_of(node) if path in self.modules}
                for home in homes:
                    found.setdefault(home, []).append(node)
        return found

    def is_read_elsewhere(self, path: str) -> bool:
        """Whether code outside a module uses its parameters or buffers."""
        module = self.modules[path]
        same = self.names(path)
        own = {
            self._key(f"{name}.{tensor}")
            for name in same
            for tensor, _ in (*module.named_parameters(), *module.named_buffers())
        }
        users = {user for key in own for user in self._users.get(key, ())}
        return any(not same & set(paths_of(user)) for user in users)

    def kept_in(self, node: Node) -> Reason | None:
        """Why the module of an affine operator has to keep its tensors; None if it need not."""
        module = self.modules.get(self.home(node) or "")
        own = (*module.parameters(), *module.buffers()) if module is not None else ()
        return next((r for tensor in own if (r := self._why_kept(_memory(tensor)))), None)

    def kept_under(self, path: str) -> str | None:
        """Why a module has to keep its tensors and those of its submodules; None if it need not."""
        module = self.modules[path]
        reasons = (self._why_kept(_memory(t)) for t in (*module.parameters(), *module.buffers()))
        return next((reason.message for reason in reasons if reason is not None), None)

    def _why_kept(self, key: object) -> Reason | None:
        name = self._kept.get(key)
        if name is None:
            return None
        return kept_value(name)

    def calls_of(self, node: Node) -> tuple[Node, ...]:
        """All operators that are one in the module's code: the same, in the same module, with the
        same weights, run once for each of several inputs. A node that absorbs nothing has none.
        """
        return self._calls.get(node, ())

    @cached_property
    def several(self) -> list[tuple[Node, ...]]:
        """The operators that run several times; see `calls_of`."""
        return [calls for node, calls in self._calls.items() if calls[0] is node and calls[1:]]

    @cached_property
    def _calls(self) -> Mapping[Node, tuple[Node, ...]]:
        found: dict[object, list[Node]] = {}
        for node, reading in zip(self._graph.nodes, self._graph.readings, strict=True):
            if reading.sites:
                module = self.modules.get(owner_of(node))
                weights = tuple(
                    (place, old.sources, old.stored) if isinstance(old, Constant) else place
                    for site in reading.sites
                    for place, old in (
                        (site.weight, site.weight_value),
                        (site.bias, site.bias_value),
                    )
                )
                groups = arguments(node).get("groups")
                found.setdefault((id(module), node.target, groups, weights), []).append(node)
        return {node: tuple(calls) for calls in found.values() for node in calls}

    def why_shared(self, old: Constant, node: Node) -> Reason | None:
        """Why a parameter may not change: ``keep`` says so, or another operator uses it or its
        sources; else None. The `calls_of` one operator may, if they all take in the same.
        """
        computing = set() if old.stored else self._computing(old)
        for name in old.sources:
            kept = self._why_kept(self._key(name))
            if kept is not None:
                return kept
            if old.stored and self._key(name) in self._aliased:
                message = f"a plain attribute of a module has the memory of {name}, too"
                return Reason("shared-weight", name, message)
            others = self._readers.get(self._key(name), set()) - {node} - computing
            others -= set(self.calls_of(node))
            where = sorted(other.name for other in others)
            if old.stored:
                where += sorted(self._holders.get(self._key(name), set()) - {owner_of(node)})
            several = len(self._holders.get(self._key(name), ())) > 1
            if where and (others or several):
                message = f"{name} is also used by {where[0]}: changing it would change both"
                message += ", unless clone=True lets them differ" if several else ""
                return Reason("shared-weight", name, message)
            if self._reads(node, name) > 1:
                label = self._graph.context.label(node)
                message = f"{label} uses {name} in several places: changing it would change all"
                return Reason("shared-weight", name, message)
        return None

    def _reads(self, node: Node, name: str) -> int:
        """How many of the tensors that an operator reads share elements with a parameter, or are
        computed from such a one.
        """
        found = [self._graph.context.constants.find(source) for source in values_read(node)]
        names = [source for one in found if isinstance(one, Constant) for source in one.sources]
        own = self._tensor(name)
        return sum(
            other == name or (own is not None and _overlap(own, self._tensor(other)))
            for other in names
        )

    def _computing(self, old: Constant) -> set[Node]:
        """The operators that compute constants from the sources of a constant."""
        return {
            node
            for name in old.sources
            for node in self._users.get(self._key(name), ())
            if isinstance(self._graph.context.constants.find(node), Constant)
        }

    def _find_users(self, inputs: Callable[[Node], Iterable[Node]]) -> dict[object, set[Node]]:
        """The operators that have each parameter and buffer among some inputs, directly or through
        constants.
        """
        users: dict[object, set[Node]] = {}
        for node in self._graph.nodes:
            for source in inputs(node):
                found = self._graph.context.constants.find(source)
                names = found.sources if isinstance(found, Constant) else ()
                if source.op == "placeholder" and isinstance(found, Reason):
                    names = (found.at,)  # A buffer that changes while the model runs.
                for name in names:
                    users.setdefault(self._key(name), set()).add(node)
        return users

    def _key(self, name: str) -> object:
        """A key for a tensor: its memory, so that tied parameters have one key."""
        tensor = self._tensor(name)
        return _memory(tensor) if tensor is not None else name

    def _tensor(self, name: str) -> Tensor | None:
        """A parameter or buffer; or what code reads by another way, as from a list, which may be
        one of them.
        """
        found = self.tensors.get(name, self._graph.program.constants.get(name))
        return found if isinstance(found, Tensor) else None


def owner_of(node: Node) -> str:
    """The module of an operator's parameters; parametrizations belong to that module too."""
    return path_of(node).partition(".parametrizations.")[0]


def _memory(tensor: Tensor) -> object:
    """A key that is the same for tensors that share their memory."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.untyped_storage()._cdata


def _overlap(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors may have elements in common. Weights that lie one after the other in one
    memory, as cuDNN wants those of an LSTM, have none.
    """
    if other is None or _memory(one) != _memory(other):
        return False
    (start, end), (begin, stop) = _span(one), _span(other)
    return start < stop and begin < end


def _span(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its memory from a tensor's first element to the end of its last."""
    start, size = int(tensor.storage_offset()), tensor.element_size()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return start * size, (start + sum(int((n - 1) * step) for n, step in steps) + 1) * size


def _holders(module: nn.Module) -> dict[object, set[str]]:
    """The modules that hold each tensor as a parameter or buffer, under one name each."""
    holders: dict[object, set[str]] = {}
    for path, part in module.named_modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                holders.setdefault(_memory(tensor), set()).add(path)
    return holders


def _hidden(graph: Graph) -> tuple[set[str], bool]:
    """The modules that branch and loop bodies call, and whether some body does not tell its calls.

    The main graph does not show these calls.
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
