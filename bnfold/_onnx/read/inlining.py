"""Puts the bodies of local functions in the place of their calls.

A function has one body for all of its calls. Where a call gives weights that fold, it gets a body
of its own, in the graph around. Each body tensor gets a fresh name that begins with that of the
call; what the call reads and writes keeps its name (ONNX IR specification, "Functions").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

from bnfold._onnx.read.scopes import Names, bodies, copy_of, label, read_scopes
from bnfold._system.records import record

Call = tuple[str, ...]
"""Where a call stands: positions of nodes and names of attributes, from the main graph inwards.

A position in a function is one in its body."""

Key = tuple[str, str, str]
"""What names a function: domain, name and overload."""

_DEEPEST = 200
"""Calls within so many others stay: each one adds to the names of all within."""

_MOST_COPIED = 1 << 26
"""Bytes of bodies that are copied to see what folds in them."""
_OWN = ("", "ai.onnx")


@record(frozen=True)
class Origin:
    """The call and the function that a node comes from, and its label there."""

    call: Call
    function: Key
    label: str


@record(frozen=True)
class Inlined:
    """A model some of whose calls have become nodes.

    ``origins`` has by its label what each such node may come from. ``named`` has the label of each
    call. ``made`` are the names of tensors that the model had not before.
    """

    model: ModelProto
    origins: Mapping[str, tuple[Origin, ...]]
    named: Mapping[Call, str]
    made: frozenset[str]


def key_of(node: NodeProto | FunctionProto) -> Key:
    """What names a function, or the function that a node calls."""
    domain = "" if node.domain in _OWN else node.domain
    name = node.op_type if isinstance(node, NodeProto) else node.name
    return domain, name, getattr(node, "overload", "")


def inline(model: ModelProto, calls: Collection[Call] | None = None) -> Inlined:
    """A copy of a model with some calls inlined, or all that may be; the model is not changed.

    A call stays if its function calls itself, takes a graph, or puts out what it is given; if it
    gives or takes more than the function knows; if it stands within too many others; or if an
    operator of the body means something else in the opset around it. With ``calls`` those around a
    call that is meant have to be among them.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    inliner = _Inliner(copy, calls)
    called = called_functions(copy)
    inliner.expand(copy.graph, (), ())
    _drop_uncalled(copy, called)
    return Inlined(
        copy,
        {name: tuple(origins) for name, origins in inliner.origins.items()},
        inliner.named,
        frozenset(inliner.made),
    )


