"""Pairs the inputs and outputs of two models where their names differ.

An exporter numbers what it has no name for, and a folded module has fewer tensors to number. So the
same output may be called ``191`` in one file and ``153`` in the other. Then position tells which
belong together, where types and shapes agree. An inner tensor of the other file may have the very
name that is wanted; it is called otherwise then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import onnx

from bnfold._onnx.read.scopes import Names, read_scopes
from bnfold._run.hoist import rename
from bnfold._run.nodes import own_inputs
from bnfold._system.records import record

_MOST_TOLD = 4
_MOST_BY_TYPE = 8
_MANY = 16


@record(frozen=True)
class Renamed:
    """Gives inputs and outputs of a model other names; each mapping is from the old name.

    ``order`` has the names that they get, in the order that they get.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    order: tuple[str, ...]

    def __call__(self, model: onnx.ModelProto) -> None:
        """Rename, in place. An Identity stands between the new name and the old one."""
        graph, names = model.graph, Names(model, read_scopes(model))
        made = {name for node in graph.node for name in node.output}
        stored = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
        made |= {tensor.name for tensor in stored}
        for name in sorted({*self.inputs.values(), *self.outputs.values()} & made):
            fresh = names.fresh(name)
            for node in graph.node:
                node.output[:] = [fresh if each == name else each for each in node.output]
            for named in (*stored, *graph.value_info):
                named.name = fresh if named.name == name else named.name
            rename(graph, name, fresh)
        before = [_identity(new, old) for old, new in self.inputs.items()]
        after = [_identity(old, new) for old, new in self.outputs.items()]
        nodes = [*before, *graph.node, *after]
        del graph.node[:]
        graph.node.extend(nodes)
        for value in graph.input:
            value.name = self.inputs.get(value.name, value.name)
        for value in graph.output:
            value.name = self.outputs.get(value.name, value.name)
        places = {name: place for place, name in enumerate(self.order)}
        for ports in (graph.input, graph.output):
            ports.sort(key=lambda value: places.get(value.name, len(places)))

    def told(self) -> str:
        """What is paired, in words."""
        return f"names differ, so the two are paired in their {self.listed(' by position')}"

    def listed(self, how: str = "") -> str:
        """The pairs of inputs and of outputs, in words."""
        said = []
        for what, names in (("inputs", self.inputs), ("outputs", self.outputs)):
            if names:
                pairs = [f"{new} is {old}" for old, new in names.items()]
                more = ["…"] if len(pairs) > _MOST_TOLD else []
                said.append(f"{what}{how}: {', '.join(pairs[:_MOST_TOLD] + more)}")
        return "; ".join(said)


