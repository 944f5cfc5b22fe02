"""Which parts of a module a method runs, by its source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from types import FunctionType

from torch import nn

from bnfold._torch.module.given_away import given_away, is_getattr

Parts = Mapping[str, str | None]
_CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.Sequential)
_CHILDREN = ("_modules", "children", "named_children", "items", "values")
_LIBRARIES = ("F", "functional", "nn", "torch")
_Step = str | int | None
"""An attribute's name or a key; None for one that the source does not tell."""


@dataclass(frozen=True)
class Uses:
    """What a method runs or reads, and what it lets others see.

    ``parts`` are the names of submodules and parameters. The children of a container that the
    method does not call as a whole have the container's name as their group: the method may see
    what is between them. Others have None. ``given`` are the submodules whose output the method
    returns, stores or collects.
    """

    parts: Parts
    given: Set[str]


def uses_of(module: nn.Module, method: FunctionType) -> Uses:
    """What a method of a module uses, by itself and by the methods that it calls.

    Of code that cannot be read nothing is known. Nor is what lies in plain lists of modules.
    """
    reader = _Reader(module)
    reader.read("", method, returns=True)
    return Uses(reader.parts, reader.given)


class _Reader:
    """Reads methods of the parts of one module."""

    def __init__(self, root: nn.Module) -> None:
        self.parts: dict[str, str | None] = {}
        self.given: set[str] = set()
        self._modules = dict(root.named_modules(remove_duplicate=False))
        self._known: set[tuple[str, str, bool]] = set()

    def read(self, path: str, method: FunctionType, *, returns: bool) -> None:
        """Note what a method of the submodule at ``path`` runs. With ``returns`` what it returns is
        given away.
        """
        method = inspect.unwrap(method)
        key = path, method.__qualname__, returns
        if key in self._known or not method.__code__.co_argcount:
            return
        self._known.add(key)
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        except (OSError, SyntaxError, TypeError):
            return
        source = _Source(tree, method.__code__.co_varnames[0], returns)
        for chain in source.chains():
            self._follow(path, chain)

    def _follow(self, path: str, chain: _Chain) -> None:
        """Note what a chain of attributes and keys leads to."""
        for step in chain.steps:
            module = self._modules[path]
            if isinstance(step, int) and step < 0:
                step += len(module._modules)
            name = f"{path}.{step}" if path else str(step)
            member = inspect.getattr_static(type(module), str(step), None)
            member = member.fget if isinstance(member, property) else member
            if name in self._modules:
                path = name
            elif step in (*module._parameters, *module._buffers):
                if chain.is_operand:
                    self.parts.setdefault(name, None)
                return
            elif isinstance(member, FunctionType) and not member.__module__.startswith("torch."):
                if step != "forward":
                    self.read(path, member, returns=chain.is_given)
                elif path:
                    self._note(path, whole=True, given=chain.is_given)
                return
            elif step is None or (step in _CHILDREN and chain.is_iterated):
                self._note(path, whole=False, given=chain.is_given)
                return
            elif step != "forward":
                return  # an attribute that runs nothing
        if path and (chain.is_run or chain.is_iterated):
            self._note(path, whole=chain.is_run, given=chain.is_given)

    def _note(self, path: str, *, whole: bool, given: bool) -> None:
        """Note that a submodule runs, under all of its names."""
        module = self._modules[path]
        for name in [name for name, other in self._modules.items() if other is module]:
            if whole or not (isinstance(module, _CONTAINERS) or not path):
                self.parts[name] = None
                self.given |= {name} if given else set()
                continue
            for child in module._modules:
                self.parts.setdefault(f"{name}.{child}" if name else child, name)


@dataclass(frozen=True)
class _Chain:
    """Attributes and keys that begin at ``self``, and what the code does with their value.

    ``is_run``: it is called. ``is_iterated``: what it holds is called. ``is_operand``: a function
    of a library reads it. ``is_given``: what it gives when it is called is given away.
    """

    steps: tuple[_Step, ...]
    is_run: bool
    is_iterated: bool
    is_operand: bool
    is_given: bool


class _Source:
    """The source of one method, in which ``me`` is the module."""

    def __init__(self, tree: ast.AST, me: str, returns: bool) -> None:
        self._tree = tree
        self._given = given_away(tree, me, returns=returns)
        self._me = me
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
        self._run = {id(node.func) for node in calls}
        self._iterated: set[int] = set()
        self._operands: set[int] = set()
        for call in calls:
            given = {id(each) for each in (*call.args, *(word.value for word in call.keywords))}
            function = ast.unparse(call.func)
            if "checkpoint" in function:
                self._run |= given
            elif function.split(".")[0] in _LIBRARIES and ".init." not in function:
                self._operands |= given
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and called & _names(node.targets):
                self._run.add(id(node.value))
            elif isinstance(node, ast.For | ast.comprehension) and called & _names([node.target]):
                self._iterated |= {id(each) for each in ast.walk(node.iter)}
            elif isinstance(node, ast.Starred):  # Sequential(*list(self.children())[:-1])
                self._iterated |= {id(each) for each in ast.walk(node.value)}

    def chains(self) -> Iterator[_Chain]:
        """Yield the longest chains that are read."""
        inner: set[int] = set()
        for node in ast.walk(self._tree):  # from the outermost
            if id(node) in inner or not isinstance(node, ast.expr):
                continue
            steps: list[_Step] = []
            current: ast.expr = node
            while True:
                inner.add(id(current))
                if isinstance(current, ast.Attribute):
                    steps.append(current.attr)
                    current = current.value
                elif isinstance(current, ast.Subscript):
                    steps.append(_key(current.slice))
                    current = current.value
                elif is_getattr(current):
                    steps.append(_key(current.args[1]))  # type: ignore[attr-defined]
                    current = current.args[0]  # type: ignore[attr-defined]
                else:
                    break
            inner.discard(id(current))
            read = not isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)
            if steps and read and isinstance(current, ast.Name) and current.id == self._me:
                yield _Chain(
                    tuple(reversed(steps)),
                    id(node) in self._run,
                    id(node) in self._iterated,
                    id(node) in self._operands,
                    id(node) in self._given,
                )


def _key(node: ast.expr) -> _Step:
    """A key as the source has it."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, str | int) else None


def _names(targets: list[ast.expr]) -> set[str]:
    """The names that are bound."""
    nodes = [node for target in targets for node in ast.walk(target)]
    return {node.id for node in nodes if isinstance(node, ast.Name)}
