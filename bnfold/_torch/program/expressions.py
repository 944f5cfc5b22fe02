"""Sizes and guards of a .pt2 file: texts that PyTorch evaluates when it loads the program.

They are arithmetic of numbers and symbols where `torch.export.save` wrote them (PyTorch 2.13).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from typing import Any

_FUNCTION_NAMES = """
Abs Add And CeilDiv CeilToInt CleanDiv Eq Equality Float FloatPow FloatTrueDiv FloorDiv FloorToInt
Ge GreaterThan Gt Identity IntTrueDiv Integer IsNonOverlappingAndDenseIndicator LShift Le LessThan
Lt Max Min Mod ModularIndexing Mul Ne Not Or Piecewise Pow PowByNatural PythonMod RShift Rational
RoundDecimal RoundToInt StrictGreaterThan StrictLessThan Symbol ToFloat TruncToFloat TruncToInt
Unequality Where ceiling floor log sqrt
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
"""Functions that `torch.export.save` writes into sizes."""
_OPAQUE = re.compile(r"OpaqueUnaryFn_[a-z0-9]+")
"""A function that sympy does not know: it stays a symbol."""
_QUOTED = frozenset({"Symbol", "Integer", "Float", "Rational"})
"""Functions of sizes whose first argument may be a text; sympy evaluates the text of any other."""
_GUARDS = _FUNCTIONS | {"abs", "float", "int", "max", "min", "round"}
_ASK_NAMES = """
size stride storage_offset floor ceil sqrt trunc pow sym_float sym_int sym_max sym_min sym_not
"""
_ASKED = frozenset(_ASK_NAMES.split())
"""Methods of a tensor, and functions of ``math`` and ``torch``, that guards ask."""
_POWERS = frozenset({"Pow", "PowByNatural", "LShift"})
_NUMBERS = frozenset({"Integer", "Float", "Rational"})
_LARGEST_POWER = 64
"""The largest exponent of a number: sizes have 64 bits."""
_PARTS: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.Load, ast.keyword, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.BoolOp),
    *(ast.Compare, ast.IfExp, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_EXPRESSION = re.compile(r"[\w .,()\[\]'+\-*/%<>=!&|~^]*", re.ASCII)
"""The characters of sizes and guards: one line, with no escapes and no comments."""
_WORD = re.compile(r"[\w.+\-]*", re.ASCII)


class Untrusted(Exception):
    """Something in a file would run code of the file's own; the text names it."""


def refuse_more_in_size(text: Any) -> None:
    """Raise `Untrusted` for a size that is more than arithmetic of numbers and symbols.

    sympy evaluates it, and any text in it but those of `_QUOTED`.
    """
    tree = _tree("the size", text)
    quoted = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _called(node) in _QUOTED and node.args
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call():
                fine = _calls(node, _FUNCTIONS) and (not node.keywords or _called(node) in _QUOTED)
            case ast.Constant():
                fine = _is_number(node) or (id(node) in quoted and _is_word(node))
            case ast.Name(id=name):
                fine = "__" not in name
            case _:
                fine = _is_part(node)
        if not fine:
            raise _more("the size", text)


def refuse_more_in_guard(text: Any) -> None:
    """Raise `Untrusted` for a guard that is more than arithmetic, and questions for sizes.

    It reaches the tensors that it asks from ``L``, by names and numbers.
    """
    tree = _tree("the guard", text)
    asked = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    keys = {id(node.slice) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)):
                fine = name in _ASKED and not node.keywords
            case ast.Call():
                fine = _calls(node, _GUARDS) and not node.keywords
            case ast.Attribute():
                fine = id(node) in asked and node.attr in _ASKED
            case ast.Subscript(slice=ast.Constant() | ast.UnaryOp()):
                fine = True
            case ast.Constant():
                fine = _is_number(node) or (id(node) in keys and _is_word(node))
            case ast.Name(id=name):
                fine = "__" not in name
            case _:
                fine = _is_part(node)
        if not fine:
            raise _more("the guard", text)


def _tree(what: str, text: Any) -> ast.Expression:
    """An expression of one line, parsed. sympy and PyTorch read it as Python does."""
    if not isinstance(text, str) or not _EXPRESSION.fullmatch(text):
        raise _more(what, text)
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _more(what, text) from error


def _more(what: str, text: Any) -> Untrusted:
    return Untrusted(f"{what} {str(text)[:80]!r} is more than arithmetic")


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _calls(node: ast.Call, functions: Collection[str]) -> bool:
    """Whether a call is of one of some functions, or of one that stays a symbol."""
    name = _called(node)
    if name in _POWERS:
        return all(map(_is_small, node.args[1:]))
    return name in functions or _OPAQUE.fullmatch(name) is not None


def _is_part(node: ast.AST) -> bool:
    """Whether a part of an expression is plain arithmetic."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return _is_small(node.right)
    return isinstance(node, _PARTS)


def _is_number(node: ast.Constant) -> bool:
    return node.value is None or isinstance(node.value, bool | int | float)


def _is_word(node: ast.Constant) -> bool:
    return isinstance(node.value, str) and _WORD.fullmatch(node.value) is not None


def _is_small(power: ast.expr) -> bool:
    """Whether an exponent is a small number, or holds a symbol, so that nothing is computed."""
    parts = list(ast.walk(power))
    names = {node.id for node in parts if isinstance(node, ast.Name)}
    if "Symbol" in names:
        return True
    plain = (ast.Constant, ast.UnaryOp, ast.USub, ast.Call, ast.Name, ast.Load)
    numbers = [node.value for node in parts if isinstance(node, ast.Constant)]
    return (
        names <= _NUMBERS
        and all(isinstance(node, plain) for node in parts)
        and all(isinstance(n, int | float) and abs(n) <= _LARGEST_POWER for n in numbers)
    )