class _Inliner:
    """Inlines calls in the graphs of one model, in place."""

    def __init__(self, model: ModelProto, calls: Collection[Call] | None) -> None:
        found = Counter(map(key_of, model.functions))
        self.functions = {key_of(f): f for f in model.functions if found[key_of(f)] == 1}
        self.origins: dict[str, list[Origin]] = {}
        self.named: dict[Call, str] = {}
        self.made: set[str] = set()
        self._model = model
        self._calls = calls
        self._names = Names(model, read_scopes(model))
        self._copied = 0

    def expand(self, graph: GraphProto, at: Call, within: tuple[Key, ...]) -> None:
        """Inline the calls of a graph and of its bodies. ``within`` are the functions around."""
        infos: list[onnx.ValueInfoProto] = []
        nodes = self._expanded([copy_of(node) for node in graph.node], at, within, infos)
        del graph.node[:]
        graph.node.extend(nodes)
        graph.value_info.extend(infos)

    def _expanded(
        self,
        nodes: Sequence[NodeProto],
        at: Call,
        within: tuple[Key, ...],
        infos: list[onnx.ValueInfoProto],
    ) -> list[NodeProto]:
        expanded: list[NodeProto] = []
        for position, node in enumerate(nodes):
            here, key = (*at, str(position)), key_of(node)
            function = self.functions.get(key)
            if (
                function is not None
                and key not in within
                and self._may_inline(function, node, here)
            ):
                self._import(function)
                body = self._body(function, node, here, infos)
                expanded += self._expanded(body, here, (*within, key), infos)
                continue
            for name, graph in bodies(node):
                self.expand(graph, (*here, name), within)
            expanded.append(node)
        return expanded

    def _may_inline(self, function: FunctionProto, node: NodeProto, here: Call) -> bool:
        if len(here) > _DEEPEST or (self._calls is not None and here not in self._calls):
            return False
        if len(node.input) > len(function.input) or len(node.output) > len(function.output):
            return False
        if any(any(bodies(each)) for each in (node, NodeProto(attribute=function.attribute_proto))):
            return False
        made = {name for inner in function.node for name in inner.output}
        distinct = len({*function.output}) == len(function.output)
        if not (distinct and made.issuperset(function.output) and self._same_operators(function)):
            return False
        if self._calls is None:
            self._copied += function.ByteSize()
        return self._copied <= _MOST_COPIED

    def _same_operators(self, function: FunctionProto) -> bool:
        """Whether the operators of a body mean the same by the model's opsets."""
        imported = {_own(entry.domain): entry.version for entry in self._model.opset_import}
        for entry in function.opset_import:
            domain, version = _own(entry.domain), entry.version
            if imported.get(domain, version) != version:
                used = {n.op_type for n in _nodes(function.node) if _own(n.domain) == domain}
                if any(_since(op, domain, version, imported[domain]) is None for op in used):
                    return False
        return True

    def _import(self, function: FunctionProto) -> None:
        """Let the model know the domains of a body's operators that it has not known before."""
        imported = {_own(entry.domain) for entry in self._model.opset_import}
        used = {_own(node.domain) for node in _nodes(function.node)}
        for entry in function.opset_import:
            if _own(entry.domain) in used - imported:
                self._model.opset_import.add(domain=entry.domain, version=entry.version)

    def _body(
        self, function: FunctionProto, call: NodeProto, here: Call, infos: list[onnx.ValueInfoProto]
    ) -> list[NodeProto]:
        """The nodes that a call stands for, in the names of the graph around it."""
        prefix = call.name or next(filter(None, call.output), call.op_type)
        actual = [*call.input, *[""] * (len(function.input) - len(call.input))]
        names = dict(zip(function.input, actual, strict=True))
        taken = zip(function.output, call.output, strict=False)
        names |= {formal: name for formal, name in taken if name}
        origins: dict[str, str] = {}
        inner = _Renaming(names, prefix, self._names, self.made, origins)
        attributes = {a.name: a for a in (*function.attribute_proto, *call.attribute)}
        nodes = []
        inner.define(name for node in function.node for name in node.output)
        for node in function.node:
            copy = copy_of(node)
            inner.rename(copy, attributes)
            nodes.append(copy)
        for name, old in origins.items():
            self.origins.setdefault(name, []).append(Origin(here, key_of(function), old))
        for info in getattr(function, "value_info", ()):
            name = inner.names.get(info.name, "")
            if name in self.made:
                copy_of_info = onnx.ValueInfoProto()
                copy_of_info.CopyFrom(info)
                copy_of_info.name = name
                infos.append(copy_of_info)
        self.named[here] = label(call)
        return nodes


