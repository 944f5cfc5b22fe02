"""Scripts of benchmarks/ and examples/, which belong to no package and may not be here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]

REPARAMETERIZED = ("repvgg", "mobileone", "repvit", "fastvit", "acnet", "dbb")
"""The networks of examples/reparameterized.py."""


def load(folder: str, name: str) -> ModuleType:
    """A script as a module; skips the test, or the module of tests, that asks where it is missing.

    Its folder is where it finds the others of its kind, and any module that is imported later.
    """
    if not (ROOT / folder / f"{name}.py").is_file():
        pytest.skip(f"there is no {folder}/{name}.py", allow_module_level=True)
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))
    return importlib.import_module(name)
