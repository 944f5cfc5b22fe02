"""What in a .pt2 file would run code of its own, and is refused unless its user trusts the file.

`torch.export.load` unpickles sample inputs and some tensors, evaluates the text of symbolic sizes,
turns guards and names into source text, and calls whatever a node names. So a file can do as it
likes. A program of tensors and plain containers needs none of that. Here it is looked at before it
is loaded, by lists of what is allowed:

- records are those that `torch.export.save` writes; what is unpickled must be such that
  ``torch.load(weights_only=True)`` takes it, and no tensor is pickled by itself;
- sizes and guards are arithmetic of numbers and symbols, with functions of a list;
- a node calls a registered operator that takes no file's name, or arithmetic of a list;
- a name that becomes source text is an identifier, and others have no quotes in them;
- a container names no type to import;
- all records together are no larger than the file.

More is refused than would do harm: sample inputs in a namedtuple, names with quotes. The lists are
those of PyTorch 2.13. They are no sandbox: whoever is attacked in earnest needs one.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bnfold._torch.program.expressions import (
    Untrusted,
    refuse_more_in_guard,
    refuse_more_in_size,
)

_ARITHMETIC_NAMES = """
abs add and_ ceil eq floor floordiv ge getitem gt index invert le lshift lt mod mul ne neg not_ or_
pos pow round rshift sqrt sub truediv trunc xor
"""
_ARITHMETIC = frozenset(_ARITHMETIC_NAMES.split())
"""Functions of ``operator`` and ``math`` that compute with numbers."""
_OF_TORCH = re.compile(
    r"torch\.(_sym_[a-z0-9]+|sym_[a-z_]+|_functorch\.predispatch\.(_add_batch_dim|_remove_batch_dim"
    r"|_vmap_increment_nesting|_vmap_decrement_nesting|lazy_load_decompositions))"
)
"""Functions of ``torch`` that are no operators: they compute with sizes, or belong to vmap."""
_OPERATORS = (
    torch._ops.OpOverload,
    torch._ops.OpOverloadPacket,
    torch._ops.HigherOrderOperator,
)
_OTHER = ("debugprims", "profiler")
"""Spaces of operators that are of no network, and that reach outside of it."""
_OF_FILES = frozenset({"file", "filename", "path", "f"})
"""What operators that reach for files call the argument that says where."""
_PLAIN_FACTORIES = frozenset({"list", "dict", "int", "float", "tuple", "set", "str"})
_STRANGE = re.compile(r"[\"'\\\x00-\x1f\x7f]")
"""Characters that end a text in quotes, or a line."""
_NAME = re.compile(r"[\w.]*")
_TREES = ("in_spec", "out_spec")
_NODE = {"type", "context", "children_spec"}
"""What the JSON of a tree says of each container and leaf."""


def refuse_code(path: Path) -> None:
    """Raise `Untrusted` if `torch.export.load` might run code out of a file.

    A file that PyTorch cannot read passes: it is not loaded. PyTorch has two readers, one for its
    archives, one for those of torch 2.7 and older. Each record is looked at as the one that would
    take it sees it.
    """
    _refuse_swollen(path)
    try:
        for name, content in _records_of_torch(path):
            _check_record(name, content)
        for name, content in _records_of_old(path):
            _check_old(name, content)
    except RecursionError as error:
        raise Untrusted("it is nested too deep to be looked at") from error


_Content = Callable[[], bytes]


def _refuse_swollen(path: Path) -> None:
    """Raise `Untrusted` for records that are larger, all together, than their file is.

    `torch.export.save` compresses nothing. Some kilobytes could be terabytes in memory.
    """
    sizes = [0, 0]
    with suppress(RuntimeError, AttributeError):  # No archive for it, or torch 2.8 and older.
        reader: Any = torch._C.PyTorchFileReader(str(path))
        sizes[0] = sum(map(reader.get_record_size, reader.get_all_records()))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            sizes[1] = sum(entry.file_size for entry in archive.infolist())
    if max(sizes) > path.stat().st_size:
        raise Untrusted(f"its records are {max(sizes)} bytes, more than it is itself")


def _records_of_torch(path: Path) -> Iterator[tuple[str, _Content]]:
    try:
        reader: Any = torch._C.PyTorchFileReader(str(path))
    except RuntimeError:
        return
    for name in reader.get_all_records():
        yield name, partial(reader.get_record, name)


def _records_of_old(path: Path) -> Iterator[tuple[str, _Content]]:
    """The records of the old form. They lie in no folder; those of the new form do."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.startswith("serialized_"):
                yield entry.filename, partial(archive.read, entry)


