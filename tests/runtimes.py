"""What the installed onnxruntime cannot do, or does wrongly: seen by running it, since what can be
installed differs between versions of Python.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from . import graphs


def _computes(made: graphs.ModelProto, x: graphs.Array, y: graphs.Array) -> bool:
    return bool(np.array_equal(graphs.run(made, {"x": x.astype(np.float32)})[0], y))


@cache
def newest_opset() -> int:
    """The newest opset that it loads."""
    for opset in range(graphs.NEWEST, 0, -1):
        made = graphs.model(graphs.op("Relu", "x", "y"), x=(1,), opset=opset)
        try:
            graphs.run(made, {"x": np.ones(1, np.float32)})
        except Exception:  # What it raises has no common base of its own.
            continue
        return opset
    raise AssertionError("it loads no opset at all")


@cache
def counts_what_is_past_the_end() -> bool:
    """Whether an AveragePool that counts padding divides by taps past it, too, as 1.23 does: with
    ceil_mode, the last window may reach further than the padding (ONNX AveragePool).
    """
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    made = graphs.model(graphs.op("AveragePool", "x", "y", **attrs), x=(1, 1, 4, 4), opset=18)
    return not _computes(made, np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2)))


@cache
def mixes_overloads() -> bool:
    """Whether it takes overloads of a local function for one, as 1.23 does (ONNX IR version 10)."""
    functions = []
    for kind in ("Neg", "Relu"):
        body, imports = [graphs.op(kind, "x", "y")], [helper.make_opsetid("", 17)]
        made = helper.make_function("my", "F", ["x"], ["y"], body, imports, overload=kind)
        functions.append(made)
    calls = [graphs.op("F", "x", "h", domain="my", overload="Neg")]
    calls += [graphs.op("F", "h", "y", domain="my", overload="Relu")]
    made = graphs.model(*calls, x=(1,), functions=functions, domains={"my": 1}, ir=10)
    return not _computes(made, np.ones(1), np.zeros(1))


@cache
def broadcasts_gamma() -> bool:
    """Whether γ of a LayerNormalization may have ones where the data has not, as 1.23 refuses; the
    γ of a SimplifiedLayerNormalization 1.23 then reads past its end.
    """
    made = graphs.model(
        (graphs.op("LayerNormalization", "x g", "y", axis=0), {"g": np.ones((2, 1), np.float32)}),
        x=(2, 2),
        opset=17,
    )
    try:
        return bool(np.isfinite(graphs.run(made, {"x": np.eye(2, dtype=np.float32)})[0]).all())
    except Exception:  # What it raises has no common base of its own.
        return False


@cache
def puts_out_statistics_of_a_skip_norm() -> bool:
    """Whether a SkipLayerNormalization puts out its mean and deviation; 1.23 leaves them empty."""
    made = graphs.model(
        (
            graphs.op("SkipLayerNormalization", "x x g", "y mean", domain="com.microsoft"),
            {"g": np.ones(2, np.float32)},
        ),
        x=(1, 1, 2),
        y="y mean",
        opset=17,
        domains={"com.microsoft": 1},
    )
    for out in made.graph.output:
        out.type.tensor_type.elem_type = graphs.FLOAT
    return graphs.run(made, {"x": np.ones((1, 1, 2), np.float32)})[1] is not None


@cache
def is_old() -> bool:
    """Whether it is older than 1.24: that has no kernel for some types and opsets, and may crash
    where a FusedMatMul turns a matrix and multiplies it by a batch.
    """
    return tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24)


def why_not(error: BaseException) -> str | None:
    """Why an old one does not run a model that later ones run; None for any other error."""
    text = str(error)
    for sign in ("Could not find an implementation", "InsertedPrecisionFreeCast"):
        if is_old() and sign in text:
            return f"onnxruntime {ort.__version__}: {text.partition(chr(10))[0][:120]}"
    return None


@cache
def texts_keep_digits() -> bool:
    """Whether ONNX's text form holds a number to its last digit, as it does from onnx 1.23 on."""
    made = graphs.model((graphs.op("Add", "x k", "y"), {"k": np.array([0.1234567], np.float32)}))
    again = onnx.parser.parse_model(onnx.printer.to_text(made))
    return bool(np.array_equal(graphs.constants(again)["k"], graphs.constants(made)["k"]))
