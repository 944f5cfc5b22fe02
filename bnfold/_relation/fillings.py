"""Tensors that hold one number everywhere, such as the initial state of a recurrent operator.

ConstantOfShape and Expand make them of sizes that a graph computes; another file stores them.
"""

from __future__ import annotations

from dataclasses import field

import numpy as np
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.amounts import Size
from bnfold._relation.integers import Integers, filling, ranges
from bnfold._relation.outlines import broadcast, rearranged
from bnfold._system.records import record

_LARGEST = 1 << 20
"""Stored constants of more numbers are not looked through."""


@record(frozen=True)
class Filling:
    """The number, the element type and the sizes of such a tensor; ``repr`` tells −0.0 from 0.0.

    ``sizes`` are None where one is not known.
    """

    number: str
    kind: int
    sizes: tuple[Size, ...] | None

    @property
    def is_zero(self) -> bool:
        """Whether the number is 0, of either sign."""
        return float(self.number) == 0


@record(eq=False)
class Fillings:
    """Those of one file, by graph and name."""

    integers: Integers
    found: dict[tuple[str, str], Filling | None] = field(default_factory=dict)

    def of_name(self, scope: Scope, name: str) -> Filling | None:
        """What fills a tensor, or None."""
        owner = scope.owner(name) if name else None
        if owner is None:
            return None
        key = owner.path, name
        if key not in self.found:
            self.found[key] = self._stored(scope, name)
        return self.found[key]

    def _stored(self, scope: Scope, name: str) -> Filling | None:
        constant = self.integers.side.constant(scope, name)
        if constant is None or constant.dtype.kind not in "fiu":
            return None
        if not 0 < int(np.prod(constant.shape)) <= _LARGEST:
            return None
        values = constant.load()
        first = values.reshape(-1)[0]
        if not np.all(values == first) or len(set(np.signbit(values).flat)) > 1:
            return None
        return Filling(_text(first), constant.data_type, constant.shape)

    def follow(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a node fills a tensor of known sizes with a number; what it is is noted."""
        made = self._made(scope, node) if node.output and not any(node.output[1:]) else None
        if made is None or not node.output[0]:
            return False
        self.found[scope.path, node.output[0]] = made
        return made.sizes is not None

    def _made(self, scope: Scope, node: NodeProto) -> Filling | None:
        kind = type_of(node)
        if not node.input or kind not in _FILLING:
            return None
        shapes = self.integers.side.shapes
        to = shapes.type(scope, node.output[0])
        if kind == "ConstantOfShape":
            shape, value = self.integers.of_names(scope, node.input[0]), filling(node)
            if value is None or value.dtype.kind not in "fiu" or not to:
                return None
            return Filling(_text(value), to, None if shape is None else shape.values)
        data = self.of_name(scope, node.input[0])
        if data is None or not to:
            return None
        sizes: tuple[Size | None, ...] | None
        if data.sizes is None:
            return Filling(data.number, to, None)
        if kind == "Expand":
            shape = self.integers.of_names(scope, node.input[1])
            sizes = None if shape is None else broadcast(data.sizes, shape.values)
        elif kind == "Slice":
            sizes = self._sliced(scope, node, data.sizes)
        elif kind == "Identity":
            sizes = data.sizes
        else:
            sizes = rearranged(self.integers, scope, node)
        known = tuple(size for size in sizes or () if size is not None)
        is_known = sizes is not None and len(known) == len(sizes)
        return Filling(data.number, to, known if is_known else None)

    def _sliced(
        self, scope: Scope, node: NodeProto, sizes: tuple[Size, ...]
    ) -> tuple[Size | None, ...] | None:
        """The sizes of a part."""
        taken = ranges(self.integers, scope, node)
        if taken is None:
            return None
        left: list[Size | None] = list(sizes)
        for start, end, axis, step in taken:
            size = left[axis]
            known = all(isinstance(each, int) for each in (size, start, end))
            left[axis] = len(range(size)[start:end:step]) if known else None  # type: ignore[arg-type]
        return tuple(left)


def _text(number: np.generic) -> str:
    """A number with all its digits: an integer may have more than a float64."""
    return repr(number.item())


_FILLING = ("ConstantOfShape", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")
