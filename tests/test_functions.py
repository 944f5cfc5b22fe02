"""Model-local functions: one body, several calls, and what is read of them."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold._onnx.read.scopes import read_scopes
from bnfold._onnx.read.shapes import infer

from .functions import (
    DOMAIN,
    block,
    call,
    constant,
    convolving,
    function,
    params,
    refers,
    two_calls,
)
from .graphs import (
    bn,
    codes,
    conv,
    counts,
    fold,
    folds,
    model,
    op,
    positive,
    rand,
)
from .runtimes import mixes_overloads

BN = op("BatchNormalization", "c s t m v", "y", name="bn", epsilon=0.01)


def test_two_calls_with_their_own_weights():
    m = two_calls(3, 4, 5)
    after = folds(m, Conv=2)
    assert not after.functions
    plan = bnfold.plan(m)
    places = ["call_h: function my::Block", "call_y: function my::Block"]
    assert [fold.graph for fold in plan.folds] == places
    assert {(fold.nodes, fold.into) for fold in plan.folds} == {(("bn",), "conv")}
    executed = {"BatchNormalization": 2, "Conv": 2}
    assert (plan.before, plan.after) == (executed, {"Conv": 2})
    assert [node.name for node in after.graph.node] == ["call_h/conv", "call_y/conv"]
    assert [list(node.output) for node in after.graph.node] == [["h"], ["y"]]


def test_two_calls_that_share_their_weights():
    m = model(
        call("a", "x", "h"),
        call("a", "h", "y"),
        functions=[block()],
        domains=DOMAIN,
        weights=params("a", 3, 3),
    )
    folds(m, Conv=2)


def test_weights_inside_the_body_fold_for_every_call():
    body = convolving("stmv", BN)
    m = model(
        op("Block", "x", "h", domain="my"),
        op("Block", "h", "y", domain="my"),
        functions=[function("Block", "x", "y", body)],
        domains=DOMAIN,
    )
    after = counts(fold(m))
    assert "BatchNormalization" not in after
    assert after["Conv"] == 1


def test_mixed_weights_inside_and_as_inputs():
    body = [
        *(constant(n, v) for n, v in zip("stmv", [rand(3), rand(3), rand(3), positive(3)])),
        op("Conv", "x w", "c", name="conv"),
        BN,
    ]
    m = model(
        op("Block", "x w1", "h", domain="my"),
        op("Block", "h w2", "y", domain="my"),
        functions=[function("Block", "x w", "y", body)],
        domains=DOMAIN,
        weights={"w1": rand(3, 3, 3, 3), "w2": rand(3, 3, 3, 3)},
    )
    folds(m, Conv=2)


def test_function_output_in_the_middle_is_not_folded_away():
    """A function that gives out the conv's value as well."""
    body = convolving("stmv", BN)
    m = model(
        op("Block", "x", "y z", domain="my"),
        functions=[function("Block", "x", "y c", body)],
        domains=DOMAIN,
        y="y z",
    )
    after = fold(m)
    assert counts(after)["BatchNormalization"] == 1
    assert codes(m)["bn"] in ("graph-output", "shared-output")


def test_batchnorm_outside_behind_a_conv_in_a_function():
    body = [constant("w", rand(3, 3, 3, 3)), op("Conv", "x w", "y", name="conv")]
    m = model(
        op("Block", "x", "c", domain="my", name="call"),
        bn("bn", "c", "b", 3),
        op("Block", "b", "y", domain="my"),
        functions=[function("Block", "x", "y", body)],
        domains=DOMAIN,
    )
    after = counts(fold(m))
    assert (after.pop("Constant", 0) > 0, after) == (True, {"Conv": 2, "Block": 1})


def test_epsilon_given_as_a_function_attribute():
    """Each call has its own ε: the body's BN must not be folded with one of them."""
    node = op("BatchNormalization", "c s t m v", "y", name="bn")
    node.attribute.append(refers("epsilon", 0.0, "eps"))
    body = convolving("stmv", node)
    m = model(
        op("Block", "x", "h", domain="my", eps=0.5),
        op("Block", "h", "y", domain="my", eps=0.01),
        functions=[function("Block", "x", "y", body, ["eps"])],
        domains=DOMAIN,
    )
    after = counts(fold(m))
    assert (after.pop("Constant", 0) > 0, after) == (True, {"Conv": 2})


