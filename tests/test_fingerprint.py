"""Hashes of files, of which most may be a hole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from bnfold._registry import fingerprint
from bnfold._registry.fingerprint import of_model


def own(content: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(content).hexdigest().encode()).hexdigest()


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="no system that tells of holes")
def test_a_hole_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of terabytes takes no time, and what lies in it, where, and how long it is counts."""
    monkeypatch.setattr(fingerprint, "_HOLE", 1 << 20)
    hashes = []
    for size, places in (
        (1 << 40, ()),
        (1 << 39, ()),
        (1 << 40, (0,)),
        (1 << 40, (1 << 38,)),
        (1 << 40, (0, 1 << 38)),
        (1 << 40, (0, 1 << 37)),
        (1 << 22, (0, (1 << 22) - 4096)),
    ):
        path = tmp_path / "m.pt2"
        with path.open("wb") as file:
            for place in places:
                file.seek(place)
                file.write(b"x" * 4096)
            file.truncate(size)
        if path.stat().st_blocks * 512 > 1 << 20:
            pytest.skip("this file system makes no holes")
        hashes.append(of_model(path))
    assert len(set(hashes)) == len(hashes)
    assert None not in hashes


@pytest.mark.parametrize("hole", [0, 1 << 12])
def test_small_holes_are_zeros(hole: int, tmp_path: Path) -> None:
    """Whether a file system stores them is no matter."""
    path = tmp_path / "m.pt2"
    with path.open("wb") as file:
        file.write(b"PK")
        file.truncate(hole or 2)
    assert of_model(path) == own(path.read_bytes())
