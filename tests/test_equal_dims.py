"""``assume_equal_dims``: sizes of inputs with one name are equal. By default nobody says so."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold import UsageError

from .cli.command import bnfold as command
from .graphs import codes, const, conv, counts, model, op, rand, run

INPUTS = {"x": ("n", 3, 4, 4), "other": ("n", 7)}


def reshaped(x=None, opset: int = 17):
    """Channels of x, reshaped by another tensor's batch, and scaled in part: −1 is their number if
    the batches agree.
    """
    return model(
        conv("conv", "x", "c", (4, 3, 1, 1)),
        op("Shape", "other", "s"),
        op("Gather", "s zero", "b", axis=0),
        op("Concat", "b rest", "t", axis=0),
        op("Reshape", "c t", "r"),
        op("Split", "r", "p q", axis=1),
        const("Mul", "p", "y", np.float32(1.5), name="map"),
        op("Tanh", "q", "z"),
        x=x or INPUTS,
        y="y z",
        opset=opset,
        weights={"zero": np.array([0], np.int64), "rest": np.array([-1, 16], np.int64)},
    )


def test_by_default_another_run_may_have_other_sizes():
    """A runtime does not check names: two images and four rows beside them run as well, and there
    the fold would be wrong.
    """
    m = reshaped()
    assert codes(m) == {"map": "unknown-shape"}
    (kept,) = bnfold.plan(m).kept
    assert "--assume-equal-dims" in kept.advice
    folded = bnfold.fold(m)
    data = {"x": rand(2, 3, 4, 4), "other": rand(4, 7)}
    (wanted, _), (found, _) = run(m, data), run(folded, data)
    assert np.array_equal(found, wanted)
    believed, _ = run(bnfold.fold(m, assume_equal_dims=True), data)
    assert not np.allclose(believed, wanted, rtol=0.1)


def test_with_it_maps_cross():
    m = reshaped()
    folded = bnfold.fold(m, assume_equal_dims=True)
    assert "Mul" not in counts(folded) and len(folded.graph.node) == len(m.graph.node) - 1
    assert bnfold.plan(m, assume_equal_dims=True).kept == ()
    for n in (1, 3):
        data = {"x": rand(n, 3, 4, 4), "other": rand(n, 7)}
        for wanted, found in zip(run(m, data), run(folded, data), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert bnfold.verify(m, folded).status == "pass"


@pytest.mark.parametrize(
    "x",
    [
        {"x": ("n", 3, 4, 4), "other": ("m", 7)},
        {"x": ("n", 3, 4, 4), "other": (None, 7)},
        {"x": (None, 3, 4, 4), "other": (None, 7)},
        {"x": ("", 3, 4, 4), "other": ("", 7)},
        {"x": ("m", 3, 4, 4), "other": ("n", "m")},
    ],
    ids=str,
)
def test_other_names_and_none_are_other_sizes(x):
    m = reshaped(x)
    assert bnfold.fold(m, assume_equal_dims=True).SerializeToString() == m.SerializeToString()


def test_below_opset_11_names_prove_nothing():
    """There ONNX's inference gives a part that a Slice takes the name of the whole."""
    m = reshaped(opset=10)
    assert bnfold.fold(m, assume_equal_dims=True).SerializeToString() == m.SerializeToString()


def test_it_is_for_onnx_alone():
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match="assume_equal_dims"):
        bnfold.fold(torch.nn.Linear(2, 2), assume_equal_dims=True)


def test_on_the_command_line_and_in_a_project(tmp_path):
    m = reshaped()
    (tmp_path / "m.onnx").write_bytes(m.SerializeToString())
    assert command("m.onnx", "--check", cwd=tmp_path).code == 0
    assert command("m.onnx", "--check", "--assume-equal-dims", cwd=tmp_path).code == 1
    assert command("m.onnx", "--assume-equal-dims", "-o", "f.onnx", cwd=tmp_path).code == 0
    assert command("f.onnx", "--check", cwd=tmp_path).code == 0
    (tmp_path / "pyproject.toml").write_text("[tool.bnfold]\nassume-equal-dims = true\n")
    assert command("m.onnx", "--check", cwd=tmp_path).code == 1
