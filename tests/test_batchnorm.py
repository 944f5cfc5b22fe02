"""BatchNormalization itself: composition, parameters, modes, and other norms that absorb."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import bnfold

from .graphs import (
    BF16,
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
    model,
    op,
    positive,
    rand,
    run,
    stays,
    within_ulps,
)


def test_two_batchnorms_are_one():
    m = model(bn("a", "x", "t", 3), bn("b", "t", "y", 3))
    folds(m, BatchNormalization=1)


def test_many_batchnorms_are_one():
    names = ["x", *"abcd", "y"]
    m = model(*(bn(f"bn{i}", p, q, 3) for i, (p, q) in enumerate(pairwise(names))))
    folds(m, BatchNormalization=1)


def test_batchnorm_mul_add_are_one_batchnorm():
    m = model(
        bn("bn", "x", "b", 3),
        const("Mul", "b", "d", rand(3, 1, 1)),
        const("Add", "d", "y", rand(3, 1, 1)),
    )
    folds(m, BatchNormalization=1)


@pytest.mark.parametrize("kind", ["Mul", "Add", "Sub", "Div", "Neg"])
@pytest.mark.parametrize("between", [False, True], ids=["next", "through-identity"])
def test_constant_ahead_of_a_standing_batchnorm_goes_into_it(kind, between):
    first = op("Neg", "x", "a") if kind == "Neg" else const(kind, "x", "a", rand(3, 1, 1))
    way = [op("Identity", "a", "i")] if between else []
    m = model(first, *way, bn("bn", "i" if between else "a", "y", 3))
    left = counts(fold(m))
    assert left.pop("Identity", 0) <= between
    assert left == {"BatchNormalization": 1}


@pytest.mark.parametrize("between", ["Identity", "Dropout"])
@pytest.mark.parametrize("outputs", ["y", "y x0"])
def test_standing_chain_through_a_pass_through_stays_in_order(between, outputs):
    m = model(
        op("Relu", "x", "x0"),
        const("Mul", "x0", "a", rand(3, 1, 1)),
        const("Add", "a", "b", rand(3, 1, 1)),
        op(between, "b", "i"),
        bn("bn", "i", "t", 3),
        op("Relu", "t", "y"),
        y=outputs,
    )
    fold(m)


def test_conv_batchnorm_mul_add_are_one_conv():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "b", 4),
        const("Mul", "b", "d", rand(4, 1, 1)),
        const("Add", "d", "y", rand(4, 1, 1)),
    )
    folds(m, Conv=1)


def test_conv_and_two_batchnorms_are_one_conv():
    m = model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("a", "c", "b", 4), bn("b", "b", "y", 4))
    folds(m, Conv=1)


def test_standing_batchnorm_says_why():
    stays(model(bn("bn", "x", "y", 3)), {"bn": "no-linear-operator"})


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (2, 3, 4, 2, 3)], ids=str)
def test_two_batchnorms_on_any_rank(shape):
    folds(model(bn("a", "x", "t", 3), bn("b", "t", "y", 3), x=shape), BatchNormalization=1)


def test_batchnorm_and_a_constant_on_another_axis_do_not_compose():
    m = model(bn("bn", "x", "b", 3), const("Mul", "b", "y", rand(3), name="mul"), x=(3, 3, 3))
    assert fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("n", [2, 3, 6])
def test_standing_chain_becomes_one_mul_and_one_add_at_most(n):
    kinds = ["Mul", "Add", "Div", "Sub", "Mul", "Add"][:n]
    names = ["x", *(f"t{i}" for i in range(n - 1)), "y"]
    m = model(*(const(k, a, b, rand(3, 1, 1)) for k, a, b in zip(kinds, names, names[1:])))
    after = counts(fold(m))
    assert sum(after.values()) <= 2
    assert set(after) <= {"Mul", "Add", "Div", "Sub"}


def test_preprocessing_chain_of_scalars_and_channels():
    """x/255, minus mean, over std: as exporters write it in front of a network."""
    m = model(
        const("Div", "x", "a", np.float32(255)),
        const("Sub", "a", "b", positive(1, 3, 1, 1)),
        const("Div", "b", "y", positive(1, 3, 1, 1)),
    )
    assert sum(counts(fold(m)).values()) <= 2


@pytest.mark.parametrize("kinds", ["Mul Mul", "Add Add", "Mul Div", "Add Sub", "Sub Sub"])
def test_pairs_of_one_kind_become_one_node(kinds):
    k1, k2 = kinds.split()
    m = model(const(k1, "x", "t", rand(3, 1, 1)), const(k2, "t", "y", rand(1)))
    assert sum(counts(fold(m)).values()) == 1


def test_double_subtraction_cancels():
    m = model(
        const("Sub", "x", "t", np.float32(1), left=True),
        const("Sub", "t", "u", np.float32(1), left=True),
        op("Relu", "u", "y"),
    )
    assert counts(fold(m)).get("Sub", 0) == 0


@pytest.mark.parametrize("kind,value", [("Mul", 1), ("Add", 0), ("Sub", 0), ("Div", 1)])
def test_neutral_constant(kind, value):
    """Where it disappears is the engine's choice; that nothing breaks is not."""
    m = model(const(kind, "x", "t", np.float32(value)), op("Relu", "t", "y"))
    fold(m)
    fold(model(const(kind, "x", "y", np.float32(value))))


