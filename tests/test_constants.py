"""Where constants may come from, and which of them vary only along the channel axis."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from onnx import helper

import bnfold
from bnfold._onnx.read import evaluation as reading
from bnfold._onnx.read import growth
from bnfold._onnx.read.evaluation import evaluate

from .graphs import (
    bn,
    codes,
    const,
    conv,
    counts,
    fold,
    folds,
    model,
    op,
    overridable,
    positive,
    rand,
    stays,
    tensor,
)

CONV = ("conv", "x", "c", (4, 3, 3, 3))


def constant(name, **attrs):
    return op("Constant", "", name, name=f"const_{name}", **attrs)


def i64(*values):
    return np.array(values, np.int64)


def sparse(dense):
    flat = dense.reshape(-1)
    index = np.flatnonzero(flat).astype(np.int64)
    return helper.make_sparse_tensor(
        tensor(flat[index], "values"), tensor(index, "indices"), list(dense.shape)
    )


# --- Constant nodes ----------------------------------------------------------------------------


def test_parameters_in_constant_nodes():
    names = ["w", "b", "s", "t", "m", "v"]
    values = [rand(4, 3, 3, 3), rand(4), rand(4), rand(4), rand(4), positive(4)]
    m = model(
        *(constant(n, value=tensor(v, "")) for n, v in zip(names, values)),
        op("Conv", "x w b", "c", name="conv"),
        op("BatchNormalization", "c s t m v", "y", name="bn", epsilon=0.01),
    )
    after = counts(fold(m))
    assert after["Conv"] == 1
    assert "BatchNormalization" not in after
    assert after.get("Constant", 0) <= 2


@pytest.mark.parametrize(
    "attrs",
    [
        {"value_float": 1.5},
        {"value": tensor(np.float32(1.5), "k")},
        {"value": tensor(rand(1), "k")},
        {"value": tensor(rand(4, 1, 1), "k")},
        {"value_floats": [2.5]},
    ],
    ids=["value_float", "value-0d", "value-1d", "value-per-channel", "value_floats"],
)
@pytest.mark.parametrize("kind", ["Mul", "Sub"])
def test_constant_node_behind_conv(kind, attrs):
    m = model(conv(*CONV), constant("k", **attrs), op(kind, "c k", "y"))
    after = counts(fold(m))
    assert after == {"Conv": 1}


def test_value_floats_reshaped():
    m = model(
        conv(*CONV),
        constant("k", value_floats=[1.0, -2.0, 0.5, 3.0]),
        constant("shape", value_ints=[4, 1, 1]),
        op("Reshape", "k shape", "kk"),
        op("Mul", "c kk", "y"),
    )
    folds(m, Conv=1)


def test_value_int_cast():
    m = model(
        conv(*CONV), constant("k", value_int=3), op("Cast", "k", "kf", to=1), op("Mul", "c kf", "y")
    )
    folds(m, Conv=1)


def test_sparse_value():
    k = np.array([2, 0, -1, 0.5], np.float32)
    m = model(
        conv(*CONV),
        constant("k", sparse_value=sparse(k)),
        op("Reshape", "k shape", "kk"),
        op("Mul", "c kk", "y"),
        weights={"shape": i64(4, 1, 1)},
    )
    fold(m)


def test_sparse_initializer_as_batchnorm_bias():
    m = model(conv(*CONV), bn("bn", "c", "y", 4))
    kept = [t for t in m.graph.initializer if t.name != "bn.bias"]
    del m.graph.initializer[:]
    m.graph.initializer.extend(kept)
    s = sparse(np.array([2, 0, -1, 0.5], np.float32))
    s.values.name = "bn.bias"
    m.graph.sparse_initializer.append(s)
    fold(m, runtime=False)


# --- chains ------------------------------------------------------------------------------------


def chained(*pieces, k="k", kind="Mul", **options):
    return model(conv(*CONV), *pieces, op(kind, f"c {k}", "y", name="affine"), **options)


CHAINS = {
    "identity": ([op("Identity", "raw", "k")], {"raw": rand(4, 1, 1)}),
    "reshape": ([op("Reshape", "raw s", "k")], {"raw": rand(4), "s": i64(1, -1, 1, 1)}),
    "reshape-zero-copies": ([op("Reshape", "raw s", "k")], {"raw": rand(4, 1), "s": i64(0, 1, 1)}),
    "unsqueeze": ([op("Unsqueeze", "raw a", "k")], {"raw": rand(4), "a": i64(1, 2)}),
    "unsqueeze-negative": ([op("Unsqueeze", "raw a", "k")], {"raw": rand(4), "a": i64(-1, -2)}),
    "squeeze": ([op("Squeeze", "raw a", "k")], {"raw": rand(1, 1, 4, 1, 1), "a": i64(0)}),
    "transpose": ([op("Transpose", "raw", "k", perm=[2, 0, 1])], {"raw": rand(1, 1, 4)}),
    "cast-from-double": (
        [op("Cast", "raw", "k", to=1)],
        {"raw": rand(4, 1, 1).astype(np.float64)},
    ),
    "cast-from-int": (
        [op("Cast", "raw", "k", to=1)],
        {"raw": np.array([1, -2, 3, 4], np.int32).reshape(4, 1, 1)},
    ),
    "castlike": (
        [op("CastLike", "raw like", "k")],
        {"raw": rand(4, 1, 1).astype(np.float64), "like": rand(1)},
    ),
    "castlike-of-the-input": (
        [op("CastLike", "raw c", "k")],
        {"raw": rand(4, 1, 1).astype(np.float64)},
    ),
    "concat": (
        [op("Concat", "p q", "k", axis=0)],
        {"p": rand(1, 1, 1), "q": rand(3, 1, 1)},
    ),
    "arithmetic": (
        [
            op("Mul", "p q", "a"),
            op("Add", "a r", "b"),
            op("Div", "b p", "e"),
            op("Sub", "e q", "k"),
        ],
        {"p": rand(4, 1, 1), "q": rand(1), "r": rand(4, 1, 1) * np.float32(5)},
    ),
    "expand": ([op("Expand", "raw s", "k")], {"raw": rand(1, 1, 1), "s": i64(4, 1, 1)}),
    "constant-of-shape": (
        [op("ConstantOfShape", "s", "k", value=tensor(rand(1), ""))],
        {"s": i64(4, 1, 1)},
    ),
    "constant-of-shape-default": ([op("ConstantOfShape", "s", "k")], {"s": i64(4, 1, 1)}),
    "shape-of-a-constant": (
        [
            op("Shape", "other", "s"),
            op("Expand", "raw s", "e"),
            op("Reshape", "e r", "k"),
        ],
        {"other": rand(4), "raw": rand(1), "r": i64(4, 1, 1)},
    ),
    "gather": ([op("Gather", "raw i", "k", axis=0)], {"raw": rand(9, 1, 1), "i": i64(3, 1, 8, 0)}),
    "slice": (
        [op("Slice", "raw f t a", "k")],
        {"raw": rand(9, 1, 1), "f": i64(2), "t": i64(6), "a": i64(0)},
    ),
    "sqrt": ([op("Sqrt", "raw", "k")], {"raw": positive(4, 1, 1)}),
}


@pytest.mark.parametrize("kind", ["Mul", "Add"])
@pytest.mark.parametrize("chain", CHAINS)
def test_constant_behind_a_chain(chain, kind):
    pieces, weights = CHAINS[chain]
    after = counts(fold(chained(*pieces, kind=kind, weights=weights)))
    assert after == {"Conv": 1}, "the affine node and its chain are gone"


def test_shape_of_the_fixed_input():
    """Shape of a tensor whose size is known is a constant too."""
    m = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        op("Shape", "x", "s", start=1, end=2),
        op("Expand", "raw s", "e"),
        op("Reshape", "e r", "k"),
        op("Mul", "c k", "y", name="mul"),
        x=(2, 4, 5, 5),
        weights={"raw": rand(1), "r": i64(4, 1, 1)},
    )
    after = counts(fold(m))
    assert after == {"Conv": 1}


def test_shape_of_a_free_input_is_not_constant():
    m = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        op("Shape", "x", "s", start=2, end=3),
        op("Cast", "s", "k", to=1),
        op("Mul", "c k", "y", name="mul"),
        x=(2, 4, "h", 5),
    )
    assert fold(m).SerializeToString() == m.SerializeToString()


def test_batchnorm_parameters_behind_chains():
    m = model(
        conv(*CONV),
        op("Expand", "one s", "scale"),
        op("Cast", "beta64", "beta", to=1),
        op("Reshape", "mean41 minus", "mean"),
        op("Concat", "v1 v2", "var", axis=0),
        op("BatchNormalization", "c scale beta mean var", "y", name="bn", epsilon=0.01),
        weights={
            "one": rand(1),
            "s": i64(4),
            "beta64": rand(4).astype(np.float64),
            "mean41": rand(4, 1),
            "minus": i64(-1),
            "v1": positive(3),
            "v2": positive(1),
        },
    )
    folds(m, Conv=1)


def test_conv_weight_behind_a_chain():
    m = model(
        op("Reshape", "flat s", "w"),
        op("Identity", "b0", "b"),
        op("Conv", "x w b", "c", name="conv"),
        bn("bn", "c", "y", 4),
        weights={"flat": rand(4, 27), "s": i64(4, 3, 3, 3), "b0": rand(4)},
    )
    folds(m, Conv=1)


def test_chain_read_by_another_is_left_for_it():
    m = model(
        conv(*CONV),
        op("Reshape", "raw s", "k"),
        op("Mul", "c k", "y"),
        op("Add", "x2 k", "z"),
        x={"x": (2, 3, 8, 8), "x2": (4, 2, 2)},
        y="y z",
        weights={"raw": rand(4), "s": i64(4, 1, 1)},
    )
    after = counts(fold(m))
    assert after["Reshape"] == 1
    assert after["Conv"] == 1
    assert "Mul" not in after


def test_unknown_or_random_sources_are_not_constant():
    m = model(
        conv(*CONV),
        op("RandomNormal", "", "k", shape=[4, 1, 1]),
        op("Mul", "c k", "y", name="mul"),
    )
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


# --- by value ----------------------------------------------------------------------------------


def test_full_constant_equal_along_height_and_width_is_per_channel():
    k = np.broadcast_to(rand(1, 4, 1, 1), (1, 4, 6, 6)).copy()
    folds(model(conv(*CONV), const("Mul", "c", "y", k)), Conv=1)


def test_full_constant_of_one_value_is_a_scalar():
    k = np.full((2, 4, 6, 6), 1.25, np.float32)
    folds(model(conv(*CONV), const("Mul", "c", "y", k)), Conv=1)


def test_full_constant_that_fixes_a_free_size_stays():
    """[1, 4, 6, 6] on [n, 4, h, w]: dropping it would accept h = w = 1 or fail to expand it."""
    k = np.broadcast_to(rand(1, 4, 1, 1), (1, 4, 6, 6)).copy()
    m = model(conv(*CONV), const("Mul", "c", "y", k, name="mul"), x=("n", 3, "h", "w"))
    after = bnfold.fold(m)
    data = {"x": rand(2, 3, 3, 3)}
    from .graphs import assert_same

    assert_same(m, after, data)


@pytest.mark.parametrize(
    "shape",
    [(6,), (6, 1), (1, 1, 6, 6), (4, 6, 6), (2, 1, 1, 1), (2, 4, 1, 1)],
    ids=["W", "H", "HW", "CHW", "N", "NC"],
)
@pytest.mark.parametrize("kind", ["Mul", "Add", "Sub", "Div"])
def test_constant_along_another_axis_stays(kind, shape):
    m = model(conv(*CONV), const(kind, "c", "y", rand(*shape), name="k"))
    kept = codes(m)["k"]
    assert kept in ("not-per-channel", "axis-mismatch")
    assert fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1, 1), (4, 4), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_constant_along_another_axis_of_equal_size_stays(kind, shape):
    m = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        const(kind, "c", "y", rand(*shape), name="k"),
        x=(4,) * 4,
    )
    assert codes(m)["k"] in ("not-per-channel", "axis-mismatch")
    assert fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)], ids=str)
def test_constant_that_widens_one_channel_stays(shape):
    m = model(conv("conv", "x", "c", (1, 3, 3, 3)), const("Mul", "c", "y", rand(*shape), name="k"))
    stays(m, {"k": "not-per-channel"})


def test_constant_of_more_axes_than_the_tensor_stays():
    m = model(conv(*CONV), const("Mul", "c", "y", rand(1, 1, 4, 1, 1), name="k"))
    stays(m, {"k": "not-per-channel"})


def test_scalar_of_more_axes_than_the_tensor_stays():
    """It is one value, but it raises the rank."""
    m = model(conv(*CONV), const("Mul", "c", "y", rand(1, 1, 1, 1, 1), name="k"))
    stays(m, {"k": "not-per-channel"})


def test_scalar_that_expands_stays():
    k = np.full((5, 4, 6, 6), 1.25, np.float32)
    m = model(conv(*CONV), const("Mul", "c", "y", k, name="k"), x=(1, 3, 8, 8))
    stays(m, {"k": "not-per-channel"})


@pytest.mark.parametrize("kind", ["Mul", "Add", "Sub"])
def test_integers_are_left_alone(kind):
    from onnx import TensorProto

    m = model(
        op("Cast", "x", "i", to=TensorProto.INT64),
        const(kind, "i", "a", i64(3)),
        const(kind, "a", "b", i64(2)),
        op("Cast", "b", "y", to=1),
    )
    assert fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("name", ["conv.w", "bn.scale", "bn.var"])
def test_overridable_parameter_stays(name):
    m = overridable(model(conv(*CONV), bn("bn", "c", "y", 4)), name)
    stays(m, {"bn": "overridable-weight"})


def test_overridable_conv_bias_stays():
    m = overridable(model(conv(*CONV), bn("bn", "c", "y", 4)), "conv.b")
    stays(m, {"bn": "overridable-weight"})


def test_overridable_behind_a_chain_stays():
    m = model(
        conv(*CONV),
        op("Reshape", "raw s", "k"),
        op("Mul", "c k", "y", name="mul"),
        weights={"raw": rand(4), "s": i64(4, 1, 1)},
    )
    stays(overridable(m, "raw"), {"mul": "overridable-weight"})


def test_overridable_operand_of_mul_stays():
    m = overridable(model(conv(*CONV), const("Mul", "c", "y", rand(4, 1, 1), name="mul")), "mul.k")
    assert fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m).get("mul") == "overridable-weight"


def test_ir_3_lists_initializers_as_inputs_and_folds():
    m = model(conv(*CONV), bn("bn", "c", "y", 4), opset=8, ir=3)
    m = overridable(m, *(t.name for t in m.graph.initializer))
    after = folds(m, Conv=1)
    stored = {t.name for t in after.graph.initializer}
    listed = {i.name for i in after.graph.input}
    assert listed == stored | {"x"}, (
        "an IR 3 model lists every initializer as an input, and no other"
    )


def test_dynamic_conv_weight_stays():
    m = model(
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x={"x": (2, 3, 8, 8), "w": (4, 3, 3, 3)},
    )
    stays(m, {"bn": "dynamic-weight"})


def test_dynamic_conv_bias():
    m = model(
        op("Conv", "x w b", "c", name="conv"),
        bn("bn", "c", "y", 4),
        x={"x": (2, 3, 8, 8), "b": (4,)},
        weights={"w": rand(4, 3, 3, 3)},
    )
    stays(m, {"bn": "dynamic-weight"})


@pytest.mark.parametrize("shape", [(6,), (6, 1), (2, 1, 1, 1)], ids=["W", "H", "N"])
def test_constant_along_a_free_axis_stays(shape):
    m = model(conv(*CONV), const("Mul", "c", "y", rand(*shape), name="k"), x=("n", 3, "h", "w"))
    assert codes(m)["k"] in ("not-per-channel", "axis-mismatch", "unknown-shape")
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 1, 1, 1), (1, 1, 6, 1)], ids=str)
def test_equal_values_along_a_free_axis_may_expand_it(shape):
    """[2, 4, 1, 1] on [n, 4, h, w] makes n = 2 of n = 1, whatever its values are."""
    k = np.broadcast_to(rand(1, shape[1], 1, 1), shape).copy()
    m = model(conv(*CONV), const("Mul", "c", "y", k, name="k"), x=("n", 3, "h", "w"))
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["k"] in ("not-per-channel", "unknown-shape")


def test_dropout_whose_mode_the_caller_gives_stops():
    from onnx import TensorProto

    m = model(
        conv(*CONV),
        op("Dropout", "c ratio on", "d"),
        bn("bn", "d", "y", 4),
        weights={"ratio": np.float32(0.5)},
    )
    m.graph.input.append(helper.make_tensor_value_info("on", TensorProto.BOOL, ()))
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert "bn" in codes(m)


@pytest.mark.parametrize("on", [False, None], ids=["off", "unsaid"])
def test_dropout_in_inference_written_out_does_not_stop(on):
    weights = {"ratio": np.float32(0.5)} | ({} if on is None else {"on": np.array(on)})
    m = model(
        conv(*CONV),
        op("Dropout", "c ratio" + ("" if on is None else " on"), "d"),
        bn("bn", "d", "y", 4),
        weights=weights,
    )
    after = counts(fold(m))
    assert "BatchNormalization" not in after


def test_overridable_gemm_c_and_matmul_bias():
    m = model(
        op("Gemm", "x w b", "g"),
        bn("bn", "g", "y", 4),
        x=(5, 3),
        weights={"w": rand(3, 4), "b": rand(4)},
    )
    stays(overridable(m, "b"), {"bn": "overridable-weight"})
    m = model(
        op("MatMul", "x w", "g"),
        op("Add", "g b", "a", name="add"),
        const("Mul", "a", "y", rand(4), name="mul"),
        x=(5, 3),
        weights={"w": rand(3, 4), "b": rand(4)},
    )
    fold(overridable(m, "b"))


# --- constants behind the place where an operator comes to stand ---------------------------------


@pytest.mark.parametrize("written", ["Identity", "Constant"])
def test_a_norm_that_stands_earlier_finds_its_constants_there(written):
    """The last norm takes the first one's place, ahead of the nodes that give its parameters."""
    given = {"s": rand(4), "t": rand(4), "m": rand(4), "v": positive(4)}
    if written == "Constant":
        late = [constant(name, value=tensor(value, "")) for name, value in given.items()]
    else:
        late = [(op("Identity", f"{name}0", name), {f"{name}0": v}) for name, v in given.items()]
    m = model(
        op("Relu", "x", "r"),
        bn("first", "r", "a", 4),
        const("Div", "a", "b", positive(4)),
        *late,
        op("BatchNormalization", "b s t m v", "y", name="last", epsilon=0.01),
        x=(4, 4, 4, 4),
    )
    made = fold(m)
    assert [n.name for n in made.graph.node if n.op_type == "BatchNormalization"] == ["last"]