def test_conv_group_given_as_a_function_attribute():
    node = op("ConvTranspose", "x w", "c", name="conv")
    node.attribute.append(refers("group", 1, "groups"))
    body = [
        constant("w", rand(4, 4, 1, 1)),
        constant("k", rand(4, 1, 1)),
        node,
        op("Mul", "c k", "y", name="mul"),
    ]
    m = model(
        op("Block", "x", "y", domain="my", groups=1),
        functions=[function("Block", "x", "y", body, ["groups"])],
        domains=DOMAIN,
        x=(2, 4, 5, 5),
    )
    fold(m)


def test_constant_value_given_as_a_function_attribute():
    k = op("Constant", "", "k", name="k")
    k.attribute.append(refers("value_float", 1.0, "factor"))
    body = convolving("", k, op("Mul", "c k", "y", name="mul"))
    m = model(
        op("Block", "x", "h", domain="my", factor=2.0),
        op("Block", "h", "y", domain="my", factor=-3.0),
        functions=[function("Block", "x", "y", body, ["factor"])],
        domains=DOMAIN,
    )
    after = counts(fold(m))
    assert (after.pop("Constant", 0) > 0, after) == (True, {"Conv": 2})


def test_function_that_shadows_a_standard_operator_name():
    """A local function named Conv is not Conv, one named BatchNormalization is no BN."""
    twist = function("Conv", "x w", "y", [op("Conv", "x w", "c"), op("Relu", "c", "y")])
    norm = function("BatchNormalization", "x s t m v", "y", [op("Tanh", "x", "y")])
    m = model(
        op("Conv", "x w", "c", domain="my", name="conv"),
        bn("bn", "c", "b", 4),
        op("BatchNormalization", "b s t m v", "z", domain="my", name="notbn"),
        functions=[twist, norm],
        domains=DOMAIN,
        weights={"w": rand(4, 3, 3, 3)} | dict(zip("stmv", [rand(4)] * 3 + [positive(4)])),
        y="z",
    )
    after = fold(m)
    assert counts(after) == counts(m)


@pytest.mark.parametrize("kind", ["Reshape", "Slice"])
def test_a_function_that_shadows_a_name_has_shapes_of_its_own(kind):
    """What is known of ONNX's operator of that name, here of rank 2, tells nothing of it: its
    output has an axis more, [1, 4, 4]. The BatchNormalization is along the first 4, not the last.
    """
    inputs, bounds = {
        "Reshape": ("x a", {"a": np.array([4, 4], np.int64)}),
        "Slice": ("x a b", {"a": np.array([0], np.int64), "b": np.array([4], np.int64)}),
    }[kind]
    # Inference does not tell how many numbers a Compress leaves, and so no rank behind Reshape.
    body = function(
        kind,
        inputs,
        "y",
        [
            op("Constant", "", "one", value_ints=[1]),
            op("Constant", "", "fours", value_ints=[4, 4]),
            op("Constant", "", "ones", value_ints=[1, 1]),
            op("Cast", "ones", "all", to=9),
            op("Compress", "fours all", "two", axis=0),
            op("Concat", "one two", "three", axis=0),
            op("Reshape", "x three", "y"),
        ],
    )
    stats = np.arange(1, 5).astype(np.float32)
    m = model(
        op(kind, inputs, "r", domain="my"),
        op("MatMul", "r w", "p"),
        op("BatchNormalization", "p s t m v", "y", name="bn"),
        functions=[body],
        domains=DOMAIN,
        weights={"w": rand(4, 4), "s": stats, "t": 0 * stats, "m": 0 * stats, "v": stats, **bounds},
        x=(4, 4),
    )
    assert counts(fold(m))["BatchNormalization"] == 1


def test_a_function_that_shadows_a_norm_has_channels_of_its_own():
    """It leaves two of four, and has parameters for all."""
    body = function(
        "BatchNormalization",
        "x s t m v",
        "y",
        [
            constant("some", np.array([True, True, False, False])),
            op("Compress", "x some", "y", axis=1),
        ],
    )
    weights = dict(zip("stmv", [positive(4) for _ in "stmv"]))
    m = model(
        op("BatchNormalization", "x s t m v", "y", domain="my"),
        functions=[body],
        domains=DOMAIN,
        weights=weights,
        x=(2, 4),
    )
    scopes = read_scopes(m)
    assert infer(m, scopes).shape(scopes[0], "y") in (None, (2, None), (2, 2))


