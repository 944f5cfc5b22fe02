"""The bugs that the benchmark plants: each is the bug it says it is, and none passes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import bnfold

from .. import graphs, oracle
from ..graphs import bn, const, conv, conv_transpose, feeds, model, op, positive
from ..scripts import load

BF16 = "weights through bfloat16"


bugs = load("benchmarks", "bugs")


def run(made: ModelProto, x) -> np.ndarray:
    return graphs.run(made, {"x": x})[0]


def image(made: ModelProto) -> np.ndarray:
    return feeds(made)["x"]


def planted(name: str, made: ModelProto) -> ModelProto | None:
    """A model changed as a bug would have it, not folded yet; None where it has no place."""
    changed = ModelProto()
    changed.CopyFrom(made)
    return changed if bugs.PLANTS[name](bugs.Net(changed)) else None


def every_structure() -> ModelProto:
    """A place for every bug."""
    return model(
        conv("first", "x", "a", (8, 2, 3, 3), group=2),
        bn("bn1", "a", "b", 8),
        op("Relu", "b", "c"),
        conv_transpose("up", "c", "d", (8, 4, 2, 2), group=2, strides=[2, 2]),
        bn("bn2", "d", "e", 8),
        conv("second", "e", "f", (6, 8, 3, 3), pads=[1, 1, 1, 1]),
        op("MaxPool", "f", "g", kernel_shape=[2, 2], strides=[2, 2]),
        bn("bn3", "g", "h", 6, epsilon=1e-3),
        op("Relu", "h", "y"),
        x=(2, 4, 8, 8),
    )


@pytest.mark.parametrize("name", [*bugs.PLANTS, BF16])
def test_no_bug_passes(name):
    made = every_structure()
    wrong = dict(bugs.wrong_folds(made))[name]
    x = image(made)
    right, other = run(made, x), run(wrong, x)
    assert np.abs(right - other).max() > 1e-5 * np.abs(right).max()
    assert bnfold.verify(made, wrong).status != "pass"


def test_the_right_fold_passes():
    made = every_structure()
    assert bnfold.verify(made, bnfold.fold(made)).status == "pass"


# --- each is the bug it says it is, by PyTorch in float64 ---------------------------------------


class Parts:
    """The values that a model stores, in float64, and its BatchNormalizations' maps."""

    def __init__(self, made: ModelProto) -> None:
        self.torch = pytest.importorskip("torch")
        self.values = {
            t.name: self.torch.tensor(numpy_helper.to_array(t)).double()
            for t in made.graph.initializer
        }
        self.x = self.torch.tensor(image(made)).double()

    def __getitem__(self, name):
        return self.values[name]

    def norm(self, name, epsilon=0.01):
        """Scale and shift."""
        v = {key: self[f"{name}.{key}"] for key in ("scale", "bias", "mean", "var")}
        scale = v["scale"] / (v["var"] + np.float32(epsilon).astype(float)).sqrt()
        return scale, v["bias"] - v["mean"] * scale


def along(vector):
    return vector.reshape(1, -1, 1, 1)


def is_what_the_tool_makes(name: str, made: ModelProto, expected) -> None:
    """The bug gives the expected outputs, and they are not the right ones."""
    wrong = planted(name, made)
    assert wrong is not None
    onnx.checker.check_model(wrong, full_check=True)
    x, expected = image(made), expected.numpy()
    size = np.abs(expected).max()
    for other in (wrong, bnfold.fold(wrong)):
        np.testing.assert_allclose(run(other, x), expected, rtol=0, atol=1e-5 * size)
    assert np.abs(run(made, x) - expected).max() > 1e-2 * size


def test_bias_unscaled():
    made = model(conv("conv", "x", "a", (4, 3, 3, 3)), bn("bn", "a", "y", 4))
    p = Parts(made)
    s, t = p.norm("bn")
    weight = p["conv.w"] * s.reshape(-1, 1, 1, 1)
    y = p.torch.nn.functional.conv2d(p.x, weight, p["conv.b"] + t)
    is_what_the_tool_makes("bias unscaled", made, y)


