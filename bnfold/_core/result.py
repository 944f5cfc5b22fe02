"""What bnfold says of a model: the folds it makes, and every map that stays, with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MERGES = ("merge in parallel", "merge in series")


@dataclass(frozen=True)
class Fold:
    """Affine operators that give way, and the operator that takes their place; or linear ones that
    become one with it, which ``merges`` tells.

    ``nodes`` are the folded operators' labels in data order, ``into`` that of the operator whose
    parameters take them in (of the first of them, where a chain shrinks by composition alone),
    ``laws`` the moves it takes. ``graph`` is "" for the main graph, else the way to a body or
    local function.
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


@dataclass(frozen=True)
class Kept:
    """An operator that stays: a stable reason ``code``, where it was stopped and what helps.

    Of ``kind`` "map" it is affine and could not be folded, of "merge" linear and could not become
    one with others.
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
    """What folding does to a model. ``before`` and ``after`` count operators by type, over the main
    graph, all bodies and all local functions.
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
