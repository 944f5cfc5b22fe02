"""Which channels of which tensors have to be scaled alike, if positive scales are to move.

The laws by which maps cross operators say so: through a ReLU, a pool or a Concat each channel keeps
its own scale, a sum of branches has one for all its terms. Such channels are one *class* here. A
law is asked with the numbers of classes as scales: where it takes these, which are positive and all
different, it takes any positive scales. Where no law holds, the scale is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import IDENTITY, LAST, AffineMap, Vector
from bnfold._core.channels import ChannelLayout
from bnfold._core.index_maps import Map
from bnfold._core.laws import Way
from bnfold._core.parameters import Reading, Site
from bnfold._core.reasons import Refusal
from bnfold._core.view import Absorber, Affine, Carrier, Crossing, Node, View
from bnfold._system.records import record

Ids = NDArray[np.int64]
FIXED = 0
"""The class of all channels whose scale is 1."""
# A map with the numbers of classes as scales has these above 1, which says: no class.
_FIRST = 2
# A channel that loses so many bits of int8 has none left to lose.
_BITS = 8.0


@record
class Layer:
    """A linear operator. ``outside`` and ``inside`` are the classes of its channels, with the axis;
    None where they are fixed. ``peaks`` are the magnitudes of its weight, the largest over what has
    no channel of its own.
    """

    site: Site
    channels: tuple[int, int]
    outside: tuple[int, Ids] | None
    inside: tuple[int, Ids] | None = None
    peaks: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    views: tuple[ChannelLayout, ChannelLayout] | None = None

    def map(self, side: tuple[int, Ids] | None, scales: Vector, power: int = 1) -> AffineMap:
        """The map that it takes in at a side."""
        return IDENTITY if side is None else AffineMap.of(scales[side[1]] ** power, 0.0, side[0])

    def read(self) -> None:
        """Load the weight and keep what counts of it."""
        assert self.site.weight_value is not None
        assert self.site.entrance is not None
        outside = self.site.layout(self.channels[0])
        inside = self.site.entrance.layout
        weight = np.abs(np.asarray(self.site.weight_value.load(), np.float64))
        gone = 0
        while gone < min(len(outside.view), len(inside.view)) - 1:
            place = -1 - gone
            alike = outside.view[place] == inside.view[place]
            if not alike or outside.along[place] != 1 or inside.along[place] != 1:
                break
            gone += 1
        end = weight.ndim - gone
        self.views = (_ahead(outside, gone), _ahead(inside, gone))
        self.peaks = weight.reshape(*weight.shape[:end], -1).max(axis=-1, initial=0.0)

    def magnitudes(self, scales: Vector) -> tuple[Vector, Vector]:
        """The largest magnitude of each channel that it puts out, and of each that it reads."""
        assert self.views is not None
        outside, inside = self.views
        now = self.peaks.reshape(outside.view)
        if self.outside is not None:
            now = now * outside.spread(scales[self.outside[1]])
        now = now.reshape(inside.view)
        if self.inside is not None:
            now = now / inside.spread(scales[self.inside[1]])
        return _largest(now.reshape(outside.view), outside), _largest(now, inside)

    def lost(self, scales: Vector) -> float:
        """How many bits its channels lose on average where all have the scale of the largest."""
        parts = []
        for rows in self.magnitudes(scales):
            alive = rows[rows > 0]
            if alive.size:
                bits = np.log2(alive.max() / alive)
                parts.append(float(np.minimum(bits, _BITS).mean()))
        return float(np.mean(parts)) if parts else 0.0


def _ahead(layout: ChannelLayout, gone: int) -> ChannelLayout:
    """A layout without its last axes."""
    end = len(layout.view) - gone
    return ChannelLayout(layout.view[:end], layout.along[:end])


def _largest(magnitudes: NDArray[np.float64], layout: ChannelLayout) -> Vector:
    others = tuple(k for k, n in enumerate(layout.along) if n == 1)
    return np.asarray(magnitudes.max(axis=others, initial=0.0)).reshape(-1)


@record
class Classes:
    """The classes of a graph: a forest in which each number points to one of the same class."""

    parents: list[int] = field(default_factory=lambda: [FIXED])
    along: dict[int, tuple[int, Ids]] = field(default_factory=dict)
    layers: dict[int, Layer] = field(default_factory=dict)

    @property
    def ones(self) -> Vector:
        """A scale of 1 for each class."""
        return np.ones(len(self.parents))

    def fresh(self, size: int) -> Ids:
        """As many new classes."""
        first = len(self.parents)
        self.parents += range(first, first + size)
        return np.arange(first, first + size)

    def root(self, one: int) -> int:
        """The number that stands for a class."""
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = self.parents[one]
        return one

    def roots(self, ids: Ids) -> Ids:
        """The numbers that stand for some classes."""
        return np.array([self.root(int(one)) for one in ids], np.int64)

    def join(self, ones: Ids, others: Ids) -> None:
        """Make channels the same class, pair by pair. The fixed class stays what it is."""
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            first, second = sorted((self.root(one), self.root(other)))
            self.parents[second] = first

    def fix(self, ids: Ids) -> None:
        """The scale of these channels is 1."""
        self.join(ids, np.zeros_like(ids))

    def is_fixed(self, ids: Ids) -> bool:
        """Whether all of these have the scale 1."""
        return all(self.root(one) == FIXED for one in ids.tolist())


def classified(view: View, readings: Sequence[Reading], unwilling: frozenset[int]) -> Classes:
    """The classes of a graph, and its linear operators, with weights that are loaded."""
    walk = _Walk(view, readings, unwilling)
    for index, node in enumerate(view.nodes):
        walk.cross(index, node)
    classes = walk.classes
    for layer in classes.layers.values():
        for name in ("outside", "inside"):
            side = getattr(layer, name)
            if side is not None:
                setattr(layer, name, (side[0], classes.roots(side[1])))
    free = {
        index: layer
        for index, layer in classes.layers.items()
        if any(s is not None and bool((s[1] != FIXED).any()) for s in (layer.outside, layer.inside))
    }
    for layer in free.values():
        layer.read()
    classes.layers = free
    return classes


class _Walk:
    """Goes through the operators in data order, and joins the classes of what they read and write.

    A tensor without an entry in ``classes.along`` has the scale 1.
    """

    def __init__(self, view: View, readings: Sequence[Reading], unwilling: frozenset[int]) -> None:
        self.view = view
        self.readings = readings
        self.unwilling = unwilling
        self.classes = Classes()

    def cross(self, index: int, node: Node) -> None:
        """Say what an operator asks of the scales of its inputs, and which its outputs have."""
        role, data = node.role, tuple[int, ...]()
        if isinstance(role, Absorber):
            data = self._layer(index, node, role)
        elif isinstance(role, Carrier) or (isinstance(role, Affine) and role.map.keeps_origin):
            data = self._handed_on(node, role.data)
        elif isinstance(role, Crossing):
            data = self._crossed(node, role)
        for position, value in enumerate(node.inputs):
            if position not in data and position not in node.unread:
                self._fix(value)

    def _fix(self, value: int) -> None:
        if value in self.classes.along:
            self.classes.fix(self.classes.along[value][1])

    def _write(self, value: int, axis: int, ids: Ids) -> None:
        """Tell what scales a tensor has."""
        self.classes.along[value] = axis, ids
        if self.view.values[value].pinned is not None:
            self.classes.fix(ids)

    def _layer(self, index: int, node: Node, role: Absorber) -> tuple[int, ...]:
        """A linear operator has new classes behind itself, and reads those ahead of itself."""
        sites = self.readings[index].sites
        if len(sites) != 1 or role.ahead is None or not role.is_plain or index in self.unwilling:
            return ()
        site = sites[0]
        if site.weight_value is None or site.entrance is None or site.quantized is not None:
            return ()
        if site.dtype not in (np.float32, np.float64) or len(role.channels) != 1:
            return ()
        ((axis, size),) = role.channels.items()
        free = role.scale_blocked is None and axis != LAST and size > 0
        outside = None
        if free and len(node.outputs) == 1:
            outside = axis, self.classes.fresh(size)
            self._write(node.outputs[0], *outside)
        layer = Layer(site, (axis, size), outside)
        self.classes.layers[index] = layer
        value = node.inputs[role.ahead.data]
        reads = self.classes.along.get(value)
        told = role.ahead.scale_blocked is None and node.inputs.count(value) == 1
        if reads is None or not told or role.ahead.channels.get(reads[0]) != reads[1].size:
            return ()
        layer.inside = reads
        return (role.ahead.data,)

    def _handed_on(self, node: Node, data: int) -> tuple[int, ...]:
        """What comes out has the scales of what goes in."""
        reads = self.classes.along.get(node.inputs[data])
        if reads is None or not node.outputs:
            return ()
        self._write(node.outputs[0], *reads)
        return (data,)

    def _crossed(self, node: Node, role: Crossing) -> tuple[int, ...]:
        """Ask the law of an operator, with the numbers of classes as scales."""
        if len(role.data) == 1:
            return self._single(node, role)
        return self._joined(node, role)

    def _single(self, node: Node, role: Crossing) -> tuple[int, ...]:
        """One input: its map goes through."""
        (position,) = role.data
        reads = self.classes.along.get(node.inputs[position])
        if reads is None:
            return ()
        try:
            ways = role.law.forward({0: _numbered(*reads)})
        except Refusal:
            return ()
        for way in ways:
            told = {number: _classes_of(map_) for number, map_ in way.maps.items()}
            found = {number: one for number, one in told.items() if one is not None}
            if way.edit is None and len(found) == len(told) <= len(node.outputs):
                for number, one in found.items():
                    self._write(node.outputs[number], *one)
                return (position,)
        return ()

    def _joined(self, node: Node, role: Crossing) -> tuple[int, ...]:
        """Several inputs: a map of what comes out goes to some of them, which get its classes."""
        guess = self._guessed(node, role)
        if guess is None or len(node.outputs) != 1:
            return ()
        axis, ids = guess
        try:
            ways = role.law.backward(0, _numbered(axis, ids))
        except Refusal:
            return ()
        for way in ways:
            taken = self._taken(node, role, way)
            if taken is not None:
                self._write(node.outputs[0], axis, ids)
                for number, told in taken.items():
                    reads = self.classes.along.get(node.inputs[role.data[number]])
                    if reads is not None and reads[0] == told[0] and reads[1].size == told[1].size:
                        self.classes.join(reads[1], told[1])
                    else:
                        self.classes.fix(told[1])
                        self._fix(node.inputs[role.data[number]])
                return tuple(role.data[number] for number in taken)
        return ()

    def _taken(self, node: Node, role: Crossing, way: Way) -> dict[int, tuple[int, Ids]] | None:
        """The classes that a way asks of inputs; None if it changes the operator, or if all that it
        asks something of is fixed.
        """
        told = {number: _classes_of(map_) for number, map_ in way.maps.items()}
        found = {number: one for number, one in told.items() if one is not None}
        if way.edit is not None or len(found) != len(told):
            return None
        known = [self.classes.along.get(node.inputs[role.data[number]]) for number in found]
        free = [one for one in known if one is not None and not self.classes.is_fixed(one[1])]
        return found if free else None

    def _guessed(self, node: Node, role: Crossing) -> tuple[int, Ids] | None:
        """New classes along the axis of the output that the channels of an input lie on."""
        if len(node.outputs) != 1:
            return None
        shape = self.view.values[node.outputs[0]].shape
        for position in role.data if shape is not None else ():
            value = node.inputs[position]
            reads, own = self.classes.along.get(value), self.view.values[value].shape
            if reads is None or own is None or shape is None:
                continue
            axis = reads[0] + len(shape) - len(own)
            size = shape[axis] if 0 <= axis < len(shape) else None
            if size is not None and size > 1:
                return axis, self.classes.fresh(size)
        return None


def _numbered(axis: int, ids: Ids) -> AffineMap:
    """A map that has the numbers of classes as scales."""
    return AffineMap.of((ids + _FIRST).astype(np.float64), 0.0, axis)


def _classes_of(map_: Map) -> tuple[int, Ids] | None:
    """The axis and the classes that a map has as scales; a scale of 1 says that nothing changes.
    None for maps that vary along several axes, or along none.
    """
    if not isinstance(map_, AffineMap) or map_.axis is None or not map_.keeps_origin:
        return None
    ids = map_.scale - _FIRST
    if not bool((ids == np.round(ids)).all()):
        return None
    return map_.axis, np.maximum(ids.astype(np.int64), FIXED)