# --- what a BatchNormalization may be that must not fold ---------------------------------------


def with_param(name, value):
    m = (conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4))
    return model(*m, weights={f"bn.{name}": np.asarray(value, np.float32)})


@pytest.mark.parametrize("name", ["scale", "bias", "mean", "var"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_parameter_stays(name, bad):
    value = positive(4)
    value[2] = bad
    m = with_param(name, value)
    expected = {"non-finite"}
    if name == "var" and bad == -np.inf:
        expected.add("non-positive-variance")
    assert codes(m)["bn"] in expected
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_non_finite_conv_weight_stays():
    w = rand(4, 3, 3, 3)
    w[1, 0, 0, 0] = np.nan
    m = model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4), weights={"conv.w": w})
    assert codes(m)["bn"] == "non-finite"
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("var", [[1, 2, -0.5, 1], [1, 1, 1, -0.01]], ids=["below", "zero"])
def test_variance_that_is_not_positive_stays(var):
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "y", 4, epsilon=0.01),
        weights={"bn.var": np.array(var, np.float32)},
    )
    assert codes(m)["bn"] == "non-positive-variance"
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_zero_variance_and_zero_epsilon_stays():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "y", 4, epsilon=0.0),
        weights={"bn.var": np.array([1, 0, 1, 1], np.float32)},
    )
    assert codes(m)["bn"] == "non-positive-variance"


def test_slightly_negative_variance_that_epsilon_lifts_folds():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "y", 4, epsilon=0.01),
        weights={"bn.var": np.array([1, -0.005, 1, 1], np.float32)},
    )
    folds(m, Conv=1)


@pytest.mark.parametrize("opset", [14, 15, 17])
def test_training_mode_stays(opset):
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4, training_mode=1), opset=opset
    )
    stays(m, {"bn": "training-mode"}, runtime=False)


@pytest.mark.parametrize("opset", [14, 15])
def test_training_mode_with_its_outputs_stays(opset):
    node, params = bn("bn", "c", "y", 4, training_mode=1)
    node.output.extend(["running_mean", "running_var"])
    m = model(conv("conv", "x", "c", (4, 3, 3, 3)), (node, params), opset=opset)
    assert codes(m)["bn"] == "training-mode"
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("opset", [7, 9])
def test_extra_outputs_of_old_opsets_stay(opset):
    node, params = bn("bn", "c", "y", 4)
    node.output.extend(["m", "v", "sm", "sv"])
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        (node, params),
        op("Identity", "m", "z"),
        opset=opset,
        y="y z",
    )
    assert "bn" in codes(m)
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_training_mode_is_a_wall_but_absorbs_nothing():
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "b", 4, training_mode=1),
        const("Mul", "b", "y", rand(4, 1, 1)),
    )
    fold(m, runtime=False)


