"""The rules that every view keeps. Tests check them for all views that readers make.

Each rule yields a sentence for each thing that is wrong. Only known sizes and ranks are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from bnfold._core.affine import IDENTITY, LAST
from bnfold._core.broadcast import Shape
from bnfold._core.index_maps import IndexMap, Permuted
from bnfold._core.joins import Aligned, Blended, Summed
from bnfold._core.laws import Law, Mixed, Padded, Rearranged
from bnfold._core.parts import Concatenated, Picked
from bnfold._core.products import Gated, Multiplied
from bnfold._core.view import Absorber, Affine, Carrier, Crossing, Node, Opaque, Receiver, View

Rule = Callable[[View], Iterator[str]]


def check_view(view: View) -> None:
    """Raise `ValueError` if a view breaks a rule.

    The message has all that breaks the first broken rule. Later rules rely on earlier ones.
    """
    for name, rule in RULES.items():
        wrong = [f"{name}: {what}" for what in rule(view)]
        if wrong:
            raise ValueError("\n".join(wrong))


def _known(view: View) -> Iterator[str]:
    """Values and nodes are numbered from 0; -1 is an absent input or output."""
    for node in view.nodes:
        for number in (*node.inputs, *node.outputs):
            if not -1 <= number < len(view.values):
                yield f"{node.label} names value {number} of {len(view.values)}"
    for value in view.values:
        for place in (*value.readers, *([] if value.producer is None else [value.producer])):
            if not 0 <= place < len(view.nodes):
                yield f"{value.name} names node {place} of {len(view.nodes)}"


def _order(view: View) -> Iterator[str]:
    """The node that writes a value stands ahead of all nodes that read it."""
    for place, node in enumerate(view.nodes):
        for number in node.inputs:
            producer = view.values[number].producer if number >= 0 else None
            if producer is not None and producer >= place:
                yield f"{node.label} reads {view.values[number].name} ahead of its writer"


def _written_once(view: View) -> Iterator[str]:
    """No value is written twice."""
    count = Counter(number for node in view.nodes for number in node.outputs if number >= 0)
    for number, times in count.items():
        if times > 1:
            yield f"{view.values[number].name} is written {times} times"


def _producers(view: View) -> Iterator[str]:
    """A value's producer is the node that writes it. No node writes a value without a producer."""
    writers = {n: place for place, node in enumerate(view.nodes) for n in node.outputs}
    for number, value in enumerate(view.values):
        if value.producer != writers.get(number):
            yield f"{value.name} has node {value.producer} as producer, not {writers.get(number)}"


def _readers(view: View) -> Iterator[str]:
    """Every reader is listed once for each read.

    A node that asks only for a shape or a type is not listed; nothing passes such a node. A value
    of an outer graph has no writer here, and its readers need not be listed.
    """
    reads: dict[int, Counter[int]] = {}
    for place, node in enumerate(view.nodes):
        for position, number in enumerate(node.inputs):
            if position not in node.unread:
                reads.setdefault(number, Counter())[place] += 1
    for number, value in enumerate(view.values):
        listed, found = Counter(value.readers), reads.get(number, Counter())
        if value.producer is None and not listed:
            continue
        for place in listed.keys() | found.keys():
            node = view.nodes[place]
            if listed[place] > found[place]:
                yield f"{value.name} lists {node.label} as reader more often than it reads"
            if listed[place] < found[place] and not isinstance(node.role, Opaque):
                yield f"{value.name} is read by {node.label}, which is not listed"


def _data(view: View) -> Iterator[str]:
    """The inputs that a role numbers exist, and such a node has at least one output."""
    for node in view.nodes:
        numbers = _inputs(node)
        for position in numbers:
            if not (0 <= position < len(node.inputs) and node.inputs[position] >= 0):
                yield f"{node.label} has no input {position}"
        if numbers and not node.outputs:
            yield f"{node.label} puts nothing out"
        if len(set(numbers)) < len(numbers):
            yield f"{node.label} numbers an input twice"


def _same_shape(view: View) -> Iterator[str]:
    """The output of a map or a carrier has the shape of its data."""
    for node in view.nodes:
        if isinstance(node.role, Affine | Carrier):
            before, after = _shapes(view, node)
            if not _agree(before[0], after[0]):
                yield f"{node.label} makes {after[0]} of {before[0]}"


def _map_axes(view: View) -> Iterator[str]:
    """A map varies along an axis that its tensor has, with one number for each position."""
    for node in view.nodes:
        map_ = node.role.map if isinstance(node.role, Affine) else IDENTITY
        if map_.axis is not None:
            (data,), _ = _shapes(view, node)
            yield from _of(node, _sized({map_.axis: map_.scale.size}, data))


def _absorber_axes(view: View) -> Iterator[str]:
    """The channels of an absorber are axes of its output, and those ahead axes of its data.

    Their sizes agree with those of the tensor.
    """
    for node in view.nodes:
        absorber = node.role.absorber if isinstance(node.role, Affine) else node.role
        if not isinstance(absorber, Absorber | Receiver):
            continue
        if isinstance(absorber, Absorber):
            yield from _of(node, _sized(absorber.channels, _shape(view, node.outputs[0])))
        if absorber.ahead is not None:
            data = _shape(view, node.inputs[absorber.ahead.data])
            yield from _of(node, _sized(absorber.ahead.channels, data))


def _law_axes(view: View) -> Iterator[str]:
    """The axes and sizes that a law names are those of its tensors, and so is their number."""
    for node in view.nodes:
        if isinstance(node.role, Crossing):
            yield from _of(node, _of_law(node.role.law, *_shapes(view, node)))


def _of(node: Node, found: Iterator[str]) -> Iterator[str]:
    """The sentences about a node, each with its label."""
    return (f"{node.label}: {what}" for what in found)


