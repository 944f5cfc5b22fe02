"""The example models, each in a folder of its own; and a command that may not read everything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from . import examples
from .command import COMMAND, TOO_LARGE, bnfold

AS_NOBODY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Takes from root what lets it pass file permissions."""


@pytest.fixture
def bound() -> tuple[str, ...]:
    """The command, run by somebody to whom file permissions apply."""
    if os.geteuid() != 0:
        return COMMAND
    if shutil.which(AS_NOBODY[0]) is None:
        pytest.skip("root may read and write anything, and setpriv is not here to forbid it")
    if subprocess.run([*AS_NOBODY, "true"], check=False, capture_output=True).returncode:
        pytest.skip("root may read and write anything here")
    return (*AS_NOBODY, *COMMAND)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that folds in part."""
    return examples.save(examples.foldable(), tmp_path / "m.onnx")


@pytest.fixture
def folded(model: Path, tmp_path: Path) -> Path:
    """Its fold."""
    target = tmp_path / "folded.onnx"
    assert bnfold(model, "-o", target, "--no-verify").code == 0
    return target


@pytest.fixture
def wrong(model: Path, tmp_path: Path) -> Path:
    """A fold that makes every weight 1 % too large."""
    target = tmp_path / "wrong.onnx"
    assert bnfold(model, "-o", target, "--no-verify", factor=TOO_LARGE).code == 0
    return target


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


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A tree of models: two that fold, one with its data beside it, one settled, one broken."""
    folder = tmp_path / "models"
    (folder / "deep" / "er").mkdir(parents=True)
    examples.save(examples.foldable(), folder / "m.onnx")
    data = {"conv1_w": "one.bin", "conv2_w": "two.bin"}
    examples.save(examples.foldable(), folder / "deep" / "x.onnx", **data)
    examples.save(examples.settled(), folder / "deep" / "er" / "settled.onnx")
    (folder / "deep" / "broken.onnx").write_text("no model")
    (folder / "README.md").write_text("# Models")
    return folder
