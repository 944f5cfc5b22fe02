"""The architectures of benchmarks/, loaded from their file, which is not part of any package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "architectures.py"


def load() -> ModuleType:
    """The script as a module; skips the test module that asks where it or torch is missing."""
    pytest.importorskip("torch")
    if not FILE.exists():
        pytest.skip(f"there is no {FILE}", allow_module_level=True)
    if str(FILE.parent) not in sys.path:
        sys.path.append(str(FILE.parent))  # where the script finds its networks
    name = "benchmarks_architectures"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FILE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up while they are made
        spec.loader.exec_module(module)
    return sys.modules[name]
