"""The walk: what each tensor of a file is, in the bases of the table.

The first file fills the table. The second finds its own operators there; what it does not find, and
what it finds with other numbers, are problems.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import NodeProto, TensorProto

from bnfold._onnx.read.scopes import Scope, bodies, label, type_of
from bnfold._relation import cores, linear, reading
from bnfold._relation.cores import Core
from bnfold._relation.expressions import (
    Expression,
    Term,
    along,
    is_uneven,
    lies_along,
    of_base,
)
from bnfold._relation.liveness import needed
from bnfold._relation.matching import Form, Matcher, is_random, rows_of
from bnfold._relation.places import REARRANGING, is_absolute, place_of
from bnfold._relation.problems import Problem
from bnfold._relation.side import Side
from bnfold._relation.table import Known, fingerprint, key_of

_SUMS = ("Add", "Sub", "Sum")
_COMMUTATIVE = ("Add", "And", "Equal", "Max", "Mean", "Min", "Mul", "Or", "Sum", "Xor")
_WIDER: dict[int, tuple[int, ...]] = {
    TensorProto.FLOAT16: (TensorProto.FLOAT, TensorProto.DOUBLE),
    TensorProto.BFLOAT16: (TensorProto.FLOAT, TensorProto.DOUBLE),
    TensorProto.FLOAT: (TensorProto.DOUBLE,),
}
"""The types that hold all numbers of a type."""


@dataclass(eq=False)
class Walk:
    """One file on its way through the table.

    ``words`` tell constants apart. ``inside`` is the operator whose body is walked, and which of
    its bodies; None in the main graph. ``watch`` is called at each operator; it may end the walk.
    """

    side: Side
    found: Matcher
    words: dict[tuple[str, str], Hashable] = field(default_factory=dict)
    inside: tuple[Known, str] | None = None
    watch: Callable[[], None] = lambda: None

    def graph(self, scope: Scope, results: Collection[str] | None = None) -> None:
        """Go through the operators of a graph; only those that some results need, if given."""
        nodes = scope.nodes if results is None else needed(scope, results)
        for node in nodes:
            self.watch()
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
        made = self.found.total(found, self._writer(owner, name), rank, kind)
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
        if not scope.kind(node):
            self._other(scope, node)
            return
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
            inner = self.found.table.widened.get((term.base, kind))
            if inner is None or is_uneven(term.error):
                return None
            made = made.plus(inner.scaled(term.scale, float(np.max(term.error)), 0.0))
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
            self.side.note_rank(scope, found.data, found.data_rank)
        if found is None or made is None or not found.bias:
            return made
        weight = self.side.floats(scope, found.bias)
        if weight is not None:
            values = weight.double()
            is_fitting = found.linear.axis != 1 or weight.shape == (found.linear.rows,)
            if not is_fitting or not np.all(np.isfinite(values)):
                return None
            if found.linear.axis == 1:
                values = along(values, 1, found.rank)
            return made.shifted(values * found.bias_factor, weight.unit / 2, weight.unit)
        bias = self.closed(scope, found.bias) if found.linear.axis != 1 else None
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
            ranks = {self.side.rank(scope, n) for n in node.input} if 1 in axes else ()
            rows = {rows_of(total), rows_of(part)} - {0}
            if max(len(axes), len(ranks), len(rows)) > 1:
                total, part = self.closed(scope, node.input[0]), self.closed(scope, name)
                if total is None or part is None or len(parts) > 2:
                    return None
            total = total.plus(part, -1.0 if node.op_type == "Sub" else 1.0)
        if total is not None and not self._is_even(scope, node, total):
            total = replace(total, is_wide=True)
        return total

    def _is_even(self, scope: Scope, node: NodeProto, total: Expression) -> bool:
        """Whether all parts of a sum are known to have the sizes of the sum.

        Operators of one kind on one base have.
        """
        first, *rest = (self.side.shapes.sizes(scope, name) for name in node.input)
        if first is not None and None not in first and all(each == first for each in rest):
            return True
        linears = [term.linear and (term.base, term.linear.kind) for term in total.terms]
        return None not in linears and len(set(linears)) == 1

    def _other(self, scope: Scope, node: NodeProto) -> None:
        """An operator that is not affine, or the part of it that is not."""
        side = self.side
        given: list[Expression | None] = [self.closed(scope, name) for name in node.input]
        is_call = not scope.kind(node)
        core = Core(node, node.input, given) if is_call else cores.of(side, scope, node, given)
        gates = [self._close_own(value, label(node)) for value in core.gates]
        names = [*core.names, *("" for _ in gates)]
        values = [*core.given, *gates]
        words = [self._word(scope, n, v) for n, v in zip(names, values, strict=True)]
        types = [side.shapes.type(scope, name) if name else 0 for name in node.output]
        if type_of(node) in _COMMUTATIVE and scope.opset >= 7 and not is_call:
            order = sorted(range(len(words)), key=lambda place: str(words[place]))
            words, values = [words[k] for k in order], [values[k] for k in order]
        key = key_of(core.node, side.opset(scope, node), words, types)
        if is_call:
            key = key, side.functions
        if is_random(node):  # In a body it is drawn each time that the body runs.
            key = key, self.inside
        forms = [Form(key, values, core)]
        if any(bodies(node)):
            self._with_bodies(scope, node, forms[0].key, values)
            return
        place = None if is_call else place_of(side, scope, node)
        data = values[0] if values else None
        if place is not None and data is not None:
            root = self._root(node, data, place)
            word = self._word(scope, names[0], root)
            forms.append(Form((place, *types, word), [root], core, root is not data))
            data = root
        made = self.found.operator(scope, node, forms, types)
        if type_of(node) == "Cast" and data is not None:
            before, after = (
                side.shapes.type(scope, name) for name in (node.input[0], node.output[0])
            )
            if after in _WIDER.get(before, ()):
                self.found.table.widened.setdefault((made[0].terms[0].base, before), data)
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
        root = self.found.table.roots.get(term.base, term.base)
        if root == term.base or term.scale.size > 1 or data.shift.size > 1:
            return data
        moved = Term(root, term.scale.reshape(()), float(np.max(term.error)))
        shift, mass = data.shift.reshape(()), np.asarray(np.max(data.mass))
        return replace(data, terms=(moved,), shift=shift, mass=mass)

    def _close_own(self, value: Expression, at: str) -> Expression:
        """A map of one base in the place of what an operator computes inside."""
        is_map = value.map is not None or not value.terms
        return value if is_map else self.found.total(value, at, None, 0)

    def _note_root(self, data: Expression | None, made: Expression) -> None:
        """Note of what a new base is a rearrangement."""
        read, written = data.map if data is not None else None, made.map
        if read is not None and written is not None and read.base != written.base:
            plain = read.scale.size == 1 and written.scale.size == 1
            same = plain and read.scale == written.scale
            if same and data is not None and np.array_equal(data.shift, made.shift):
                self.found.table.roots.setdefault(written.base, read.base)

    def _fresh(self, scope: Scope, names: Iterable[str]) -> list[int]:
        """New bases for some tensors."""
        kinds = (self.side.shapes.type(scope, name) if name else 0 for name in names)
        return [self.found.table.fresh(kind) for kind in kinds]

    def _word(self, scope: Scope, name: str, value: Expression | None) -> Hashable:
        """What stands for an input in the key of an operator."""
        if value is not None:
            term = value.map
            return term.base if term is not None else "constant"
        if not name:
            return None
        owner = scope.owner(name)
        key = "" if owner is None else owner.path, name
        if key not in self.words:
            stored = self.side.constant(scope, name) or self.side.floats(scope, name)
            known = None if stored is None else fingerprint(stored.load())
            self.words[key] = ("unknown", id(self), name) if known is None else known
        return self.words[key]

    def _with_bodies(
        self,
        scope: Scope,
        node: NodeProto,
        key: Hashable,
        given: Sequence[Expression | None],
    ) -> None:
        """If, Loop, Scan: the same data go into the bodies of both files, and come out of them."""
        named = sorted(bodies(node), key=lambda pair: pair[0])
        graphs = [self.side.body(graph) for _, graph in named]
        key = key, tuple(name for name, _ in named)
        known = None
        candidates = [] if self.found.is_first else self.found.table.operators.get(key, [])
        self.found.is_open |= sum(not each.is_used for each in candidates) > 1
        for candidate in candidates:
            relations = self.found.relations(candidate, given)
            fitting = [len(each) for each in candidate.formal]
            if relations is None or fitting != [len(g.graph.input) for g in graphs]:
                continue
            if candidate.is_used:
                continue
            if any(one is not None and not one.is_identity for one in relations):
                self.found.blame(node, given, relations, candidate)
            known = candidate
            break
        if known is None:
            formal = [self._fresh(g, (v.name for v in g.graph.input)) for g in graphs]
            outputs = self._fresh(scope, node.output)
            known = Known(label(node), given, outputs, formal=formal)
            if self.found.is_first:
                self.found.table.operators.setdefault(key, []).append(known)
            else:
                self.found.miss(node, given, outputs)
        known.is_used = not self.found.is_first
        results: list[list[Expression]] = []
        outside = self.inside
        for (name, _), body, formal_ in zip(named, graphs, known.formal, strict=True):
            for value, base in zip(body.graph.input, formal_, strict=True):
                self._set(body, value.name, of_base(base))
            self.inside = known, name
            self.graph(body)
            self.inside = outside
            results.append([self.result(body, value.name) for value in body.graph.output])
        if self.found.is_first:
            known.results = results
        elif known.results:
            for body, ones, others in zip(graphs, known.results, results, strict=True):
                for value, one, other in zip(body.graph.output, ones, others, strict=False):
                    self.found.require_same(f"{value.name} of {body.path}", one, other)
                if len(ones) != len(others):
                    why = "the bodies have other numbers of outputs"
                    self.found.problems.append(Problem("structure", label(node), why))
        for name, base in zip(node.output, known.outputs, strict=True):
            self._set(scope, name, of_base(base))

    def result(self, scope: Scope, name: str) -> Expression:
        """What a graph puts out. A constant is a shift."""
        found = self.closed(scope, name)
        if found is not None:
            return found
        weight = self.side.constant(scope, name)
        if weight is None:
            return of_base(self.found.table.fresh(0))
        values = weight.load()
        numbers = values.astype(np.float64) if weight.is_float else np.zeros(())
        if weight.is_float and np.all(np.isfinite(numbers)):
            return Expression((), numbers, np.abs(numbers))
        return of_base(self.found.table.stored(fingerprint(values)))
