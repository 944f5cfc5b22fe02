"""Linear operators by definition, beside onnxruntime: drawn attributes, sizes that agree or not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from bnfold._proof.definitions import evaluate
from bnfold._proof.evidence import Mismatch

from .. import graphs
from ..graphs import Array, model


def window(rng: random.Random, kind: str) -> tuple[NodeProto, list[Array]]:
    """A convolution, transposed or not, or a mean over windows, and what it reads."""
    rank, group = rng.choice([1, 2, 3]), rng.choice([1, 1, 2, 3])
    inputs, outputs = group * rng.choice([1, 2]), group * rng.choice([1, 2])
    taps, strides = ([rng.choice([1, 2, 3]) for _ in range(rank)] for _ in range(2))
    dilations = [rng.choice([1, 2]) for _ in range(rank)]
    reach = [d * (k - 1) for d, k in zip(dilations, taps, strict=True)]
    space = [rng.choice([1, 2, 3, 4]) + more for more in reach]
    padding = rng.choice(["", "pads", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
    if padding.startswith("SAME") and kind != "ConvTranspose":
        strides = [rng.randint(1, k) for k in taps]  # beyond that runtimes pad by less than nothing
    attributes: dict[str, Any] = {"strides": strides}
    if padding == "pads":
        attributes["pads"] = [rng.choice([0, 0, 1]) for _ in range(2 * rank)]
    elif padding:
        attributes["auto_pad"] = padding
    data = [graphs.rand(rng.choice([1, 2]), inputs, *space)]
    if kind == "AveragePool":
        attributes |= {"kernel_shape": taps, "count_include_pad": rng.choice([0, 1])}
        return helper.make_node(kind, ["x"], ["y"], **attributes), data
    attributes |= {"group": group, "dilations": dilations}
    if rng.random() < 0.5:
        attributes["kernel_shape"] = taps
    if kind == "ConvTranspose":
        if rng.random() < 0.3:
            attributes["output_padding"] = [rng.randrange(stride) for stride in strides]
        if padding not in ("pads", "VALID") and rng.random() < 0.3:
            attributes["output_shape"] = [n * s for n, s in zip(space, strides, strict=True)]
    shape = (outputs, inputs // group) if kind == "Conv" else (inputs, outputs // group)
    data.append(graphs.rand(*shape, *taps))
    if rng.random() < 0.5:
        data.append(graphs.rand(outputs))
    return helper.make_node(kind, ["x", "w", "b"][: len(data)], ["y"], **attributes), data


@pytest.mark.parametrize("kind", ["AveragePool", "Conv", "ConvTranspose"])
def test_windows_are_as_onnxruntime_has_them(kind: str) -> None:
    rng, same = random.Random(0), 0
    for _ in range(500):
        node, data = window(rng, kind)
        given = dict(zip(node.input, data, strict=True))
        made = model(node, x={name: value.shape for name, value in given.items()})
        try:
            (expected,) = graphs.run(made, given)
        except (state.Fail, state.InvalidArgument, state.RuntimeException):
            continue  # nothing is left of the output, or a window sees padding alone
        doubles = [value.astype(np.float64) for value in data]
        try:
            found = evaluate(node, doubles, magnitude=False)
        except Mismatch as error:
            if "auto_pad is not defined" not in str(error):
                raise
            continue
        assert found.shape == expected.shape, node
        assert np.allclose(found, expected, atol=1e-4), node
        bound = evaluate(node, doubles, magnitude=True)
        assert (bound >= np.abs(found) * (1 - 1e-9)).all(), node
        same += 1
    assert same > 350
