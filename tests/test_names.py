"""Names: kept where they were, fresh where they are new, absent where the file has none."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold

from .graphs import (
    assert_same,
    bn,
    check,
    const,
    constants,
    conv,
    conv_transpose,
    folds,
    model,
    op,
    rand,
)

CONV = ("conv", "x", "c", (4, 3, 3, 3))


def shared_conv():
    w = {"w": rand(4, 3, 3, 3), "b": rand(4)}
    return model(
        op("Conv", "x w b", "c1", name="conv1"),
        op("Conv", "x w b", "c2", name="conv2"),
        bn("bn1", "c1", "y", 4),
        bn("bn2", "c2", "z", 4),
        y="y z",
        weights=w,
    )


def standing():
    return model(
        bn("bn", "x", "b", 3),
        op("Relu", "b", "r"),
        const("Mul", "r", "d", rand(3, 1, 1)),
        const("Sub", "d", "e", rand(3, 1, 1)),
        const("Mul", "e", "f", rand(3, 1, 1)),
        const("Add", "f", "y", rand(3, 1, 1)),
    )


MODELS = {
    "conv": lambda: model(conv(*CONV), bn("bn", "c", "y", 4)),
    "conv-without-bias": lambda: model(conv(*CONV, False), bn("bn", "c", "y", 4)),
    "transpose": lambda: model(
        conv_transpose("up", "x", "c", (3, 4, 2, 2), False), bn("bn", "c", "y", 4)
    ),
    "shared": shared_conv,
    "matmul": lambda: model(
        (op("MatMul", "x w", "m", name="mm"), {"w": rand(3, 4)}), bn("bn", "m", "y", 4), x=(5, 3)
    ),
    "gemm": lambda: model(
        (op("Gemm", "x w", "g", name="fc"), {"w": rand(3, 4)}), bn("bn", "g", "y", 4), x=(5, 3)
    ),
    "standing": standing,
}


def names(m):
    out = {t.name for t in m.graph.initializer}
    for node in m.graph.node:
        out |= {node.name, *node.input, *node.output}
    return out


@pytest.mark.parametrize("how", ["initializer", "output", "value-info", "input", "node"])
@pytest.mark.parametrize("kind", MODELS)
def test_new_names_never_meet_a_name_in_use(kind, how):
    """Take each name the engine invented, use it for something else, and fold again."""
    from onnx import helper

    for _ in range(3):
        m = MODELS[kind]()
        fresh = sorted(names(bnfold.fold(m)) - names(m) - {""})
        for i, name in enumerate(fresh):
            if how == "initializer":
                m.graph.initializer.add().CopyFrom(_tensor(name, rand(1)))
                m.graph.node.append(op("Mul", f"x {name}", f"u{i}"))
            elif how == "output":
                m.graph.node.append(op("Relu", "x", name))
                m.graph.node.append(op("Tanh", name, f"u{i}"))
            elif how == "node":
                m.graph.node.append(op("Tanh", "x", f"u{i}", name=name))
            elif how == "value-info":
                m.graph.value_info.append(helper.make_tensor_value_info(name, 1, [77]))
                continue
            else:
                m.graph.input.append(helper.make_tensor_value_info(name, 1, [1]))
                m.graph.node.append(op("Mul", f"x {name}", f"u{i}"))
            m.graph.output.append(helper.make_tensor_value_info(f"u{i}", 1, None))
        after = bnfold.fold(m)
        if how != "value-info":
            check(m, after)
        assert_same(m, after)
        for t in after.graph.initializer:
            if t.name in constants(m) and t.name in fresh:
                np.testing.assert_array_equal(constants(after)[t.name], constants(m)[t.name])


def _tensor(name, value):
    from .graphs import tensor

    return tensor(value, name)


def test_surviving_nodes_keep_their_names_and_order():
    m = model(
        op("Relu", "x", "r", name="first"),
        conv("second", "r", "c", (4, 3, 3, 3)),
        bn("bn", "c", "b", 4),
        op("Tanh", "b", "t", name="third"),
        op("Abs", "t", "y", name="fourth"),
    )
    after = folds(m, Relu=1, Conv=1, Tanh=1, Abs=1)
    assert [n.name for n in after.graph.node] == ["first", "second", "third", "fourth"]


def unnamed(m):
    for node in m.graph.node:
        node.ClearField("name")
    return m


def test_unnamed_nodes_fold_and_are_labelled_by_their_output():
    m = unnamed(model(conv(*CONV), bn("bn", "c", "y", 4)))
    plan = bnfold.plan(m)
    assert plan.folds[0].nodes == ("BatchNormalization → y",)
    assert plan.folds[0].into == "Conv → c"
    folds(m, Conv=1)


def test_unnamed_kept_node_is_labelled_by_its_output():
    m = unnamed(model(conv(*CONV), bn("bn", "c", "y", 4), op("Relu", "c", "z"), y="y z"))
    (kept,) = bnfold.plan(m).kept
    assert kept.node == "BatchNormalization → y"
    assert kept.op == "BatchNormalization"


def test_equally_named_nodes():
    m = model(
        conv("conv1", "x", "c1", (4, 3, 3, 3)),
        bn("bn1", "c1", "b1", 4),
        op("Relu", "b1", "r"),
        conv("conv2", "r", "c2", (4, 4, 3, 3)),
        bn("bn2", "c2", "y", 4),
    )
    for node in m.graph.node:
        node.name = "same"
    folds(m, runtime=False, Conv=2, Relu=1)  # onnxruntime refuses equal names


def test_names_with_odd_characters():
    odd = "a/b::c.d e\u00e9\u4e2d\n[0]{x}"
    node, params = conv("conv", "x", "c", (4, 3, 3, 3))
    node.name = odd
    node.output[0] = odd + "out"
    bnode, bparams = bn("bn", "c", "y", 4)
    bnode.name = odd + "bn"
    bnode.input[0] = odd + "out"
    m = model((node, params), (bnode, bparams))
    after = folds(m, Conv=1)
    assert after.graph.node[0].name == odd


def test_node_named_like_a_value():
    node, params = conv("c", "x", "c", (4, 3, 3, 3))
    m = model((node, params), bn("y", "c", "y", 4))
    folds(m, Conv=1)


def test_initializer_named_like_a_node():
    m = model(
        op("Conv", "x conv b", "c", name="conv"),
        op("BatchNormalization", "c bn t m v", "y", name="bn", epsilon=0.01),
        weights={
            "conv": rand(4, 3, 3, 3),
            "b": rand(4),
            "bn": rand(4),
            "t": rand(4),
            "m": rand(4),
            "v": np.abs(rand(4)),
        },
    )
    folds(m, Conv=1)


def test_value_info_of_vanished_tensors_goes_and_of_others_stays():
    from onnx import shape_inference

    m = shape_inference.infer_shapes(
        model(conv(*CONV), bn("bn", "c", "b", 4), op("Relu", "b", "y"))
    )
    assert {v.name for v in m.graph.value_info} == {"c", "b"}
    after = folds(m, Conv=1, Relu=1)
    live = {n for node in after.graph.node for n in node.output}
    assert {v.name for v in after.graph.value_info} <= live


def test_folding_twice_gives_the_same_bytes_as_another_run():
    m = MODELS["shared"]()
    assert bnfold.fold(m).SerializeToString() == bnfold.fold(m).SerializeToString()