_RECORDS: tuple[tuple[str, Callable[[str, _Content], None] | None], ...] = (
    (r"models/[\w\-]+\.json", lambda name, content: _check_program(_parsed(name, content()))),
    (r"data/(weights|constants)/[\w\-]+_config\.json", lambda n, c: _check_payloads(n, c)),
    (r"data/sample_inputs/[\w\-]+\.pt", lambda name, content: _check_pickle(name, content())),
    (r"data/weights/weight_\d+", None),
    (r"data/constants/tensor_\d+", None),
    (r"extra/.*", None),
    (r"archive_format|archive_version|byteorder|version|\.(data|format|storage)[\w/.]*", None),
)
"""The records that `torch.export.save` writes, and how each is checked; None for plain bytes."""


def _check_record(name: str, content: _Content) -> None:
    for pattern, check in _RECORDS:
        if re.fullmatch(pattern, name):
            if check is not None:
                check(name, content)
            return
    raise Untrusted(f"it holds {name}, which torch.export.save does not write")


def _check_old(name: str, content: _Content) -> None:
    if name == "serialized_exported_program.json":
        _check_program(_parsed(name, content()))
    else:
        _check_pickle(name, content())


def _listed(value: Any) -> list[Any]:
    """A list. PyTorch would go through anything else as well, such as the keys of an object."""
    if not isinstance(value, list):
        raise Untrusted(f"{str(value)[:60]!r} is where PyTorch writes a list")
    return value


