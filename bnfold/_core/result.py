"""The plan that users see: the folds of a model, and every map that stays, with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MERGES = ("merge in parallel", "merge in series")
# What becomes of a map that another one is equal to.
EQUAL = "drop as equal"


@dataclass(frozen=True)
class Fold:
    """Operators that go, and the operator that takes their place.

    The operators that go are affine ones, or, if ``merges``, linear ones that become one with the
    other; if ``is_equal``, an affine one that computes what the other computes. ``nodes`` are the
    labels of those that go, in data order. ``into`` is the label of the operator that takes them
    in. If a chain of maps shrinks by composition alone, it is the first of the chain. ``laws`` are
    the moves. ``graph`` is "" for the main graph, else the path to a body or a local function; for
    an operator of a call that is inlined, the call and its function.
    """

    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    into: str
    laws: tuple[str, ...]
    graph: str

    @property
    def merges(self) -> bool:
        """Whether linear operators become one."""
        return self.laws[0] in MERGES

    @property
    def is_equal(self) -> bool:
        """Whether a map goes because the other operator is equal to it."""
        return self.laws[0] == EQUAL


@dataclass(frozen=True)
class Kept:
    """An operator that stays, and why.

    ``code`` is the stable reason code, ``at`` the place that stopped it, and ``advice`` what helps.
    With ``kind`` "map" the operator is affine and could not be folded. With "merge" it is linear
    and could not become one with others.
    """

    node: str
    op: str
    code: str
    at: str
    message: str
    advice: str
    graph: str
    kind: str = "map"


@dataclass(frozen=True)
class Plan:
    """What folding does to a model.

    ``before`` and ``after`` count operators by type, in the main graph, all bodies and all local
    functions. If calls of functions are inlined, those of a function count as often as it is
    called, and Constants are left out.
    """

    folds: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    before: Mapping[str, int]
    after: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data for JSON."""
        return {
            "folds": [asdict(fold) for fold in self.folds],
            "kept": [asdict(kept) for kept in self.kept],
            "operators": {"before": dict(self.before), "after": dict(self.after)},
        }
