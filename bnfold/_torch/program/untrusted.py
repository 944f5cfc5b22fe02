"""What in a .pt2 file would run code of its own, and is refused unless its user trusts the file.

`torch.export.load` unpickles sample inputs and some tensors, evaluates the text of symbolic sizes,
turns guards into a function, and calls whatever a node names in ``torch``. So a file can do as it
likes. A program as `torch.export.save` writes it needs none of that. Here it is looked at before it
is loaded:

- what would be unpickled must be such that ``torch.load(weights_only=True)`` takes it;
- sizes and guards must be arithmetic of numbers and symbols, with functions of a list;
- a node must name a registered operator, or arithmetic of a list;
- a name must be one that can stand in the source text which PyTorch makes of a graph;
- there must be no compiled library, no pickled object, and no type to import.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

_ARITHMETIC_NAMES = """
abs add and_ ceil eq floor floordiv ge getitem gt index invert le lshift lt mod mul ne neg not_ or_
pos pow round rshift sqrt sub truediv trunc xor
"""
_ARITHMETIC = frozenset(_ARITHMETIC_NAMES.split())
"""Functions of ``operator`` and ``math`` that compute with numbers."""
_SIZES = re.compile(r"torch\.(_sym_[a-z0-9]+|sym_[a-z_]+)")
"""Functions of ``torch`` that compute with sizes."""
_OPERATORS = (
    torch._ops.OpOverload,
    torch._ops.OpOverloadPacket,
    torch._ops.HigherOrderOperator,
)
_OF_FILES = frozenset({"from_file"})
"""Registered operators that reach for files."""
_FUNCTION_NAMES = """
Abs Add And CeilDiv CeilToInt CleanDiv Eq Equality Float FloatPow FloatTrueDiv FloorDiv FloorToInt
Ge GreaterThan Gt Identity IntTrueDiv Integer IsNonOverlappingAndDenseIndicator LShift Le LessThan
Lt Max Min Mod ModularIndexing Mul Ne Not Or Piecewise Pow PowByNatural PythonMod RShift Rational
RoundDecimal RoundToInt StrictGreaterThan StrictLessThan Symbol ToFloat TruncToFloat TruncToInt
Unequality Where ceiling floor log sqrt
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
"""Functions that `torch.export.save` writes into sizes."""
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
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.Attribute),
    *(ast.Subscript, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_PLAIN_FACTORIES = frozenset({"list", "dict", "int", "float", "tuple", "set", "str"})
_STRANGE = re.compile(r"[\"'\\\x00-\x1f\x7f]")
"""Characters that end a text in quotes, or a line."""
_NAME = re.compile(r"[\w.]*")
_PICKLED = (".pt", ".pkl", ".pickle")
_OBJECTS = ("custom_obj", "opaque_obj")


class Untrusted(Exception):
    """Something in a file would run code of the file's own; the text names it."""


def refuse_code(path: Path) -> None:
    """Raise `Untrusted` if `torch.export.load` would run code out of a file.

    A file that PyTorch cannot read passes: it is not loaded. Both readers that PyTorch uses are
    asked what the archive holds, since they need not agree on a file that was made up.
    """
    for records in (_records_of_torch, _records_of_zip):
        for name, content in records(path):
            _check(name, content)


_Content = Callable[[], bytes]


def _records_of_torch(path: Path) -> Iterator[tuple[str, _Content]]:
    try:
        reader: Any = torch._C.PyTorchFileReader(str(path))
    except RuntimeError:
        return
    for name in reader.get_all_records():
        yield name, partial(reader.get_record, name)


def _records_of_zip(path: Path) -> Iterator[tuple[str, _Content]]:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            yield entry.filename, partial(archive.read, entry)


def _check(name: str, content: _Content) -> None:
    """Check one record of an archive."""
    if "aotinductor/" in name:
        raise Untrusted(f"it holds a compiled library ({name})")
    if name.rpartition("/")[2].startswith(_OBJECTS):
        raise Untrusted(f"it holds a pickled object ({name})")
    if name.endswith(_PICKLED):
        _check_pickle(name, content())
    elif name.endswith("_config.json"):
        _check_payloads(name, _parsed(name, content()))
    elif name.endswith(".json") and "/extra/" not in f"/{name}":
        _check_program(_parsed(name, content()))


def _parsed(name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise Untrusted(f"{name} is not JSON: {error}") from error


def _check_pickle(name: str, content: bytes) -> None:
    """PyTorch falls back to plain unpickling where this load fails."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="meta", weights_only=True)
    except Exception as error:  # Whatever it is, a plain load might run code.
        raise Untrusted(f"{name} holds more than tensors and plain containers") from error


def _check_payloads(name: str, config: Any) -> None:
    """A tensor that is not stored as raw bytes is unpickled."""
    for key, payload in _dicts(config):
        if payload.get("use_pickle"):
            raise Untrusted(f"the tensor {key!r} of {name} is pickled")
        if str(payload.get("path_name", "")).startswith(_OBJECTS):
            raise Untrusted(f"{key!r} of {name} is a pickled object")


def _dicts(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in a JSON value, and the key at which it stands."""
    waiting = [("", value)]
    while waiting:
        key, one = waiting.pop()
        if isinstance(one, dict):
            yield key, one
            waiting.extend((str(inner), each) for inner, each in one.items())
        elif isinstance(one, list):
            waiting.extend((key, each) for each in one)


def _check_program(program: Any) -> None:
    """Check the JSON of a program: all nodes, names, sizes, guards and trees."""
    for key, one in _dicts(program):
        if key == "metadata":
            _check_metadata(one)
            continue
        if "target" in one and "inputs" in one:
            _check_target(str(one["target"]))
        for inner, value in one.items():
            if inner == "metadata" or inner in ("as_string", "as_strings", "hint"):
                continue
            if inner == "expr_str":
                _check_expression("the size", value, _FUNCTIONS, ())
            elif inner == "guards_code":
                for guard in value:
                    _check_expression("the guard", guard, _GUARDS, _ASKED)
            elif inner.endswith("_spec") or inner == "treespec_namedtuple_fields":
                _check_tree(value)
            else:
                _check_names(inner, value)


def _check_metadata(metadata: dict[str, Any]) -> None:
    """The functions that a node was made of are looked up, not called; others are texts."""
    for word in str(metadata.get("source_fn_stack", "")).split(";"):
        if _STRANGE.search(word):
            raise Untrusted(f"a node's metadata names {word!r}")


def _check_names(key: str, value: Any) -> None:
    """Names of nodes and arguments stand in the text as they are, others in quotes."""
    own = key in ("name", "as_name")
    for one in (key, *(value if isinstance(value, list) else (value,))):
        if not isinstance(one, str):
            continue
        if _STRANGE.search(one) or (own and _NAME.fullmatch(one) is None):
            raise Untrusted(f"a name has characters that no name has: {one[:60]!r}")


def _check_target(target: str) -> None:
    """The function that a node calls."""
    module, _, rest = target.partition(".")
    if module in ("_operator", "math") and rest in _ARITHMETIC:
        return
    if target.startswith("torch.") and not _is_operator(rest) and not _SIZES.fullmatch(target):
        raise Untrusted(f"a node calls {target!r}, which is no operator of a network")
    if module in ("_operator", "math"):
        raise Untrusted(f"a node calls {target!r}, which is no arithmetic")


def _is_operator(path: str) -> bool:
    """Whether a path from ``torch`` leads to a registered operator that touches no file.

    An operator that is not registered has no function: PyTorch refuses the program.
    """
    names = path.split(".")
    if names[0] == "ops" and len(names) > 2 and names[2] in _OF_FILES:
        return False
    found: Any = torch
    for name in names:
        found = getattr(found, name, None)
        if found is None:
            return names[0] == "ops" and len(names) > 2
    return isinstance(found, _OPERATORS)


def _check_tree(value: Any) -> None:
    """A tree of containers as text. A ``defaultdict`` names the function that fills it."""
    if not isinstance(value, str) or not value:
        return
    for _, one in _dicts(_texts(_parsed("a tree", value.encode()))):
        if "__enum__" in one:
            raise Untrusted(f"a container would import {one.get('fqn')!r}")
        if "default_factory_module" in one or "default_factory_name" in one:
            module, name = one.get("default_factory_module"), one.get("default_factory_name")
            if module != "builtins" or name not in _PLAIN_FACTORIES:
                raise Untrusted(f"a container would import {module!r}")


def _texts(value: Any) -> Any:
    """A JSON value in which texts that are JSON themselves are read, too."""
    if isinstance(value, dict):
        return {key: _texts(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_texts(each) for each in value]
    if isinstance(value, str) and value[:1] in "{[" and value:
        try:
            return _texts(json.loads(value))
        except ValueError:
            return value
    return value


def _check_expression(
    what: str, text: Any, functions: Collection[str], methods: Collection[str]
) -> None:
    """Arithmetic that calls only known functions, and asks tensors only for their sizes."""
    shown = str(text)[:80]
    problem = Untrusted(f"{what} {shown!r} is more than arithmetic")
    try:
        tree = ast.parse(str(text), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise problem from error
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if not all(_is_plain(node, functions, methods, called) for node in ast.walk(tree)):
        raise problem


def _is_plain(
    node: ast.AST, functions: Collection[str], methods: Collection[str], called: Collection[int]
) -> bool:
    """Whether a part of an expression is arithmetic; ``called`` are the parts that are called."""
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in functions and (name not in _POWERS or all(map(_is_small, node.args[1:])))
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in methods
        case ast.Attribute():
            return id(node) in called and node.attr in methods
        case ast.Name():
            return "__" not in node.id
        case ast.Constant(value=str() as text):
            return _STRANGE.search(text) is None
        case ast.BinOp(op=ast.Pow() | ast.LShift()):
            return _is_small(node.right)
        case ast.Call():
            return False
    return isinstance(node, _PARTS)


def _is_small(power: ast.expr) -> bool:
    """Whether an exponent is a small number, or holds a symbol, so that nothing is computed."""
    parts = list(ast.walk(power))
    names = {node.id for node in parts if isinstance(node, ast.Name)}
    if "Symbol" in names:
        return True
    plain = (ast.Constant, ast.UnaryOp, ast.USub, ast.Call, ast.Name, ast.Load)
    return (
        names <= _NUMBERS
        and all(isinstance(node, plain) for node in parts)
        and all(
            isinstance(node.value, int | float) and abs(node.value) <= _LARGEST_POWER
            for node in parts
            if isinstance(node, ast.Constant)
        )
    )
