"""Finding the operators and sums of a file among those of the table.

The first file adds what it does not find. Of the second file, what is not found is a problem.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import field, replace

import numpy as np
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, bodies, label, type_of
from bnfold._relation.call import Call
from bnfold._relation.cores import Core
from bnfold._relation.expressions import (
    ZERO,
    Double,
    Expression,
    Incomparable,
    Term,
    of_base,
)
from bnfold._relation.passing import errors_behind, passed
from bnfold._relation.problems import Blame, Blamed, Layer, Problem, of_map
from bnfold._relation.relations import Related, of_maps
from bnfold._relation.series import expanded, that_read
from bnfold._relation.showing import by_map, by_operator, by_output, by_rows
from bnfold._relation.side import Side
from bnfold._relation.solving import Difference, constant_rows, solve
from bnfold._relation.table import OWN, RANDOM, Known, Sum, Table
from bnfold._system.records import record

_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", OWN)
"""Nobody knows whether an operator of another domain puts out the same twice."""
_FAITHFUL = frozenset(
    (
        *("Celu", "Elu", "Erf", "Exp", "Gelu", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu"),
        *("Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "AveragePool", "Clip", "MaxPool"),
        *("GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "LogSoftmax", "Mul", "Softmax"),
    )
)
"""Operators that put out something else for data that are scaled or shifted otherwise."""


@record(frozen=True, eq=False)
class Form:
    """One way to tell what an operator does: its key in the table, and what it reads.

    ``is_moved`` tells that what it reads has other axes than the operator's data. ``is_other``
    tells that it is something else: it has to be the same in both files.
    """

    key: Hashable
    given: Sequence[Expression | None]
    core: Core
    is_moved: bool = False
    is_other: bool = False


@record(eq=False)
class Matcher:
    """What a file has in common with the table.

    ``forced`` are bases that count as equal, whatever the weights say: by base, who reads the
    difference. ``loose`` has by base why the first file does not have it: that is no problem where
    the next operator makes one operator of both, and where nothing depends on it. ``is_open``
    says that another relation of constant channels could have been followed, or another operator
    taken for one that draws random numbers: what differs behind them may be equal.
    """

    side: Side
    table: Table
    is_first: bool
    forced: dict[int, Blame] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    loose: dict[int, Problem] = field(default_factory=dict)
    is_open: bool = False

    def operator(
        self, scope: Scope, node: NodeProto, forms: Sequence[Form], types: Sequence[int]
    ) -> list[Expression]:
        """What an operator puts out: maps of bases that are known, or new bases."""
        drawn = is_random(node)
        tried: list[tuple[Known, Form, list[Related | None]]] = []
        for form in forms:
            candidates = self.table.operators.get(form.key, [])
            if drawn:
                candidates = [] if self.is_first else [c for c in candidates if not c.is_used]
                self.is_open |= len(candidates) > 1
            for known in candidates:
                relations = self.relations(known, form.given)
                if relations is None or (form.is_moved and any(map(_varies, relations))):
                    continue
                if form.is_other and not all(one is None or one.is_identity for one in relations):
                    continue
                kind, numbers = type_of(form.core.node), form.core.numbers
                call = Call(self.side, scope, node, relations, kind, known.numbers, numbers)
                found = passed(call)
                errors = None if found is None else errors_behind(call, found)
                if found is not None and errors is not None:
                    known.is_used = True
                    if self.is_first:
                        self._also(known, forms, relations)
                    return self._mapped(known, found, errors, form.given, call)
                tried.append((known, form, relations))
        if tried and not self.is_first:
            known, form, relations = next((t for t in tried if not t[0].is_used), tried[0])
            if any(one is not None and not one.is_identity for one in relations):
                known.is_used = True
                self.blame(node, form.given, relations, known)
                return [of_base(base) for base in known.outputs]
        outputs = [self.table.fresh(kind) for kind in types]
        if not self.is_first:
            why = f"this {node.op_type} has other bounds" if tried else ""
            self.miss(node, forms[0].given, outputs, why)
        if self.is_first:
            self.also(node, forms, outputs, (self.side, scope, node))
        return [of_base(base) for base in outputs]

    def also(
        self,
        node: NodeProto,
        forms: Sequence[Form],
        outputs: Sequence[int],
        place: tuple[Side, Scope, NodeProto] | None = None,
    ) -> None:
        """Note in the first file that an operator puts out bases; at its place if they are new."""
        plain = next((f for f in forms if not (f.is_moved or f.is_other)), None)
        for form in forms:
            kind, at = type_of(form.core.node), place if form is plain else None
            known = Known(label(node), form.given, outputs, kind, form.core.numbers, place=at)
            self.table.operators.setdefault(form.key, []).append(known)

    def _also(
        self, known: Known, forms: Sequence[Form], relations: Sequence[Related | None]
    ) -> None:
        """Note the other forms of an operator that the first file has once more."""
        if all(one is None or one.is_identity for one in relations):
            for form in forms:
                held = self.table.operators.setdefault(form.key, [])
                if not any(one.outputs == known.outputs for one in held):
                    held.append(replace(known, inputs=form.given, is_used=False))

    def miss(
        self,
        node: NodeProto,
        given: Sequence[Expression | None],
        outputs: Sequence[int],
        why: str = "",
    ) -> None:
        """Note that the first file has no such operator, or none that puts out what it reads.

        That is a problem if something depends on what it puts out.
        """
        why = why or f"the first file has no such {node.op_type}"
        problem = self._loose(given) or Problem("structure", label(node), why)
        self.loose.update(dict.fromkeys(outputs, problem))

    def _loose(self, given: Sequence[Expression | None]) -> Problem | None:
        """Why the first file does not have what is read, or None where it has all."""
        bases = (term.base for value in given if value is not None for term in value.terms)
        return next((self.loose[base] for base in bases if base in self.loose), None)

    def relations(
        self, known: Known, given: Sequence[Expression | None]
    ) -> list[Related | None] | None:
        """How each input of an operator is related to that of a known one; None where one is not.

        Constants and inputs that are left out have None.
        """
        found: list[Related | None] = []
        for one, other in zip(known.inputs, given, strict=True):
            if (one is None) != (other is None):
                return None
            related = of_maps(one, other) if one is not None and other is not None else None
            if one is not None and related is None:
                return None
            if related is not None and not related.is_settled:
                self.is_open = True
            found.append(related)
        return found

    def _mapped(
        self,
        known: Known,
        found: Sequence[tuple[Double, Double]],
        errors: Sequence[Double | float],
        given: Sequence[Expression | None],
        call: Call,
    ) -> list[Expression]:
        real = [
            (value, one)
            for value, one in zip(given, call.inputs, strict=True)
            if value is not None and one is not None and not one.is_identity
        ]
        slip = max((one.slip for _, one in real), default=0.0)
        unit = max((value.unit for value, _ in real), default=0.0)
        origins = frozenset[int]().union(*(value.origins for value, _ in real))
        masses = [shift if shift is ZERO else np.abs(shift) for _, shift in found]
        if any(shift is not ZERO and shift.any() for _, shift in found):
            # The mass goes where the shift goes.
            moved = [one and replace(one, shift=one.mass) for one in call.inputs]
            other = passed(replace(call, inputs=moved))
            if other is not None:
                pairs = zip(masses, other, strict=True)
                masses = [np.maximum(mass, np.abs(shift)) for mass, (_, shift) in pairs]
            elif found[0][1] is call.first.shift:  # The bounds of a Clip do not fit the mass.
                masses = [call.first.mass, *masses[1:]]
        parts = zip(known.outputs, found, masses, errors, strict=False)
        return [
            Expression((Term(base, scale, error),), shift, mass, slip, unit, origins)
            for base, (scale, shift), mass, error in parts
        ]

    def blame(
        self,
        node: NodeProto,
        given: Sequence[Expression | None],
        relations: Sequence[Related | None],
        known: Known,
    ) -> None:
        """Note that an operator reads other data. Raises `Blamed` where weights ahead of it do."""
        sure = node.op_type in _FAITHFUL
        origins = [
            base
            for value, one in zip(given, relations, strict=True)
            if value is not None and one is not None and not one.is_identity
            for base in value.origins
            if base not in self.forced
        ]
        if origins:
            raise Blamed(origins, label(node), sure)
        value, one = next(
            (value, one)
            for value, one in zip(given, relations, strict=True)
            if value is not None and one is not None and not one.is_identity
        )
        showing = by_operator(known, relations)
        found = of_map(label(node), "what it reads", one, sure, showing)
        self.problems.append(replace(found, read=_bases(value)))

    def total(self, value: Expression, at: str, rank: int | None, kind: int) -> Expression:
        """A map of one base in the place of a sum."""
        bases = frozenset(term.base for term in value.terms)
        differences: list[tuple[Sum, Difference]] = []
        held = self.table.sums.get(bases, ())
        for known in held:
            found = None
            if known.kind == kind:
                found = _solved(known.expression, value, known.rank, len(held) > 1)
            if isinstance(found, Related):
                return self._matched(known, value, found, at)
            if found is not None:
                differences.append((known, found))
        if not self.is_first:
            made = self._in_series(value, kind, at)
            if made is not None:
                return made
        if self.is_first or not differences:
            base = self.table.fresh(kind)
            own = _own(value, base, rank)
            known = self.table.definitions[base] = Sum(at, value, base, rank, kind, own)
            if self.is_first:
                self.table.sums.setdefault(bases, []).append(known)
                for each in bases:
                    self.table.readers.setdefault(each, []).append(known)
            else:
                why = "the first file has no layer like it"
                self.loose[base] = self._loose([value]) or Problem("structure", at, why)
            return own
        free = [pair for pair in differences if not pair[0].is_used] or differences
        full = [(known, solve(known.expression, value, known.rank)) for known, _ in free]
        wrong = [(each, found) for each, found in full if isinstance(found, Difference)]
        known, worst = min(wrong, key=lambda pair: len(pair[1].channels))
        known.is_used = True
        origins = value.origins - self.forced.keys()
        if origins and len(worst.channels) == worst.of:
            raise Blamed(origins, at, True)
        told, showing = str(worst), by_rows(known, value, worst)
        sizes = worst.units, worst.allowed
        self.problems.append(Problem("weights", at, told, *sizes, True, _bases(value), showing))
        return self._matched(known, value, worst.otherwise, at, is_wrong=True)

    def _in_series(self, value: Expression, kind: int, at: str) -> Expression | None:
        """A map of a base that is made in several steps in one of the files, or None."""
        longer = expanded(value, self.table.definitions) or value
        bases = frozenset(term.base for term in longer.terms)
        pairs = that_read(self.table, bases)
        if longer is not value:
            pairs += [(known, known.expression) for known in self.table.sums.get(bases, ())]
        for known, own in pairs:
            found = _solved(own, longer, known.rank, True) if known.kind == kind else None
            if isinstance(found, Related):
                return self._matched(known, value, found, at)
        return None

    def _matched(
        self, known: Sum, value: Expression, found: Related, at: str, is_wrong: bool = False
    ) -> Expression:
        known.is_used = True
        made = Expression(
            (Term(known.base, found.scale, found.error),),
            found.shift,
            found.mass,
            found.slip,
            value.unit,
        )
        if self.is_first:
            return made
        related = of_maps(known.own, made)
        is_same = related is not None and related.is_identity
        is_wrong |= not is_same and known.base in self.forced
        if any(term.linear is not None for term in value.terms) and not is_wrong:
            self.layers.append(Layer(at, found.distance))
        if is_same:
            return known.own
        if known.base in self.forced:
            blame = self.forced[known.base]
            moved = related or found
            showing = by_map(known.base, moved)
            problem = of_map(at, "what it puts out", moved, blame.is_sure, showing)
            why = f"{problem.why}, as {blame.by} reads it"
            self.problems.append(replace(problem, why=why, read=_bases(value)))
            return known.own
        if value.origins and _is_uniform(found):
            return replace(made, origins=value.origins)
        return replace(made, origins=frozenset((known.base,)))

    def require_same(self, what: str, one: Expression, other: Expression) -> None:
        """Note it if a result is not that of the first file. Raises `Blamed` as `blame` does."""
        related = of_maps(one, other)
        if related is None:
            self.problems.append(
                self._loose([other]) or Problem("structure", what, "it is another value")
            )
        elif not related.is_identity:
            if other.origins - self.forced.keys():
                raise Blamed(other.origins - self.forced.keys(), what, True)
            found = of_map(what, "this output", related, True, by_output(one, related))
            self.problems.append(replace(found, read=_bases(other)))


def _bases(value: Expression) -> frozenset[int]:
    return frozenset(term.base for term in value.terms)


def is_random(node: NodeProto) -> bool:
    """Whether two operators of this type may put out other numbers for the same data."""
    return node.op_type in RANDOM or node.domain not in _KNOWN_DOMAINS


def draws(nodes: Iterable[NodeProto]) -> bool:
    """Whether one of some nodes may put out other numbers for the same data, or one in a body."""
    return any(is_random(n) or any(draws(b.node) for _, b in bodies(n)) for n in nodes)


def _varies(related: Related | None) -> bool:
    """Whether a relation has several numbers, which lie along axes."""
    return related is not None and (related.scale.size > 1 or related.shift.size > 1)


def _own(value: Expression, base: int, rank: int | None) -> Expression:
    """What the tensor of a new sum is, as a map of its base."""
    try:
        constant = constant_rows(value, rank)
    except Incomparable:
        constant = np.zeros(())
    if not constant.any():
        return replace(of_base(base), unit=value.unit)
    term, shift, mass = Term(base, 1 - constant), constant * value.shift, constant * value.mass
    return Expression((term,), shift, mass, value.error, value.unit)


def _is_uniform(found: Related) -> bool:
    """Whether a relation is one factor for all channels, as one that comes from ahead is."""
    spread = float(np.max(found.scale) - np.min(found.scale))
    return spread <= 2 * max(float(np.max(found.error)), 2.0**-20)


def _solved(
    known: Expression, value: Expression, rank: int | None, many: bool
) -> Related | Difference | None:
    """How a sum is related to a known one, of ``many``: first and last row come ahead of all."""
    try:
        rows = rows_of(value) or rows_of(known)
        if rows > 2 and many:
            found = solve(known, value, rank, (0, rows - 1))
            if isinstance(found, Difference):
                return found
        return solve(known, value, rank)
    except Incomparable:
        return None


def rows_of(value: Expression) -> int:
    return next((t.linear.rows for t in value.terms if t.linear is not None), 0)
