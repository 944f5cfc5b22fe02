"""The example models, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import examples


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that folds in part."""
    return examples.save(examples.foldable(), tmp_path / "m.onnx")


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The same with the weights of its convolutions in two files: one changes, one does not."""
    return examples.save(
        examples.foldable(), tmp_path / "m.onnx", conv1_w="one.bin", conv2_w="two.bin"
    )


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """A model with nothing to fold."""
    return examples.save(examples.settled(), tmp_path / "settled.onnx")


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A model that folds and that nothing can run."""
    return examples.save(examples.strange(), tmp_path / "strange.onnx")


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A model that takes seconds to verify."""
    return examples.save(examples.slow(), tmp_path / "slow.onnx")
