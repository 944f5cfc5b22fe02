"""Finds the modules without a bias that can be given one."""

from __future__ import annotations

from collections.abc import Callable, Set

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from bnfold._errors import UsageError
from bnfold._torch.module.ownership import Ownership, owner_of
from bnfold._torch.read.graph import Graph
from bnfold._torch.read.nodes import arguments


class MissingBiases:
    """The modules without a bias that can be given one."""

    def __init__(
        self,
        graph: Graph,
        owned: Ownership,
        again: Callable[[], ExportedProgram] | None = None,
        takers: Set[str] | None = None,
    ) -> None:
        """``again`` exports the module once more, to see what a new bias would do.

        ``takers`` are the modules that would hand a new bias on, if that is known.
        """
        self._graph = graph
        self._owned = owned
        self._again = again
        self.takers = takers

    def owner(self, node: Node) -> str | None:
        """The module that can be given a bias for an operator; None where there is none.

        Its ``bias`` is None, the operator belongs to it and no other linear operator does, but for
        the same one in other calls.
        """
        path = owner_of(node)
        module = self._owned.modules.get(path)
        if module is None or path in self._owned.hidden or self._owned.is_read_elsewhere(path):
            return None
        same = self._owned.names(path)
        targets = self._operators_with_site()
        inside = {n for n in self._owned.inside(path) if n in targets and owner_of(n) in same}
        if inside != set(self._owned.calls_of(node)):
            return None
        if "bias" not in module._parameters or module.bias is not None:
            return None
        if not isinstance(getattr(module, "weight", None), Tensor):
            return None
        return path if _adds_its_bias(module) or path in self._takers() else None

    def _takers(self) -> Set[str]:
        """The modules whose own code would hand a new bias to their operator.

        They are found by a second export, with zeros for all missing biases.
        """
        if self.takers is None:
            self.takers = self._find_takers() if self._again is not None else set()
        return self.takers

    def _find_takers(self) -> set[str]:
        """The modules whose bias of zeros their operator reads, in a second export."""
        lacking: dict[nn.Module, list[int]] = {}
        made: dict[nn.Module, nn.Parameter] = {}
        assert self._again is not None
        try:
            for place, (node, reading) in enumerate(
                zip(self._graph.nodes, self._graph.readings, strict=True)
            ):
                module = self._owned.modules.get(owner_of(node))
                if len(reading.sites) != 1:  # A module has one bias by that name.
                    continue
                (site,) = reading.sites
                if site.bias_value is not None or site.bias_shape is None:
                    continue
                if module is None or "bias" not in module._parameters or _adds_its_bias(module):
                    continue
                weight = getattr(module, "weight", None)
                if module.bias is None and isinstance(weight, Tensor):
                    zeros = torch.zeros(site.bias_shape, dtype=weight.dtype, device=weight.device)
                    made[module] = module.bias = nn.Parameter(zeros)
                    lacking[module] = []
                if module in lacking:
                    lacking[module].append(place)
            program = self._again()
        except UsageError:
            return set()
        finally:
            for holder in lacking:
                holder._parameters["bias"] = None
        nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        if [n.target for n in nodes] != [n.target for n in self._graph.nodes]:
            return set()
        stored = {
            node: program.state_dict.get(name)
            for node in program.graph.nodes
            if (name := program.graph_signature.inputs_to_parameters.get(node.name)) is not None
        }
        takers = set()
        for module, places in lacking.items():
            users = {user for n, t in stored.items() if t is made[module] for user in n.users}
            given = [stored.get(arguments(nodes[place]).get("bias")) for place in places]
            alone = users == {nodes[place] for place in places}
            if alone and all(one is made[module] for one in given):
                takers.update(self._owned.names(owner_of(self._graph.nodes[places[0]])))
        return takers

    def _operators_with_site(self) -> set[Node]:
        """The operators with a weight and a place for a bias."""
        return {
            node
            for node, reading in zip(self._graph.nodes, self._graph.readings, strict=True)
            if reading.sites
        }


def _adds_its_bias(module: nn.Module) -> bool:
    """Whether a module runs PyTorch's own code, which adds a bias where there is one."""
    if "forward" in module.__dict__ or "_conv_forward" in module.__dict__:
        return False
    kind = type(module)
    own = next((known for known in _WITH_BIAS if kind.forward is known.forward), None)
    if own is None or not isinstance(module, own):
        return False
    return getattr(kind, "_conv_forward", None) is getattr(own, "_conv_forward", None)


# Modules whose code hands ``self.bias`` to their one operator.
_WITH_BIAS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.LayerNorm,
)
