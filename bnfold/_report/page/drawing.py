"""What there is to draw of a model: its operators, who reads whom, and where each belongs.

Weights are not drawn, nor is what is computed from weights alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from bnfold._onnx.read.scopes import Scope, bodies, label, read_scopes, type_of

Folder = tuple[str, ...]
INPUT, OUTPUT = "input", "output"
"""The types of what stands for the ports of the main graph. No operator of ONNX has such a name."""
_LONG = 24
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter writes the modules around an operator."""


@dataclass(frozen=True)
class Operator:
    """One operator as it is drawn.

    ``graph`` is the path of its graph; ``folder`` names the groups that it is in, from the outside
    inwards; ``outputs`` are the tensors that it writes, and ``shape`` is that of the first.
    """

    graph: str
    name: str
    op: str
    outputs: tuple[str, ...] = ()
    folder: Folder = ()
    shape: str = ""


@dataclass(frozen=True)
class Drawing:
    """The operators of a model, each behind those that it reads, and the edges between them.

    ``places`` has by the path of a graph and a position in its nodes the number of the operator.
    """

    operators: Sequence[Operator]
    edges: Sequence[tuple[int, int]]
    places: Mapping[tuple[str, int], int]

    @classmethod
    def of(cls, model: ModelProto) -> Drawing:
        """The drawing of a model whose nodes are in order."""
        scopes = read_scopes(model)
        pencil = _Pencil({scope.path: scope for scope in scopes}, _way_to_name(model))
        pencil.draw(scopes[0], ())
        for scope in scopes:
            if scope.is_function:
                pencil.draw(scope, (scope.path,))
        return cls(pencil.operators, list(dict.fromkeys(pencil.edges)), pencil.places)


NameOf = Callable[[Scope, NodeProto], Folder | None]


@dataclass
class _Pencil:
    """Draws graph by graph. ``written`` has by graph and tensor the operator that writes it."""

    scopes: Mapping[str, Scope]
    folder: NameOf
    operators: list[Operator] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    places: dict[tuple[str, int], int] = field(default_factory=dict)
    written: dict[tuple[str, str], int] = field(default_factory=dict)
    constant: set[tuple[str, str]] = field(default_factory=set)

    def draw(self, scope: Scope, home: Folder) -> None:
        """Draw a graph; ``home`` are the groups around it."""
        graph = scope.graph
        shapes = {value.name: shape_of(value) for value in graph.value_info}
        if isinstance(graph, GraphProto):
            shapes |= {value.name: shape_of(value) for value in (*graph.input, *graph.output)}
        if not scope.path:
            for name in (value.name for value in graph.input if isinstance(graph, GraphProto)):
                if name not in scope.initializers and name not in scope.sparse:
                    port = Operator("", name, INPUT, (name,), (), shapes[name])
                    self.written["", name] = self._add(port)
        for position, node in enumerate(scope.nodes):
            if self._is_constant(scope, node):
                self.constant.update((scope.path, name) for name in node.output)
                continue
            self._draw_node(scope, position, node, home, shapes)
        if not scope.path:
            for name in scope.outputs:
                result = self._add(Operator("", name, OUTPUT, (), (), shapes.get(name, "")))
                self._link(scope, [name], result)

    def _draw_node(
        self, scope: Scope, position: int, node: NodeProto, home: Folder, shapes: Mapping[str, str]
    ) -> None:
        found = self.folder(scope, node)
        if found is None:  # it belongs to what it reads first
            sources = (self._source(scope, name) for name in node.input)
            first = next((at for at in sources if at is not None), None)
            known = self.operators[first].folder if first is not None else home
            found = known[len(home) :] if known[: len(home)] == home else ()
        folder = (*home, *found)
        begin = f"{scope.path}/" if scope.path else ""
        results = list[int]()
        for attribute, _ in bodies(node):
            body = self.scopes.get(f"{begin}{label(node)}.{attribute}")
            if body is not None:
                self.draw(body, (*folder, f"{label(node)}.{attribute}"))
                sources = (self._source(body, name) for name in body.outputs)
                results += [at for at in sources if at is not None]
        names = tuple(filter(None, node.output))
        shape = next((shapes[name] for name in names if name in shapes), "")
        own = self._add(Operator(scope.path, label(node), type_of(node), names, folder, shape))
        self.places[scope.path, position] = own
        self.written.update(((scope.path, name), own) for name in names)
        self._link(scope, node.input, own)
        self.edges += [(at, own) for at in results if at != own]

    def _add(self, operator: Operator) -> int:
        self.operators.append(operator)
        return len(self.operators) - 1

    def _source(self, scope: Scope, name: str) -> int | None:
        owner = scope.owner(name) if name else None
        return self.written.get((owner.path, name)) if owner is not None else None

    def _link(self, scope: Scope, names: Sequence[str], reader: int) -> None:
        sources = (self._source(scope, name) for name in names)
        self.edges += [(at, reader) for at in sources if at is not None and at != reader]

    def _is_constant(self, scope: Scope, node: NodeProto) -> bool:
        """Whether an operator computes the same in every run."""
        if node.op_type == "Constant":
            return True
        read = [name for name in node.input if name]
        if not read or node.op_type.startswith("Random") or any(True for _ in bodies(node)):
            return False
        owners = [(scope.owner(name), name) for name in read]
        return all(
            owner is not None
            and (
                ((name in owner.initializers or name in owner.sparse) and owner.defines(name))
                or (owner.path, name) in self.constant
            )
            and name not in owner.protected
            for owner, name in owners
        )


