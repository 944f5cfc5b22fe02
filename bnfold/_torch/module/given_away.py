"""What a method gives away of what its calls give: it returns, stores or collects it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

_COLLECTING = ("add", "append", "appendleft", "extend", "insert", "setdefault", "update")
# What tells of a tensor no number of it.
_OUTSIDE = ("device", "dim", "dtype", "ndim", "numel", "shape", "size")
_Origins = frozenset[int]
"""The expressions, by id, from which a value comes: calls, and what is read from ``self``."""
_NOTHING: _Origins = frozenset()


def given_away(tree: ast.AST, me: str, *, returns: bool) -> _Origins:
    """The expressions of a method, by id, that are called, and whose results are given away.

    ``me`` is the name of the object in it. What it returns counts only with ``returns``. What a
    library makes of a value comes from where the value does; what a call of a part of ``me`` gives
    comes from that part alone.
    """
    flow = _Flow(me, returns)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            flow.run(node.body)
            break
    return frozenset(flow.given)


def reaches_self(node: ast.expr, me: str) -> bool:
    """Whether an expression is a chain of attributes and keys that begins at ``me``."""
    while True:
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif is_getattr(node):
            node = node.args[0]  # type: ignore[attr-defined]
        else:
            return isinstance(node, ast.Name) and node.id == me


def is_getattr(node: ast.expr) -> bool:
    """Whether an expression is a call of getattr."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) > 1
    )


class _Flow:
    """Follows values through statements, in their order. Branches are joined."""

    def __init__(self, me: str, returns: bool) -> None:
        self.given: set[int] = set()
        self._me = me
        self._returns = returns
        self._names: dict[str, _Origins] = {}

    def run(self, statements: Sequence[ast.stmt]) -> None:
        """Follow some statements."""
        for statement in statements:
            self._step(statement)

    def _step(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Return):
            found = self._origins(node.value)
            self.given |= found if self._returns else _NOTHING
        elif isinstance(node, ast.Assign):
            self._bind(node.targets, self._origins(node.value))
        elif isinstance(node, ast.AnnAssign):
            self._bind([node.target], self._origins(node.value))
        elif isinstance(node, ast.AugAssign):
            self._bind([node.target], self._origins(node.value) | self._origins(node.target))
        elif isinstance(node, ast.Expr):
            self._origins(node.value)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._branches(node)

    def _branches(self, node: ast.stmt) -> None:
        """Follow the blocks of a statement, each from the same start; loops a second time."""
        for each in ast.iter_child_nodes(node):
            if isinstance(each, ast.expr) and not isinstance(node, ast.For):
                self._origins(each)
            elif isinstance(each, ast.withitem) and each.optional_vars is not None:
                self._bind([each.optional_vars], self._origins(each.context_expr))
        blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
        blocks += [handler.body for handler in getattr(node, "handlers", [])]
        for _ in range(2 if isinstance(node, ast.For | ast.While) else 1):
            start, joined = dict(self._names), dict(self._names)
            for block in blocks:
                self._names = dict(start)
                if isinstance(node, ast.For):
                    self._bind([node.target], self._origins(node.iter))
                self.run(block)
                for name, found in self._names.items():
                    joined[name] = joined.get(name, _NOTHING) | found
            self._names = joined

    def _bind(self, targets: Iterable[ast.expr], found: _Origins) -> None:
        for target in targets:
            if isinstance(target, ast.Name):
                self._names[target.id] = found
            elif isinstance(target, ast.Tuple | ast.List):
                self._bind(target.elts, found)
            elif isinstance(target, ast.Starred):
                self._bind([target.value], found)
            else:  # an attribute or an element of something that others may see
                self.given |= found

    def _origins(self, node: ast.AST | None) -> _Origins:
        """Where the value of an expression comes from. What it collects is given away."""
        if node is None:
            return _NOTHING
        if isinstance(node, ast.Name):
            return self._names.get(node.id, _NOTHING)
        if isinstance(node, ast.expr) and reaches_self(node, self._me):
            return frozenset((id(node),))
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Attribute) and node.attr in _OUTSIDE:
            return _NOTHING
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            for each in node.generators:
                self._bind([each.target], self._origins(each.iter))
        found = _NOTHING.union(*map(self._origins, ast.iter_child_nodes(node)))
        if isinstance(node, ast.NamedExpr):
            self._bind([node.target], found)
        elif isinstance(node, ast.Yield | ast.YieldFrom):
            self.given |= found
        return found

    def _call(self, node: ast.Call) -> _Origins:
        passed = [*node.args, *(word.value for word in node.keywords)]
        found = _NOTHING.union(*map(self._origins, passed))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _COLLECTING:
            self.given |= found
            return _NOTHING
        if isinstance(node.func, ast.Attribute) and node.func.attr in _OUTSIDE:
            return _NOTHING
        if reaches_self(node.func, self._me):
            return frozenset((id(node.func),))
        called = self._origins(node.func)
        # A part that a name holds, as norm in norm = self.norm; or a method of a value.
        return called if isinstance(node.func, ast.Name) and called else found | called
