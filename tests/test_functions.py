"""Model-local functions: one body, several calls."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper

import bnfold
from bnfold._onnx import fold as folding
from bnfold._onnx.read import inlining
from bnfold._onnx.read.scopes import Names, read_scopes
from bnfold._onnx.read.shapes import infer
from bnfold._proof import inlined_calls
from bnfold._proof.certificate import certify

from .cli.command import bnfold as command
from .graphs import (
    bn,
    codes,
    conv,
    counts,
    done,
    fold,
    folds,
    label,
    model,
    op,
    positive,
    rand,
    tensor,
)
from .runtimes import mixes_overloads

DOMAIN = {"my": 1}


def function(name, inputs, outputs, nodes, attributes=(), opset=17, **more):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1)]
    return helper.make_function(
        "my", name, inputs.split(), outputs.split(), list(nodes), imports, list(attributes), **more
    )


def refers(name, example, to):
    """An attribute whose value is that of the function's attribute ``to``."""
    attr = helper.make_attribute(name, example)
    return AttributeProto(name=name, type=attr.type, ref_attr_name=to)


def constant(name, value):
    return op("Constant", "", name, value=tensor(value, ""))


BLOCK = "x w s t m v"


def block(name="Block", **more):
    return function(
        name,
        BLOCK,
        "y",
        [
            op("Conv", "x w", "c", name="conv"),
            op("BatchNormalization", "c s t m v", "y", name="bn", epsilon=0.01),
        ],
        **more,
    )


def params(prefix, c_in, c_out):
    values = [rand(c_out, c_in, 3, 3), rand(c_out), rand(c_out), rand(c_out), positive(c_out)]
    return dict(zip((f"{prefix}.{n}" for n in "wstmv"), values))


def call(prefix, x, y, name="Block"):
    inputs = " ".join([x, *(f"{prefix}.{n}" for n in "wstmv")])
    return op(name, inputs, y, domain="my", name=f"call_{y}")


def test_two_calls_with_their_own_weights():
    m = model(
        call("a", "x", "h"),
        call("b", "h", "y"),
        functions=[block()],
        domains=DOMAIN,
        weights=params("a", 3, 4) | params("b", 4, 5),
    )
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
    body = [
        constant("w", rand(3, 3, 3, 3)),
        *(constant(n, v) for n, v in zip("stmv", [rand(3), rand(3), rand(3), positive(3)])),
        op("Conv", "x w", "c", name="conv"),
        op("BatchNormalization", "c s t m v", "y", name="bn", epsilon=0.01),
    ]
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
        op("BatchNormalization", "c s t m v", "y", name="bn", epsilon=0.01),
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
    body = [
        constant("w", rand(3, 3, 3, 3)),
        *(constant(n, v) for n, v in zip("stmv", [rand(3), rand(3), rand(3), positive(3)])),
        op("Conv", "x w", "c", name="conv"),
        op("BatchNormalization", "c s t m v", "y", name="bn", epsilon=0.01),
    ]
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
    body = [
        constant("w", rand(3, 3, 3, 3)),
        *(constant(n, v) for n, v in zip("stmv", [rand(3), rand(3), rand(3), positive(3)])),
        op("Conv", "x w", "c", name="conv"),
        node,
    ]
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
    body = [
        constant("w", rand(3, 3, 3, 3)),
        op("Conv", "x w", "c", name="conv"),
        k,
        op("Mul", "c k", "y", name="mul"),
    ]
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
    one = function(
        "Block",
        "x",
        "y",
        [
            constant("w", rand(3, 3, 1, 1)),
            constant("k", rand(3, 1, 1)),
            op("Conv", "x w", "c"),
            op("Mul", "c k", "y"),
        ],
        overload="one",
    )
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


def test_function_calls_a_function():
    inner = function(
        "Inner",
        "x",
        "y",
        [
            constant("w", rand(3, 3, 1, 1)),
            constant("k", rand(3, 1, 1)),
            op("Conv", "x w", "c"),
            op("Add", "c k", "y"),
        ],
    )
    outer = function(
        "Outer",
        "x",
        "y",
        [
            op("Inner", "x", "a", domain="my"),
            constant("k", rand(1)),
            op("Mul", "a k", "b"),
            op("Inner", "b", "y", domain="my"),
        ],
    )
    m = model(
        op("Outer", "x", "h", domain="my"),
        op("Inner", "h", "y", domain="my"),
        functions=[inner, outer],
        domains=DOMAIN,
    )
    after = fold(m)
    assert "Add" not in counts(after)


