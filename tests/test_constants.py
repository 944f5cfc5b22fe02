"""Where constants may come from, and which of them vary only along the channel axis."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import bnfold

from .graphs import (
    bn,
    codes,
    const,
    conv,
    counts,
    fold,
    folds,
    i64,
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


# --- what is none: integers, and what a caller may give ----------------------------------------


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
