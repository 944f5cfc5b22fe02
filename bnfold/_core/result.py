"""The plan that users see: the folds of a model, and every map that stays, with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


def table(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Yield the lines of a table of names and numbers."""
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    for name, before, after in rows:
        yield f"  {name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}".rstrip()


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML. Columns in which nothing stands are left out."""
    from html import escape

    used = [k for k in range(len(header)) if any(row[k] for row in rows)]
    lines = [("th", header), *(("td", row) for row in rows)]
    body = (
        "<tr>" + "".join(f"<{tag}>{escape(row[k])}</{tag}>" for k in used) + "</tr>"
        for tag, row in lines
    )
    return f"<table>{''.join(body)}</table>"


def counted(number: int, noun: str, nouns: str = "") -> str:
    """A number and what it counts; ``nouns`` is the plural where that is not the noun and an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {nouns or noun + 's'}"


_LONG = 80
# How long the name of an operator may be where it is an example; -v has it in full.
MERGES = ("merge in parallel", "merge in series")
# What becomes of a map that another one is equal to.
EQUAL = "drop as equal"
# What becomes of a norm that computes a weight: its result is stored.
STORES = "store the weight"
# How the law begins by which a norm that stays is written as other operators.
REWRITES = "write as "


@dataclass(frozen=True)
class Fold:
    """Operators that go, and the operator that takes their place.

    The operators that go are affine ones, or, if ``merges``, linear ones that become one with the
    other; if ``is_equal``, an affine one that computes what the other computes; if it ``rewrites``,
    a norm, ``into`` itself, and maps behind it. A norm that computes a weight from weights alone
    goes by the law "store the weight". ``nodes`` are the labels of those that go, in data
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
    and could not become one with others. ``brief`` is the message in fewer words, "" where there
    are none. ``is_bias``: it is an Add that is the bias of a linear operator without one.
    """

    node: str
    op: str
    code: str
    at: str
    message: str
    advice: str
    graph: str
    kind: str = "map"
    brief: str = field(default="", compare=False)
    is_bias: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        place = f" [{self.graph}]" if self.graph else ""
        return f"{self.node}{place}: {self.message}"

    def to_dict(self) -> dict[str, Any]:
        """What stays as plain data for JSON, with its message in full."""
        values = asdict(self)
        del values["brief"], values["is_bias"]
        return values

    @property
    def is_batch_norm(self) -> bool:
        """Whether it is a BatchNormalization, of whatever framework."""
        return "batchnorm" in self.op.lower().replace("_", "")


