"""Sizes and guards of a .pt2 file: texts that PyTorch evaluates when it loads the program.

They are arithmetic of numbers and symbols where `torch.export.save` wrote them (PyTorch 2.13).
"""

from __future__ import annotations

import ast
import math
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
"""The largest exponent: sizes have 64 bits."""
_MOST_BITS = 2**16
"""How many bits a number may have that is computed on the way."""
_SIZE_BITS = 64
_MOST_DIGITS = 1000
_ADDING = frozenset({"Abs", "Add", "Max", "Min", "abs", "max", "min"})
"""Functions whose results are hardly longer than what they are given."""
_NUMBER = re.compile(r"[+\-]?(\d+\.?\d*|\.\d+)([eE][+\-]?\d{1,3})?|[+\-]?(inf|oo|nan)")
"""A number in quotes. An exponent of more digits makes one that no memory holds."""
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
    _refuse_huge("the size", text, tree)


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
    _refuse_huge("the guard", text, tree)


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
        return len(node.args) == 2 and (_is_small(node.args[1]) or _is_bounded(node))
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
    """Whether an exponent is a small number. One with a symbol in it may become any number."""
    value = _value(power)
    return value is not None and abs(value) <= _LARGEST_POWER


def _is_bounded(node: ast.Call) -> bool:
    """Whether PyTorch itself bounds a power with a symbol as its exponent, whatever that becomes.

    It does for a power of a number in its own functions; sympy's ``Pow`` computes any.
    """
    base, power = node.args
    symbol = isinstance(power, ast.Call) and _called(power) == "Symbol"
    plain = _called(node) == "LShift" or _value(base) is not None
    return symbol and plain and _called(node) != "Pow"


def _value(node: ast.expr) -> float | None:
    """The number that an expression is; None for one that is computed, or none."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value) if abs(value) <= _LARGEST_POWER else None
        case ast.Constant(value=str() as text):
            return float(text) if _NUMBER.fullmatch(text) and "oo" not in text else None
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            inner = _value(operand)
            return inner if inner is None or isinstance(node.op, ast.UAdd) else -inner
        case ast.Call(func=ast.Name(id="Integer" | "Float"), args=[number, *_]):
            return _value(number)
        case ast.Call(func=ast.Name(id="Rational"), args=[number]):
            return _value(number)
        case ast.Call(func=ast.Name(id="Rational"), args=[above, below]):
            first, second = _value(above), _value(below)
            return first / second if first is not None and second else None
    return None


def _refuse_huge(what: str, text: Any, tree: ast.Expression) -> None:
    """Raise `Untrusted` where numbers grow without a bound: powers of powers, texts in quotes."""
    try:
        fine = _bits(tree.body) <= _MOST_BITS
    except (RecursionError, OverflowError):
        fine = False
    if not fine:
        raise Untrusted(f"{what} {str(text)[:80]!r} computes with too large numbers")


def _bits(node: ast.AST) -> float:
    """How many bits a number may have at most, ahead of its point or behind, or one within it.

    A symbol stands for a size. Its powers are small numbers; see `_is_small`.
    """
    match node:
        case ast.Constant(value=str() as text):
            return 4.0 * len(text) + 4000.0 * ("e" in text.lower())
        case ast.Constant(value=bool() | None):
            return 1.0
        case ast.Constant(value=int() as number):
            return float(number.bit_length() + 1)
        case ast.Constant():
            return 1100.0  # No float has more.
        case ast.Call(func=ast.Name(id="Symbol")) | ast.Call(func=ast.Attribute()) | ast.Name():
            return _SIZE_BITS
        case ast.Call(func=ast.Name(id=name)) if name in _NUMBERS and not _is_number_call(node):
            return math.inf
        case ast.Call(func=ast.Name(id="PowByNatural"), args=[_, power]) if _value(power) is None:
            return _SIZE_BITS
        case ast.Call(func=ast.Name(id="Pow" | "PowByNatural"), args=[base, power]):
            return _bits(base) * max(1.0, abs(_value(power) or 0.0))
        case ast.BinOp(left=base, op=ast.Pow(), right=power):
            return _bits(base) * max(1.0, abs(_value(power) or 0.0))
        case ast.Call(func=ast.Name(id="LShift")) | ast.BinOp(op=ast.LShift()):
            return _LARGEST_POWER + max(map(_bits, _operands(node)))
        case ast.Subscript():
            return _SIZE_BITS
        case ast.Call(func=ast.Name(id=name)) if name in _ADDING:
            return len(node.args) + max(map(_bits, node.args), default=1.0)
        case ast.BinOp(op=ast.Add() | ast.Sub()) | ast.Compare() | ast.BoolOp() | ast.IfExp():
            return 1.0 + max(map(_bits, _operands(node)))
    return 1.0 + sum(map(_bits, _operands(node)))


def _operands(node: ast.AST) -> list[ast.expr]:
    """The expressions that an expression is computed from, without the name of a function."""
    if isinstance(node, ast.Call):
        return [*node.args, *(keyword.value for keyword in node.keywords)]
    return [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr)]


def _is_number_call(node: ast.Call) -> bool:
    """Whether ``Integer('7')`` and the like say a number, with no more digits than one needs."""
    digits = [_value_of_digits(keyword.value) for keyword in node.keywords]
    texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
    if _called(node) == "Float":
        digits += [_value_of_digits(each) for each in node.args[1:]]
    return all(0 <= each <= _MOST_DIGITS for each in digits) and all(
        _NUMBER.fullmatch(text) for text in texts if isinstance(text, str)
    )


def _value_of_digits(node: ast.expr) -> float:
    """A number of digits; one that is computed is none."""
    value = node.value if isinstance(node, ast.Constant) else None
    return float(value) if isinstance(value, int | float) else math.inf
