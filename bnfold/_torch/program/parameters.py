"""Write the new weights and biases of operators into a draft of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import Node

from bnfold._core.parameters import Site
from bnfold._core.quantized import Rescaled
from bnfold._plan.planner import Sides
from bnfold._torch.program.draft import Draft, set_argument, set_read
from bnfold._torch.program.quantized import rescale
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.graph import Graph
from bnfold._torch.read.nodes import arguments, kind_of, permuted_from, reads_of, values_read
from bnfold._torch.read.quantized import Dequantized
from bnfold._torch.tensors import Array, from_numpy


class ParameterWriter:
    """Writes parameters. The user's own tensors are never written."""

    def __init__(self, read: Graph, draft: Draft, nodes: Mapping[str, Node]) -> None:
        """``nodes`` has for names of nodes as they were read those that stand for them now."""
        self._read, self._draft, self._nodes = read, draft, nodes

    def write(self, index: int, site: Site, sides: Sides) -> None:
        """Give an operator the new weight and bias of one of its sites.

        Of an operator that has them in a list, not as arguments of their own, the number of the
        tensor among those that it reads says which it is.
        """
        self._rescale(index, site, sides)
        node = self._nodes[self._read.nodes[index].name]
        bound, reads = arguments(node), list(reads_of(node))
        weight = bound["weight"] if "weight" in bound else reads[site.weight]
        for name, number, values, old in (
            ("weight", site.weight, site.new_weight(sides.behind, sides.ahead), site.weight_value),
            ("bias", site.bias, site.new_bias(sides.behind, sides.ahead), site.bias_value),
        ):
            if values is None or number is None:
                continue
            if old is None and kind_of(node) == "mm":
                stem = f"{node.name}_{name}"
                made, _ = self._draft.add_parameter(stem, from_numpy(values), weight)
                node.target, node.args = torch.ops.aten.addmm.default, (made, *reads_of(node))
                node.kwargs = {}
                continue
            if name == "bias" and site.bias_factor != 1.0:
                set_argument(node, "beta", 1)
            held = bound[name] if name in bound else reads[number]
            stem = old.name if isinstance(old, Constant) and old.stored else f"{node.name}_{name}"
            readers = [] if held is None else [u for u in held.users if held in values_read(u)]
            alone = len(readers) == 1 and reads.count(held) == 1
            if isinstance(old, Constant) and alone and self._stored(held, old, values):
                continue
            parameter, _ = self._draft.add_parameter(stem, from_numpy(values), weight)
            if name in bound:
                set_argument(node, name, parameter)
            else:
                set_read(node, number, parameter)

    def _rescale(self, index: int, site: Site, sides: Sides) -> None:
        """Give a weight that comes from integers its new scale."""
        new = site.rescaled(sides.behind, sides.ahead)
        if site.quantized is None or not isinstance(new, Rescaled):
            return
        node, old = self._nodes[self._read.nodes[index].name], self._read.nodes[index]
        bound, reads = arguments(old), list(reads_of(old))
        number = reads.index(bound["weight"]) if "weight" in bound else site.weight
        found = self._read.context.dequantized(reads[number])
        assert isinstance(found, Dequantized)
        ours = replace(
            found,
            node=self._nodes[found.node.name],
            path=tuple(self._nodes[each.name] for each in found.path),
            quantizer=found.quantizer and self._nodes[found.quantizer.name],
        )
        store = partial(self._hold, node)
        set_read(node, number, rescale(self._draft.module.graph, node, ours, new, store))

    def _hold(self, reader: Node, held: Node | None, values: Array, stem: str) -> Node:
        """The node that holds new values of a constant: its own, if one operator alone reads it."""
        signature, state = self._read.program.graph_signature, self._draft.state
        if held is not None and len(held.users) == 1:
            names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
            name = names.get(held.name, "")
            if name in state and state[name].shape == values.shape:
                state[name] = _like(values, state[name])
                return held
        inputs = (node for node in self._nodes.values() if node.op == "placeholder")
        return self._draft.add_parameter(stem, from_numpy(values), next(inputs, reader))[0]

    def _stored(self, held: Node, old: Constant, values: Array) -> bool:
        """Write new values of a constant, which one operator reads, into the parameter that it is
        or is a permutation of; gives whether it is either.
        """
        name, turned = old.name, permuted_from(held)
        if turned is not None and len(turned[0].users) == 1 and turned[0].op == "placeholder":
            (name,), values = old.sources, values.transpose(turned[1])
        elif not old.stored:
            return False
        state = self._draft.state
        if name not in state or state[name].shape != values.shape:
            return False
        state[name] = _like(values, state[name])
        return True


def _like(values: Array, old: Tensor) -> Tensor:
    """Values in a new tensor that lies as another one does."""
    tensor = torch.empty_like(old)
    with torch.no_grad():
        tensor.copy_(from_numpy(values))
    return nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
