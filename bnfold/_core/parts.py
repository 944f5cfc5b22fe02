"""The laws of operators that put parts together or take them: Concat, Split, Slice, Gather.

See `laws` for what a law is.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map, equal
from bnfold._core.laws import Law, Maps, Way, along_one_axis, not_carried, not_known
from bnfold._system.records import record

_WIDEST = 1 << 20
"""How many numbers a map that crosses a Concat has at most."""


@record(frozen=True)
class Concatenated(Law):
    """Concat along ``axis`` of inputs of ``sizes``: a map along it splits; a part without a map is
    ``A(1, 0)``. A map along another axis passes backward to all inputs, forward from all at once.
    None passes along an axis of more than `_WIDEST` numbers.
    """

    axis: int
    sizes: tuple[int | None, ...]

    def backward(self, output: int, map_: Map) -> list[Way]:
        """Every input gets its part."""
        map_ = along_one_axis(map_)
        if map_.axis != self.axis:
            return [Way(dict.fromkeys(range(len(self.sizes)), map_))]
        ends = self._ends
        if ends[-1] != map_.scale.size:
            raise not_known("the sizes of its inputs are not known")
        split = (np.split(each, ends[:-1]) for each in (map_.scale, map_.shift))
        parts = zip(*split, strict=True)
        return [Way({n: AffineMap.of(s, t, self.axis) for n, (s, t) in enumerate(parts)})]

    def forward(self, maps: Maps) -> list[Way]:
        """The parts side by side."""
        parts = {number: along_one_axis(maps[number], "a map") for number in sorted(maps)}
        first = next(iter(parts.values()))
        alike = len(parts) == len(self.sizes) and all(equal(first, p) for p in parts.values())
        if alike and first.axis != self.axis:
            return [Way({0: first})]
        if any(part.axis not in (None, self.axis) for part in parts.values()):
            raise not_carried("its inputs do not all carry the same map", len(parts) > 1)
        ends = self._ends
        scales, shifts = np.ones(ends[-1]), np.zeros(ends[-1])
        for number, part in parts.items():
            place = slice(ends[number] - (self.sizes[number] or 0), ends[number])
            scales[place], shifts[place] = part.scale, part.shift
        return [Way({0: AffineMap.of(scales, shifts, self.axis)})]

    @cached_property
    def _ends(self) -> NDArray[np.intp]:
        """Where each input ends in the output. A file may join a tensor to itself over and over."""
        known = [size for size in self.sizes if size is not None]
        if len(known) < len(self.sizes):
            raise not_known("the sizes of its inputs are not known")
        if sum(known) > _WIDEST:
            raise not_carried(f"it puts out more than {_WIDEST:,} numbers along axis {self.axis}")
        return np.cumsum(known)


@record(frozen=True)
class Picked(Law):
    """Split, Slice, Gather, unbind along ``axis``: output j holds the elements ``places[j]`` of the
    input, which has ``size`` of them (None: not known).

    ``gone``: it holds one, and has no axis for it. Place 0 of axis 1 of [N, 4, C] takes a map along
    axis 2 to axis 1.
    """

    axis: int
    size: int | None
    places: tuple[NDArray[np.intp], ...]
    gone: bool = False

    def backward(self, output: int, map_: Map) -> list[Way]:
        """Elements that the output holds get its map, others none. Those picked twice must agree.

        Where no other output holds any, a map that does not vary along the axis may also become one
        of the whole input, whose other elements nobody sees. Of an empty output any map vanishes.
        """
        map_ = along_one_axis(map_)
        if not self.places[output].size:
            return [Way({0: IDENTITY})]
        alone = not any(p.size for n, p in enumerate(self.places) if n != output)
        own = map_.axis if not self.gone or map_.axis is None else self._before(map_.axis)
        whole = [Way({0: AffineMap.of(map_.scale, map_.shift, own)})]
        if own is not None and own != self.axis:
            if not alone:
                raise not_carried("its other outputs would change")
            return whole
        if self.size is None:
            if own is not None or not alone:
                raise not_known("the size of its input is not known")
            return whole
        places = self.places[output]
        scale, shift = np.ones(self.size), np.zeros(self.size)
        scale[places], shift[places] = map_.scale, map_.shift
        if not (
            np.array_equal(scale[places], np.broadcast_to(map_.scale, places.shape))
            and np.array_equal(shift[places], np.broadcast_to(map_.shift, places.shape))
        ):
            raise not_carried("it picks a channel twice, with different maps", numbers=True)
        part = [Way({0: AffineMap.of(scale, shift, self.axis)})]
        return [*whole, *part] if own is None and alone else part

    def forward(self, maps: Maps) -> list[Way]:
        """Every output gets the scales and shifts of the elements it holds."""
        map_ = along_one_axis(maps[0])
        if map_.axis != self.axis:
            axis = map_.axis
            if self.gone and axis is not None:
                axis -= axis > self.axis
            moved = AffineMap.of(map_.scale, map_.shift, axis)
            return [Way(dict.fromkeys(range(len(self.places)), moved))]
        own = None if self.gone else self.axis
        parts = [
            AffineMap.of(map_.scale[p], map_.shift[p], own) if p.size else IDENTITY
            for p in self.places
        ]
        return [Way(dict(enumerate(parts)))]

    @property
    def takes_single_places(self) -> bool:
        """Each output holds the elements at its places."""
        return True

    @property
    def may_lose_a_map(self) -> bool:
        """A map may change places only that no output holds."""
        return True

    def _before(self, axis: int) -> int:
        """The axis of the input that an axis of the output was."""
        return axis + (axis >= self.axis)


@record(frozen=True)
class Parted(Law):
    """Split along ``axis`` into ``count`` parts of sizes that are not known: a map that does not
    vary along it passes forward, to all parts. Backward nothing passes.
    """

    axis: int
    count: int

    def backward(self, output: int, map_: Map) -> list[Way]:
        """Nothing is known of the places that a part has in the whole."""
        raise not_known(f"the sizes of its parts along axis {self.axis} are not known")

    def forward(self, maps: Maps) -> list[Way]:
        """Every part gets the map of the whole."""
        map_ = along_one_axis(maps[0])
        if map_.axis == self.axis:
            raise not_known(f"the sizes of its parts along axis {self.axis} are not known")
        return [Way(dict.fromkeys(range(self.count), map_))]
