"""Rooms import downwards only, and no two modules import each other in a circle.

`ROOMS` is the whole order; a module belongs to the longest room that its name begins with. What is
imported inside a function counts as well: it is there to start fast, not to reach upwards.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bnfold

ROOMS = (
    "_errors",
    "_system",
    "_core",
    "_merge",
    "_plan",
    "_onnx.tensors",
    "_onnx.read",
    "_onnx.merge",
    "_onnx.network",
    "_onnx.write",
    "_onnx.equalize",
    "_onnx.fold",
    "_onnx.files",
    "_onnx.front",
    "nn",
    "_torch.tensors",
    "_torch.read",
    "_torch.program",
    "_torch.module",
    "_run",
    "_proof",
    "_relation",
    "_aten",
    "_judge",
    "_pipeline",
    "_api",
    "_report",
    "_registry",
    "registry",
    "_command",
    "testing",
    "passes",
    "__main__",
    "",
)
"""From the lowest to the highest; "" is the package itself."""

Imports = Mapping[str, Mapping[str, str]]
"""For each module those that it imports, each with the line that does."""


def _modules(root: Path) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(root).with_suffix("").parts)
        .removesuffix("__init__")
        .rstrip("."): path
        for path in root.rglob("*.py")
    }


def _imported(path: Path, modules: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                n if n.removeprefix("bnfold.") in modules else str(node.module) for n in inside
            ]
        else:
            continue
        for name in names:
            own = name.removeprefix("bnfold.")
            if name.startswith("bnfold.") and own in modules:
                yield own, f"line {node.lineno}"


def imports(root: Path) -> dict[str, dict[str, str]]:
    """Which modules of a package import which."""
    modules = _modules(root)
    return {
        module: {name: at for name, at in _imported(path, modules) if name != module}
        for module, path in modules.items()
    }


def _room(module: str) -> str:
    return max(
        (room for room in ROOMS if not room or module == room or module.startswith(f"{room}.")),
        key=len,
    )


def upward(found: Imports) -> list[str]:
    """Imports of a room that stands above."""
    return [
        f"{module} imports {name}, which stands above it ({at})"
        for module, names in found.items()
        for name, at in names.items()
        if ROOMS.index(_room(name)) > ROOMS.index(_room(module))
    ]


def circle(found: Imports) -> tuple[str, ...]:
    """Modules that import each other, if there are any."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return ()


@pytest.fixture(scope="module")
def found() -> Imports:
    return imports(Path(bnfold.__file__).parent)


def test_rooms_import_downwards_only(found: Imports) -> None:
    assert upward(found) == []


def test_no_modules_import_each_other_in_a_circle(found: Imports) -> None:
    assert circle(found) == ()


def test_every_module_has_a_room(found: Imports) -> None:
    lost = [m for m in found if m and not _room(m) and m not in ("_onnx", "_torch")]
    assert lost == []


def test_an_upward_import_would_be_seen(found: Imports) -> None:
    planted = {**found, "_core.laws": {**found["_core.laws"], "_plan.planner": "line 1"}}
    assert upward(planted) == ["_core.laws imports _plan.planner, which stands above it (line 1)"]
    assert set(circle(planted)) >= {"_core.laws", "_plan.planner"}