class _Renaming:
    """New names in a body, where bodies of its nodes have their own tensors.

    ``made`` gets the new names of tensors, ``origins`` the old labels of nodes by their new ones.
    """

    def __init__(
        self,
        names: dict[str, str],
        prefix: str,
        fresh: Names,
        made: set[str],
        origins: dict[str, str],
    ) -> None:
        self.names = names
        self._prefix = prefix
        self._fresh = fresh
        self._made = made
        self._origins = origins

    def define(self, names: Iterator[str]) -> None:
        """Give tensors that are defined here a fresh name, unless they have one."""
        for name in names:
            if name and name not in self.names:
                self.names[name] = self._fresh.fresh(f"{self._prefix}/{name}")
                self._made.add(self.names[name])

    def rename(self, node: NodeProto, attributes: Mapping[str, AttributeProto]) -> None:
        """Rename a node, what it reads and what it writes, and give it the call's attributes."""
        old = label(node)
        if node.name:
            node.name = self._fresh.fresh(f"{self._prefix}/{node.name}")
        node.input[:] = [self._new(name) for name in node.input]
        node.output[:] = [self._new(name) for name in node.output]
        for place in reversed(range(len(node.attribute))):
            own = node.attribute[place]
            if not own.ref_attr_name:
                continue
            given, name = attributes.get(own.ref_attr_name), own.name
            if given is None:
                del node.attribute[place]
            else:
                own.CopyFrom(given)
                own.name = name
        self._origins[label(node)] = old
        for _, graph in bodies(node):
            self._rename_graph(graph, attributes)

    def _rename_graph(self, graph: GraphProto, attributes: Mapping[str, AttributeProto]) -> None:
        own = dict.fromkeys(_defined(graph))  # some may be called as tensors around are
        outer = {name: new for name, new in self.names.items() if name not in own}
        inner = _Renaming(outer, self._prefix, self._fresh, self._made, self._origins)
        inner.define(iter(own))
        for tensors in (graph.input, graph.output, graph.value_info, graph.initializer):
            for tensor in tensors:
                tensor.name = inner._new(tensor.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = inner._new(sparse.values.name)
        for note in graph.quantization_annotation:
            note.tensor_name = inner._new(note.tensor_name)
            for entry in note.quant_parameter_tensor_names:
                entry.value = inner._new(entry.value)
        for node in graph.node:
            inner.rename(node, attributes)

    def _new(self, name: str) -> str:
        """The new name of a tensor; that of one that is not defined is defined by nobody."""
        if name and name not in self.names:
            self.define(iter([name]))
        return self.names[name] if name else name


def _defined(graph: GraphProto) -> list[str]:
    """The names of the tensors that a graph itself defines."""
    names = [value.name for value in graph.input]
    names += [tensor.name for tensor in graph.initializer]
    names += [tensor.values.name for tensor in graph.sparse_initializer]
    return [*names, *(name for node in graph.node for name in node.output)]


def _nodes(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    """Yield every node, and those of its bodies."""
    for node in nodes:
        yield node
        for _, graph in bodies(node):
            yield from _nodes(graph.node)


def called_functions(model: ModelProto) -> set[Key]:
    """The functions that some graph of a model calls."""
    return set().union(*_called(model))


def _called(model: ModelProto) -> list[set[Key]]:
    """What the main graph calls, and what each function does."""
    held = (model.graph.node, *(function.node for function in model.functions))
    return [{key_of(node) for node in _nodes(nodes)} for nodes in held]


def _drop_uncalled(model: ModelProto, called: Collection[Key]) -> None:
    """Remove the functions that were ``called``, and that nobody calls any more."""
    main, *bodies = _called(model)
    callers = Counter(key for keys in (main, *bodies) for key in keys)
    places: dict[Key, list[int]] = {}
    for place, function in enumerate(model.functions):
        places.setdefault(key_of(function), []).append(place)
    waiting = [key for key in places if key in called and not callers[key]]
    gone: list[int] = []
    while waiting:
        for place in places.get(waiting.pop(), ()):
            gone.append(place)
            callers.subtract(bodies[place])
            waiting += [key for key in bodies[place] if key in called and not callers[key]]
    for place in sorted(gone, reverse=True):
        del model.functions[place]


def _since(op: str, domain: str, first: int, second: int) -> int | None:
    """The version since which an operator is what it is; None if two opsets do not agree on it."""
    try:
        one, other = (
            onnx.defs.get_schema(op, version, domain).since_version for version in (first, second)
        )
    except onnx.defs.SchemaError:
        return None
    return int(one) if one == other else None


def _own(domain: str) -> str:
    return "" if domain in _OWN else domain
