"""The steps of a fold, as the proof looks at them: which tensor stands for which.

With the code that folds it shares the record of what was done, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnx import NodeProto

from bnfold._onnx.merge.patch import Patch
from bnfold._onnx.read.scopes import Scope, label
from bnfold._onnx.write.applied import Applied
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.evidence import Mismatch


class Steps:
    """All steps of a fold, by graph."""

    def __init__(
        self, before: CheckedModel, after: CheckedModel, applied: Sequence[Applied]
    ) -> None:
        self._before, self._after = before, after
        self._of: dict[str, list[Applied]] = {}
        for step in applied:
            self._of.setdefault(step.path, []).append(step)
        self._found: dict[str, dict[str, str]] = {}

    def of(self, path: str) -> Sequence[Applied]:
        """The steps of a graph."""
        return self._of[path]

    def _place(self, old: Scope, name: str) -> str:
        """The name of the tensor in the place of an original one, as the steps tell it."""
        owner = old.owner(name)
        return name if owner is None else self._names(owner.path).get(name, name)

    def may_stand(self, old: Scope, new: Scope, now: str, name: str) -> bool:
        """Whether a tensor of the folded graph may be the one in the place of an original one.

        A tensor whose values have changed has another name, which may be new. A name that the
        original has, too, is what it was, but where a step has put it in the place of another.
        """
        wanted = self._place(old, name)
        gone = new.owner(wanted) is None
        return now == wanted or (gone and old.owner(now) is None)

    def _names(self, path: str) -> Mapping[str, str]:
        """By the original name of a tensor of a graph the name of the one in its place.

        It is asked for behind the merges, which change the operators that all other steps start
        from.
        """
        if path not in self._found:
            nodes, folded = self._before.scopes[path].nodes, self._after.scopes[path]
            found = self._found[path] = {}
            for step in self._of.get(path, ()):
                if step.law in ("absorb", "carry", "compose", "cross"):
                    last = nodes[(step.into, *step.chain)[-1]]
                    found[next(filter(None, last.output), "")] = step.output
                    if len(last.output) > 1:  # Its twin puts out the others.
                        twin = folded.writer(step.output)
                        pairs = zip(last.output, twin.output, strict=False)
                        found |= {name: now for name, now in pairs if name and now}
            self._add_renamed(path, found)
        return self._found[path]

    def _add_renamed(self, path: str, found: dict[str, str]) -> None:
        """Add the tensors that took the name of a graph output.

        Where no map is left ahead of an output, the tensor that the maps read has its name. Then
        the operator that wrote it is the same, and writes the other name.
        """
        old, new = self._before.scopes[path], self._after.scopes[path]
        made = (step for step in self._of.get(path, ()) if step.law in ("carry", "compose"))
        pairs = [
            (old.producers[name], name, step.output)
            for step in made
            if step.source == step.output
            for name in old.nodes[step.into].input
            if name in old.producers
        ]
        for place, name, now in sorted(pairs):  # In order: one may read what another writes.
            other = new.writer(now)
            if other.output and self._is_same(path, old.nodes[place], other, name, now):
                found.setdefault(name, now)

    def _is_as_it_was(self, old: Scope, new: Scope, name: str) -> bool:
        """Whether a tensor is no weight, or one that has kept its name and its numbers."""
        was = self._before.values(old, name)
        if was is None:
            return True
        now = self._after.values(new, name)
        return now is not None and was.dtype == now.dtype and was.tobytes() == now.tobytes()

    def require_readers(self, path: str, patch: Patch) -> None:
        """Raise `Mismatch` where who read an equal map does not read the one in its place.

        What another step changes is checked there. It is asked for behind all merges.
        """
        old, new = self._before.scopes[path], self._after.scopes[path]
        others = (step for step in self._of[path] if step.law not in ("equal", "merge", "inline"))
        changed = {place for step in others for place in (step.into, *step.maps, *step.chain)}
        for place, node in patch.nodes.items():
            if node is None or place in changed or old.nodes[place] != node:
                continue
            name = next(filter(None, node.output))
            twin = new.writer(self._place(old, name))
            bodies = self._changed_bodies(path, node)
            if _told(twin, bodies) != _told(node, bodies):
                raise Mismatch(f"{label(node)} is no longer what it was")
            self.require_same_data(old, new, node, twin)

    def require_same_data(self, old: Scope, new: Scope, node: NodeProto, twin: NodeProto) -> None:
        """Raise `Mismatch` where an operator reads other data than it did.

        A Gemm does not read the C that it multiplies by 0.
        """
        idle = any(a.name == "beta" and a.f == 0 for a in node.attribute)
        for place, (name, now) in enumerate(zip(node.input, twin.input, strict=False)):
            if not name or self.may_stand(old, new, now, name) or (idle and place == 2):
                continue
            if not self._before.is_weight(old, name):
                raise Mismatch(f"{label(twin)} reads {now} in the place of {name}")

    def _is_same(self, path: str, one: NodeProto, other: NodeProto, name: str, now: str) -> bool:
        """Whether two operators of a graph are one, of which an output has another name."""
        old, new, found = self._before.scopes[path], self._after.scopes[path], self._found[path]
        bodies = self._changed_bodies(path, one)
        return (
            _told(one, bodies) == _told(other, bodies)
            and [found.get(each, each) for each in one.input] == [*other.input]
            and [*one.output].index(name) == [*other.output].index(now)
            and all(self._is_as_it_was(old, new, each) for each in one.input)
        )

    def _changed_bodies(self, path: str, node: NodeProto) -> set[str]:
        """The attributes of an operator that hold bodies which a fold may change.

        A fold keeps the names of operators: then it is all of them. Where an operator has no name
        its bodies have to tell it, but those in which there are steps, which are checked there.
        """
        held = {a.name for a in node.attribute if a.HasField("g") or a.graphs}
        if node.name:
            return held
        begin = f"{path}/{label(node)}" if path else label(node)
        return {name for name in held if any(p.startswith(f"{begin}.{name}") for p in self._of)}


def _told(node: NodeProto, left_out: Collection[str] = ()) -> tuple[object, ...]:
    """What tells an operator apart, whatever it reads and writes, but for some attributes."""
    known = [a for a in node.attribute if a.name not in left_out]
    values = sorted(a.SerializeToString(deterministic=True) for a in known)
    return node.name, node.op_type, node.domain, node.overload, values
