"""The walk: what each tensor of a file is, in the bases of the table.

The first file fills the table. The second finds its own operators there; what it does not find, and
what it finds with other numbers, are problems.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import field, replace

import numpy as np
from onnx import NodeProto

from bnfold._onnx import tensors
from bnfold._onnx.read.scopes import Scope, bodies, label, type_of
from bnfold._relation import conditions, cores, extents, linear, ranks, reading, roots
from bnfold._relation.cores import Core
from bnfold._relation.expressions import (
    Expression,
    along,
    lies_along,
    of_base,
)
from bnfold._relation.following import WIDER, Following
from bnfold._relation.liveness import needed
from bnfold._relation.matching import Form, is_random, rows_of
from bnfold._relation.places import (
    place_of,
)
from bnfold._relation.problems import Problem
from bnfold._relation.table import Known, key_of
from bnfold._system.records import record

_ASKING = ("CastLike", "Shape")
_SUMS = ("Add", "Sub", "Sum")
_COMMUTATIVE = ("Add", "And", "Equal", "Max", "Mean", "Min", "Mul", "Or", "Sum", "Xor")


@record(eq=False)
class Walk(Following):
    """One file on its way through the table.

    ``inside`` is the operator whose body is walked, and which of its bodies; None in the main
    graph. ``certain`` has the nodes that run whenever the file does, by ``id``. ``watch`` is
    called at each operator; it may end the walk.
    """

    inside: tuple[Known, str] | None = None
    certain: set[int] = field(default_factory=set)
    watch: Callable[[], None] = lambda: None

    def graph(self, scope: Scope, results: Collection[str] | None = None) -> None:
        """Go through the operators of a graph; only those that some results need, if given."""
        nodes = scope.nodes if results is None else needed(scope, results)
        for node in nodes:
            self.watch()
            self.node(scope, node)

    def node(self, scope: Scope, node: NodeProto) -> None:
        side = self.side
        if not scope.kind(node):
            self._other(scope, node)
            return
        if self._is_constant(scope, node):
            return
        self.integers.sizes.is_certain = id(node) in self.certain
        ranks.note(side, scope, node)
        extents.note(self.integers, scope, node)
        if self.integers.follow(scope, node) or conditions.follow(self.integers, scope, node):
            return
        if self.fillings.follow(scope, node) or self._taken(scope, node):
            return
        if reading.passes(side, scope, node):
            found = self.value(scope, node.input[0])
            owner = scope.owner(node.input[0])
            if found is not None and owner is not None:
                self.give(scope, node.output[0], found)
                self.same[scope.path, node.output[0]] = owner, node.input[0]
                return
        if self.product(scope, node) or self.unblocked(scope, node) or self.rejoined(scope, node):
            return
        made = self._cast_back(scope, node)
        if made is None and self.followed(scope, node):
            return
        if made is None:
            made = self._affine(scope, node)
        if made is None:
            product = linear.read(side, scope, node)
            if product is not None:
                self.linear.add(id(node))
            data = self.closed(scope, product.data) if product is not None else None
            if product is not None and data is not None:
                if self.rows(scope, node, product, data):
                    return
                made = self._linear(scope, node, product, data)
        if made is None and self.untransposed(scope, node):
            return
        if made is None:
            made = self._sum(scope, node)
        if made is not None:
            self.give(scope, node.output[0], made)
            return
        self._other(scope, node)

    def _is_constant(self, scope: Scope, node: NodeProto) -> bool:
        """Whether all that a node puts out is constant.

        What reads a value that is none is none, but for shapes and what is computed of them.
        """
        outputs = [name for name in node.output[:] if name]
        numbers = self.side.shapes.numbers
        asks = node.op_type in _ASKING or any((scope.path, name) in numbers for name in outputs)
        if not asks and any(self.value(scope, name) is not None for name in node.input[:]):
            return False
        return bool(outputs) and all(self.side.constant(scope, n) is not None for n in outputs)

    def _cast_back(self, scope: Scope, node: NodeProto) -> Expression | None:
        """What a Cast puts out that goes back to the type which its data had before another Cast.

        Affine operators stand between the two. Their result is rounded to the type either way, and
        so is a map of the same data in that type; nothing stands between two Casts of integers.
        None for any other operator.
        """
        value = self.value(scope, node.input[0]) if type_of(node) == "Cast" else None
        if value is None or any(term.linear is not None for term in value.terms):
            return None
        kind = self.side.shapes.type(scope, node.output[0])
        if kind not in tensors.FLOATS and not value.is_base:
            return None
        made = Expression((), value.shift, value.mass, value.error, value.unit, value.origins)
        for term in value.terms:
            inner = self.found.table.widened.get((term.base, kind))
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

    def _linear(
        self, scope: Scope, node: NodeProto, found: linear.Applied, data: Expression
    ) -> Expression | None:
        made = linear.apply(found, data)
        self.side.ranks[scope.path, node.output[0]] = found.rank
        self.side.note_rank(scope, found.data, found.data_rank)
        if made is None or not found.bias:
            return made
        weight = self.side.floats(scope, found.bias)
        if weight is not None:
            values = weight.double()
            if not _is_bias(weight.shape, found) or not np.all(np.isfinite(values)):
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
        parts = [self.value(scope, name) for name in node.input[:]]
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
        first, *rest = (self.side.shapes.sizes(scope, name) for name in node.input[:])
        if first is not None and None not in first and all(each == first for each in rest):
            return True
        linears = [term.linear and (term.base, term.linear.kind) for term in total.terms]
        return None not in linears and len(set(linears)) == 1

    def part(self, scope: Scope, node: NodeProto) -> None:
        if not (self.rejoined(scope, node) or self.untransposed(scope, node)):
            self._other(scope, node)

    def _other(self, scope: Scope, node: NodeProto) -> None:
        """An operator that is not affine, or the part of it that is not."""
        given: list[Expression | None] = [self.closed(scope, name) for name in node.input[:]]
        kind, is_call = scope.kind(node), not scope.kind(node)
        if not is_call:  # By now the sizes of all that it reads have names.
            extents.note(self.integers, scope, node)
        if kind == "Shape" and self.integers.follow(scope, node):
            return  # The sizes of a sum are those of the base that it is by now.
        if not is_call and given and given[0] is not None and self.moved(scope, node, given[0]):
            return
        power = self._power(scope, node) if kind == "Pow" else 0
        if power:
            self._multiplied(scope, node, power)
            return
        core = (
            Core(node, node.input, given)
            if is_call
            else cores.of(self.fillings, scope, node, given)
        )
        gates = [self._close_own(value, label(node)) for value in core.gates]
        names = [*core.names, *("" for _ in gates)]
        values = [*core.given, *gates]
        words = [self.word(scope, n, v) for n, v in zip(names, values, strict=True)]
        types = [self.side.shapes.type(scope, name) if name else 0 for name in node.output[:]]
        if core.gates:
            types = [max(types)] * len(core.node.output)
        if type_of(node) in _COMMUTATIVE and scope.opset >= 7 and not is_call:
            order = sorted(range(len(words)), key=lambda place: str(words[place]))
            words, values = [words[k] for k in order], [values[k] for k in order]
        key = key_of(core.node, self.side.opset(scope, core.node), words, types)
        if is_call:
            key = key, self.side.functions
        if is_random(node):  # In a body it is drawn each time that the body runs.
            key = key, self.inside
        forms = [Form(key, values, core)]
        if any(bodies(node)):
            self._with_bodies(scope, node, forms[0].key, values)
            return
        place = None if is_call else place_of(self.integers, scope, node)
        data = values[0] if values else None
        if place is not None and data is not None:
            forms.append(Form((place, *types, self.word(scope, names[0], data)), [data], core))
        pairs = list(zip(words, values, strict=True))
        chain = None if is_call else self.chained(scope, node, pairs)
        if chain is not None:
            key = ("chained", chain[0], *types, *(word for word, _ in chain[1]))
            forms.append(Form(key, [value for _, value in chain[1]], core, is_other=True))
        made = self.found.operator(scope, node, forms, types)
        if chain is not None:
            roots.note_chain(self.found.table, made[0], *chain)
        if type_of(node) == "Cast" and data is not None:
            before, after = (
                self.side.shapes.type(scope, name) for name in (node.input[0], node.output[0])
            )
            if after in WIDER.get(before, ()):
                self.found.table.widened.setdefault((made[0].terms[0].base, before), data)
        for name, value in zip(node.output, made, strict=False):
            for step in core.steps:
                value = step.of(value)
            if name:
                self.give(scope, name, value)
        if len(made) == 1:
            self.note_behind(node, core, made[0])
        if kind == "Concat":
            self.note_parts(scope, node, made[0])

    def _power(self, scope: Scope, node: NodeProto) -> int:
        """2 or 3 where a Pow is ``x · x`` or ``x · x · x``, of the same sizes; otherwise 0."""
        exponent = self.fillings.of_name(scope, node.input[1])
        keeps = bool(self.side.rank(scope, node.input[0]))  # An exponent of one axis adds one.
        sizes = ((), (1,)) if keeps else ((),)
        if exponent is None or exponent.sizes not in sizes:
            return 0
        number = float(exponent.number)
        if number == 3 and not self.side.is_float(scope, node.output[0]):
            return 0  # Integers that are too large are cut otherwise.
        return int(number) if number in (2, 3) else 0

    def _multiplied(self, scope: Scope, node: NodeProto, power: int) -> None:
        """Go through a Pow as products."""
        data, output = node.input[0], node.output[0]
        square = output if power == 2 else f"\0square ahead of {output}"
        if power == 3:
            rank = self.side.rank(scope, output) or self.side.rank(scope, data)
            self._hide_like(scope, square, output, tuple(range(rank or 0)))
        self.node(scope, cores.product(node, [data, data], square))
        if power == 3:
            self.node(scope, cores.product(node, [square, data], output))

    def _close_own(self, value: Expression, at: str) -> Expression:
        """A map of one base in the place of what an operator computes inside."""
        is_map = value.map is not None or not value.terms
        return value if is_map else self.found.total(value, at, None, 0)

    def _taken(self, scope: Scope, node: NodeProto) -> bool:
        """Whether an If is done with: where its condition is known, it is the branch it takes."""
        asked = self.integers.of_names(scope, node.input[0]) if type_of(node) == "If" else None
        if asked is None or len(asked.values) != 1:
            return False
        taken = "then_branch" if asked.values[0] else "else_branch"
        graph = next((graph for name, graph in bodies(node) if name == taken), None)
        if graph is None or len(graph.output) != len(node.output):
            return False
        body = self.side.body(graph)
        self.graph(body)
        for name, value in zip(node.output, graph.output, strict=True):
            self.hand_on(body, value.name, scope, name)
        return True

    def _fresh(self, scope: Scope, names: Iterable[str]) -> list[int]:
        """New bases for some tensors."""
        kinds = (self.side.shapes.type(scope, name) if name else 0 for name in names)
        return [self.found.table.fresh(kind) for kind in kinds]

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
                self.give(body, value.name, of_base(base))
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
        for place, (name, base) in enumerate(zip(node.output, known.outputs, strict=True)):
            if name:
                either = _either(results, place) if type_of(node) == "If" else None
                self.give(scope, name, of_base(base) if either is None else either)


def _either(results: Sequence[Sequence[Expression]], place: int) -> Expression | None:
    """What an If puts out, whichever branch it takes; None where the branches differ."""
    found = [own[place] for own in results if len(own) > place]
    if len(found) != 2 or not all(own.is_base for own in found):
        return None
    one, other = found
    return one if one.terms[0].base == other.terms[0].base else None


def _is_bias(shape: tuple[int, ...], found: linear.Applied) -> bool:
    """Whether a bias of a shape has one number, or one for each row, and no axes too many."""
    axis, rows = found.linear.axis, found.linear.rows
    if axis == 1:
        return shape == (rows,)
    return len(shape) <= 2 and (len(shape) < -axis or shape[axis] in (1, rows))