def test_training_mode_zero_given_folds():
    m = model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4, training_mode=0))
    folds(m, Conv=1)


@pytest.mark.parametrize("name", ["scale", "bias", "mean", "var"])
def test_dynamic_parameter_stays(name):
    m = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "y", 4),
        x={"x": (2, 3, 8, 8), f"bn.{name}": (4,)},
    )
    kept = [t for t in m.graph.initializer if t.name != f"bn.{name}"]
    del m.graph.initializer[:]
    m.graph.initializer.extend(kept)
    data = {"x": rand(2, 3, 8, 8), f"bn.{name}": positive(4)}
    assert codes(m)["bn"] == "dynamic-weight"
    assert fold(m, data).SerializeToString() == m.SerializeToString()


# --- other normalizations absorb ---------------------------------------------------------------


def norm(kind, shape, **attrs):
    params = {"n.g": rand(*shape), "n.b": rand(*shape)}
    return op(kind, "x n.g n.b", "n", name="norm", **attrs), params


@pytest.mark.parametrize("kind", ["Mul", "Add", "Div"])
def test_instance_norm_absorbs(kind):
    m = model(norm("InstanceNormalization", (3,)), const(kind, "n", "y", rand(3, 1, 1)))
    folds(m, InstanceNormalization=1)


def test_instance_norm_does_not_take_another_axis():
    m = model(
        norm("InstanceNormalization", (3,)), const("Mul", "n", "y", rand(3), name="mul"), x=(3,) * 4
    )
    stays(m, {"mul": "axis-mismatch"})


def test_layer_norm_absorbs_its_last_axis():
    m = model(
        norm("LayerNormalization", (4,)),
        const("Mul", "n", "d", rand(4)),
        const("Add", "d", "y", rand(4)),
        x=(2, 5, 4),
    )
    folds(m, LayerNormalization=1)


def test_layer_norm_without_bias():
    m = model(
        (op("LayerNormalization", "x g", "n", name="norm"), {"g": rand(4)}),
        const("Mul", "n", "d", rand(4)),
        const("Add", "d", "y", rand(4)),
        x=(2, 5, 4),
    )
    fold(m)


def test_layer_norm_does_not_take_another_axis():
    m = model(
        norm("LayerNormalization", (4,)),
        const("Mul", "n", "y", rand(4, 1), name="mul"),
        x=(4, 4, 4),
    )
    stays(m, {"mul": "axis-mismatch"})


def test_batchnorm_behind_layer_norm_of_3d_stays():
    m = model(norm("LayerNormalization", (4,)), bn("bn", "n", "y", 4), x=(2, 4, 4))
    assert fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("k", [(4,), (5, 1), (1,)], ids=str)
def test_layer_norm_over_two_axes(k):
    m = model(
        norm("LayerNormalization", (5, 4), axis=-2), const("Mul", "n", "y", rand(*k)), x=(2, 5, 4)
    )
    fold(m)


def test_layer_norm_whose_statistics_are_read():
    node, params = norm("LayerNormalization", (4,))
    node.output.extend(["mean", "inv"])
    m = model(
        (node, params),
        const("Mul", "n", "y", rand(4)),
        op("Identity", "mean", "z"),
        x=(2, 5, 4),
        y="y z",
    )
    folded = bnfold.fold(m)
    assert folded.graph.output[1].name == "z"


def test_group_norm_per_group_parameters_of_opset_18():
    """γ has one entry per group there: a per-channel scale does not fit into it."""
    m = model(
        norm("GroupNormalization", (2,), num_groups=2),
        const("Mul", "n", "y", rand(4, 1, 1), name="mul"),
        x=(2, 4, 5, 5),
        opset=18,
    )
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_per_channel_parameters_of_opset_21(groups):
    m = model(
        norm("GroupNormalization", (4,), num_groups=groups),
        const("Mul", "n", "d", rand(4, 1, 1)),
        const("Add", "d", "y", rand(4, 1, 1)),
        x=(2, 4, 5, 5),
        opset=21,
    )
    folds(m, GroupNormalization=1)


