"""Tensors that several nodes read: outputs are respected, weights are cloned."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import bnfold

from .graphs import (
    bn,
    certified,
    codes,
    const,
    constants,
    conv,
    counts,
    feeds,
    fold,
    folds,
    graphs,
    model,
    op,
    rand,
    run,
    stays,
    subgraph,
)

CONV = ("conv", "x", "c", (4, 3, 3, 3))


def shared_weight(*names, x="x"):
    nodes = [op("Conv", f"{x} w b", f"c{n}", name=f"conv{n}") for n in names]
    return nodes, {"w": rand(4, 3, 3, 3), "b": rand(4)}


def test_weight_shared_by_two_convs_with_two_batchnorms():
    nodes, w = shared_weight(1, 2)
    m = model(*nodes, bn("bn1", "c1", "y", 4), bn("bn2", "c2", "z", 4), y="y z", weights=w)
    folds(m, Conv=2)


def test_weight_shared_by_two_convs_and_one_batchnorm():
    nodes, w = shared_weight(1, 2)
    m = model(*nodes, bn("bn1", "c1", "y", 4), op("Relu", "c2", "z"), y="y z", weights=w)
    after = folds(m, Conv=2, Relu=1)
    untouched = next(n for n in after.graph.node if n.name == "conv2")
    assert list(untouched.input) == ["x", "w", "b"]
    np.testing.assert_array_equal(constants(after)["w"], w["w"])


def test_weight_shared_by_two_convs_of_other_inputs():
    m = model(
        op("Conv", "x w", "c1", name="conv1"),
        op("Conv", "x2 w", "c2", name="conv2"),
        bn("bn1", "c1", "y", 4),
        bn("bn2", "c2", "z", 4),
        x={"x": (2, 3, 8, 8), "x2": (1, 3, 5, 5)},
        y="y z",
        weights={"w": rand(4, 3, 3, 3)},
    )
    folds(m, Conv=2)


def test_bias_shared_by_two_convs():
    m = model(
        op("Conv", "x w1 b", "c1", name="conv1"),
        op("Conv", "x w2 b", "c2", name="conv2"),
        bn("bn1", "c1", "y", 4),
        op("Relu", "c2", "z"),
        y="y z",
        weights={"w1": rand(4, 3, 3, 3), "w2": rand(4, 3, 3, 3), "b": rand(4)},
    )
    folds(m, Conv=2, Relu=1)


def test_weight_that_is_also_a_graph_output():
    m = model(
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        y="y w",
        weights={"w": rand(4, 3, 3, 3)},
    )
    folds(m, Conv=1)


def test_weight_that_is_also_an_operand():
    m = model(
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        op("Mul", "w w", "z"),
        y="y z",
        weights={"w": rand(4, 3, 3, 3)},
    )
    folds(m, Conv=1, Mul=1)


def test_parameters_shared_by_two_batchnorms():
    shared = "p.scale p.bias p.mean p.var"
    m = model(
        conv("conv1", "x", "c1", (4, 3, 3, 3)),
        conv("conv2", "x", "c2", (4, 3, 1, 1)),
        bn("p", "c1", "y", 4),
        op("BatchNormalization", f"c2 {shared}", "z", name="bn2", epsilon=0.5),
        y="y z",
    )
    folds(m, Conv=2)


def test_parameters_shared_with_a_batchnorm_that_stays():
    shared = "p.scale p.bias p.mean p.var"
    m = model(
        conv("conv1", "x", "c1", (3, 3, 3, 3)),
        bn("p", "c1", "y", 3),
        op("BatchNormalization", f"x {shared}", "z", name="bn2"),
        y="y z",
    )
    folds(m, Conv=1, BatchNormalization=1)


def test_parameters_shared_by_chained_batchnorms():
    shared = "p.scale p.bias p.mean p.var"
    m = model(
        bn("p", "x", "t", 3), op("BatchNormalization", f"t {shared}", "y", name="bn2", epsilon=0.5)
    )
    folds(m, BatchNormalization=1)


def test_one_vector_as_every_parameter():
    v = np.abs(rand(4))
    m = model(
        op("Conv", "x w v", "c", name="conv"),
        op("BatchNormalization", "c v v v v", "y", name="bn", epsilon=0.01),
        weights={"w": rand(4, 3, 3, 3), "v": v},
    )
    folds(m, Conv=1)


def test_one_vector_as_every_parameter_and_kept_by_another():
    v = np.abs(rand(4))
    m = model(
        op("Conv", "x w v", "c", name="conv"),
        op("BatchNormalization", "c v v v v", "y", name="bn", epsilon=0.01),
        op("Exp", "v", "z"),
        y="y z",
        weights={"w": rand(4, 3, 3, 3), "v": v},
    )
    after = folds(m, Conv=1, Exp=1)
    np.testing.assert_array_equal(constants(after)["v"], v)


def test_bias_vector_is_also_the_mul_operand():
    m = model(
        op("Gemm", "x w v", "g", name="fc"),
        op("Mul", "g v", "d"),
        op("Add", "d v", "y"),
        x=(5, 3),
        weights={"w": rand(3, 4), "v": rand(4)},
    )
    folds(m, Gemm=1)


def test_batchnorm_parameter_is_also_the_conv_weight():
    m = model(
        op("Reshape", "v s", "w"),
        op("Conv", "x w", "c", name="conv"),
        op("BatchNormalization", "c v v v v", "y", name="bn", epsilon=0.01),
        x=(2, 1, 5, 5),
        weights={"v": np.abs(rand(4)), "s": np.array([4, 1, 1, 1])},
    )
    folds(m, Conv=1)


def test_gemm_with_its_input_as_everything():
    m = model(op("Gemm", "x x x", "g"), bn("bn", "g", "y", 4), x=(4, 4))
    fold(m)


def test_two_batchnorms_on_one_conv():
    m = model(conv(*CONV), bn("bn1", "c", "y", 4), bn("bn2", "c", "z", 4), y="y z")
    after = counts(fold(m))
    if after == {"Conv": 2}:
        return
    assert after == {"Conv": 1, "BatchNormalization": 2}
    assert set(codes(m).values()) == {"shared-output"}


def test_conv_read_by_another_node_stays():
    m = model(conv(*CONV), bn("bn", "c", "y", 4), op("Relu", "c", "z"), y="y z")
    stays(m, {"bn": "shared-output"})


def test_conv_that_is_a_graph_output_stays():
    m = model(conv(*CONV), bn("bn", "c", "y", 4), y="y c")
    stays(m, {"bn": "graph-output"})


def test_conv_read_twice_by_one_node_stays():
    m = model(conv(*CONV), bn("bn", "c", "t", 4), op("Add", "t c", "y"))
    stays(m, {"bn": "shared-output"})


def test_conv_added_to_itself():
    m = model(conv(*CONV), op("Add", "c c", "t"), bn("bn", "t", "y", 4))
    fold(m)


def test_batchnorm_that_is_a_graph_output_keeps_its_name():
    m = model(conv(*CONV), bn("bn", "c", "y", 4))
    after = folds(m, Conv=1)
    assert after.graph.node[0].output[0] == "y"
    assert after.graph.node[0].name == "conv"


def test_batchnorm_that_is_an_output_and_read_on():
    m = model(conv(*CONV), bn("bn", "c", "y", 4), op("Relu", "y", "z"), y="y z")
    folds(m, Conv=1, Relu=1)


def test_batchnorm_read_by_two_is_gone():
    m = model(
        conv(*CONV), bn("bn", "c", "b", 4), op("Relu", "b", "y"), op("Tanh", "b", "z"), y="y z"
    )
    folds(m, Conv=1, Relu=1, Tanh=1)


def test_affine_in_the_middle_of_a_chain_is_an_output():
    """Conv → BN (an output) → Mul: only the BN may go."""
    m = model(
        conv(*CONV),
        bn("bn", "c", "b", 4),
        const("Mul", "b", "y", rand(4, 1, 1), name="mul"),
        y="y b",
    )
    after = folds(m, Conv=1, Mul=1)
    assert codes(m)["mul"] == "graph-output"
    assert {n for node in after.graph.node for n in node.output} == {"b", "y"}


def test_affine_in_the_middle_of_a_chain_is_read_by_another():
    m = model(
        conv(*CONV),
        bn("bn", "c", "b", 4),
        const("Mul", "b", "y", rand(4, 1, 1), name="mul"),
        op("Relu", "b", "z"),
        y="y z",
    )
    folds(m, Conv=1, Mul=1, Relu=1)
    assert codes(m)["mul"] == "shared-output"


def test_input_that_is_an_output_too():
    m = model(conv(*CONV), bn("bn", "c", "y", 4), y="y x")
    folds(m, Conv=1)


def test_residual_block():
    m = model(
        conv("conv1", "x", "c1", (3, 3, 3, 3), pads=[1] * 4),
        bn("bn1", "c1", "b1", 3),
        op("Relu", "b1", "r1"),
        conv("conv2", "r1", "c2", (3, 3, 3, 3), pads=[1] * 4),
        bn("bn2", "c2", "b2", 3),
        op("Add", "b2 x", "y"),
    )
    folds(m, Conv=2, Relu=1, Add=1)


@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_same_constant_used_by_two_affine_nodes(kind):
    m = model(
        conv("conv1", "x", "c1", (4, 3, 3, 3)),
        conv("conv2", "x", "c2", (4, 3, 3, 3)),
        op(kind, "c1 k", "y"),
        op(kind, "k c2", "z"),
        y="y z",
        weights={"k": rand(4, 1, 1)},
    )
    folds(m, Conv=2)


def test_matmul_weight_shared_by_a_folded_and_a_plain_product():
    m = model(
        op("MatMul", "x w", "m1", name="mm1"),
        op("MatMul", "x w", "z", name="mm2"),
        op("Add", "m1 k", "a"),
        bn("bn", "a", "y", 4),
        x=(5, 3),
        y="y z",
        weights={"w": rand(3, 4), "k": rand(4)},
    )
    folds(m, Gemm=1, MatMul=1)


def test_matmul_bias_shared_by_a_folded_and_a_plain_sum():
    m = model(
        op("MatMul", "x w1", "m1", name="mm1"),
        op("MatMul", "x w2", "m2", name="mm2"),
        op("Add", "m1 k", "a"),
        op("Add", "k m2", "z"),
        bn("bn", "a", "y", 4),
        x=(5, 3),
        y="y z",
        weights={"w1": rand(3, 4), "w2": rand(3, 4), "k": rand(4)},
    )
    folds(m, Gemm=2)


def test_gamma_shared_by_an_instance_norm_and_a_mul():
    m = model(
        op("InstanceNormalization", "x g g", "n", name="norm"),
        op("Reshape", "g s", "k"),
        op("Mul", "n k", "y"),
        weights={"g": rand(3), "s": np.array([3, 1, 1])},
    )
    folds(m, InstanceNormalization=1)


def test_constant_node_shared_by_a_folded_and_a_plain_conv():
    from .graphs import tensor

    m = model(
        op("Constant", "", "w", name="const", value=tensor(rand(4, 3, 3, 3), "")),
        op("Conv", "x w", "c1", name="conv1"),
        op("Conv", "x w", "z", name="conv2"),
        bn("bn", "c1", "y", 4),
        y="y z",
    )
    fold(m)


def read_by(maps):
    """Convs of one weight, each with the map of its letter behind it; ``-`` is none."""
    scales = {letter: rand(4, 1, 1) for letter in "AB"}
    pieces = []
    for number, letter in enumerate(maps):
        y = f"y{number}"
        pieces.append(op("Conv", f"x{number} w", y if letter == "-" else f"c{number}"))
        if letter != "-":
            pieces.append(const("Mul", f"c{number}", y, scales[letter]))
    names = range(len(maps))
    return model(
        *pieces,
        x={f"x{n}": (1, 3, 4, 4) for n in names},
        y=" ".join(f"y{n}" for n in names),
        weights={"w": rand(4, 3, 3, 3)},
    )


@pytest.mark.parametrize(
    "maps, copies",
    [
        *[("A", 1), ("AA", 1), ("AAAAA", 1), ("A-", 2), ("-AA", 2), ("A-A", 2), ("AB", 2)],
        *[("AAB", 2), ("ABA", 2), ("BAA", 2), ("ABAB", 2), ("AB-", 3), ("A-BAB-", 3)],
    ],
)
def test_a_weight_is_stored_once_for_each_distinct_result(maps, copies):
    after = folds(read_by(maps), Conv=len(maps))
    stored = [t.name for t in after.graph.initializer]
    read = {node.input[1] for node in after.graph.node}
    assert len(stored) == copies and set(stored) == read


def test_two_branches_that_take_the_same_map_share_the_new_weight():
    """It lies where the old one lay, in the graph around both; each branch kept one of its own."""
    scale = rand(4, 1, 1)

    def branch(y):
        return subgraph(op("Conv", "x w", "c"), op("Mul", "c k", y), y=y)

    node = op("If", "cond", "y", then_branch=branch("a"), else_branch=branch("b"))
    m = model(node, x=(1, 3, 4, 4), weights={"w": rand(4, 3, 3, 3), "k": scale})
    m.graph.input.append(helper.make_tensor_value_info("cond", 9, ()))
    after = bnfold.fold(m)
    assert counts(after) == {"If": 1, "Conv": 2}
    assert len(after.graph.initializer) == 1
    assert not any(graph.initializer for _, graph in graphs(after) if graph is not after.graph)
    for cond in (True, False):
        data = {**feeds(m), "cond": np.array(cond)}
        np.testing.assert_allclose(run(after, data)[0], run(m, data)[0], rtol=1e-5, atol=1e-5)
    certified(m)


@pytest.mark.parametrize("first", ["w", "w1"])
def test_a_weight_under_several_names_is_stored_once(first):
    """Exporters hand a shared weight on by an Identity for each use; a body sees it as well."""
    scale = rand(4, 1, 1)
    body = subgraph(
        op("Identity", "w2", "w4"),
        op("Conv", "c2 w4", "c4"),
        (op("Mul", "c4 k", "m4"), {}),
        op("Relu", "m4", "t"),
        y="t",
    )
    other = subgraph(op("Sigmoid", "c2", "e"), y="e")
    m = model(
        op("Identity", "w", "w1"),
        op("Identity", "w1", "w2"),
        op("Conv", f"x {first}", "c1"),
        op("Mul", "c1 k", "m1"),
        op("Sigmoid", "m1", "c2"),
        op("Conv", "c2 w2", "c3"),
        op("Mul", "c3 k", "m3"),
        op("If", "cond", "i", name="if", then_branch=body, else_branch=other),
        op("Sum", "m3 m3", "y"),
        x={"x": (2, 4, 6, 6), "cond": ()},
        y="y i",
        weights={"w": rand(4, 4, 1, 1), "k": scale},
    )
    m.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    after = fold(m)
    assert counts(after)["Conv"] == 3 and "Mul" not in counts(after)
    assert [t.dims for t in after.graph.initializer] == [[4, 4, 1, 1]]


@pytest.mark.parametrize("scales", ["equal", "other"])
def test_a_weight_that_two_transposes_hand_on_is_stored_once_where_it_may(scales):
    """Exporters transpose a shared weight at each use: what was one tensor stays one."""
    first, weight = rand(4), rand(4, 4)
    pieces = []
    for n, scale in (("1", first), ("2", first if scales == "equal" else rand(4))):
        pieces += [
            op("Transpose", "w", f"t{n}", perm=[1, 0]), op("MatMul", f"x{n} t{n}", f"m{n}"),
            const("Mul", f"m{n}", f"y{n}", scale),
        ]  # fmt: skip
    m = model(*pieces, x={"x1": (2, 4), "x2": (3, 4)}, y="y1 y2", weights={"w": weight})
    after = folds(m, MatMul=2)
    assert len(constants(after)) == (1 if scales == "equal" else 2)
    for name, scale in zip(constants(after), (first,), strict=False):
        np.testing.assert_array_equal(constants(after)[name], weight.T * scale)