def test_overloads_of_one_name():
    """Two overloads differ only in their field `overload`."""
    body = convolving("k", op("Mul", "c k", "y"))
    one = function("Block", "x", "y", body, overload="one")
    two = function("Block", "x", "y", [op("Relu", "x", "y")], overload="two")
    m = model(
        op("Block", "x", "h", domain="my", overload="one"),
        op("Block", "h", "y", domain="my", overload="two"),
        functions=[one, two],
        domains=DOMAIN,
        ir=10,
    )
    after = fold(m, runtime=not mixes_overloads())
    assert [f.overload for f in after.functions] == ["one", "two"]
    assert "Mul" not in counts(after)


OLDER = {
    "BatchNormalization": (11, [BN]),
    "Dropout": (11, [op("Dropout", "c", "d", ratio=0.5), op("Mul", "d k", "y")]),
    "Clip": (10, [op("Clip", "c", "d", min=0.0, max=0.5), op("Mul", "d k", "y")]),
}


@pytest.mark.parametrize("kind", OLDER)
def test_function_of_an_older_opset_reads_by_its_own_rules(kind):
    """Ratio and bounds are attributes there. onnxruntime reads them as the model's opset has them,
    so the reference runs those two; without its bounds a Clip would not take the scale to them.
    """
    opset, nodes = OLDER[kind]
    body = [constant("k", np.float32(0.5)), *convolving("stmv", *nodes)]
    m = model(
        op("Block", "x", "y", domain="my"),
        functions=[function("Block", "x", "y", body, opset=opset)],
        domains=DOMAIN,
    )
    after = counts(fold(m, runtime=kind == "BatchNormalization"))
    assert not {"BatchNormalization", "Mul"} & set(after)


def test_affine_on_function_input():
    """The operator that takes it in stands outside."""
    body = [constant("k", rand(3, 1, 1)), op("Mul", "x k", "y", name="mul")]
    m = model(
        conv("conv", "x", "c", (3, 3, 1, 1)),
        op("Block", "c", "y", domain="my"),
        functions=[function("Block", "x", "y", body)],
        domains=DOMAIN,
    )
    after = counts(fold(m))
    assert after == {"Conv": 1}


def test_function_with_unknown_rank_input():
    """Inside a body the rank is not given; Conv's weight tells it, MatMul's does not."""
    body = [
        constant("w", rand(4, 4)),
        constant("k", rand(4, 1)),
        op("MatMul", "x w", "c", name="mm"),
        op("Mul", "c k", "y", name="mul"),
    ]
    m = model(
        op("Block", "x", "y", domain="my"),
        functions=[function("Block", "x", "y", body)],
        domains=DOMAIN,
        x=(4, 4, 4),
    )
    assert fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("k", [(4,), (4, 1), (1,)], ids=str)
def test_function_body_gemm(k):
    body = [
        constant("w", rand(4, 4)),
        constant("k", rand(*k)),
        op("Gemm", "x w", "c", name="fc"),
        op("Mul", "c k", "y", name="mul"),
    ]
    m = model(
        op("Block", "x", "y", domain="my"),
        functions=[function("Block", "x", "y", body)],
        domains=DOMAIN,
        x=(4, 4),
    )
    after = fold(m)
    assert ("Mul" in counts(after)) == (k == (4, 1))


def test_unused_function_is_left():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "y", 4),
        functions=[function("Idle", "x", "y", [op("Relu", "x", "y")])],
        domains=DOMAIN,
    )
    after = folds(m, Conv=1, Relu=1)
    assert after.functions[0] == m.functions[0]


def test_weights_of_the_body_are_those_of_the_body():
    """A value inside a body has the name of an initializer outside; they are two values."""
    body = convolving("", op("Mul", "c k", "y", name="mul"))
    m = model(
        op("Block", "x k2", "y", domain="my"),
        functions=[function("Block", "x k", "y", body)],
        domains=DOMAIN,
        x={"x": (2, 3, 5, 5), "k2": (3, 1, 1)},
        weights={"k": np.float32(3)},
    )
    assert fold(m).SerializeToString() == m.SerializeToString()