@pytest.mark.parametrize("cin, cout", [(4, 4), (4, 6), (6, 4)])
def test_transposed_along_the_first_axis(cin, cout):
    up = conv_transpose("up", "x", "a", (cin, cout, 3, 3), strides=[2, 2])
    made = model(
        up,
        const("Add", "a", "b", np.linspace(-1, 1, cout, dtype=np.float32).reshape(1, -1, 1, 1)),
        op("Identity", "b", "c"),
        bn("bn", "c", "y", cout),
        x=(2, cin, 5, 5),
    )
    p = Parts(made)
    s, t = p.norm("bn")
    first = p.torch.tensor(np.resize(s.numpy(), cin)).reshape(-1, 1, 1, 1)
    bias = (p["up.b"] + p["b_add.k"].reshape(-1)) * s + t
    y = p.torch.nn.functional.conv_transpose2d(p.x, p["up.w"] * first, bias, stride=2)
    is_what_the_tool_makes("ConvTranspose axis 0", made, y)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups, per_group", [(2, 3), (3, 2), (2, 2)])
def test_the_order_of_groups(transposed, groups, per_group):
    out, inner = groups * per_group, 2 * groups
    if transposed:
        linear = conv_transpose("up", "x", "a", (inner, per_group, 2, 2), group=groups)
    else:
        linear = conv("up", "x", "a", (out, 2, 2, 2), group=groups)
    made = model(linear, bn("bn", "a", "y", out), x=(2, inner, 5, 5))
    p = Parts(made)
    s, t = p.norm("bn")
    # Channel m of group j gets the scale of m·g + j.
    wrong = p.torch.stack([s[m * groups + j] for j in range(groups) for m in range(per_group)])
    run_it = "conv_transpose2d" if transposed else "conv2d"
    plain = getattr(p.torch.nn.functional, run_it)(p.x, p["up.w"], groups=groups)
    y = plain * along(wrong) + along(p["up.b"] * s + t)
    is_what_the_tool_makes("group order", made, y)


