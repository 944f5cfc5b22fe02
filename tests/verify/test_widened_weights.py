"""Files that store weights in float16 and widen them by a Cast before they compute with them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold._run.perturbable import stores_anew

from ..graphs import model, op, rand

HALF = TensorProto.FLOAT16
NORM = {"s": rand(4), "b": rand(4), "m": rand(4), "v": 0.5 + np.abs(rand(4))}
KERNEL, BIAS = rand(4, 3, 3, 3), rand(4)


def widened(weights, *tail, turned=False):
    """A convolution of float32 data whose weights are stored in float16, maybe turned round."""
    stored = {k: numpy_helper.from_array(v.astype(np.float16), k) for k, v in weights.items()}
    if turned:
        values = numpy_helper.to_array(stored["w"]).transpose(1, 0, 2, 3)
        stored["w"] = numpy_helper.from_array(np.ascontiguousarray(values), "w")
    ahead = [op("Transpose", "w", "t", perm=[1, 0, 2, 3])] if turned else []
    return model(
        *ahead,
        op("Cast", "t" if turned else "w", "wide", to=TensorProto.FLOAT),
        op("Cast", "k", "bias", to=TensorProto.FLOAT),
        op("Conv", "x wide bias", "c", name="conv"),
        *tail,
        op("Relu", "n" if tail else "c", "y"),
        x=(2, 3, 6, 6),
        weights={**stored, **(NORM if tail else {})},
    )


def original(**options):
    return widened(
        {"w": KERNEL, "k": BIAS}, op("BatchNormalization", "c s b m v", "n", name="bn"), **options
    )


def by_hand(factor=1.0, **options):
    scale = NORM["s"] / np.sqrt(NORM["v"] + 1e-5)
    kernel = KERNEL.astype(np.float16) * scale[:, None, None, None]
    kernel[1] *= factor
    bias = (BIAS.astype(np.float16) - NORM["m"]) * scale + NORM["b"]
    return widened({"w": kernel, "k": bias}, **options)


@pytest.mark.parametrize("turned", [False, True])
def test_who_stores_float16_rounds_to_it(turned):
    made = original(turned=turned)
    assert bnfold.verify(made, by_hand(turned=turned)).status == "pass"
    assert bnfold.verify(made, by_hand(1.1, turned=turned)).status == "fail"


def test_who_stores_float32_does_not():
    """Half of a unit of float16 is an error there: bnfold's own fold has the exact weights."""
    made = original()
    folded = bnfold.fold(made)
    assert bnfold.verify(made, folded).status == "pass"
    (held,) = [t for t in folded.graph.initializer if t.data_type != HALF and len(t.dims) == 4]
    values = numpy_helper.to_array(held).copy()
    values[1] *= 1 + 2.0**-10
    held.CopyFrom(numpy_helper.from_array(values, held.name))
    assert bnfold.verify(made, folded).status == "fail"


def test_what_counts_as_stored_anew(tmp_path):
    made, other = original(), by_hand()
    folders = (tmp_path, tmp_path)
    assert stores_anew(made, other, folders)
    assert not stores_anew(made, made, folders)
    moved = original()
    for tensor in moved.graph.initializer:
        tensor.name += "_moved"
    assert not stores_anew(made, moved, folders)
    del made.graph.node[:2]  # Nothing is widened.
    assert not stores_anew(made, other, folders)
    turned = helper.make_graph(
        other.graph.node, "g", [], [], [*original(turned=True).graph.initializer]
    )
    assert stores_anew(original(), helper.make_model(turned), folders)
