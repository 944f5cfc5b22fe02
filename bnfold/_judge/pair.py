"""Two files that are compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from bnfold._run.noise import Array
from bnfold._run.source import Source, Tap


@dataclass(frozen=True)
class Pair:
    """Two files, the weights of the original, and the names of the weights to plant errors in.

    If no weight is named, errors are planted in all. ``filled`` are inputs that the user does not
    know of: a cut has made them.
    """

    original: Source
    folded: Source
    weights: Mapping[str, Array | None]
    touched: Collection[str]
    filled: Collection[str] = ()

    def tapped(self, original: Sequence[Tap], folded: Sequence[Tap]) -> Pair:
        """The same two files with inner tensors in place of their outputs."""
        return replace(
            self,
            original=replace(self.original, taps=tuple(original), alone=True),
            folded=replace(self.folded, taps=tuple(folded), alone=True),
        )