@pytest.mark.parametrize("bias, groups", [(True, 1), (False, 1), (True, 2)])
def test_shift_across_padding(bias, groups):
    made = model(
        bn("bn", "x", "a", 4),
        conv("conv", "a", "y", (6, 4 // groups, 3, 3), bias, pads=[1, 0, 1, 1], group=groups),
        x=(2, 4, 5, 5),
    )
    p = Parts(made)
    s, t = p.norm("bn")
    functional = p.torch.nn.functional
    padded = functional.pad(p.x * along(s), (0, 1, 1, 1))
    shifts = functional.conv2d(along(t).expand(1, 4, 3, 3), p["conv.w"], groups=groups)
    own = along(p["conv.b"]) if bias else 0.0
    y = functional.conv2d(padded, p["conv.w"], groups=groups) + shifts + own
    is_what_the_tool_makes("shift across padding", made, y)


def test_a_constant_shift_across_a_pad():
    """``(x − m) / d``, a Pad with zeros, and a convolution."""
    made = model(
        const("Sub", "x", "a", np.float32([1.0, 2.0, -0.5]).reshape(1, 3, 1, 1)),
        const("Div", "a", "b", np.float32([0.5, 2.0, -1.5]).reshape(1, 3, 1, 1)),
        (op("Pad", "b p", "c"), {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}),
        conv("conv", "c", "d", (4, 3, 3, 3)),
        bn("bn", "d", "y", 4),
    )
    p = Parts(made)
    m, d, functional = p["a_sub.k"], p["b_div.k"], p.torch.nn.functional
    padded = functional.pad(p.x / d, (1, 1, 1, 1))
    shifts = functional.conv2d((-m / d).expand(1, 3, 3, 3), p["conv.w"])
    s, t = p.norm("bn")
    plain = functional.conv2d(padded, p["conv.w"], p["conv.b"]) + shifts
    is_what_the_tool_makes("shift across padding", made, plain * along(s) + along(t))


@pytest.mark.parametrize("norm_first", [False, True])
def test_negative_scales_through_a_pool(norm_first):
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    first = conv("conv", "x", "a", (4, 3, 3, 3))
    if norm_first:
        made = model(first, bn("bn", "a", "b", 4), op("MaxPool", "b", "y", **window))
    else:
        made = model(first, op("MaxPool", "a", "b", **window), bn("bn", "b", "y", 4))
    p = Parts(made)
    s, t = p.norm("bn")
    assert (s < 0).any() and (s > 0).any()
    functional = p.torch.nn.functional
    y = functional.conv2d(p.x, p["conv.w"], p["conv.b"])
    pooled = functional.max_pool2d(y if norm_first else y * along(s) + along(t), 3, 2, 1)
    expected = pooled * along(s) + along(t) if norm_first else pooled
    is_what_the_tool_makes("negative through pool", made, expected)


# --- where a bug has no place -------------------------------------------------------------------


def test_bugs_without_a_place():
    plain = model(
        conv("conv", "x", "a", (4, 3, 3, 3), False), bn("bn", "a", "b", 4), op("Relu", "b", "y")
    )
    for name in (
        "bias unscaled",
        "ConvTranspose axis 0",
        "group order",
        "shift across padding",
        "negative through pool",
    ):
        assert planted(name, plain) is None
    depthwise = model(conv("conv", "x", "a", (3, 1, 3, 3), group=3), bn("bn", "a", "y", 3))
    assert planted("group order", depthwise) is None
    unpadded = model(bn("bn", "x", "a", 3), conv("conv", "a", "y", (4, 3, 3, 3)))
    assert planted("shift across padding", unpadded) is None
    shared = model(
        bn("bn", "x", "a", 3),
        conv("conv", "a", "b", (3, 3, 3, 3), pads=[1, 1, 1, 1]),
        op("Add", "a b", "y"),
    )
    assert planted("shift across padding", shared) is None
    positive_scales = model(
        op("MaxPool", "x", "a", kernel_shape=[2, 2]),
        bn("bn", "a", "y", 3),
    )
    for tensor in positive_scales.graph.initializer:
        if tensor.name == "bn.scale":
            tensor.CopyFrom(numpy_helper.from_array(positive(3), tensor.name))
    assert planted("negative through pool", positive_scales) is None


# --- what the benchmark takes for beyond rounding -------------------------------------------------


@pytest.mark.usefixtures("cheap_exports")
def test_float64_tells_bugs_from_right_folds():
    exact, kills = load("benchmarks", "exact"), load("benchmarks", "kills")
    made = every_structure()
    x = image(made)
    (found,) = exact.evaluate(made, {"x": x})
    (expected,) = oracle.run(made, {"x": x})
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected.v, rtol=0, atol=1e-12 * np.abs(found).max())
    yardstick = exact.Yardstick(made, kills.inputs(made))
    assert yardstick.excess(made) == 0.0
    assert 0.0 < yardstick.excess(bnfold.fold(made)) < 1.0
    for name, wrong in bugs.wrong_folds(made):
        assert yardstick.excess(wrong) > kills.BEYOND, name


@pytest.mark.usefixtures("cheap_exports")
def test_float64_sees_behind_a_saturated_function():
    exact = load("benchmarks", "exact")
    made = model(
        conv("conv", "x", "a", (4, 3, 3, 3)),
        const("Sub", "a", "b", np.float32(200)),
        op("Sigmoid", "b", "y"),
    )
    wrong = ModelProto()
    wrong.CopyFrom(made)
    for tensor in wrong.graph.initializer:
        if tensor.name == "conv.w":
            values = numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    x = image(made)
    assert np.array_equal(run(made, x), run(wrong, x))
    assert exact.Yardstick(made, [{"x": x}]).excess(wrong) > 100


@pytest.mark.slow
def test_the_matrix_of_the_shipped_example():
    pytest.importorskip("torch")
    kills = load("benchmarks", "kills")
    done = subprocess.run(
        [sys.executable, kills.__file__, "digits", "--cases"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cases = [line for line in done.stdout.splitlines() if " x rounding: bnfold " in line]
    verdicts = {line.split(": ")[1]: "bnfold fail" in line for line in cases}
    assert verdicts.pop("fold by bnfold") is False
    assert sum(verdicts.values()) == 13, verdicts
    assert not any(failed for name, failed in verdicts.items() if name.startswith("fold by"))
