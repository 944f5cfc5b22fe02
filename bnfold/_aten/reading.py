"""A program of PyTorch, written in the words of the proof."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from bnfold._aten import linear, norms, pointwise, rearranged, recurrent, windows
from bnfold._aten.call import Call, Made
from bnfold._aten.in_place import is_changing, is_plain, twin, untold
from bnfold._aten.opaque import Told, is_drawn, name_of, unlike
from bnfold._aten.sizes import Sizes
from bnfold._aten.writer import Like, Writer
from bnfold._torch.read.constants import Constant, Constants
from bnfold._torch.read.export import quiet

_RULES = {
    **linear.RULES,
    **norms.RULES,
    **pointwise.RULES,
    **rearranged.RULES,
    **recurrent.RULES,
    **windows.RULES,
}
_SILENT = ("_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size")
"""Operators that only say what is known of sizes and types."""


_NO_NUMBERS = frozenset(
    (
        *("copy", "empty_like", "fill", "full_like", "new_empty", "new_full", "new_ones"),
        *("new_zeros", "ones_like", "rand_like", "randint_like", "randn_like", "zero"),
        "zeros_like",
    )
)
"""Operators that ask their first tensor for its sizes and its type, and take no number of it."""


class Unread(Exception):
    """A program of which nothing is said. The message says why, ``at`` where."""

    def __init__(self, at: str, why: str) -> None:
        super().__init__(why)
        self.at = at


@dataclass(eq=False)
class Reader:
    """Translates the operators of one program, in order.

    ``names`` has the value that stands for a node, ``lists`` those of a node that puts out several.
    ``ports`` are the inputs, and ``told`` what of them and of the outputs is no tensor. It
    ``has_computed`` weights, which PyTorch has rounded on the way.
    """

    program: ExportedProgram
    writer: Writer = field(default_factory=Writer)
    names: dict[Node, str] = field(default_factory=dict)
    lists: dict[Node, list[str]] = field(default_factory=dict)
    ports: list[tuple[str, Like, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    has_computed: bool = False

    def __post_init__(self) -> None:
        self._constants = Constants(self.program, frozenset(), {})
        held = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        # By position: a copy of a program renames nodes that hide a Python name, such as "input".
        self._placeholders = list(zip(held, self.program.graph_signature.input_specs, strict=True))
        given = [n.meta.get("val") for n, s in self._placeholders if s.kind is InputKind.USER_INPUT]
        self.sizes = Sizes(given, self.program.range_constraints)

    def read(self) -> None:
        """Write the whole program."""
        self._refuse_changes()
        for node, spec in self._placeholders:
            if spec.kind is InputKind.USER_INPUT:
                self._input(node)
        for node in self.program.graph.nodes:
            self.writer.label = label_of(node)
            if node.op == "call_function":
                self._operator(node)
            elif node.op == "get_attr":
                self._attribute(node)
            elif node.op not in ("placeholder", "output"):
                raise Unread(node.name, f"a program has no {node.op}")
        self._outputs()

    def _refuse_changes(self) -> None:
        for spec in self.program.graph_signature.output_specs:
            if spec.kind is not OutputKind.USER_OUTPUT:
                what = spec.target or getattr(spec.arg, "name", "")
                raise Unread(what, f"{what} changes while the program runs")
        if not is_plain(self.program.graph):
            raise Unread("", "an operator writes into what is read by an older name")

    def _input(self, node: Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            like = self.sizes.like(value)
            self.names[node] = self.writer.input(len(self.ports), like)
            self.ports.append((node.name, like, f"{value.dtype} {value.layout}"))
        else:
            self.told.append(f"{len(self.ports)} {self.sizes.text(value) or repr(value)}")

    def _value(self, node: Node) -> str | None:
        """The value that stands for a node; that of a constant is made when it is asked for."""
        if node not in self.names:
            found = self._constants.find(node)
            if not isinstance(found, Constant):
                return None
            like = self.sizes.like(node.meta.get("val"))
            self.has_computed |= found.is_float and not found.stored
            if not _has_numbers(found.tensor()):
                (self.names[node],) = self.writer.opaque("constant", [], [like], unlike())
            elif like.kind and all(isinstance(size, int) for size in like.sizes):
                self.names[node] = self.writer.held(found.name, like, found.load)
            else:
                (self.names[node],) = self.writer.opaque("constant", [], [like], _content(found))
        return self.names[node]

    def _attribute(self, node: Node) -> None:
        held: Any = self.program.graph_module
        for part in str(node.target).split("."):
            held = getattr(held, part, None)
        if isinstance(held, Tensor):
            raise Unread(node.name, f"{node.target} is a tensor that the program does not name")

    def _operator(self, node: Node) -> None:
        if node.target is operator.getitem and node.args[0] in self.lists:
            number = node.args[1]
            assert isinstance(number, int)
            self.names[node] = self.lists[node.args[0]][number]  # type: ignore[index]
            return
        value = node.meta.get("val")
        parts = list(value) if isinstance(value, (list, tuple)) else None
        if parts is None and self.sizes.text(value) is not None:
            return  # A size: those who read it are told what it is.
        if parts is None and isinstance(self._constants.find(node), Constant):
            return
        if getattr(getattr(node.target, "_schema", None), "name", "")[6:] in _SILENT:
            return
        values = [value] if parts is None else parts
        made = self._translated(node, [self.sizes.like(each) for each in values])
        if made is None:
            made = self._opaque(node, values)
        names = [made] if isinstance(made, str) else list(made)
        if parts is not None:
            self.lists[node] = names + [""] * (len(values) - len(names))
        elif names:
            self.names[node] = names[0]

    def _translated(self, node: Node, likes: list[Like]) -> Made:
        target = _target(node)
        if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
            return None
        kind = target._schema.name.partition("::")[2]
        rule = _RULES.get(kind)
        if rule is None:
            return None
        arguments = target._schema.arguments
        given = {each.name: each.default_value for each in arguments if each.has_default_value()}
        names = [each.name for each in arguments]
        given |= {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        for source in node.all_input_nodes:
            self._value(source)
        call = Call(kind, given, likes, _used(node), self.names, self.writer)
        mark = self.writer.mark()
        try:
            made = rule(call)
        except norms.InTraining as error:
            raise Unread(self.writer.label, f"this {error} is in training mode") from error
        if made is None:
            self.writer.back(mark)
        return made

    def _opaque(self, node: Node, values: list[Any]) -> list[str]:
        told = Told(self._said, self.program.graph_module)
        text = f"{name_of(_target(node))}({told.of(self._given(node))}, {told.of(node.kwargs)})"
        inputs = [self._value(each) or "" for each in told.tensors]
        if "" in inputs:
            raise Unread(self.writer.label, f"what {node.name} reads is not understood")
        likes = [self.sizes.like(each) for each in values]
        types = [f"{each.dtype}" if isinstance(each, Tensor) else "" for each in values]
        write = (
            self.writer.drawn if is_drawn(node, self.program.graph_module) else self.writer.opaque
        )
        kind = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
        made = write(kind, inputs, likes, f"{text} {types}")
        if "_assert" in kind:
            self.writer.check(made[0])
        return made

    def _given(self, node: Node) -> list[Any]:
        """The arguments of an operator. A tensor of which it takes no number is its sizes, where
        these are known; its type decides what is put out, which is told besides.
        """
        target, given = _target(node), list(node.args)
        if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
            return given
        if target._schema.name.partition("::")[2] in _NO_NUMBERS and isinstance(given[0], Node):
            sizes = self.sizes.like(given[0].meta.get("val")).sizes
            if None not in sizes:
                given[0] = f"a tensor of {sizes}"
        return given

    def _said(self, node: Node) -> str | None:
        """The text of a size; None for what has to be read."""
        value = node.meta.get("val")
        text = self.sizes.text(value)
        if text is not None or isinstance(value, Tensor) or node in self.names:
            return text
        return unlike() if node not in self.lists else None

    def _outputs(self) -> None:
        (given,) = self.program.graph.output_node().args
        assert isinstance(given, (list, tuple))
        for number, value in enumerate(given):
            if not isinstance(value, Node):
                self.told.append(f"output {number} {value!r}")
                continue
            text = self.sizes.text(value.meta.get("val"))
            name = None if text is not None else self._value(value)
            if name is not None:
                self.writer.output(number, name)
            else:
                self.told.append(f"output {number} {text or unlike()}")


def _has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor has its numbers in memory, one by one, and not in a way of its own."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return plain and tensor.layout is torch.strided and not tensor.is_meta


def _content(found: Constant) -> str:
    """A constant of a type that ONNX does not have, as text."""
    tensor = found.tensor()
    try:
        return f"{tensor.dtype} {list(tensor.shape)} {tensor.tolist()}"
    except (RuntimeError, TypeError, NotImplementedError):
        return unlike()


def _target(node: Node) -> Any:
    """What a node calls; of an operator that writes into what it is given, its twin."""
    return twin(node) if is_changing(node) else node.target


def _used(node: Node) -> frozenset[int]:
    """The numbers of the outputs that anything reads."""
    parts = [user for user in node.users if user.target is operator.getitem and user.users]
    if not isinstance(node.meta.get("val"), (list, tuple)):
        return frozenset((0,))
    if any(user.target is not operator.getitem for user in node.users):
        return frozenset(range(len(node.meta["val"])))
    return frozenset(int(part.args[1]) for part in parts)  # type: ignore[arg-type]


def label_of(node: Node) -> str:
    """What a user calls an operator: its module's name, or its own and its module's."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    own = name.startswith("torch.nn.modules.") and "container" not in name
    if path and own:
        return str(path)
    return f"{node.name} of {path}" if path else node.name


def functional(programs: list[ExportedProgram]) -> Iterator[ExportedProgram]:
    """The programs without operators that write into what is read by an older name.

    PyTorch itself takes these out. What it writes instead is of one kind, so it writes both
    programs anew if one of them has any.
    """
    are_plain = all(is_plain(program.graph) for program in programs)
    for program in programs:
        if are_plain:
            yield program
            continue
        silent = untold(program.graph)
        if silent is not None:
            why = f"{silent.name} may give back memory into which something writes"
            raise Unread(label_of(silent), why)
        with warnings.catch_warnings(), quiet("torch.export"):
            warnings.simplefilter("ignore")
            try:
                yield program.run_decompositions({})
            except Exception as error:  # PyTorch raises whatever its passes raise.
                raise Unread("", f"PyTorch cannot write the program anew: {error}") from error
