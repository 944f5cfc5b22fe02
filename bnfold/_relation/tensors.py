"""What each tensor of a file is, as far as the walk has come."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import field

import numpy as np

from bnfold._onnx.read.scopes import Scope, label
from bnfold._relation.expressions import Expression, of_base
from bnfold._relation.fillings import Fillings
from bnfold._relation.integers import Integers
from bnfold._relation.matching import Matcher
from bnfold._relation.side import Side
from bnfold._relation.table import fingerprint
from bnfold._system.records import record


@record(eq=False)
class Tensors:
    """The tensors of one file.

    ``words`` tell constants apart. ``same`` has tensors that are another one under a new name.
    ``linear`` has the nodes that are linear operators, by ``id``.
    """

    side: Side
    found: Matcher
    integers: Integers
    fillings: Fillings = field(init=False)
    words: dict[tuple[str, str], Hashable] = field(default_factory=dict)
    same: dict[tuple[str, str], tuple[Scope, str]] = field(default_factory=dict)
    linear: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.fillings = Fillings(self.integers)

    def value(self, scope: Scope, name: str) -> Expression | None:
        """What a tensor is, or None for a constant and for an input that is left out."""
        owner = scope.owner(name) if name else None
        if owner is None:
            return None
        same = self.same.get((owner.path, name))
        return self.side.values.get((owner.path, name)) if same is None else self.value(*same)

    def closed(self, scope: Scope, name: str) -> Expression | None:
        """What a tensor is, as a map of one base."""
        found = self.value(scope, name)
        owner = scope.owner(name)
        same = None if owner is None else self.same.get((owner.path, name))
        if same is not None and owner is not None:
            made = self.closed(*same)
            if made is not None:
                self.give(owner, name, made)
            return made
        if found is None or owner is None or found.map is not None or not found.terms:
            return found
        rank, kind = self.side.rank(scope, name), self.side.shapes.type(scope, name)
        made = self.found.total(found, self._writer(owner, name), rank, kind)
        self.give(owner, name, made)
        return made

    def _writer(self, scope: Scope, name: str) -> str:
        """The label of the linear operator behind a tensor, or of the operator that writes it."""
        first = node = scope.writer(name)
        while node.op_type and id(node) not in self.linear:
            before = [n for n in node.input[:] if n in scope.producers and self.value(scope, n)]
            if len(before) != 1:
                break
            node = scope.writer(before[0])
        return label(node if id(node) in self.linear else first)

    def give(self, scope: Scope, name: str, value: Expression) -> None:
        """Note what a tensor is, and so which sizes it has."""
        self.side.values[scope.path, name] = value
        if value.map is not None:
            self.integers.note(scope, name, value.map.base)

    def word(self, scope: Scope, name: str, value: Expression | None) -> Hashable:
        """What stands for an input in the key of an operator."""
        if value is not None:
            term = value.map
            return term.base if term is not None else "constant"
        if not name:
            return None
        told = self._told(scope, name)
        if told is not None:
            return told
        owner = scope.owner(name)
        key = "" if owner is None else owner.path, name
        if key not in self.words:
            stored = self.side.constant(scope, name) or self.side.floats(scope, name)
            known = None if stored is None else fingerprint(stored.load())
            self.words[key] = ("unknown", id(self), name) if known is None else known
        return self.words[key]

    def _told(self, scope: Scope, name: str) -> Hashable | None:
        """What tells apart what may be computed from sizes alone: integers, and one number."""
        numbers = self.integers.of_names(scope, name)
        if numbers is not None:
            return self.side.shapes.type(scope, name), numbers
        filling = self.fillings.of_name(scope, name)
        return None if filling is None or filling.sizes is None else filling

    def hand_on(self, body: Scope, name: str, scope: Scope, output: str) -> None:
        """Note that a tensor of a graph is what a body puts out, which has run."""
        found = self.closed(body, name)
        numbers = self.integers.of_names(body, name)
        filling = self.fillings.of_name(body, name)
        if found is None and numbers is not None:
            self.integers.found[scope.path, output] = numbers
        elif found is None and filling is not None and filling.sizes is not None:
            self.fillings.found[scope.path, output] = filling
        elif output:
            self.give(scope, output, self.result(body, name) if found is None else found)

    def result(self, scope: Scope, name: str) -> Expression:
        """What a graph puts out. A constant is a shift."""
        found = self.closed(scope, name)
        if found is not None:
            return found
        word = self._told(scope, name)
        if word is not None:
            return of_base(self.found.table.stored(word))
        weight = self.side.constant(scope, name)
        if weight is None:
            return of_base(self.found.table.fresh(0))
        values = weight.load()
        numbers = values.astype(np.float64) if weight.is_float else np.zeros(())
        if weight.is_float and np.all(np.isfinite(numbers)):
            return Expression((), numbers, np.abs(numbers))
        return of_base(self.found.table.stored(fingerprint(values)))