def test_norm_with_dynamic_parameters_stays():
    m = model(
        op("InstanceNormalization", "x g b", "n", name="norm"),
        const("Mul", "n", "y", rand(3, 1, 1), name="mul"),
        x={"x": (2, 3, 8, 8), "g": (3,), "b": (3,)},
    )
    stays(m, {"mul": "dynamic-weight"})


def test_standing_batchnorm_stores_the_composed_map_rounded_once():
    m = model(bn("bn", "x", "b", 3), const("Mul", "b", "y", rand(3, 1, 1), name="mul"))
    p = {k: v.astype(np.float64) for k, v in constants(m).items()}
    after = folds(m, BatchNormalization=1)
    (node,) = after.graph.node
    scale, bias, mean, var = (constants(after)[n].astype(np.float64) for n in node.input[1:])
    root = np.sqrt(p["bn.var"] + np.float64(np.float32(0.01)))
    k, kept_eps = p["mul.k"].reshape(-1), node.attribute[0].f
    assert node.attribute[0].name == "epsilon"
    s, want = scale / np.sqrt(var + np.float64(kept_eps)), p["bn.scale"] * k / root
    within_ulps(s.astype(np.float32), want, 2)
    t, want = bias - mean * s, (p["bn.bias"] - p["bn.mean"] * p["bn.scale"] / root) * k
    size = np.abs(bias) + np.abs(mean * s)
    assert (np.abs(t - want) <= 4 * 2.0**-24 * size).all()


def test_bfloat16_parameters():
    m = model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4), elem=BF16)
    folds(m, runtime=False, Conv=1)


@pytest.mark.parametrize("opset", [7, 9, 14, 21])
def test_a_vector_is_one_channel(opset):
    """ONNX: of a tensor with one axis C is 1, so each parameter is one number."""
    axes = {"axes": np.array([0, 2, 3], np.int64)} if opset >= 18 else {}
    given = {} if axes else {"axes": [0, 2, 3]}
    mean = op("ReduceMean", "c axes" if axes else "c", "f", keepdims=0, **given)
    pieces = conv("conv", "x", "c", (4, 3, 1, 1)), (mean, axes)
    made = model(*pieces, bn("bn", "f", "y", 1), opset=opset)
    folded = bnfold.fold(made)
    assert counts(folded) == {"Conv": 1, "ReduceMean": 1}
    certified(made)
    data = feeds(made)
    np.testing.assert_allclose(run(folded, data)[0], run(made, data)[0], rtol=1e-4, atol=1e-5)
    assert bnfold.verify(made, folded).status == "pass"
    wide = model(*pieces, bn("bn", "f", "y", 4), opset=opset)
    assert codes(wide) == {"bn": "not-per-channel"}


@pytest.mark.parametrize("behind", [False, True])
def test_statistics_of_another_size_are_no_map(behind):
    """No runtime runs it, so no fold of it can be right, and a check would call it wrong."""
    for channels in (4, 6):
        least = op("ReduceMin", "x" if behind else "a", "b", axes=[2, 3])
        norm = bn("bn", "b" if behind else "x", "a", 4)
        linear = conv("conv", "a" if behind else "b", "y", (4, channels, 1, 1))
        pieces = (least, norm) if behind else (norm, least)
        made = model(*pieces, linear, x=(2, channels, 4, 4), opset=13)
        assert bool(bnfold.plan(made).folds) == (channels == 4)
    assert codes(made) == {"bn": "not-per-channel"}


def test_a_vector_of_one_channel_ahead_and_alone():
    product = (op("MatMul", "b w", "y"), {"w": rand(5, 4)})
    made = model(bn("bn", "x", "b", 1), product, x=(5,))
    folded = bnfold.fold(made)
    certified(made)
    data = feeds(made)
    np.testing.assert_allclose(run(folded, data)[0], run(made, data)[0], rtol=1e-4, atol=1e-5)
    alone = model(op("Tanh", "x", "t"), bn("bn", "t", "b", 1), op("Tanh", "b", "y"), x=(5,))
    assert bnfold.fold(alone).SerializeToString() == alone.SerializeToString()
