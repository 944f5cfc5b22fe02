"""The walk: what each tensor of a file is, in the bases of the table.

The first file fills the table. The second finds its own operators there; what it does not find, and
what it finds with other numbers, are problems.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import NodeProto, TensorProto

from bnfold._onnx.read.scopes import Scope, bodies, label, type_of
from bnfold._relation import cores, linear, reading
from bnfold._relation.cores import Core
from bnfold._relation.expressions import (
    Double,
    Expression,
    Incomparable,
    Term,
    along,
    lies_along,
    of_base,
)
from bnfold._relation.passing import Call, passed
from bnfold._relation.places import REARRANGING, is_absolute, place_of
from bnfold._relation.series import expanded
from bnfold._relation.side import Side
from bnfold._relation.solving import Difference, Related, of_maps, solve
from bnfold._relation.table import RANDOM, Known, Sum, Table, fingerprint, key_of

_SUMS = ("Add", "Sub", "Sum")
_COMMUTATIVE = ("Add", "And", "Equal", "Max", "Mean", "Min", "Mul", "Or", "Sum", "Xor")
_WIDER: dict[int, tuple[int, ...]] = {
    TensorProto.FLOAT16: (TensorProto.FLOAT, TensorProto.DOUBLE),
    TensorProto.BFLOAT16: (TensorProto.FLOAT, TensorProto.DOUBLE),
    TensorProto.FLOAT: (TensorProto.DOUBLE,),
}
"""The types that hold all numbers of a type."""
FAITHFUL = frozenset(
    [
        "Celu",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Tanh",
    ]  # A line for each would be longer than the law.
)
"""Operators that put out something else for data that are scaled or shifted otherwise."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A place where the two files are not seen to agree.

    ``kind`` is "weights" (rows of weights differ), "map" (a scale or shift differs) or "structure"
    (the first file has no such operator). ``base`` is the value whose rows ``channels`` differ.
    ``is_sure`` tells that nothing else can make up for it. ``allowed`` is how many units in the
    last place rounding explains.
    """

    kind: str
    at: str
    why: str
    base: int | None = None
    channels: Sequence[int] = ()
    units: float = 0.0
    allowed: float = 0.0
    is_sure: bool = True


class Blamed(Exception):
    """Bases whose relation to the first file nothing behind them makes up for."""

    def __init__(self, bases: Collection[int], by: str, is_sure: bool) -> None:
        super().__init__()
        self.bases = frozenset(bases)
        self.by = Blame(by, is_sure)


@dataclass(frozen=True)
class Blame:
    """Who reads a relation that is not the identity, and whether that is sure to show."""

    by: str
    is_sure: bool


@dataclass(frozen=True)
class Layer:
    """A sum of linear operators that both files have, and how far their weights are apart."""

    at: str
    distance: float


@dataclass(frozen=True, eq=False)
class _Form:
    """One way to tell what an operator does: its key in the table, and what it reads."""

    key: Hashable
    given: Sequence[Expression | None]
    core: Core


@dataclass(eq=False)
class Walk:
    """One file on its way through the table.

    ``forced`` are bases that count as equal, whatever the weights say: by base, who
    reads the difference. ``loose`` has by base why the first file does not have
    it: that is no problem where the next operator makes one operator of both.
    """

    side: Side
    table: Table
    is_first: bool
    forced: dict[int, Blame] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    loose: dict[int, Problem] = field(default_factory=dict)

    def graph(self, scope: Scope) -> None:
        """Go through the operators of a graph."""
        for node in scope.nodes:
            self._node(scope, node)

    def value(self, scope: Scope, name: str) -> Expression | None:
        """What a tensor is, or None for a constant and for an input that is left out."""
        owner = scope.owner(name) if name else None
        return None if owner is None else self.side.values.get((owner.path, name))

    def closed(self, scope: Scope, name: str) -> Expression | None:
        """What a tensor is, as a map of one base."""
        found = self.value(scope, name)
        owner = scope.owner(name)
        if found is None or owner is None or found.map is not None or not found.terms:
            return found
        rank, kind = self.side.rank(scope, name), self.side.shapes.type(scope, name)
        made = self._close(found, self._writer(owner, name), rank, kind)
        self.side.values[owner.path, name] = made
        return made

    def _writer(self, scope: Scope, name: str) -> str:
        """The label of the linear operator behind a tensor, or of the operator that writes it."""
        first = node = scope.writer(name)
        while node.op_type and linear.read(self.side, scope, node) is None:
            before = [n for n in node.input if n in scope.producers and self.value(scope, n)]
            if len(before) != 1:
                break
            node = scope.writer(before[0])
        known = node.op_type and linear.read(self.side, scope, node) is not None
        return label(node if known else first)

    def _set(self, scope: Scope, name: str, value: Expression) -> None:
        if name:
            self.side.values[scope.path, name] = value

    def _node(self, scope: Scope, node: NodeProto) -> None:
        side = self.side
        outputs = [name for name in node.output if name]
        if outputs and all(side.constant(scope, name) is not None for name in outputs):
            return
        if reading.passes(side, scope, node):
            found = self.value(scope, node.input[0])
            if found is not None:
                self._set(scope, node.output[0], found)
                return
        made = self._cast_back(scope, node)
        if made is None:
            made = self._affine(scope, node)
        if made is None:
            made = self._linear(scope, node)
        if made is None:
            made = self._sum(scope, node)
        if made is not None:
            self._set(scope, node.output[0], made)
            return
        self._other(scope, node)

    def _cast_back(self, scope: Scope, node: NodeProto) -> Expression | None:
        """What a Cast puts out that goes back to the type which its data had before another Cast.

        Affine operators stand between the two. Their result is rounded to the type either way, and
        so is a map of the same data in that type. None for any other operator.
        """
        value = self.value(scope, node.input[0]) if type_of(node) == "Cast" else None
        if value is None or any(term.linear is not None for term in value.terms):
            return None
        kind = self.side.shapes.type(scope, node.output[0])
        made = Expression((), value.shift, value.mass, value.error, value.unit, value.origins)
        for term in value.terms:
            inner = self.table.widened.get((term.base, kind))
            if inner is None:
                return None
            made = made.plus(inner.scaled(term.scale, term.error, 0.0))
        return made if value.terms else None

    def _affine(self, scope: Scope, node: NodeProto) -> Expression | None:
        found = reading.affine(self.side, scope, node)
        data = self.value(scope, found[0]) if found is not None else None
        if found is None or data is None:
            return None
        rank = self.side.rank(scope, found[0])
        factors = [step.scale for step in found[1] if step.scale is not None]
        axis = data.axis
        if axis is not None and not all(lies_along(factor, axis, rank) for factor in factors):
            data = self.closed(scope, found[0])
        for step in found[1]:
            data = step.of(data) if data is not None else None
        self.side.ranks[scope.path, node.output[0]] = rank
        return data

    def _linear(self, scope: Scope, node: NodeProto) -> Expression | None:
        found = linear.read(self.side, scope, node)
        data = self.closed(scope, found.data) if found is not None else None
        made = linear.apply(found, data) if found is not None and data is not None else None
        if found is not None:
            self.side.ranks[scope.path, node.output[0]] = found.rank
        if found is None or made is None or not found.bias:
            return made
        weight = self.side.floats(scope, found.bias)
        if weight is not None:
            values = weight.double()
            if found.linear.axis == 1:
                values = along(values, 1, found.rank)
            return made.shifted(values * found.bias_factor, weight.unit / 2, weight.unit)
        bias = self.closed(scope, found.bias)
        return None if bias is None else made.plus(bias, found.bias_factor)

    def _sum(self, scope: Scope, node: NodeProto) -> Expression | None:
        if type_of(node) not in _SUMS or len(node.input) < 2:
            return None
        if scope.opset < 7 or not self.side.is_float(scope, node.output[0]):
            return None
        parts = [self.value(scope, name) for name in node.input]
        total = parts[0]
        for name, part in zip(node.input[1:], parts[1:], strict=True):
            if total is None or part is None:
                return None
            axes = {total.axis, part.axis} - {None}
            if len(axes) > 1 or _rows(total) != _rows(part) != 0 != _rows(total):
                total, part = self.closed(scope, node.input[0]), self.closed(scope, name)
                if total is None or part is None or len(parts) > 2:
                    return None
            total = total.plus(part, -1.0 if node.op_type == "Sub" else 1.0)
        return total

    def _other(self, scope: Scope, node: NodeProto) -> None:
        """An operator that is not affine, or the part of it that is not."""
        given: list[Expression | None] = [self.closed(scope, name) for name in node.input]
        core = cores.of(self.side, scope, node, given)
        gates = [self._close_own(value, label(node)) for value in core.gates]
        names = [*core.names, *("" for _ in gates)]
        values = [*core.given, *gates]
        words = [self._word(scope, n, v) for n, v in zip(names, values, strict=True)]
        types = [self.side.shapes.type(scope, name) if name else 0 for name in node.output]
        if type_of(node) in _COMMUTATIVE:
            order = sorted(range(len(words)), key=lambda place: str(words[place]))
            words, values = [words[k] for k in order], [values[k] for k in order]
        forms = [_Form(key_of(core.node, scope.opset, words, types), values, core)]
        if any(bodies(node)):
            self._with_bodies(scope, node, forms[0].key, values)
            return
        place = place_of(self.side, scope, node)
        data = values[0] if values else None
        if place is not None and data is not None:
            data = self._root(node, data, place)
            word = self._word(scope, names[0], data)
            forms.append(_Form((place, *types, word), [data], core))
        made = self._find(scope, node, forms)
        if type_of(node) == "Cast" and data is not None:
            before, after = (
                self.side.shapes.type(scope, name) for name in (node.input[0], node.output[0])
            )
            if after in _WIDER.get(before, ()):
                self.table.widened.setdefault((made[0].terms[0].base, before), data)
        if len(forms) > 1 and type_of(node) in REARRANGING:
            self._note_root(data, made[0])
        for name, value in zip(node.output, made, strict=True):
            for step in core.steps:
                value = step.of(value)
            self._set(scope, name, value)

    def _root(self, node: NodeProto, data: Expression, place: Hashable) -> Expression:
        """The data of an operator that moves numbers.

        One rearrangement of another is a rearrangement of the first one's data.
        """
        term = data.map
        if term is None or type_of(node) not in REARRANGING or not is_absolute(place):
            return data
        root = self.table.roots.get(term.base, term.base)
        if root == term.base or term.scale.size > 1 or data.shift.size > 1:
            return data
        moved = Term(root, term.scale.reshape(()), term.error)
        shift, mass = data.shift.reshape(()), data.mass.reshape(-1)[:1].reshape(())
        return replace(data, terms=(moved,), shift=shift, mass=mass)

    def _close_own(self, value: Expression, at: str) -> Expression:
        """A map of one base in the place of what an operator computes inside."""
        is_map = value.map is not None or not value.terms
        return value if is_map else self._close(value, at, None, 0)

    def _note_root(self, data: Expression | None, made: Expression) -> None:
        """Note of what a new base is a rearrangement."""
        read, written = data.map if data is not None else None, made.map
        if read is not None and written is not None and read.base != written.base:
            plain = read.scale.size == 1 and written.scale.size == 1
            same = plain and read.scale == written.scale
            if same and data is not None and np.array_equal(data.shift, made.shift):
                self.table.roots.setdefault(written.base, read.base)

    def _fresh(self, scope: Scope, names: Iterable[str]) -> list[int]:
        """New bases for some tensors."""
        kinds = (self.side.shapes.type(scope, name) if name else 0 for name in names)
        return [self.table.fresh(kind) for kind in kinds]

    def _word(self, scope: Scope, name: str, value: Expression | None) -> Hashable:
        """What stands for an input in the key of an operator."""
        if value is not None:
            term = value.map
            return term.base if term is not None else "constant"
        if not name:
            return None
        constant = self.side.constant(scope, name)
        if constant is not None:
            return fingerprint(constant.load())
        weight = self.side.floats(scope, name)
        return fingerprint(weight.load()) if weight is not None else ("unknown", id(self), name)

    def _find(self, scope: Scope, node: NodeProto, forms: Sequence[_Form]) -> list[Expression]:
        """What an operator puts out: maps of bases that are known, or new bases."""
        is_random = node.op_type in RANDOM
        tried: list[tuple[Known, _Form, list[Related | None]]] = []
        for form in forms:
            candidates = self.table.operators.get(form.key, [])
            if is_random:
                candidates = [] if self.is_first else [c for c in candidates if not c.is_used]
            for known in candidates:
                relations = self._relations(known, form.given)
                if relations is None:
                    continue
                kind, numbers = type_of(form.core.node), form.core.numbers
                call = Call(self.side, scope, node, relations, kind, known.numbers, numbers)
                found = passed(call)
                if found is not None:
                    known.is_used = True
                    return self._mapped(known, found, form.given, call)
                tried.append((known, form, relations))
        if tried and not self.is_first:
            known, form, relations = next((t for t in tried if not t[0].is_used), tried[0])
            known.is_used = True
            self._blame(node, form.given, relations)
            return [of_base(base) for base in known.outputs]
        if not self.is_first:
            self._miss(node, forms[0].given)
        outputs = self._fresh(scope, node.output)
        for form in forms if self.is_first else ():
            known = Known(label(node), form.given, outputs, form.core.numbers)
            self.table.operators.setdefault(form.key, []).append(known)
        return [of_base(base) for base in outputs]

    def _miss(self, node: NodeProto, given: Sequence[Expression | None]) -> None:
        """Note that the first file has no such operator, or none that puts out what it reads."""
        bases = (term.base for value in given if value is not None for term in value.terms)
        loose = next((self.loose[base] for base in bases if base in self.loose), None)
        why = f"the first file has no such {node.op_type}"
        self.problems.append(loose or Problem("structure", label(node), why))

    def _relations(
        self, known: Known, given: Sequence[Expression | None]
    ) -> list[Related | None] | None:
        found: list[Related | None] = []
        for one, other in zip(known.inputs, given, strict=True):
            if (one is None) != (other is None):
                return None
            related = of_maps(one, other) if one is not None and other is not None else None
            if one is not None and related is None:
                return None
            found.append(related)
        return found

    def _mapped(
        self,
        known: Known,
        found: Sequence[tuple[Double, Double]],
        given: Sequence[Expression | None],
        call: Call,
    ) -> list[Expression]:
        real = [
            (value, one)
            for value, one in zip(given, call.inputs, strict=True)
            if value is not None and one is not None and not one.is_identity
        ]
        error = max((one.error for _, one in real), default=0.0)
        slip = max((one.slip for _, one in real), default=0.0)
        unit = max((value.unit for value, _ in real), default=0.0)
        origins = frozenset[int]().union(*(value.origins for value, _ in real))
        masses = [np.abs(shift) for _, shift in found]
        if any(shift.any() for _, shift in found):  # It goes where the shift goes.
            moved = [one and replace(one, shift=one.mass) for one in call.inputs]
            other = passed(replace(call, inputs=moved))
            if other is not None:
                pairs = zip(masses, other, strict=True)
                masses = [np.maximum(mass, np.abs(shift)) for mass, (_, shift) in pairs]
        triples = zip(known.outputs, found, masses, strict=False)
        return [
            Expression((Term(base, scale, error),), shift, mass, slip, unit, origins)
            for base, (scale, shift), mass in triples
        ]

    def _blame(
        self,
        node: NodeProto,
        given: Sequence[Expression | None],
        relations: Sequence[Related | None],
    ) -> None:
        """Note that an operator reads other data. Raises `Blamed` where weights ahead of it do."""
        sure = node.op_type in FAITHFUL
        origins = [
            base
            for value, one in zip(given, relations, strict=True)
            if value is not None and one is not None and not one.is_identity
            for base in value.origins
            if base not in self.forced
        ]
        if origins:
            raise Blamed(origins, label(node), sure)
        real = [one for one in relations if one is not None and not one.is_identity]
        if real:
            what = f"what {label(node)} reads"
            self.problems.append(_of_map(label(node), what, real[0], None, sure))
        else:
            why = f"this {node.op_type} has other bounds"
            self.problems.append(Problem("map", label(node), why, is_sure=False))

    def _close(self, value: Expression, at: str, rank: int | None, kind: int) -> Expression:
        """A map of one base in the place of a sum."""
        bases = frozenset(term.base for term in value.terms)
        differences: list[tuple[Sum, Difference]] = []
        for known in self.table.sums.get(bases, ()):
            found = _solved(known.expression, value, known.rank) if known.kind == kind else None
            if isinstance(found, Related):
                return self._matched(known, value, found, at)
            if found is not None:
                differences.append((known, found))
        longer = expanded(value, self.table.definitions)
        if not self.is_first:
            made = self._in_series(value, longer or value, kind, at)
            if made is not None:
                return made
        if self.is_first or not differences:
            base = self.table.fresh(kind)
            known = self.table.definitions[base] = Sum(at, value, base, rank, kind)
            if self.is_first:
                self.table.sums.setdefault(bases, []).append(known)
                if longer is not None:
                    read = frozenset(term.base for term in longer.terms)
                    self.table.expanded.setdefault(read, []).append((known, longer))
            else:
                why = "the first file adds up nothing of this form"
                self.loose[base] = Problem("structure", at, why)
            return replace(of_base(base), unit=value.unit)
        free = [pair for pair in differences if not pair[0].is_used] or differences
        known, _ = free[0]
        full = [(known, solve(known.expression, value, known.rank)) for known, _ in free]
        wrong = [(each, found) for each, found in full if isinstance(found, Difference)]
        known, worst = min(wrong, key=lambda pair: len(pair[1].channels))
        known.is_used = True
        origins = value.origins - self.forced.keys()
        if origins and len(worst.channels) == worst.of:
            raise Blamed(origins, at, True)
        self.problems.append(
            Problem(
                "weights", at, str(worst), known.base, worst.channels, worst.units, worst.allowed
            )
        )
        return self._matched(known, value, worst.otherwise, at, is_wrong=True)

    def _in_series(
        self, value: Expression, longer: Expression, kind: int, at: str
    ) -> Expression | None:
        """A map of a base that is made in several steps in one of the files, or None."""
        bases = frozenset(term.base for term in longer.terms)
        pairs = list(self.table.expanded.get(bases, ()))
        if longer is not value:
            pairs += [(known, known.expression) for known in self.table.sums.get(bases, ())]
        for known, own in pairs:
            found = _solved(own, longer, known.rank) if known.kind == kind else None
            if isinstance(found, Related):
                return self._matched(known, value, found, at)
        return None

    def _matched(
        self, known: Sum, value: Expression, found: Related, at: str, is_wrong: bool = False
    ) -> Expression:
        known.is_used = True
        if not self.is_first and any(t.linear is not None for t in value.terms) and not is_wrong:
            self.layers.append(Layer(at, found.distance))
        origins = value.origins
        if not found.is_identity and not self.is_first:
            if known.base in self.forced:
                blame = self.forced[known.base]
                made = _of_map(at, f"{at} puts out", found, known.base, blame.is_sure)
                self.problems.append(replace(made, why=f"{made.why}, as {blame.by} reads it"))
                found = Related()
            else:
                origins = frozenset((known.base,))
        else:
            origins = frozenset()
        return Expression(
            (Term(known.base, found.scale, found.error),),
            found.shift,
            found.mass,
            found.slip,
            value.unit,
            origins,
        )

    def _with_bodies(
        self,
        scope: Scope,
        node: NodeProto,
        key: Hashable,
        given: Sequence[Expression | None],
    ) -> None:
        """If, Loop, Scan: the same data go into the bodies of both files, and come out of them."""
        graphs = [self.side.body(graph) for _, graph in bodies(node)]
        known = None
        for candidate in [] if self.is_first else self.table.operators.get(key, []):
            relations = self._relations(candidate, given)
            fitting = [len(each) for each in candidate.formal]
            if relations is None or fitting != [len(g.graph.input) for g in graphs]:
                continue
            if candidate.is_used:
                continue
            if any(one is not None and not one.is_identity for one in relations):
                self._blame(node, given, relations)
            known = candidate
            break
        if known is None and not self.is_first:
            self._miss(node, given)
        if known is None:
            formal = [self._fresh(g, (v.name for v in g.graph.input)) for g in graphs]
            outputs = self._fresh(scope, node.output)
            known = Known(label(node), given, outputs, formal=formal)
            if self.is_first:
                self.table.operators.setdefault(key, []).append(known)
        known.is_used = not self.is_first
        results: list[list[Expression]] = []
        for body, formal_ in zip(graphs, known.formal, strict=True):
            for value, base in zip(body.graph.input, formal_, strict=True):
                self._set(body, value.name, of_base(base))
            self.graph(body)
            results.append([self.result(body, value.name) for value in body.graph.output])
        if self.is_first:
            known.results = results
        elif known.results:
            for body, ones, others in zip(graphs, known.results, results, strict=True):
                for value, one, other in zip(body.graph.output, ones, others, strict=False):
                    self.require_same(f"{value.name} of {body.path}", one, other)
                if len(ones) != len(others):
                    why = "the bodies have other numbers of outputs"
                    self.problems.append(Problem("structure", label(node), why))
        for name, base in zip(node.output, known.outputs, strict=True):
            self._set(scope, name, of_base(base))

    def result(self, scope: Scope, name: str) -> Expression:
        """What a graph puts out. A constant is a shift."""
        found = self.closed(scope, name)
        if found is not None:
            return found
        weight = self.side.constant(scope, name)
        if weight is None:
            return of_base(self.table.fresh(0))
        values = weight.load()
        if values.dtype.kind not in "fiub" and not weight.is_float:
            return of_base(self.table.fresh(0))
        numbers = values.astype(np.float64)
        return Expression((), numbers, np.abs(numbers))

    def require_same(self, what: str, one: Expression, other: Expression) -> None:
        """Note it if a result is not that of the first file. Raises `Blamed` as `_blame` does."""
        related = of_maps(one, other)
        if related is None:
            bases = (term.base for term in other.terms if term.base in self.loose)
            loose = next((self.loose[base] for base in bases), None)
            self.problems.append(loose or Problem("structure", what, "it is another value"))
        elif not related.is_identity:
            if other.origins - self.forced.keys():
                raise Blamed(other.origins - self.forced.keys(), what, True)
            self.problems.append(_of_map(what, what, related, None, True))


def _solved(known: Expression, value: Expression, rank: int | None) -> Related | Difference | None:
    """How a sum is related to a known one. The first and last row are tried ahead of all."""
    try:
        rows = _rows(value) or _rows(known)
        if rows > 2:
            found = solve(known, value, rank, (0, rows - 1))
            if isinstance(found, Difference):
                return found
        return solve(known, value, rank)
    except Incomparable:
        return None


def _rows(value: Expression) -> int:
    return next((t.linear.rows for t in value.terms if t.linear is not None), 0)


def _of_map(at: str, what: str, found: Related, base: int | None, sure: bool) -> Problem:
    """The problem that a tensor is scaled or shifted otherwise."""
    scale, shift = np.broadcast_arrays(found.scale, found.shift)
    wrong = ((scale != 1) | (shift != 0)).reshape(-1)
    place = int(np.argmax(wrong))
    factor, added = float(scale.reshape(-1)[place]), float(shift.reshape(-1)[place])
    told = f"{what}: channel {place} is {factor:.9g} times what it was" + (
        f" and {added:+.9g}" if added else ""
    )
    units = max(abs(factor - 1), abs(added)) * 2.0**23
    channels = [int(each) for each in np.flatnonzero(wrong)]
    return Problem("map", at, told, base, channels, units, found.error * 2.0**23, sure)