def _of_law(law: Law, inputs: list[Shape | None], outputs: list[Shape | None]) -> Iterator[str]:
    count = {Concatenated: "sizes", Summed: "signs", Picked: "places"}.get(type(law))
    sides = outputs if isinstance(law, Picked) else inputs
    if count is not None and len(getattr(law, count)) != len(sides):
        yield f"{len(getattr(law, count))} {count} for {len(sides)} tensors"
    elif isinstance(law, Gated | Multiplied) and len(inputs) != 2:
        yield f"two factors, not {len(inputs)}"
    elif isinstance(law, Mixed):
        yield from _kept(law.axes or {}, inputs[0], outputs[0])
    elif isinstance(law, Padded):
        yield from _within(law.padded or (), inputs[0])
    elif isinstance(law, Rearranged):
        yield from _rearranged(law.steps or (), inputs[0], outputs[0])
    elif isinstance(law, Concatenated):
        for size, shape in zip(law.sizes, inputs, strict=True):
            yield from _sized({law.axis: size}, shape)
    elif isinstance(law, Picked):
        yield from _picked(law, inputs[0], outputs)
    elif isinstance(law, Multiplied):
        for rank, shape in zip(law.ranks or (), inputs, strict=bool(law.ranks)):
            if shape is not None and len(shape) != rank:
                yield f"rank {rank} of a tensor of rank {len(shape)}"
    elif isinstance(law, Blended | Summed | Gated):
        yield from _aligned(law.aligned, inputs, outputs[0])


def _kept(axes: Mapping[int, int], before: Shape | None, after: Shape | None) -> Iterator[str]:
    """Sentences about ``axes``, output axes by input axis, that do not exist or differ in size."""
    yield from _within(axes, before)
    yield from _within(axes.values(), after)
    if before is not None and after is not None:
        inside = {a: b for a, b in axes.items() if a < len(before) and b < len(after)}
        for own, out in inside.items():
            if not _agree((before[own],), (after[out],)):
                yield f"axis {own} of size {before[own]} is kept as one of {after[out]}"


def _rearranged(steps: IndexMap, before: Shape | None, after: Shape | None) -> Iterator[str]:
    ends = zip((before, after), (steps[:1], steps[-1:]), ("inside", "outside"), strict=True)
    for shape, step, side in ends:
        for one in step:
            groups = () if isinstance(one, Permuted) else one.groups
            rank = sum(len(getattr(group, side)) for group in groups)
            rank = len(one.order) if isinstance(one, Permuted) else rank
            if shape is not None and len(shape) != rank:
                yield f"an index map of rank {rank} for a tensor of rank {len(shape)}"


def _picked(law: Picked, before: Shape | None, after: list[Shape | None]) -> Iterator[str]:
    yield from _sized({law.axis: law.size}, before)
    for places, shape in zip(law.places, after, strict=True):
        if law.size is not None and bool((abs(places) >= law.size + (places < 0)).any()):
            yield f"picks place {max(places)} of {law.size}"
        if shape is not None and before is not None and len(shape) != len(before) - law.gone:
            yield f"picks a tensor of rank {len(shape)} of one of rank {len(before)}"
        elif not law.gone:
            yield from _sized({law.axis: places.size}, shape)


def _aligned(known: Aligned, inputs: list[Shape | None], output: Shape | None) -> Iterator[str]:
    for own, shape in zip((*known.shapes, known.output), (*inputs, output), strict=True):
        if not _agree(own, shape):
            yield f"shape {own} of a tensor of shape {shape}"


def _sized(sizes: Mapping[int, int | None], shape: Shape | None) -> Iterator[str]:
    """Sentences about sizes by axis that do not agree with a shape."""
    yield from _within(sizes, shape)
    for axis, size in sizes.items():
        if shape is not None and axis < len(shape) and not _agree((size,), (shape[axis],)):
            yield f"axis {axis} has {size} places, of {shape[axis]}"


def _within(axes: Iterable[int], shape: Shape | None) -> Iterator[str]:
    for axis in axes:
        unknown = axis == LAST and shape is None
        if (axis < 0 and not unknown) or (shape is not None and axis >= len(shape)):
            yield f"axis {axis} of {'a tensor' if shape is None else f'{len(shape)} axes'}"


def _agree(one: Shape | None, other: Shape | None) -> bool:
    """Whether two shapes may be the same."""
    if one is None or other is None:
        return True
    same = (a is None or b is None or a == b for a, b in zip(one, other, strict=False))
    return len(one) == len(other) and all(same)


def _inputs(node: Node) -> tuple[int, ...]:
    """The inputs that a role numbers."""
    role = node.role
    if isinstance(role, Crossing):
        return role.data
    if isinstance(role, Affine | Carrier):
        return (role.data,)
    ahead = role.ahead if isinstance(role, Absorber | Receiver) else None
    beside = role.beside if isinstance(role, Absorber) else None
    return (*([] if ahead is None else [ahead.data]), *([] if beside is None else [beside]))


def _shape(view: View, number: int) -> Shape | None:
    return view.values[number].shape if number >= 0 else None


def _shapes(view: View, node: Node) -> tuple[list[Shape | None], list[Shape | None]]:
    """The shapes of a role's data, and those of the node's outputs."""
    data = [_shape(view, node.inputs[position]) for position in _inputs(node)]
    return data, [_shape(view, number) for number in node.outputs]


RULES: Mapping[str, Rule] = {
    "numbered": _known,
    "order": _order,
    "written-once": _written_once,
    "producers": _producers,
    "readers": _readers,
    "data": _data,
    "same-shape": _same_shape,
    "map-axes": _map_axes,
    "absorber-axes": _absorber_axes,
    "law-axes": _law_axes,
}