def _parsed(name: str, content: bytes | str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Untrusted(f"{name} is no JSON that PyTorch writes: {error}") from error


def _check_pickle(name: str, content: bytes) -> None:
    """PyTorch falls back to plain unpickling where this load fails."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="meta", weights_only=True)
    except Exception as error:  # Whatever it is, a plain load might run code.
        raise Untrusted(f"{name} holds more than tensors and plain containers") from error


def _check_payloads(name: str, content: _Content) -> None:
    """A tensor that is not stored as raw bytes is unpickled, and so are objects."""
    for key, payload in _dicts(_parsed(name, content())):
        if payload.get("use_pickle"):
            raise Untrusted(f"the tensor {key!r} of {name} is pickled")
        path = payload.get("path_name", "weight_0")
        if not re.fullmatch(r"(weight|tensor)_\d+", str(path)):
            raise Untrusted(f"{key!r} of {name} lies in {path!r}, which is no tensor")


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
    """Check the JSON of a program: all nodes, names, sizes, guards and trees.

    What a node's metadata name is looked up, and not called.
    """
    for key, one in _dicts(program):
        if key == "metadata":
            continue
        if "target" in one and "inputs" in one:
            _check_target(one["target"])
        for inner, value in one.items():
            if inner in ("metadata", "as_string", "as_strings", "hint"):
                continue
            if inner == "as_operator":
                _check_target(value)
            elif inner == "expr_str":
                refuse_more_in_size(value)
            elif inner == "guards_code":
                for guard in _listed(value):
                    refuse_more_in_guard(guard)
            elif inner in _TREES:
                _check_tree(inner, value)
            elif inner == "forward_arg_names":
                _check_identifiers([] if value is None else value)
            else:
                _check_names(inner, value)


def _check_names(key: str, value: Any) -> None:
    """Names of nodes and arguments stand in source text as they are, others in quotes."""
    own = key in ("name", "as_name")
    for one in (key, *(value if isinstance(value, list) else (value,))):
        if isinstance(one, str) and (_STRANGE.search(one) or (own and not _NAME.fullmatch(one))):
            raise Untrusted(f"a name has characters that no name has: {one[:60]!r}")


def _check_identifiers(names: Any) -> None:
    for name in _listed(names):
        if not isinstance(name, str) or not name.isidentifier():
            raise Untrusted(f"the name of an argument is no identifier: {str(name)[:60]!r}")


def _check_target(target: Any) -> None:
    """The function that a node calls, or hands on."""
    name = str(target)
    module, _, rest = name.partition(".")
    known = (
        (module in ("_operator", "math") and rest in _ARITHMETIC)
        or _OF_TORCH.fullmatch(name) is not None
        or (name.startswith("torch.ops.") and _is_operator(name.split(".")[2:]))
    )
    if not known:
        raise Untrusted(f"a node calls {name[:60]!r}, which is no operator of a network")


def _is_operator(path: list[str]) -> bool:
    """Whether a path from ``torch.ops`` leads to a registered operator that takes no file's name.

    An operator that is not registered has no function: PyTorch refuses the program.
    """
    if len(path) < 2 or path[0] in _OTHER or not all(map(str.isidentifier, path)):
        return False
    found: Any = torch.ops
    for name in path:
        found = getattr(found, name, None)
        if found is None:
            return True
    if isinstance(found, torch._ops.OpOverloadPacket):
        packet: Any = found
        schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    else:
        schemas = [found._schema] if isinstance(found, torch._ops.OpOverload) else []
    arguments = {argument.name for schema in schemas for argument in schema.arguments}
    return isinstance(found, _OPERATORS) and arguments.isdisjoint(_OF_FILES)


def _check_tree(key: str, value: Any) -> None:
    """A tree of containers as text. A ``defaultdict`` names the function that fills it."""
    if not isinstance(value, str):
        raise Untrusted(f"a tree of containers is {str(value)[:60]!r}, which is no text")
    tree = _parsed("a tree", value)
    root = _root(tree)
    texts = _texts(tree)
    for _, one in _dicts(texts):
        if "__enum__" in one:
            raise Untrusted(f"a container would import {one.get('fqn')!r}")
        if "default_factory_module" in one or "default_factory_name" in one:
            module, name = one.get("default_factory_module"), one.get("default_factory_name")
            if module != "builtins" or name not in _PLAIN_FACTORIES:
                raise Untrusted(f"a container would import {module!r}")
    for text in _leaves(texts):
        if _STRANGE.search(text):
            raise Untrusted(f"a container has characters in it that no name has: {text[:60]!r}")
    if key == "in_spec":
        _check_identifiers(_keywords(root))


def _root(tree: Any) -> dict[str, Any]:
    """The outermost container of a tree, all of which has the form that PyTorch writes."""
    root, waiting = (tree[1], tree[1:]) if isinstance(tree, list) and len(tree) == 2 else ({}, [{}])
    while waiting:
        node = waiting.pop()
        children = node.get("children_spec") if isinstance(node, dict) else None
        if not isinstance(children, list) or node.keys() != _NODE:
            raise Untrusted("a tree of containers has another form than PyTorch writes")
        waiting += children
    return root


def _keywords(root: dict[str, Any]) -> Any:
    """The names of keyword arguments in the tree of a call: arguments, then keywords."""
    if len(root["children_spec"]) < 2:
        return []
    context = root["children_spec"][1]["context"]
    return _parsed("a tree", context) if isinstance(context, str) else context


def _leaves(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield str(key)
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)


def _texts(value: Any) -> Any:
    """A JSON value in which texts that are JSON themselves are read, too."""
    if isinstance(value, dict):
        return {key: _texts(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_texts(each) for each in value]
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return _texts(inner) if isinstance(inner, dict | list) else value
    return value
