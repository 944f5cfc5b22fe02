"""The plan that users see: the folds of a model, and every map that stays, with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any


def table(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Yield the lines of a table of names and numbers."""
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    for name, before, after in rows:
        yield f"  {name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}".rstrip()


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML. Columns in which nothing stands are left out."""
    used = [k for k in range(len(header)) if any(row[k] for row in rows)]
    lines = [("th", header), *(("td", row) for row in rows)]
    body = (
        "<tr>" + "".join(f"<{tag}>{escape(row[k])}</{tag}>" for k in used) + "</tr>"
        for tag, row in lines
    )
    return f"<table>{''.join(body)}</table>"


def counted(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


MERGES = ("merge in parallel", "merge in series")
# What becomes of a map that another one is equal to.
EQUAL = "drop as equal"
# How the law begins by which a norm that stays is written as other operators.
REWRITES = "write as "


@dataclass(frozen=True)
class Fold:
    """Operators that go, and the operator that takes their place.

    The operators that go are affine ones, or, if ``merges``, linear ones that become one with the
    other; if ``is_equal``, an affine one that computes what the other computes; if it ``rewrites``,
    a norm, ``into`` itself, and maps behind it. ``nodes`` are the labels of those that go, in data
    order. ``into`` is the label of the operator that takes them in. If a chain of maps shrinks by
    composition alone, it is the first of the chain. ``laws`` are the moves. ``graph`` is "" for the
    main graph, else the path to a body or a local function; for an operator of a call that is
    inlined, the call and its function.
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

    @property
    def rewrites(self) -> bool:
        """Whether a norm that nothing takes in is written as other operators."""
        return self.laws[0].startswith(REWRITES)

    def __str__(self) -> str:
        place = f" [{self.graph}]" if self.graph else ""
        return f"{', '.join(self.nodes)} → {self.into}{place} ({', '.join(self.laws)})"


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

    def __str__(self) -> str:
        place = f" [{self.graph}]" if self.graph else ""
        return f"{self.node}{place}: {self.message}"


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

    def __str__(self) -> str:
        """What folds and what stays, as the command tells it."""
        if not self.folds:
            return "\n".join(("nothing to fold", *kept_lines(self)))
        rows = (("", "before", "after"), *changed_operators(self))
        return "\n".join((*table(rows), *fold_lines(self), *kept_lines(self)))

    def _repr_html_(self) -> str:
        """The same for notebooks, with every map that stays."""
        said = "; ".join(fold_lines(self)) or "nothing to fold"
        parts = [f"<p>{escape(said)}</p>"]
        if self.folds:
            parts.append(html_table(("operator", "before", "after"), changed_operators(self)))
        if self.kept:
            rows = [(k.node, k.op, k.code, k.message, k.graph) for k in self.kept]
            parts.append(html_table(("stays", "operator", "code", "why", "graph"), rows))
        return "".join(parts)


def changed_operators(plan: Plan) -> list[tuple[str, str, str]]:
    """The types of operators whose number changes, with their numbers before and after."""
    counts = [
        (op, plan.before.get(op, 0), plan.after.get(op, 0))
        for op in sorted({*plan.before, *plan.after})
    ]
    return [(op, str(before), str(after)) for op, before, after in counts if before != after]


def fold_lines(
    plan: Plan,
    folds: str = "can fold",
    merges: str = "can merge",
    drops: str = "can drop",
    rewrites: str = "can rewrite",
) -> Iterator[str]:
    """Yield how many maps fold into how many operators, how many operators merge, how many maps are
    dropped as equal, and how many norms are written as other operators.
    """
    merged = [fold for fold in plan.folds if fold.merges]
    equal = [fold for fold in plan.folds if fold.is_equal]
    rewritten = [fold for fold in plan.folds if fold.rewrites]
    others = [f for f in plan.folds if not (f.merges or f.is_equal or f.rewrites)]
    if others:
        maps = sum(len(fold.nodes) for fold in others)
        targets = len({(fold.graph, fold.into) for fold in others})
        yield f"{folds} {counted(maps, 'map')} into {counted(targets, 'operator')}"
    if merged:
        yield f"{merges} {_merged(merged)}"
    if equal:
        yield f"{drops} {counted(len(equal), 'map')} that another one is equal to"
    if rewritten:
        yield f"{rewrites} {counted(len(rewritten), 'norm')} that nothing takes in"


def kept_lines(plan: Plan, verbose: bool = False) -> Iterator[str]:
    """Yield lines about the operators that stay, with one reason of each kind or, if ``verbose``,
    with all of them.
    """
    if not plan.kept:
        return
    codes = Counter(kept.code for kept in plan.kept)
    unmerged = sum(kept.kind == "merge" for kept in plan.kept)
    counts = [(len(plan.kept) - unmerged, "map"), (unmerged, "unmerged operator")]
    yield "kept " + " and ".join(counted(number, noun) for number, noun in counts if number)
    for code, count in codes.most_common():
        members = [kept for kept in plan.kept if kept.code == code]
        if verbose:
            yield f"  {code} ({count}): {members[0].advice}"
            yield from (f"    {kept}" for kept in members)
        else:
            more = f", and {count - 1} more" if count > 1 else ""
            yield f"  {code}: {members[0]}{more}"


def _merged(merges: Sequence[Fold]) -> str:
    """How many operators merged into how many. A merged operator may merge again with others."""
    parts, made = 0, set[tuple[str, str]]()
    for fold in merges:
        for node in (*fold.nodes, fold.into):
            parts += (fold.graph, node) not in made
            made.discard((fold.graph, node))
        made.add((fold.graph, fold.into))
    return f"{counted(parts, 'linear operator')} into {len(made)}"