def alike_in_ports(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Whether two models say that their inputs and outputs have the same names and types, in the
    same order.
    """
    sides = [[*own_inputs(m.graph), *m.graph.output] for m in (one, other)]
    return len(sides[0]) == len(sides[1]) and all(
        a.name == b.name and _agree(a.type, b.type) for a, b in zip(*sides, strict=True)
    )


def renamed(original: onnx.ModelProto, folded: onnx.ModelProto) -> Renamed | None:
    """How to rename the ports of a folded model to those of the original.

    None where all names agree, and where position does not tell: there are more ports on one side,
    a name stands at two places, or types or shapes differ.
    """
    inputs = _paired(own_inputs(original.graph), own_inputs(folded.graph))
    outputs = _paired(list(original.graph.output), list(folded.graph.output))
    if inputs is None or outputs is None or not (inputs or outputs):
        return None
    if not {*inputs.values(), *outputs.values()}.isdisjoint(
        value.name for value in (*folded.graph.input, *folded.graph.output)
    ):
        return None
    ports = (*own_inputs(original.graph), *original.graph.output)
    return Renamed(inputs, outputs, tuple(value.name for value in ports))


def renamed_by_type(original: onnx.ModelProto, folded: onnx.ModelProto) -> Renamed | None:
    """How to rename the ports of a folded model by their types alone, where position does not tell.

    Names that both have stay. None where no names differ, where types do not fit, and where there
    are too many such ports.
    """
    found = []
    for wanted, given in (
        (own_inputs(original.graph), own_inputs(folded.graph)),
        (list(original.graph.output), list(folded.graph.output)),
    ):
        ours, theirs = ({value.name: value.type for value in ports} for ports in (wanted, given))
        kept = ours.keys() & theirs.keys()
        left, right = ([n for n in names if n not in kept] for names in (ours, theirs))
        if len(left) != len(right) or len(left) > _MOST_BY_TYPE:
            return None
        if not all(_agree(ours[name], theirs[name]) for name in kept):
            return None
        way = next(_ways(list(zip(right, left, strict=True)), ours, theirs), None)
        if way is None:
            return None
        found.append(way)
    inputs, outputs = found
    ports = (*own_inputs(original.graph), *original.graph.output)
    names = tuple(value.name for value in ports)
    return Renamed(inputs, outputs, names) if inputs or outputs else None


def ways_of_inputs(
    pairing: Renamed, original: onnx.ModelProto, folded: onnx.ModelProto
) -> Iterator[dict[str, str]]:
    """All ways to pair the inputs that a pairing renames, where types and shapes agree; that of the
    pairing is the first. Of many inputs, only those in which two have changed places.
    """
    wanted = {value.name: value.type for value in own_inputs(original.graph)}
    given = {value.name: value.type for value in own_inputs(folded.graph)}
    if len(pairing.inputs) > _MANY:
        return _swaps(pairing.inputs, wanted, given)
    return _ways(list(pairing.inputs.items()), wanted, given)


def _swaps(
    pairs: Mapping[str, str],
    wanted: Mapping[str, onnx.TypeProto],
    given: Mapping[str, onnx.TypeProto],
) -> Iterator[dict[str, str]]:
    """Pairs as they are, and with two names exchanged, where types agree."""
    yield {**pairs}
    for one, other in combinations(pairs, 2):
        first, second = pairs[one], pairs[other]
        if _agree(wanted[second], given[one]) and _agree(wanted[first], given[other]):
            yield {**pairs, one: second, other: first}


def may_be(
    pairing: Renamed, original: onnx.ModelProto, folded: onnx.ModelProto
) -> dict[str, list[str]]:
    """For each output those of the original that it may be: that of its name or, where a pairing
    renames it, those of its type.
    """
    wanted = {value.name: value.type for value in original.graph.output}
    return {
        value.name: [new for new in pairing.outputs.values() if _agree(wanted[new], value.type)]
        if value.name in pairing.outputs
        else [value.name]
        for value in folded.graph.output
    }


def _ways(
    pairs: Sequence[tuple[str, str]],
    wanted: Mapping[str, onnx.TypeProto],
    given: Mapping[str, onnx.TypeProto],
) -> Iterator[dict[str, str]]:
    """All ways to pair names, where types agree; that of ``pairs`` is the first."""
    if not pairs:
        yield {}
        return
    (old, _), *others = pairs
    for place, (_, new) in enumerate(pairs):
        if _agree(wanted[new], given[old]):
            left = [name for number, (_, name) in enumerate(pairs) if number != place]
            rest = [(name, other) for (name, _), other in zip(others, left, strict=True)]
            may = {n: [other for other in left if _agree(wanted[other], given[n])] for n, _ in rest}
            if matched(may) is not None:  # else a way would be sought in vain, for long
                for way in _ways(rest, wanted, given):
                    yield {old: new, **way}


def matched(may: Mapping[str, Sequence[str]]) -> dict[str, str] | None:
    """One of its candidates for each name, no two the same; None where there is no such choice."""
    owners: dict[str, str] = {}

    def place(old: str, tried: set[str]) -> bool:
        """Give a name a candidate; another name may lose it that may have another one."""
        for new in may[old]:
            if new not in tried:
                tried.add(new)
                if new not in owners or place(owners[new], tried):
                    owners[new] = old
                    return True
        return False

    if not all(place(old, set()) for old in may):
        return None
    names = {old: new for new, old in owners.items()}
    return {old: names[old] for old in may}


def _paired(
    wanted: Sequence[onnx.ValueInfoProto], given: Sequence[onnx.ValueInfoProto]
) -> dict[str, str] | None:
    """From the name of each given port to the name at its place, where they differ."""
    if len(wanted) != len(given):
        return None
    pairs = {}
    for left, right in zip(wanted, given, strict=True):
        if left.name != right.name:
            if not _agree(left.type, right.type):
                return None
            pairs[right.name] = left.name
    return pairs


def _agree(left: onnx.TypeProto, right: onnx.TypeProto) -> bool:
    """Whether two types may be one: a size or rank that one does not give agrees with any."""
    if left.WhichOneof("value") != "tensor_type" or right.WhichOneof("value") != "tensor_type":
        return left == right
    one, other = left.tensor_type, right.tensor_type
    if one.elem_type != other.elem_type:
        return False
    if not (one.HasField("shape") and other.HasField("shape")):
        return True
    sizes: tuple[Any, Any] = (one.shape.dim, other.shape.dim)
    return len(sizes[0]) == len(sizes[1]) and all(
        not (a.dim_value and b.dim_value) or a.dim_value == b.dim_value
        for a, b in zip(*sizes, strict=True)
    )


def _identity(old: str, new: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Identity", [old], [new])