def shape_of(value: ValueInfoProto) -> str:
    """The shape of a tensor as text, such as ``1×3×H×W``; "" where it is not known.

    A long formula, which shape inference made, says no more than that the size is free.
    """
    kind = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not kind.HasField("shape"):
        return ""
    sizes = [
        dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?")
        for dim in kind.shape.dim
    ]
    sizes = ["?" if len(size) > _LONG else size for size in sizes]
    sizes = [f"({size})" if re.search(r"\s|[-+*/×]", size) else size for size in sizes]
    return "×".join(sizes) or "scalar"


def tensor_type(number: int) -> str:
    """The name of an element type, such as ``float``."""
    try:
        return helper.tensor_dtype_to_string(number).partition(".")[2].lower()
    except (KeyError, ValueError):
        return ""


def _way_to_name(model: ModelProto) -> NameOf:
    """How the operators of a model tell which group they belong to."""
    nodes = list(_nodes(model))
    slashed = sum("/" in node.name.strip("/") for node in nodes)
    scoped = sum(any(p.key == _SCOPES for p in node.metadata_props) for node in nodes)
    if scoped * 2 > len(nodes):
        return _by_scopes
    return _by_slashes if slashed * 2 > len(nodes) else _by_weights


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from (node for node in model.graph.node if node.op_type != "Constant")
    for function in model.functions:
        yield from (node for node in function.node if node.op_type != "Constant")


def _by_scopes(_: Scope, node: NodeProto) -> Folder | None:
    """By the modules that torch's exporter noted; the innermost of them comes ahead of the last."""
    told = next((p.value for p in node.metadata_props if p.key == _SCOPES), None)
    if told is None:
        return None
    parts = re.findall(r"'([^']*)'", told)
    return tuple(filter(None, parts[-2].split("."))) if len(parts) > 1 else ()


def _by_slashes(_: Scope, node: NodeProto) -> Folder | None:
    """By a name such as ``/backbone/stage1/conv/Conv``."""
    if not node.name:
        return None
    return tuple(filter(None, node.name.split("/")[:-1]))


def _by_weights(scope: Scope, node: NodeProto) -> Folder | None:
    """By the name of the first weight, such as ``layer1.0.conv1.weight``."""
    for name in node.input:
        owner = scope.owner(name) if name else None
        if owner is not None and name in owner.initializers and "." in name:
            return tuple(filter(None, name.split(".")[:-2]))
    return None
