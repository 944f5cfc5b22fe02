"""The order of nodes: whoever writes a tensor stands ahead of whoever reads it.

ONNX asks for this order in every graph. Some converters do not keep it, and onnxruntime runs their
files all the same. Shape inference, and whatever else goes through the nodes once, needs it.

A name stands for one tensor in a graph (ONNX IR, "Names Within a Graph"). Where two define it,
nobody can tell which is meant: onnxruntime refuses such a file, or takes one of them. A body sees
the tensors of the graphs around it, as far as they are there when it runs, and writes none of their
names; those of its own node and of nodes behind that it may have, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from typing import Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from bnfold._errors import UsageError
from bnfold._onnx.read.scopes import bodies, copy_of, label


def sorted_positions(nodes: Sequence[NodeProto], sources: Sequence[Collection[int]]) -> list[int]:
    """The positions of nodes, each behind its ``sources``; in file order as far as that goes.

    Raises `UsageError` on cycles.
    """
    order: list[int] = []
    entered, left = set[int](), set[int]()
    for first in range(len(nodes)):
        waiting = [first]
        while waiting:
            position = waiting[-1]
            if position in entered:
                waiting.pop()
                if position not in left:
                    left.add(position)
                    order.append(position)
                continue
            entered.add(position)
            for source in sorted(sources[position], reverse=True):
                if source not in entered:
                    waiting.append(source)
                elif source not in left:
                    raise _cycle(nodes, waiting, entered - left, source)
    return order


def put_in_order(model: ModelProto) -> None:
    """Put the nodes of every graph of a model in order, in place: bodies and functions as well.

    A graph that is in order stays as it is. Raises `UsageError` on cycles, where a graph defines a
    name twice or not at all, and where a body writes a name that it sees.
    """
    for nodes, order in list(_out_of_order(model)):
        copies = [copy_of(nodes[position]) for position in order]
        del nodes[:]
        nodes.extend(copies)


def in_order(model: ModelProto) -> ModelProto:
    """The model itself if every graph of it is in order, else a copy that is.

    Raises `UsageError` as `put_in_order` does.
    """
    if next(_out_of_order(model), None) is None:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    put_in_order(copy)
    return copy


def _out_of_order(model: ModelProto) -> Iterator[tuple[Any, list[int]]]:
    """Yield the nodes of each graph that is not in order, and the order. Bodies come first."""
    given, read = _given(model.graph), {value.name for value in model.graph.output}
    yield from _search(model.graph.node, given, read)
    _refuse_undefined(read - given - {""}, model.graph)
    for function in model.functions:
        _refuse_repeated(function.input, f"function {function.name} has", "inputs")
        given, read = set(function.input), set(function.output)
        yield from _search(function.node, given, read)
        _refuse_undefined(read - given - {""}, function)


def _refuse_undefined(names: Collection[str], graph: GraphProto | FunctionProto) -> None:
    """Raise `UsageError` if there are names that are read, and that nothing gives a value."""
    if names:
        first = min(names)
        reader = next((label(node) for node in graph.node if first in node.input), None)
        who = f"{reader} reads" if reader is not None else f"{graph.name or 'the graph'} asks for"
        raise UsageError(f"{who} the tensor {first!r}, which is no input and which nothing writes")


def _search(
    nodes: Any,
    given: Collection[str],
    read: set[str],
    around: Sequence[Container[str]] = (),
    place: str = "",
) -> Iterator[tuple[Any, list[int]]]:
    """Search some nodes and their bodies; ``read`` gets the names that they take from outside.

    ``given`` are the tensors of their graph that no node writes. ``around`` has the names that they
    see of the graphs around theirs, which stands at a ``place``.
    """
    reads: list[set[str]] = []
    written, missing = dict[str, NodeProto](), set[str]()
    early = loose = False
    for node in nodes:
        names = set(node.input[:])
        for attribute, body in bodies(node):
            inner, own = {value.name for value in body.output}, _given(body)
            # Where something is read that is written behind, what stands ahead may run behind.
            seen = (*around, given) if loose else (*around, given, written)
            yield from _search(body.node, own, inner, seen, f"{attribute} of {label(node)}")
            names |= inner - own
        names.discard("")
        lacking = [name for name in names if name not in written]
        missing.update(lacking)
        loose = loose or not all(
            name in given or any(name in seen for seen in around) for name in lacking
        )
        early = early or not missing.isdisjoint(node.output[:])
        for name in filter(None, node.output[:]):
            if name in written:
                both = f"{label(written[name])} and {label(node)}"
                raise UsageError(f"two operators write the tensor {name!r}: {both}")
            if name in given:
                raise UsageError(
                    f"{label(node)} writes the tensor {name!r}, which is an input or a stored "
                    "tensor of the same graph"
                )
            if any(name in seen for seen in around):
                raise UsageError(
                    f"{label(node)} in {place} writes the tensor {name!r}, but a graph around it "
                    "has a tensor of that name: rename one of the two"
                )
            written[name] = node
        reads.append(names)
    read |= missing
    read.difference_update(written)  # What a body puts out it may write itself.
    if early:
        writers = {
            name: place for place, node in enumerate(nodes) for name in node.output[:] if name
        }
        sources = [{writers[name] for name in names if name in writers} for names in reads]
        yield nodes, sorted_positions(nodes, sources)


def _given(graph: GraphProto) -> set[str]:
    """The names of a graph's own tensors that no node writes.

    Raises `UsageError` where two inputs or two initializers have one name. An input may have the
    name of an initializer, which is its default value then.
    """
    inputs = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    stored += [tensor.values.name for tensor in graph.sparse_initializer]
    where = f"graph {graph.name!r} has" if graph.name else "a graph has"
    _refuse_repeated(inputs, where, "inputs")
    _refuse_repeated(stored, where, "stored tensors")
    return {*inputs, *stored}


def _refuse_repeated(names: Sequence[str], where: str, what: str) -> None:
    """Raise `UsageError` if a name stands among some names twice."""
    if len(set(names)) < len(names):
        twice = next(name for name, times in Counter(names).items() if times > 1)
        raise UsageError(f"{where} two {what} named {twice!r}")


def _cycle(
    nodes: Sequence[NodeProto], waiting: Sequence[int], open_: Collection[int], source: int
) -> UsageError:
    """The error for nodes that wait for each other; the open ones have been reached already."""
    place = len(waiting) - 1 - list(reversed(waiting)).index(source)
    through = sorted({position for position in waiting[place:] if position in open_})
    names = ", ".join(label(nodes[position]) for position in through)
    return UsageError(f"the graph has a cycle through {names}")
