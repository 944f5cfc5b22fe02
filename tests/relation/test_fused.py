"""Operators of onnxruntime that are several in one: what they stand for, held to onnxruntime.

Each is run as it is and as the proof takes it apart; then a model has it in one file and its parts
in the other. A step outside of its definition is not proved.
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnfold._relation.lowering import lowered

from ..graphs import model, op, rand
from .pairs import proof, run, value

MS = "com.microsoft"
X = (2, 3, 8)
NORM = {"g": rand(8), "b": rand(8), "k": rand(8)}
_rng = np.random.default_rng(0)
UNSIGNED = {
    "w": _rng.integers(0, 255, (8, 5)).astype(np.uint8),
    "s": np.float32(0.02),
    "z": np.uint8(119),
    "k": rand(5),
    "a": np.float32(0.3),
    "p": np.uint8(7),
}
SIGNED = {**UNSIGNED, "w": UNSIGNED["w"].view(np.int8), "z": np.int8(3)}
BY_COLUMN = {**UNSIGNED, "s": np.abs(rand(5)), "z": UNSIGNED["w"][0]}


def made(*nodes, x, opset=17, puts="y", **weights):
    kinds = {np.uint8: TensorProto.UINT8, np.float32: TensorProto.FLOAT}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value(name, kinds[data.dtype.type], *data.shape) for name, data in x.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in puts.split()],
        [numpy_helper.from_array(np.asarray(data), name) for name, data in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def apart(whole: ModelProto) -> ModelProto:
    """The model as the proof takes it apart, with names that onnxruntime takes."""
    empty = helper.make_model(helper.make_graph([], "g", [], []))
    found = copy.deepcopy(lowered(whole, empty)[0])
    for number, node in enumerate(found.graph.node):
        node.name = f"node{number}"
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = name.replace("\0", "new ")
    for stored in found.graph.initializer:
        stored.name = stored.name.replace("\0", "new ")
    return found


def skips():
    """SkipLayerNormalization: inputs left out, sizes of the second, ε."""
    small = {"x": 1e-5 * rand(*X), "t": 1e-5 * rand(*X)}
    for opset in (13, 17):
        for names in ("x t g b k", "x t g _ k", "x t g b", "x t g"):
            yield (
                made(
                    op("SkipLayerNormalization", names, "y", domain=MS),
                    x=small,
                    opset=opset,
                    **NORM,
                ),
                small,
            )
    for part in (small["t"][0], small["t"][:1]):
        data = {"x": small["x"], "t": part}
        norm = op("SkipLayerNormalization", "x t g b k", "y _ _ u", domain=MS, epsilon=1e-10)
        norm.output[1] = norm.output[2] = ""
        yield made(norm, x=data, puts="y u", **NORM), data


def simplified():
    small = {"x": 1e-3 * rand(*X)}
    for given in ({}, {"epsilon": 1e-8}, {"axis": -1}):
        yield made(op("SimplifiedLayerNormalization", "x g", "y", **given), x=small, **NORM), small


def products():
    floats, integers = {"x": rand(*X)}, {"x": UNSIGNED["w"].T[:, None, :].copy()}
    for stored in (UNSIGNED, SIGNED, BY_COLUMN):
        for names in ("x w s z k", "x w s z", "x w s", "x w s _ k"):
            yield (
                made(op("DynamicQuantizeMatMul", names, "y", domain=MS), x=floats, **stored),
                floats,
            )
        for names in ("x w a s p z k", "x w a s _ z", "x w a s p _ k", "x w a s"):
            yield (
                made(op("MatMulIntegerToFloat", names, "y", domain=MS), x=integers, **stored),
                integers,
            )


@pytest.mark.parametrize("kind", [skips, simplified, products])
def test_the_parts_of_an_operator_are_what_it_puts_out(kind):
    for whole, data in kind():
        parts = apart(whole)
        assert whole.graph.node[0].op_type not in {node.op_type for node in parts.graph.node}
        for one, other in zip(run(whole, data), run(parts, data), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def normed(*nodes, opset=17, **changed):
    return model(*nodes, x={"x": X, "t": X}, weights={**NORM, **changed}, opset=opset)


SUM = [op("Add", "t k", "u"), op("Add", "x u", "v")]
SKIP = op("SkipLayerNormalization", "x t g b k", "y", domain=MS, epsilon=1e-5)
PAIRS = {
    "skip": (SKIP, [*SUM, op("LayerNormalization", "v g b", "y", axis=-1)]),
    "skip, in parts": (
        SKIP,
        [
            *SUM,
            op("ReduceMean", "v", "m", axes=[-1]),
            op("Sub", "v m", "c"),
            op("Pow", "c two", "q"),
            op("ReduceMean", "q", "a", axes=[-1]),
            op("Add", "a e", "f"),
            op("Sqrt", "f", "r"),
            op("Div", "c r", "n"),
            op("Mul", "n g", "h"),
            op("Add", "h b", "y"),
        ],
    ),
    "simplified": (
        op("SimplifiedLayerNormalization", "x g", "y", axis=-1, epsilon=1e-5),
        [
            op("Mul", "x x", "q"),
            op("ReduceMean", "q", "a", axes=[-1]),
            op("Add", "a e", "f"),
            op("Sqrt", "f", "r"),
            op("Div", "x r", "n"),
            op("Mul", "n g", "y"),
        ],
    ),
}
NUMBERS = {"two": np.float32(2), "e": np.float32(1e-5)}


def test_a_norm_behind_a_sum_is_the_two():
    for name, (whole, parts) in PAIRS.items():
        one, other = (normed(*nodes, **NUMBERS) for nodes in ([whole], parts))
        assert proof(one, other).status == proof(other, one).status == "proved", name
        for attribute in ({"epsilon": 1e-3}, {"epsilon": 0.0}):
            changed = op(
                whole.op_type, " ".join(whole.input), "y", domain=whole.domain, **attribute
            )
            assert proof(normed(changed, **NUMBERS), other).status != "proved", (name, attribute)
        for left in ("g", "b", "k"):
            if left in whole.input:
                shifted = normed(whole, **NUMBERS, **{left: NORM[left] * np.float32(1 + 1e-3)})
                assert proof(shifted, other).status != "proved", (name, left)
    # Without ε this one adds 1e-12, and LayerNormalization 1e-5.
    plain = op("SkipLayerNormalization", "x t g b k", "y", domain=MS)
    assert proof(normed(plain), normed(*PAIRS["skip"][1])).status != "proved"


def quantized(*nodes, **changed):
    stored = {**UNSIGNED, **changed}
    return made(*nodes, x={"x": rand(*X)}, **stored)


PRODUCT = [
    op("DynamicQuantizeLinear", "x", "q qs qz"),
    op("MatMulInteger", "q w qz z", "i"),
    op("Cast", "i", "f", to=TensorProto.FLOAT),
    op("Mul", "qs s", "m"),
    op("Mul", "f m", "n"),
    op("Add", "n k", "y"),
]


def test_a_product_of_integers_is_one_with_what_makes_them():
    parts = quantized(*PRODUCT)
    half = [PRODUCT[0], op("MatMulIntegerToFloat", "q w qs s qz z k", "y", domain=MS)]
    for nodes in ([op("DynamicQuantizeMatMul", "x w s z k", "y", domain=MS)], half):
        assert proof(parts, quantized(*nodes)).status == "proved"
        assert proof(quantized(*nodes), parts).status == "proved"
        for name in ("w", "s", "z", "k"):
            changed = quantized(*nodes, **{name: UNSIGNED[name] + np.ones_like(UNSIGNED[name])})
            assert proof(parts, changed).status != "proved", name
        for place, left in itertools.product((0, 1), ("z", "k")):
            fewer = [copy.deepcopy(node) for node in nodes]
            names = fewer[-1].input
            names[list(names).index(left)] = ""
            pair = (parts, quantized(*fewer))[:: 1 - 2 * place]
            assert proof(*pair).status != "proved", left


def test_a_size_below_zero_is_not_told():
    one, other = (normed(op("Add", "x t", "y")) for _ in range(2))
    for made_ in (one, other):
        made_.graph.output[0].type.tensor_type.ClearField("shape")
    one.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    other.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    assert proof(one, other).status == "proved"
    other.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert proof(one, other).status == "not proved"