# --- size --------------------------------------------------------------------------------------


def test_large_constants_are_made_once_each(monkeypatch):
    """Each Add reads the one before twice: made anew for each reader, 2²⁰ would be made."""
    made = []

    def counted(node, *rest):
        made.append(node)
        assert len(made) < 99
        return evaluate(node, *rest)

    monkeypatch.setattr(reading, "evaluate", counted)
    steps = [op("Add", f"k{n} k{n}", f"k{n + 1}") for n in range(20)]
    m = model(
        (op("ConstantOfShape", "s", "k0"), {"s": i64(300_000)}),
        *steps,
        op("ReduceMean", "k20", "k", keepdims=0),
        conv(*CONV),
        op("Add", "c k", "y"),
    )
    bnfold.plan(m)
    assert len(made) < 2 * len(m.graph.node)


HUGE = {
    "constant of shape": (op("ConstantOfShape", "s", "k"), {"s": i64(10**9)}),
    "tile": (op("Tile", "one s", "k"), {"one": rand(1), "s": i64(10**9)}),
    "expand": (op("Expand", "one s", "k"), {"one": rand(1), "s": i64(10**5, 10**5)}),
    "pad": (op("Pad", "one s", "k"), {"one": rand(1), "s": i64(0, 10**9)}),
    "outer product": (op("Mul", "a b", "k"), {"a": rand(20_000, 1), "b": rand(20_000)}),
    "matrix product": (op("MatMul", "a b", "k"), {"a": rand(20_000, 1), "b": rand(1, 20_000)}),
    "einsum": (
        op("Einsum", "a b", "k", equation="i,j->ij"),
        {"a": rand(20_000), "b": rand(20_000)},
    ),
    "gather": (op("Gather", "a b", "k"), {"a": rand(1, 20_000), "b": np.zeros(20_000, np.int64)}),
    "gather by several axes": (
        op("GatherND", "a b", "k"),
        {"a": rand(1, 20_000), "b": np.zeros((20_000, 1), np.int64)},
    ),
    "gather in batches": (
        op("GatherND", "a b", "k", batch_dims=1),
        {"a": rand(1, 1, 20_000), "b": np.zeros((1, 20_000, 1), np.int64)},
    ),
    "pad some axes": (
        op("Pad", "one s _ axes", "k"),
        {"one": rand(1, 20_000), "s": i64(0, 20_000), "axes": i64(0)},
    ),
    "pad an axis from behind": (
        op("Pad", "one s _ axes", "k"),
        {"one": rand(20_000, 1), "s": i64(0, 20_000), "axes": i64(-1)},
    ),
    "gemm": (
        op("Gemm", "a b", "k", transA=1),
        {"a": rand(1, 20_000), "b": rand(1, 20_000)},
    ),
    "gemm, the other one turned": (
        op("Gemm", "a b", "k", transB=1),
        {"a": rand(20_000, 1), "b": rand(20_000, 1)},
    ),
    "einsum without an arrow": (
        op("Einsum", "a b", "k", equation="i,j"),
        {"a": rand(20_000), "b": rand(20_000)},
    ),
    "einsum with an ellipsis": (
        op("Einsum", "a b", "k", equation="...i,j->...j"),
        {"a": rand(20_000, 1), "b": rand(20_000)},
    ),
    "einsum with two ellipses and no arrow": (
        op("Einsum", "a b", "k", equation="...i,...i"),
        {"a": rand(20_000, 1, 1), "b": rand(1, 20_000, 1)},
    ),
    "clip": (op("Clip", "a b", "k"), {"a": rand(20_000, 1), "b": rand(1, 20_000)}),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_few_numbers_blow_up_is_not_made(name, monkeypatch):
    """No constant of a gigabyte is made from kilobytes of file."""
    monkeypatch.setattr(reading, "evaluate", lambda *_: pytest.fail("it was made"))
    m = model(
        HUGE[name], conv(*CONV), op("ReduceMean", "k", "r", keepdims=0), op("Mul", "c r", "y")
    )
    assert "y_mul" not in {k.node for k in bnfold.plan(m).folds}


SIZES = {
    **{
        f"Einsum {equation}": op(
            "Einsum", " ".join("ab"[: equation.count(",") + 1]), "k", equation=equation
        )
        for equation in (
            "ij,jk",
            "ij,jk->ki",
            "...i,...i",
            "i...,...i->i",
            "ij...",
            "ba,cb",
            "ii",
            "Ab,bc",
        )
    },
    **{f"Gemm {a} {b}": op("Gemm", "a b", "k", transA=a, transB=b) for a in (0, 1) for b in (0, 1)},
    "Gemm and C": op("Gemm", "a b a", "k"),
    "MatMul": op("MatMul", "a b", "k"),
    "Pad": op("Pad", "a p", "k"),
    "Pad axes": op("Pad", "a q _ r", "k"),
    "GatherND": op("GatherND", "a i", "k"),
    "GatherND deep": op("GatherND", "a j", "k"),
    "GatherND batch": op("GatherND", "a l", "k", batch_dims=1),
    "Gather": op("Gather", "a i", "k", axis=1),
    "Clip": op("Clip", "a c c", "k"),
    "Sum": op("Sum", "a c a", "k"),
}
_SHAPES = ((3, 3), (3, 3, 3), (1, 3), (3, 1), (4, 2), (3,))


@pytest.mark.parametrize("name", SIZES)
def test_the_size_that_is_told_is_no_less_than_the_size_that_is_made(name):
    """The oracle is what onnx's evaluator makes, for all shapes that it takes."""
    node, made = SIZES[name], 0
    fixed = {
        "p": i64(1, 0, 2, 3),
        "q": i64(5, 4),
        "r": i64(-1),
        "c": rand(2, 1, 1, 1),
        "i": i64([0], [1], [0], [1], [0]),
        "j": i64([0, 1], [1, 0]),
        "l": i64([[0]], [[1]], [[0]]),
    }
    for a in _SHAPES:
        for b in _SHAPES:
            held = {"a": rand(*a), "b": rand(*b), **fixed}
            inputs = [held[name] if name else None for name in node.input]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    size = evaluate(node, inputs, 18).size
            except Exception:
                continue
            made += 1
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(growth, "LARGEST", size)
                growth.refuse_huge(node, inputs)  # what fits is made
                patch.setattr(growth, "LARGEST", 0)
                if size > sum(v.size for v in inputs if v is not None):
                    with pytest.raises(ValueError, match="it would have"):
                        growth.refuse_huge(node, inputs)
    assert made


def test_what_is_no_larger_than_its_parts_is_made_whatever_its_size(monkeypatch):
    monkeypatch.setattr(growth, "LARGEST", 4)
    chain = [op("Transpose", "raw", "t", perm=[3, 1, 2, 0]), op("MatMul", "t q", "w")]
    m = model(
        *chain,
        op("Conv", "x w", "c"),
        const("Mul", "c", "y", rand(4, 1, 1)),
        weights={"raw": rand(3, 3, 3, 4), "q": rand(3, 3)},
    )
    folds(m, Conv=1)
