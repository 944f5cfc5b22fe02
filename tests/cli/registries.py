"""What a run over many models has found and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bnfold
import bnfold.registry


def listed(folder: Path) -> dict[str, Any]:
    """The models of an index, by name."""
    data = json.loads((folder / "index.json").read_bytes())
    return {model["name"]: model for model in data["models"]}


def found(registry: bnfold.registry.Registry) -> list[str]:
    return sorted(item.name for task in registry.tasks for item in task.items)


def stamps(folder: Path) -> dict[str, int]:
    """Which file each one but the index is: who writes it anew changes that."""
    files = (path for path in folder.rglob("*") if path.is_file() and "index." not in path.name)
    return {str(path.relative_to(folder)): path.stat().st_ino for path in files}