def test_function_of_an_older_opset_reads_by_its_own_rules():
    """In a body that imports opset 11, Dropout's and BN's rules are those of 11."""
    body = [
        constant("w", rand(3, 3, 1, 1)),
        *(constant(n, v) for n, v in zip("stmv", [rand(3), rand(3), rand(3), positive(3)])),
        op("Conv", "x w", "c"),
        op("BatchNormalization", "c s t m v", "y", epsilon=0.01),
    ]
    m = model(
        op("Block", "x", "y", domain="my"),
        functions=[function("Block", "x", "y", body, opset=17)],
        domains=DOMAIN,
    )
    after = counts(fold(m))
    assert "BatchNormalization" not in after


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
    body = [
        constant("w", rand(3, 3, 1, 1)),
        op("Conv", "x w", "c", name="conv"),
        op("Mul", "c k", "y", name="mul"),
    ]
    m = model(
        op("Block", "x k2", "y", domain="my"),
        functions=[function("Block", "x k", "y", body)],
        domains=DOMAIN,
        x={"x": (2, 3, 5, 5), "k2": (3, 1, 1)},
        weights={"k": np.float32(3)},
    )
    assert fold(m).SerializeToString() == m.SerializeToString()


# --- what is made of a call ----------------------------------------------------------------------


def kept_by(made):
    return {kept.node: kept for kept in bnfold.plan(made).kept}


def test_only_the_calls_in_which_something_folds_are_inlined():
    """One call gives its weights as constants, the other computes them."""
    computed = [op("Sigmoid", "v0", "v1"), op("Block", "h w s t m v1", "y", domain="my")]
    own = params("a", 3, 3)
    shapes = {"x": (2, 3, 8, 8), "v0": (3,)}
    m = model(
        call("a", "x", "h"),
        *computed,
        x=shapes,
        functions=[block()],
        domains=DOMAIN,
        weights=own | dict(zip("wstm", [rand(3, 3, 3, 3), rand(3), rand(3), rand(3)])),
    )
    after = fold(m)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Sigmoid", "Block"]
    assert after.functions[0] == m.functions[0]
    assert kept_by(m)["bn"].graph == "function my::Block"


def test_what_folds_for_all_calls_stays_in_the_function():
    """A map of its own constants folds once; only what a call gives takes that call apart."""
    body = [
        constant("w", rand(3, 3, 3, 3)),
        constant("k", rand(3, 1, 1)),
        op("Conv", "x w", "c", name="conv"),
        op("Mul", "c k", "d", name="mul"),
        op("Relu", "d", "e"),
        op("Conv", "e u", "f", name="second"),
        op("BatchNormalization", "f s t m v", "y", name="bn"),
    ]
    block = function("Block", "x u s t m v", "y", body)
    plain = model(
        op("Block", "x u s t m v", "h", domain="my"),
        op("Block", "h u s t m v", "y", domain="my"),
        x={"x": (2, 3, 9, 9), "u": (3, 3, 1, 1), **dict.fromkeys("stmv", (3,))},
        functions=[block],
        domains=DOMAIN,
    )
    after = fold(plain, runtime=False)
    assert (len(after.functions), counts(after)["Block"]) == (1, 2)
    assert "Mul" not in counts(after)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_weights_that_pass_through_functions(depth):
    """Each function hands what it is given on to the next one, in another order."""
    layers = [block("Block0")]
    for number in range(1, depth + 1):
        inner = op(f"Block{number - 1}", "a w s t m v", "b", domain="my", name="inner")
        body = [op("Relu", "x", "a", name="relu"), inner, op("Relu", "b", "y", name="last")]
        layers.append(function(f"Block{number}", "v m t s w x", "y", body))
    weights = params("a", 3, 4) | params("b", 4, 5)
    nodes = [
        op(
            f"Block{depth}",
            " ".join([*(f"{p}.{n}" for n in "vmtsw"), x]),
            y,
            domain="my",
        )
        for p, x, y in (("a", "x", "h"), ("b", "h", "y"))
    ]
    for layer in layers[2:]:  # the functions but the innermost one take weights in this order
        layer.node[1].input[:] = ["v", "m", "t", "s", "w", "a"]
    m = model(*nodes, functions=layers, domains=DOMAIN, weights=weights)
    after = fold(m)
    assert "BatchNormalization" not in counts(after)
    assert not after.functions
    assert bnfold.plan(m).folds[0].graph.startswith(f"h_block{depth}/")


