"""The laws of operators that join branches element by element: sums, and minima and maxima.

See `laws` for what a law is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.index_maps import Map, MultiAxisMap, equal
from bnfold._core.laws import Edit, Form, Law, Maps, Way, along_one_axis, not_carried, not_known
from bnfold._core.reasons import Refusal
from bnfold._system.records import record

# The signs of two terms that one operator can have, and in which order it reads them.
_ORDERS: Mapping[tuple[int, ...], tuple[int, ...]] = {
    (1, 1): (0, 1),
    (1, -1): (0, 1),
    (-1, 1): (1, 0),
}
# Of a longer sum, where a scale goes into all of its terms, so many are tried for the shift.
_TAKERS = 64


@record(frozen=True)
class Aligned:
    """How tensors broadcast: the shapes of the inputs and of the output, aligned from the right.

    A shape that is None is not known, not even its rank.
    """

    shapes: tuple[tuple[int | None, ...] | None, ...]
    output: tuple[int | None, ...] | None

    def onto(self, number: int, map_: Map) -> AffineMap:
        """A map of an input as one of the output: axis 0 of a bias [C] is axis 3 of [N, H, W, C].

        Raises `Refusal` where the ranks that tell it are not known.
        """
        map_ = along_one_axis(map_)
        shape = self.shapes[number]
        if map_.axis is None:
            return map_
        if shape is None or self.output is None:
            raise not_known("the ranks of its inputs are not known")
        return AffineMap.of(map_.scale, map_.shift, map_.axis + len(self.output) - len(shape))

    def back(self, number: int, map_: Map) -> AffineMap:
        """A map of the output as one of an input, which must have a place for every channel.

        Raises `Refusal` where it has none, or where the ranks that tell it are not known.
        """
        map_ = along_one_axis(map_)
        if map_.axis is None:
            return map_
        shape = self.shapes[number]
        if shape is None or self.output is None:
            raise not_known("the ranks of its inputs are not known")
        axis = map_.axis - len(self.output) + len(shape)
        if axis < 0 or shape[axis] != map_.scale.size:
            raise not_carried(
                f"an input has no place of its own for each channel along axis {map_.axis}"
            )
        return AffineMap.of(map_.scale, map_.shift, axis)

    def whole(self, number: int) -> bool:
        """Whether each element of an input meets one element of the output alone."""
        shape = self.shapes[number]
        return shape is not None and shape == self.output and None not in shape


@record(frozen=True)
class Summed(Law):
    """Add and Sub of two branches: ``s·(a ± b) + t = (s·a + t) ± s·b``, so backward a scale goes
    into both and a shift into either. Forward a shift passes freely, a scale if both carry it.

    A sign may stay, too, where the operator may become another of the types ``forms`` by which its
    framework adds and subtracts: ``a + (−b) = a − b`` and ``−(a − b) = b − a``, which reads its
    terms in the other order. To negate a number rounds nothing, so both sides are the same bit for
    bit, but for the sign of a zero. ``−a − b`` is no operator.
    """

    signs: tuple[int, ...]
    aligned: Aligned
    forms: tuple[str, str] | None = None

    def backward(self, output: int, map_: Map) -> list[Way]:
        """The scale to every input, the shift to one of them (negated behind a minus); or so with
        signs turned around, where all scales are negative. First of all where nothing is left of
        the map.
        """
        turned = list(self._turned_back(map_)) if bool((map_.scale < 0).all()) else []
        try:
            plain = self._plain_back(map_)
        except Refusal:
            if not turned:
                raise
            return turned
        taken = [way for way in turned if not way.maps]
        return [*taken, *plain, *(way for way in turned if way.maps)]

    def forward(self, maps: Maps) -> list[Way]:
        """One scale for all, and the sum of the shifts; or so with signs turned around, where some
        scale is negative. First of all where nothing is left of the maps.
        """
        parts = {n: self.aligned.onto(n, maps[n]) for n in sorted(maps)}
        negative = any(bool((part.scale < 0).any()) for part in parts.values())
        turned = list(self._turned_ahead(parts)) if negative else []
        try:
            plain = self._plain_ahead(parts)
        except Refusal:
            if not turned:
                raise
            return turned
        taken = [way for way in turned if way.maps[0].is_identity]
        return [*taken, plain, *(way for way in turned if not way.maps[0].is_identity)]

    @property
    def may_lose_a_map(self) -> bool:
        """As another operator it takes a sign in."""
        return self.forms is not None

    def _others(self) -> Iterator[Form]:
        """What it may become, as other signs of its terms; the order of the terms last."""
        if self.forms is None:
            return
        for signs, order in _ORDERS.items():
            if signs != self.signs:
                law = replace(self, signs=signs)
                yield Form(self.forms[-1 in signs], law, order=order)

    def _turned_back(self, map_: Map) -> Iterator[Way]:
        """``s·Σ σₙ·xₙ + t = Σ τₙ·(σₙ·τₙ·s·xₙ) + t``, τ being the new signs."""
        ways: list[Way] = []
        for form in self._others():
            assert isinstance(form.law, Summed)
            new = form.law.signs
            for taker in range(1 if map_.keeps_origin else len(new)):
                try:
                    parts = {
                        n: self.aligned.back(n, _part(map_, new[n] * (n == taker), one * new[n]))
                        for n, one in enumerate(self.signs)
                    }
                except Refusal:
                    continue
                ways.append(_moving(parts, Edit({}, form)))
        yield from sorted(ways, key=lambda way: len(way.maps))

    def _turned_ahead(self, parts: Mapping[int, AffineMap]) -> Iterator[Way]:
        """``Σ σₙ·(sₙ·xₙ + tₙ) = s·Σ τₙ·xₙ + Σ σₙ·tₙ`` where ``s = σₙ·τₙ·sₙ`` for every n."""
        ways: list[Way] = []
        for form in self._others():
            assert isinstance(form.law, Summed)
            both = zip(self.signs, form.law.signs, strict=True)
            moved = [
                _part(parts.get(n, IDENTITY), old, old * new) for n, (old, new) in enumerate(both)
            ]
            try:
                ways.append(Way({0: _joined(moved)}, Edit({}, form)))
            except Refusal:
                continue
        yield from sorted(ways, key=lambda way: not way.maps[0].is_identity)

    def _plain_back(self, map_: Map) -> list[Way]:
        """An input without a place for the scale ends it: it has none for the whole map either."""
        scale, numbers = _part(map_, 0), range(len(self.signs))
        if map_.keeps_origin:
            return [_moving({n: self.aligned.back(n, scale) for n in numbers})]
        scales: dict[int, Map] = {}
        if not scale.is_identity:
            scales, numbers = {n: self.aligned.back(n, scale) for n in numbers}, numbers[:_TAKERS]
        ways, refused = [], None
        for taker in numbers:
            try:
                own = self.aligned.back(taker, _part(map_, self.signs[taker]))
            except Refusal as refusal:
                refused = refusal
            else:
                ways.append(_moving({**scales, taker: own}))
        if not ways and refused is not None:
            raise refused
        return ways

    def _plain_ahead(self, parts: Mapping[int, AffineMap]) -> Way:
        if len(parts) < len(self.signs) and any(not p.keeps_scale for p in parts.values()):
            raise not_carried("its inputs do not carry the same scale")
        return Way({0: _joined(_part(part, self.signs[n]) for n, part in parts.items())})


@record(frozen=True)
class Blended(Law):
    """Mean of branches: ``A(mean(a, b)) = mean(A(a), A(b))``, so the whole map goes into each of
    them, and comes out where all carry the same. Max and Min keep an order, and ask for s ≥ 0.
    """

    aligned: Aligned
    ordered: bool

    def backward(self, output: int, map_: Map) -> list[Way]:
        """The map to every input."""
        inputs = range(len(self.aligned.shapes))
        return self._passed(map_, [self.aligned.back(n, map_) for n in inputs])

    def forward(self, maps: Maps) -> list[Way]:
        """The map of all inputs."""
        first, *others = (self.aligned.onto(n, map_) for n, map_ in maps.items())
        if len(maps) < len(self.aligned.shapes) or not all(equal(first, one) for one in others):
            raise not_carried("its inputs do not carry the same map", numbers=True)
        return self._passed(first, [first])

    def _passed(self, map_: Map, parts: Iterable[Map]) -> list[Way]:
        if self.ordered and bool((map_.scale < 0).any()):
            raise not_carried("a scale is negative")
        return [Way(dict(enumerate(parts)))]


def _joined(parts: Iterable[Map]) -> AffineMap:
    """The map of a sum of all terms: their scale, which has to be the same, and all shifts."""
    total: AffineMap | None = None
    for part in map(along_one_axis, parts):
        if total is None:
            total = part
            continue
        if not equal(_part(total, 0), _part(part, 0)):
            raise not_carried("its inputs do not carry the same scale", numbers=True)
        joined = total.then(AffineMap.of(1.0, part.shift, part.axis))
        if joined is None:
            message = "the shifts of its inputs vary along different axes"
            raise not_carried(message, numbers=True)
        total = joined
    assert total is not None
    return total


def _moving(maps: Maps, edit: Edit | None = None) -> Way:
    """A way with those of some maps that change anything."""
    return Way({number: map_ for number, map_ in maps.items() if not map_.is_identity}, edit)


def _part(map_: Map, shifts: int, scales: int = 1) -> Map:
    """Multiples of the scale of a map and of its shift."""
    if isinstance(map_, MultiAxisMap):
        return MultiAxisMap(map_.scale * scales, map_.shift * shifts)
    return AffineMap.of(map_.scale * scales, map_.shift * shifts, map_.axis)
