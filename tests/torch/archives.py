"""A .pt2 file for tests, and copies of it in which something is another."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

    def forward(self, x, more):
        half = x[:, :, : x.shape[2] // 2]
        return self.norm(self.conv(half)) * more["scale"], max(x.shape[0], 3)


def saved(folder: Path) -> Path:
    """A program with free sizes, and inputs in containers."""
    free = torch.export.Dim.AUTO
    shapes = {"x": {0: free, 2: free}, "more": {"scale": None}}
    program = torch.export.export(
        Net().eval(), (torch.randn(4, 3, 8, 8), {"scale": torch.ones(1)}), dynamic_shapes=shapes
    )
    path = folder / "m.pt2"
    torch.export.save(program, path)
    return path


def rebuilt(plain: Path, path: Path, edits: Mapping[str, Callable[[bytes], bytes]]) -> Path:
    """A copy in which the records whose names hold a text are edited."""
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            for part, edit in edits.items():
                content = edit(content) if part in name else content
            new.writestr(name, content)
    return path


def in_model(edit: Callable[[str], str]) -> dict[str, Callable[[bytes], bytes]]:
    return {"models/model.json": lambda content: edit(content.decode()).encode()}


def changed(plain: Path, tmp_path: Path, key: str, value: object) -> Path:
    """The program with one entry changed: of its first node, of its signature, or of itself."""

    def edit(content: str) -> str:
        program = json.loads(content)
        graph_module = program["graph_module"]
        holders = (
            graph_module["graph"]["nodes"][0],
            graph_module["module_call_graph"][0]["signature"],
        )
        next((holder for holder in holders if key in holder), program)[key] = value
        return json.dumps(program)

    return rebuilt(plain, tmp_path / "m.pt2", in_model(edit))