def test_calls_in_bodies_of_an_if():
    def branch(prefix):
        body = call(prefix, "x", f"{prefix}.y")
        out = helper.make_tensor_value_info(f"{prefix}.y", 1, None)
        return helper.make_graph([body], prefix, [], [out])

    weights = params("a", 3, 4) | params("b", 3, 4) | {"cond": np.array(True)}
    choice = op("If", "cond", "y", then_branch=branch("a"), else_branch=branch("b"), name="if")
    m = model(choice, functions=[block()], domains=DOMAIN)
    m.graph.initializer.extend(tensor(v, k) for k, v in weights.items() if k != "cond")
    m.graph.input.append(helper.make_tensor_value_info("cond", 9, []))
    for cond in (True, False):
        after = fold(m, {"x": rand(2, 3, 8, 8), "cond": np.array(cond)})
    assert "BatchNormalization" not in counts(after)
    places = {f.graph for f in bnfold.plan(m).folds}
    assert places == {
        "if.then_branch/call_a.y: function my::Block",
        "if.else_branch/call_b.y: function my::Block",
    }


def test_a_body_of_an_if_in_a_function_keeps_its_own_names():
    """A branch has a tensor with a name of the graph around, and reads others from there."""
    then = helper.make_graph(
        [op("Conv", "x w", "h", name="conv"), op("BatchNormalization", "h s t m v", "y")],
        "then",
        [],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    other = helper.make_graph(
        [op("Conv", "x w", "h")], "else", [], [helper.make_tensor_value_info("h", 1, None)]
    )
    body = [op("If", "cond", "y1", then_branch=then, else_branch=other)]
    m = model(
        op("Block", "x cond a.w a.s a.t a.m a.v", "h", domain="my", name="one"),
        op("Relu", "h", "w"),
        op("Block", "w cond b.w b.s b.t b.m b.v", "y", domain="my", name="two"),
        functions=[function("Block", "x cond w s t m v", "y1", body)],
        domains=DOMAIN,
        weights=params("a", 3, 3) | params("b", 3, 3),
    )
    m.graph.input.append(helper.make_tensor_value_info("cond", 9, []))
    for cond in (True, False):
        after = fold(m, {"x": rand(2, 3, 8, 8), "cond": np.array(cond)})
    assert "BatchNormalization" not in counts(after)


@pytest.mark.parametrize("rest", [["r"], []], ids=str)
def test_absent_inputs_and_outputs(rest):
    """A bias that a call leaves out, and an output that nobody takes.

    onnxruntime 1.31 does not load a call with fewer outputs than its function has.
    """
    body = [
        op("Conv", "x w b", "c", name="conv"),
        op("Mul", "c k", "y", name="mul"),
        op("Relu", "x", "more"),
    ]
    m = model(
        helper.make_node("Block", ["x", "w", "", "k"], ["h", "g"], "one", domain="my"),
        helper.make_node("Block", ["h", "w", "b", "k"], ["y", *rest], "two", domain="my"),
        functions=[function("Block", "x w b k", "y more", body)],
        domains=DOMAIN,
        weights={"w": rand(3, 3, 1, 1), "b": rand(3), "k": rand(3, 1, 1)},
        y="y g",
    )
    after = folds(m, Conv=2, Relu=2, runtime=bool(rest))
    assert {name for node in after.graph.node for name in node.output} >= {"h", "g", "y"}


def test_a_function_that_puts_out_what_it_is_given_is_left():
    """No runtime takes it (seen in onnxruntime 1.31)."""
    body = [op("Conv", "x w", "c", name="conv"), op("Mul", "c k", "y", name="mul")]
    m = model(
        op("Block", "x w k", "y z", domain="my"),
        functions=[function("Block", "x w k", "y k", body)],
        domains=DOMAIN,
        weights={"w": rand(3, 3, 1, 1), "k": rand(3, 1, 1)},
        y="y z",
    )
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_names_that_inlining_would_give_are_taken():
    m = model(
        op("Relu", "x", "call_h/c", name="call_h/conv"),
        call("a", "call_h/c", "h"),
        functions=[block()],
        domains=DOMAIN,
        weights=params("a", 3, 4),
        y="h",
    )
    after = folds(m, Relu=1, Conv=1)
    assert len({node.name for node in after.graph.node}) == 2


def test_attributes_of_each_call_and_defaults():
    """Strides by the call or, where it gives none, by the function's default, or ONNX's."""
    node = op("Conv", "x w", "c", name="conv")
    node.attribute.append(refers("strides", [1, 1], "steps"))
    node.attribute.append(refers("pads", [1, 1, 1, 1], "border"))
    body = [node, op("BatchNormalization", "c s t m v", "y", name="bn")]
    made = function(
        "Block",
        BLOCK,
        "y",
        body,
        ["border"],
        attribute_protos=[helper.make_attribute("steps", [2, 2])],
    )
    m = model(
        op("Block", "x a.w a.s a.t a.m a.v", "h", domain="my", border=[1, 1, 1, 1]),
        op("Block", "h b.w b.s b.t b.m b.v", "y", domain="my", steps=[1, 1]),
        functions=[made],
        domains=DOMAIN,
        weights=params("a", 3, 4) | params("b", 4, 5),
    )
    after = folds(m, Conv=2)
    first, second = ({a.name: list(a.ints) for a in n.attribute} for n in after.graph.node)
    assert first == {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    assert second == {"strides": [1, 1]}


def test_a_function_of_another_opset():
    """Relu is the same in both opsets, and BatchNormalization is not."""
    for opset, inlined in ((16, True), (13, False)):
        m = model(
            call("a", "x", "y"),
            functions=[block(opset=opset)],
            domains=DOMAIN,
            weights=params("a", 3, 4),
        )
        assert bool(bnfold.plan(m).folds) == inlined
        if not inlined:
            kept = kept_by(m)["bn"]
            assert kept.graph == "function my::Block"
            assert "onnx.inliner" in kept.advice


def test_the_model_knows_the_domains_of_inlined_operators_and_no_more():
    """A function may import what no operator of it is of, and what the model has not imported."""
    made = block()
    made.opset_import.append(helper.make_opsetid("unused", 7))
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made.node[-1].output[0] = "before"
    made.node.append(op("Gelu", "before", "y", domain="com.microsoft"))
    m = model(call("a", "x", "y"), functions=[made], domains=DOMAIN, weights=params("a", 3, 4))
    after = bnfold.fold(m)
    assert counts(after) == {"Conv": 1, "Gelu": 1}
    assert {entry.domain for entry in after.opset_import} == {"", "my", "com.microsoft"}


def test_a_function_that_calls_itself_is_left():
    body = [
        op("Block", "x w s t m v", "c", domain="my"),
        op("BatchNormalization", "c s t m v", "y"),
    ]
    m = model(
        call("a", "x", "y"),
        functions=[function("Block", BLOCK, "y", body)],
        domains=DOMAIN,
        weights=params("a", 3, 3),
    )
    assert not bnfold.plan(m).folds


def test_functions_that_nobody_called_stay():
    idle = function("Idle", BLOCK, "y", [op("Inner", BLOCK, "y", domain="my")])
    m = model(
        call("a", "x", "y"),
        functions=[block(), idle, block("Inner")],
        domains=DOMAIN,
        weights=params("a", 3, 4),
    )
    after = folds(m, Conv=2, Inner=1, BatchNormalization=1)
    assert [f.name for f in after.functions] == ["Idle", "Inner"]


def test_a_map_that_stays_even_if_inlined_says_why():
    body = [constant("k", rand(3, 1, 1)), op("Mul", "x k", "y", name="mul")]
    m = model(
        op("Sigmoid", "x", "c", name="sigmoid"),
        op("Block", "c", "d", domain="my", name="call"),
        op("Sigmoid", "d", "y"),
        functions=[function("Block", "x", "y", body)],
        domains=DOMAIN,
    )
    assert fold(m).SerializeToString() == m.SerializeToString()
    kept = kept_by(m)["mul"]
    assert (kept.graph, kept.code) == ("function my::Block", "no-linear-operator")
    assert "sigmoid" in kept.message


def test_the_command_verifies_what_calls_have_become(tmp_path):
    m = model(
        call("a", "x", "h"),
        call("b", "h", "y"),
        functions=[block()],
        domains=DOMAIN,
        weights=params("a", 3, 4) | params("b", 4, 5),
    )
    onnx.save(m, tmp_path / "m.onnx")
    run = command(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "-v")
    assert (run.code, run.err) == (0, "")
    assert "  bn → conv [call_h: function my::Block] (absorb behind Conv)" in run.lines
    assert "certificates: 3 of 3 hold" in run.lines
    assert command("verify", tmp_path / "m.onnx", tmp_path / "o.onnx").code == 0


@pytest.mark.parametrize("wrong", ["attribute", "order", "input", "constant"])
def test_the_certificate_sees_calls_that_were_inlined_wrongly(wrong, monkeypatch):
    right = inlining._Inliner._body

    def spoilt(self, function, node, here, infos):
        nodes = right(self, function, node, here, infos)
        if wrong == "attribute":
            nodes[-1].attribute[0].f = 0.02
        elif wrong == "constant":
            self._model.graph.initializer[0].raw_data = b"\0" * 4 * 81
        elif wrong == "order":
            node.input[1:3] = reversed(node.input[1:3])
            nodes[-1].input[1:3] = reversed(nodes[-1].input[1:3])
        else:
            nodes[0].input[0] = "x"
        return nodes

    monkeypatch.setattr(inlining._Inliner, "_body", spoilt)
    m = model(
        call("a", "x", "h"),
        call("b", "h", "y"),
        functions=[block()],
        domains=DOMAIN,
        weights=params("a", 3, 3) | params("b", 3, 3),
    )
    once = done(m)
    (inlined,) = (c for c in certify(m, once.folded, once.applied) if c.law == "inline")
    assert inlined.fails


def test_inlined_calls_that_cannot_be_checked_rest_on_their_weights(monkeypatch):
    """Errors are planted in the calls, so that the comparison can stand for the certificate."""

    def broken(model):
        raise RuntimeError("broken")

    monkeypatch.setattr(inlined_calls, "inline_local_functions", broken)
    m = model(
        call("a", "x", "h"),
        call("b", "h", "y"),
        functions=[block()],
        domains=DOMAIN,
        weights=params("a", 3, 3) | params("b", 3, 3),
    )
    once = done(m)
    (inlined,) = (c for c in certify(m, once.folded, once.applied) if c.law == "inline")
    assert inlined.unchecked is not None
    assert inlined.layers == {label(node) for node in m.graph.node}


def nested(depth):
    """Functions that call each other in a row, with a Relu in each."""
    body = [[op("Relu", "x", "h"), op(f"F{n + 1}", "h", "y", domain="my")] for n in range(depth)]
    body.append([op("Relu", "x", "y")])
    return model(
        op("F0", "x", "y", domain="my"),
        functions=[function(f"F{n}", "x", "y", nodes) for n, nodes in enumerate(body)],
        domains=DOMAIN,
    )


@pytest.mark.parametrize(
    ("calls", "plans"), [("none", 1), ("every one folds", 2), ("one folds, one may not", 3)]
)
def test_a_model_is_planned_no_more_often_than_it_has_forms(calls, plans, monkeypatch):
    """As it is, with all calls inlined, and with those that pay; and not again to be folded."""
    read, seen = folding.read, []
    monkeypatch.setattr(folding, "read", lambda *given: seen.append(given) or read(*given))
    pieces = {
        "none": [op("Relu", "x", "y")],
        "every one folds": [call("a", "x", "h"), call("b", "h", "y")],
        "one folds, one may not": [
            call("a", "x", "h"),
            op("Plain", "h", "y", domain="my", name="plain"),
        ],
    }
    m = model(
        *pieces[calls],
        functions=[block(), function("Plain", "x", "y", [op("Relu", "x", "y")])],
        domains=DOMAIN,
        weights=params("a", 3, 4) | params("b", 4, 5),
    )
    folding.prepare(m, None).apply()
    assert len(seen) == plans
    onnx.checker.check_model(m)


def test_functions_that_call_each_other_in_a_row_are_dropped_in_one_pass(monkeypatch):
    """Before, each pass over the whole model dropped only those that nobody called by then."""
    nodes, seen = inlining._nodes, []

    def counted(given):
        seen.extend(given)
        return nodes(given)

    monkeypatch.setattr(inlining, "_nodes", counted)

    def steps(depth):
        seen.clear()
        inlined = inlining.inline(nested(depth)).model
        assert not inlined.functions and len(inlined.graph.node) == depth + 1
        return len(seen)

    assert steps(100) <= 13 * steps(10)


def test_functions_that_call_each_other_too_deep_stay_from_there_on():
    """Each level made the names longer, and more levels than Python has ended in a traceback."""
    m = nested(1200)
    inlined = inlining.inline(m).model
    assert 100 < len(inlined.graph.node) < 300
    assert len(inlined.functions) == 1201 + 1 - len(inlined.graph.node)
    assert bnfold.plan(m).folds == ()


@pytest.mark.parametrize("taken", [(), ("w_2",)])
def test_many_fresh_names_of_one_kind_are_found_in_one_step_each(taken):
    class Counted(set):
        asked = 0

        def __contains__(self, name):
            Counted.asked += 1
            return set.__contains__(self, name)

    names = Names(onnx.ModelProto(), [])
    names._taken = Counted(taken)
    made = [names.fresh("w") for _ in range(100)]
    wanted = [name for name in ["w", *(f"w_{n}" for n in range(1, 102))] if name not in taken]
    assert made == wanted[:100]
    assert Counted.asked <= 300
