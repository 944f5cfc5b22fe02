"""A program while it is rewritten: a copy of its graph and signature, with the same tensors."""

from __future__ import annotations

import itertools
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import GraphModule, Node

from bnfold._torch.program.dialects import copied_graph
from bnfold._torch.read.nodes import is_tensor, main_of
from bnfold._torch.tensors import deep_copy

_STORED = (InputKind.PARAMETER, InputKind.BUFFER)
_COUNT = "num_batches_tracked"


class Draft:
    """A program whose graph may be changed: parameters come and go, outputs move.

    ``state`` has the tensors by name. A tensor may be replaced there, but is never written.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self.module: GraphModule = copied_graph(program)
        self.nodes: dict[str, Node] = {node.name: node for node in self.module.graph.nodes}
        self.state: dict[str, Any] = dict(program.state_dict)
        self._specs = list(program.graph_signature.input_specs)
        self._outputs = list(program.graph_signature.output_specs)
        self._used = {node.name for node in self.nodes.values() if node.users}
        holders = [node for node in self.nodes.values() if node.op == "placeholder"]
        parameters = [n for n, spec in enumerate(self._specs) if spec.kind == InputKind.PARAMETER]
        self._count = parameters[-1] + 1 if parameters else 0
        self._last = holders[parameters[-1]] if parameters else None

    def program(self) -> ExportedProgram:
        """The finished program, without constants that only removed operators used."""
        self._sweep()
        self.module.graph.lint()
        self.module.recompile()
        old = self._program
        return ExportedProgram(
            self.module,
            self.module.graph,
            ExportGraphSignature(self._specs, self._outputs),
            self.state,
            old.range_constraints,
            deep_copy(old.module_call_graph),
            old.example_inputs,
            old.constants,
            verifiers=old.verifiers,
        )

    def bypass(self, node: Node, source: Node) -> None:
        """Take a node out. All its readers read ``source`` instead, those of its first output if it
        has several.
        """
        main = main_of(node)
        assert main is not None
        main.replace_all_uses_with(source)
        self._put_out(main.name, source.name)
        self.erase(node)

    def erase(self, node: Node) -> None:
        """Take out a node that nothing reads any more, but what takes its outputs from a list."""
        for part in () if is_tensor(node) else tuple(node.users):
            self.module.graph.erase_node(part)
        self.module.graph.erase_node(node)

    def rename(self, node: Node, name: str) -> None:
        """Give a node a name that no other node has any more."""
        self._put_out(node.name, name)
        self._used.add(name)
        node.name = name

    def add_parameter(self, stem: str, values: Tensor, near: Node) -> tuple[Node, str]:
        """Add a parameter ahead of the user's inputs, on the device of the node ``near``.

        Gives its node and its name.
        """
        target = fresh(stem.replace(".", "_"), self.state)
        vals = [near.meta["val"], *(node.meta.get("val") for node in self.nodes.values())]
        example = next(val for val in vals if isinstance(val, FakeTensor))
        tensor = values.to(example.device)
        graph, last = self.module.graph, self._last
        with graph.inserting_after(last) if last is not None else graph.inserting_before():
            node: Node = graph.placeholder(fresh(f"p_{target}", self.nodes))
        node.meta["val"] = like(tensor, example)
        self.nodes[node.name] = node
        self._used.add(node.name)
        self._specs.insert(
            self._count, InputSpec(InputKind.PARAMETER, TensorArgument(name=node.name), target)
        )
        self._count, self._last = self._count + 1, node
        self.state[target] = nn.Parameter(tensor, requires_grad=False)
        return node, target

    def _put_out(self, old: str, new: str) -> None:
        self._outputs = [
            replace(spec, arg=TensorArgument(name=new))
            if isinstance(spec.arg, TensorArgument) and spec.arg.name == old
            else spec
            for spec in self._outputs
        ]

    def _sweep(self) -> None:
        """Drop chains of constants, and parameters, that only removed operators used."""
        for node in reversed(list(self.module.graph.nodes)):
            if node.op != "call_function" or node.users or node.name not in self._used:
                continue
            schema = getattr(node.target, "_schema", None)
            if node.target is operator.getitem or (schema is not None and not schema.is_mutable):
                self.module.graph.erase_node(node)
        holders = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        pairs = list(zip(holders, self._specs, strict=True))
        stored = [(node, spec) for node, spec in pairs if spec.kind in _STORED and not node.users]
        gone = {node: str(spec.target) for node, spec in stored if node.name in self._used}
        # A norm's count of batches is never used, but each call of the program would read it.
        norms = {name.removesuffix("running_mean") for name in gone.values() if _is_mean(name)}
        for node, spec in stored:
            name = str(spec.target)
            if name.endswith(_COUNT) and name.removesuffix(_COUNT) in norms:
                gone[node] = name
        for node, name in gone.items():
            self.module.graph.erase_node(node)
            self.state.pop(name, None)
        self._specs = [spec for node, spec in pairs if node not in gone]


def _is_mean(name: str) -> bool:
    return name.rpartition(".")[2] == "running_mean"


def like(tensor: Tensor, example: Any) -> Tensor:
    """A tensor without values (a fake tensor), in the mode of an example."""
    fake: Tensor = example.fake_mode.from_tensor(tensor, static_shapes=True)
    return fake


def fresh(wanted: str, taken: Any) -> str:
    """The wanted name, or the first ``wanted_1``, ``wanted_2``, … that is not taken."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def set_read(node: Node, number: int, new: Node) -> None:
    """Let an operator read another tensor in place of one of those that it reads, by number."""
    numbers = itertools.count()

    def swapped(source: Node) -> Node:
        return new if next(numbers) == number else source

    node.args, node.kwargs = torch.fx.map_arg((node.args, node.kwargs), swapped)


def set_argument(node: Node, name: str, value: Node | float) -> None:
    """Set an argument of an operator by name, by position where it has one there."""
    asked = node.target._schema.arguments  # type: ignore[union-attr]
    place = [argument.name for argument in asked].index(name)
    if name in node.kwargs or asked[place].kwarg_only or place > len(node.args):
        node.kwargs = {**node.kwargs, name: value}
    else:
        node.args = (*node.args[:place], value, *node.args[place + 1 :])