@dataclass(frozen=True)
class Plan:
    """What folding does to a model.

    ``before`` and ``after`` count operators by type, in the main graph, all bodies and all local
    functions. If calls of functions are inlined, those of a function count as often as it is
    called, and Constants are left out. ``order`` has graph, name and type of each operator that
    data pass, in their order, for a picture; it is no part of what a plan is.
    """

    folds: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    before: Mapping[str, int]
    after: Mapping[str, int]
    order: tuple[tuple[str, str, str], ...] = field(default=(), compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data for JSON."""
        return {
            "folds": [asdict(fold) for fold in self.folds],
            "kept": [kept.to_dict() for kept in self.kept],
            "operators": {"before": dict(self.before), "after": dict(self.after)},
        }

    def __str__(self) -> str:
        """What folds and what stays, as the command tells it."""
        if not self.folds:
            return "\n".join(("nothing to fold", *kept_lines(self)))
        rows = (("", "before", "after"), *changed_operators(self))
        return "\n".join((*fold_lines(self), *table(rows), *kept_lines(self)))

    def _repr_html_(self) -> str:
        """The same for notebooks, with a picture of the operators before and after, and all that
        stays but biases of linear operators.
        """
        from html import escape

        said = "; ".join(fold_lines(self)) or "nothing to fold"
        parts = [f"<p>{escape(said)}</p>", self._picture()]
        if self.folds:
            parts.append(html_table(("operator", "before", "after"), changed_operators(self)))
        if stays := [k for k in self.kept if not k.is_bias]:
            rows = [(k.node, k.op, k.code, k.message, k.graph) for k in stays]
            parts.append(html_table(("stays", "operator", "code", "why", "graph"), rows))
        return "".join(parts)

    def _picture(self) -> str:
        from bnfold._core import sketch

        stays = {
            (k.graph, k.node): k.brief or k.message
            for k in self.kept
            if k.kind == "map" and not k.is_bias
        }
        folds = [(f.graph, f.nodes, f.into, ", ".join(f.laws)) for f in self.folds]
        cells, arcs = sketch.fates(self.order, folds, stays)
        counts = sum(self.before.values()), sum(self.after.values())
        return sketch.before_and_after(cells, arcs, counts) if cells else ""


def changed_operators(plan: Plan) -> list[tuple[str, str, str]]:
    """The types of operators whose number changes, with their numbers before and after, and all
    operators together.
    """
    counts = [
        (op, plan.before.get(op, 0), plan.after.get(op, 0))
        for op in sorted({*plan.before, *plan.after})
    ]
    rows = [(op, str(before), str(after)) for op, before, after in counts if before != after]
    total = [str(sum(each.values())) for each in (plan.before, plan.after)]
    return [*rows, ("all operators", total[0], total[1])]


def affine_counts(plan: Plan) -> tuple[int, int]:
    """How many affine operators go and how many stay; each is counted once.

    One of which a part has moved on stays. Those that are dropped as equal, or written as other
    operators, are counted by themselves, and the bias of a linear operator is a part of it.
    """
    stays = {(kept.graph, kept.node) for kept in plan.kept if kept.kind == "map"}
    biases = {(kept.graph, kept.node) for kept in plan.kept if kept.is_bias}
    moved = {(fold.graph, node) for fold in _plain(plan) for node in fold.nodes}
    return len(moved - stays), len(stays - biases)


def _plain(plan: Plan) -> list[Fold]:
    """The folds that move affine operators into others."""
    return [f for f in plan.folds if not (f.merges or f.is_equal or f.rewrites)]


def fold_lines(
    plan: Plan,
    folds: str = "would fold",
    merges: str = "would merge",
    drops: str = "would drop",
    rewrites: str = "would rewrite",
) -> Iterator[str]:
    """Yield how many affine operators fold into how many others, how many operators merge, how many
    are dropped as equal, and how many norms are written as other operators.
    """
    merged = [fold for fold in plan.folds if fold.merges]
    equal = [fold for fold in plan.folds if fold.is_equal]
    rewritten = [fold for fold in plan.folds if fold.rewrites]
    gone, stay = affine_counts(plan)
    if others := _plain(plan):
        into = counted(len({(fold.graph, fold.into) for fold in others}), "operator")
        if gone:
            of_all = "" if gone == gone + stay else f" of {gone + stay}"
            noun = "operator" if gone + stay == 1 else "operators"
            yield f"{folds} {gone}{of_all} affine {noun} into {into}"
        else:
            yield f"{folds} a part of {counted(len(others), 'affine operator')} into {into}"
    if merged:
        yield f"{merges} {_merged(merged)}"
    if equal:
        yield f"{drops} {counted(len(equal), 'affine operator')} that another one is equal to"
    if rewritten:
        yield f"{rewrites} {counted(len(rewritten), 'norm')} that nothing takes in"


def kept_lines(plan: Plan, verbose: bool = False) -> Iterator[str]:
    """Yield lines about the operators that stay: by reason, with their number and one example.

    With ``verbose`` all of them are listed, with the whole reason and what helps. Reasons for
    which a BatchNormalization stays come first. Biases of linear operators are listed then only.
    """
    maps = [kept for kept in plan.kept if kept.kind == "map"]
    affine = [kept for kept in maps if not kept.is_bias]
    linear = [kept for kept in plan.kept if kept.kind != "map"]
    if affine:
        yield f"{counted(len(affine), 'affine operator')} stay{'s' * (len(affine) == 1)}:"
        yield from _by_reason(affine, verbose)
    if linear:
        count = len(linear)
        verb, them = ("is", "it") if count == 1 else ("are", "them")
        yield f"{counted(count, 'linear operator')} {verb} not merged with those around {them}:"
        yield from _by_reason(linear, verbose)
    biases = [kept for kept in maps if kept.is_bias]
    if biases and verbose:
        yield f"{counted(len(biases), 'bias of a linear operator', 'biases of linear operators')}:"
        yield from _by_reason(biases, verbose)


def _by_reason(stays: Sequence[Kept], verbose: bool) -> Iterator[str]:
    """Yield lines about operators that stay, grouped by reason."""
    groups: dict[str, list[Kept]] = {}
    for kept in sorted(stays, key=lambda kept: not kept.is_batch_norm):
        groups.setdefault(kept.code, []).append(kept)
    order = sorted(groups.items(), key=lambda one: (not one[1][0].is_batch_norm, -len(one[1])))
    for code, members in order:
        ops = Counter(kept.op for kept in members)
        yield f"  {code}: {', '.join(f'{count} {op}' for op, count in ops.most_common())}"
        if verbose:
            yield f"    what helps: {members[0].advice}"
        for kept in members if verbose else members[:1]:
            place = f" [{kept.graph}]" if kept.graph else ""
            why = kept.brief or kept.message
            why = "it" + why[len(kept.node) :] if why.startswith(f"{kept.node} ") else why
            told = f"    {kept.node}{place} stays: {why}"
            yield told if verbose else _shortened(told, kept.node, kept.at)
            if verbose and kept.brief not in ("", kept.message):
                yield f"      in full: {kept.message}"


def _shortened(text: str, *names: str) -> str:
    """A text in which long names of operators, such as those of fused ones, lose their middle."""
    for name in names:
        if len(name) > _LONG:
            text = text.replace(name, f"{name[: _LONG // 2 - 1]}…{name[1 - _LONG // 2 :]}")
    return text


def _merged(merges: Sequence[Fold]) -> str:
    """How many operators merged into how many. A merged operator may merge again with others."""
    parts, made = 0, set[tuple[str, str]]()
    for fold in merges:
        for node in (*fold.nodes, fold.into):
            parts += (fold.graph, node) not in made
            made.discard((fold.graph, node))
        made.add((fold.graph, fold.into))
    return f"{counted(parts, 'linear operator')} into {len(made)}"
