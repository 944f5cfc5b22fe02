"""The steps of a fold side by side: which tensors they put in the place of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, label
from bnfold._onnx.write.applied import Applied
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.evidence import Mismatch


class Steps:
    """All steps of a fold, by graph."""

    def __init__(self, before: CheckedModel, applied: Sequence[Applied]) -> None:
        self._before = before
        self._of: dict[str, list[Applied]] = {}
        for step in applied:
            self._of.setdefault(step.path, []).append(step)
        self._names: dict[str, dict[str, str]] = {}

    def of(self, path: str) -> Sequence[Applied]:
        """The steps of a graph."""
        return self._of[path]

    def names(self, path: str) -> Mapping[str, str]:
        """By the original name of a tensor the name of the one in its place, as steps tell it.

        It is asked for behind the merges, which change the operators that all other steps start
        from.
        """
        if path not in self._names:
            nodes = self._before.scopes[path].nodes
            found = self._names[path] = {}
            for step in self._of[path]:
                if step.law in ("absorb", "carry", "compose", "cross"):
                    last = nodes[(step.into, *step.chain)[-1]]
                    found[next(filter(None, last.output), "")] = step.output
        return self._names[path]

    def require_same_data(self, old: Scope, new: Scope, node: NodeProto, twin: NodeProto) -> None:
        """Raise `Mismatch` where an operator reads other data than it did.

        A tensor that no step has put in the place of another, and whose values have changed, has
        another name. One that keeps its name is what it was, and whoever read it still has to. A
        Gemm does not read the C that it multiplies by 0.
        """
        names = self.names(old.path)
        idle = any(a.name == "beta" and a.f == 0 for a in node.attribute)
        for place, (name, now) in enumerate(zip(node.input, twin.input, strict=False)):
            wanted = names.get(name, name)
            if not name or now == wanted or new.owner(wanted) is None or (idle and place == 2):
                continue
            if not self._before.is_weight(old, name):
                raise Mismatch(f"{label(twin)} reads {now} in the place of {name}")
