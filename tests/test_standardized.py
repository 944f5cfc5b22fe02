"""Standardized weights: a norm whose inputs are all constants is no map of data, it makes a weight.

Weights are 4×4×3×3 with batches of 4, so that no axis is told by its size.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold._onnx.read import norms

from . import runtimes
from .graphs import (
    bn,
    codes,
    const,
    constants,
    counts,
    fold,
    folds,
    model,
    op,
    overridable,
    positive,
    rand,
    run,
    stays,
    subgraph,
)

SHAPE = (4, 4, 3, 3)
INPUT = (4, 4, 8, 8)


def norm(kind, *parameters, outputs="w", **attrs):
    """A norm of a constant, with parameters of the given shapes."""
    values = {"raw": 0.1 * rand(*SHAPE)}
    values |= {f"p{k}": positive(*shape) for k, shape in enumerate(parameters)}
    attrs.setdefault("epsilon", 0.01)
    return op(kind, " ".join(values), outputs, name="norm", **attrs), values


def behind(*pieces, opset=17):
    """A Conv that reads ``w``, and a map that it takes in."""
    return model(
        *pieces,
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "y", positive(4, 1, 1), name="scale"),
        x=INPUT,
        opset=opset,
    )


def batch_norm(**options):
    return norm("BatchNormalization", *[(4,)] * 4, **options)


NORMS = {
    "batch, opset 9": (9, batch_norm),
    "batch, opset 14": (14, batch_norm),
    "batch, by its own statistics": (
        15,
        lambda: batch_norm(outputs="w mean variance", training_mode=1),
    ),
    "instance": (17, lambda: norm("InstanceNormalization", (4,), (4,))),
    "layer, all of a filter": (17, lambda: norm("LayerNormalization", (4, 3, 3), axis=1)),
    "layer, last axes": (17, lambda: norm("LayerNormalization", (3, 3), (3, 3), axis=-2)),
    "layer, γ spread": (17, lambda: norm("LayerNormalization", (4, 1, 1), (1,), axis=1)),
    "group, opset 18": (18, lambda: norm("GroupNormalization", (2,), (2,), num_groups=2)),
    "group, opset 21": (21, lambda: norm("GroupNormalization", (4,), (4,), num_groups=2)),
}


def standardized(name):
    if name == "layer, γ spread" and not runtimes.broadcasts_gamma():
        pytest.skip("this onnxruntime takes no γ that broadcasts")
    opset, piece = NORMS[name]
    return behind(piece(), opset=opset)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_constants_is_a_weight(name):
    """onnxruntime computes the norm; onnx.reference does not know all of them in all opsets."""
    m = standardized(name)
    after = bnfold.fold(m)
    assert counts(after) == {"Conv": 1}
    assert not codes(m)
    assert bnfold.verify(m, after).status == "pass"


def test_what_standardizes_by_arithmetic_is_a_weight():
    """``w / max(‖w‖, ε)``, as torch's newer exporter writes ``F.normalize``."""
    m = behind(
        (op("ReduceL2", "raw", "norm", axes=[1], keepdims=1), {"raw": rand(*SHAPE)}),
        (op("Clip", "norm least", "size"), {"least": np.float32(1e-12)}),
        op("Div", "raw size", "w"),
    )
    after = bnfold.fold(m)
    assert counts(after) == {"Conv": 1}
    assert bnfold.verify(m, after).status == "pass"


RAW = {"raw": 0.1 * rand(*SHAPE)}
ROWS = {"rows": np.array([4, -1])}
ALL = {"axes": np.array([1, 2, 3])}
# What makes the weight w of constants, as libraries write it; "raw" is its parameter.
MADE = {
    "weight norm": lambda: [
        (op("Pow", "raw two", "p"), RAW | {"two": np.float32(2)}),
        (op("ReduceSum", "p axes", "s", keepdims=1), ALL),
        op("Sqrt", "s", "n"),
        op("Div", "raw n", "u"),
        const("Mul", "u", "w", positive(4, 1, 1, 1)),
    ],
    "spectral norm": lambda: [
        (op("Reshape", "raw rows", "m"), RAW | ROWS),
        (op("MatMul", "m v", "mv"), {"v": rand(36, 1)}),
        (op("MatMul", "u mv", "sigma"), {"u": rand(1, 4)}),
        op("Squeeze", "sigma", "number"),
        op("Div", "raw number", "w"),
    ],
    "by reciprocal of a root": lambda: [
        (op("ReduceMean", "raw", "m", axes=[1, 2, 3], keepdims=1), RAW),
        op("Sub", "raw m", "d"),
        op("ReduceSumSquare", "d", "q", axes=[1, 2, 3], keepdims=1),
        op("Sqrt", "q", "r"),
        op("Reciprocal", "r", "i"),
        op("Mul", "d i", "w"),
    ],
    "masked": lambda: [
        (op("GreaterOrEqual", "raw zero", "g"), RAW | {"zero": np.float32(0)}),
        (op("Where", "g raw other", "w"), {"other": 0.1 * rand(*SHAPE)}),
    ],
    "rounded to steps": lambda: [
        (op("Div", "raw step", "d"), RAW | {"step": np.float32(0.01)}),
        op("Round", "d", "r"),
        (op("Clip", "r low high", "k"), {"low": np.float32(-99), "high": np.float32(99)}),
        op("Mul", "k step", "w"),
    ],
    "signs and tanh": lambda: [(op("Sign", "raw", "s"), RAW), op("Tanh", "s", "w")],
    "a mixture": lambda: [(op("Softmax", "raw", "w", axis=1), RAW)],
    "a mixture of kernels": lambda: [
        (op("LogSoftmax", "mix", "l", axis=0), {"mix": rand(3, 1, 1, 1, 1)}),
        (op("Mul", "l bank", "k"), {"bank": 0.1 * rand(3, *SHAPE)}),
        (op("ReduceSum", "k first", "w", keepdims=0), {"first": np.array([0])}),
    ],
    "through other activations": lambda: [
        (op("Erf", "raw", "a"), RAW),
        op("Elu", "a", "b", alpha=0.5),
        op("Selu", "b", "c0"),
        op("Softsign", "c0", "d"),
        op("Atan", "d", "e"),
        op("HardSigmoid", "e", "w", alpha=0.3),
    ],
    "by a sum of exponentials": lambda: [
        (op("ReduceLogSumExp", "raw", "n", axes=[1, 2, 3], keepdims=1), RAW),
        op("Div", "raw n", "w"),
    ],
    "pixels as channels": lambda: [
        (op("DepthToSpace", "deep", "a", blocksize=3), {"deep": 0.1 * rand(4, 36, 1, 1)}),
        op("SpaceToDepth", "a", "b", blocksize=3),
        op("DepthToSpace", "b", "w", blocksize=3, mode="CRD"),
    ],
    "along a channel by einsum": lambda: [
        (op("Einsum", "raw g", "w", equation="oihw,o->oihw"), RAW | {"g": positive(4)})
    ],
    "padded": lambda: [
        (
            op("Pad", "small pads", "w"),
            {"small": 0.1 * rand(4, 4, 1, 1), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        )
    ],
}


def plain(m):
    """Folded to one Conv that reads a stored weight; onnxruntime says whether it is right."""
    after = bnfold.fold(m)
    assert counts(after) == {"Conv": 1}
    assert not codes(m)
    assert bnfold.verify(m, after).status == "pass"
    return after


@pytest.mark.parametrize("name", MADE)
def test_what_operators_make_of_constants_is_a_weight(name):
    plain(behind(*MADE[name]()))


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("options", [{}, {"axis": 1}])
def test_a_softmax_that_flattens_is_no_weight(kind, options):
    m = behind((op(kind, "raw", "w", **options), RAW), opset=12)
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["scale"] == "dynamic-weight"


def test_a_weight_that_is_made_in_a_branch():
    """Of a parameter there and one outside; the other branch reads the same parameter."""
    pieces = [*MADE["weight norm"](), op("Conv", "x w", "c", name="conv")]
    then = subgraph(*pieces, const("Mul", "c", "t", positive(4, 1, 1), name="scale"), y="t")
    then.initializer.remove(next(t for t in then.initializer if t.name == "raw"))
    other = subgraph(op("Conv", "x raw", "o", name="o"), op("Neg", "o", "e"), y="e")
    m = model(op("If", "go", "y", then_branch=then, else_branch=other), x=INPUT, weights=RAW)
    m.graph.input.append(helper.make_tensor_value_info("go", TensorProto.BOOL, ()))
    after = bnfold.fold(m)
    assert counts(after) == {"If": 1, "Conv": 2}
    given = {"x": rand(*INPUT), "go": np.array(True)}
    (wanted,), (made,) = run(m, given), run(after, given)
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def test_a_weight_that_two_layers_share():
    """The chain stays for the layer that takes nothing in."""
    m = model(
        *MADE["weight norm"](),
        op("Conv", "x w", "a", name="first"),
        op("Relu", "a", "r"),
        op("Conv", "r w", "b", name="second"),
        const("Mul", "b", "y", positive(4, 1, 1), name="scale"),
        x=INPUT,
    )
    after = bnfold.fold(m)
    assert "Pow" in counts(after)
    assert [n.op_type for n in after.graph.node][-1] == "Conv"
    assert bnfold.verify(m, after).status == "pass"


def test_gains_that_are_zero():
    """As the last convolution of a residual branch begins: every weight is 0."""
    node, values = batch_norm()
    zeros = dict.fromkeys(("p0", "p1"), np.zeros(4, np.float32))
    m = model(
        (node, values | zeros),
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "s", np.float32(0.2), name="scale"),
        op("Add", "s x", "y"),
        x={"x": (4, 4, 8, 8)},
    )
    m.graph.node[1].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    after = bnfold.fold(m)
    assert counts(after) == {"Conv": 1}
    assert bnfold.verify(m, after).status != "fail"


def test_weights_of_external_data(tmp_path):
    m = behind(batch_norm())
    onnx.save(m, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    after = bnfold.fold(tmp_path / "m.onnx", tmp_path / "folded.onnx")
    assert counts(onnx.load(after)) == {"Conv": 1}
    assert bnfold.verify(tmp_path / "m.onnx", after).status == "pass"


def test_an_operand_that_opset_6_lays_along_an_axis_is_not_read_as_the_last_one():
    """Every size is 4, so that the wrong axis fits: the right weight is ``raw[o]·k[o]``."""
    m = model(
        (op("Mul", "raw k", "w", broadcast=1, axis=0), {"raw": rand(4, 4, 4, 4), "k": rand(4)}),
        op("Conv", "x w", "c", name="conv"),
        bn("bn", "c", "y", 4, is_test=1),
        x=INPUT,
        opset=6,
    )
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["bn"] == "dynamic-weight"


def test_chain_of_norms():
    folds(
        behind(
            batch_norm(outputs="a"),
            bn("second", "a", "b", 4),
            op("Reshape", "b rows", "r"),
            const("Mul", "r", "g", rand(4, 1)),
            (op("Reshape", "g shape", "w"), {"shape": np.array(SHAPE), "rows": np.array([4, -1])}),
        ),
        Conv=1,
    )


def test_a_norm_that_no_fold_needs_is_left_alone():
    m = model(batch_norm(), op("Conv", "x w", "y"), x=INPUT)
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_a_norm_of_constants_that_is_also_put_out_stays_beside_the_new_weight():
    m = behind(batch_norm())
    m.graph.output.append(m.graph.output[0])
    m.graph.output[1].name = "w"
    m.graph.output[1].type.tensor_type.ClearField("shape")
    assert counts(fold(m)) == {"Conv": 1, "BatchNormalization": 1}


@pytest.mark.parametrize("name", ["raw", "p0", "p3"])
def test_a_norm_of_what_a_caller_may_override_is_none(name):
    reasons = {"scale": "overridable-weight", "norm": "overridable-weight"}
    stays(overridable(behind(batch_norm()), name), reasons)


def test_a_norm_with_one_input_that_is_none():
    """γ comes at run time: neither a weight nor a map."""
    node, values = batch_norm()
    del values["p0"]
    m = model(
        (node, values),
        op("Conv", "x w", "c", name="conv"),
        const("Mul", "c", "y", positive(4, 1, 1), name="scale"),
        x={"x": INPUT, "p0": (4,)},
    )
    stays(m, {"scale": "dynamic-weight", "norm": "dynamic-weight"})


@pytest.mark.parametrize(
    "piece",
    [
        lambda: norm("BatchNormalization", (4,), (4,), (4,), (1,)),
        lambda: norm("InstanceNormalization", (1,), (1,)),
        lambda: norm("LayerNormalization", (4, 3, 3), axis=4),
        lambda: norm("LayerNormalization", (2, 4, 4, 3, 3), axis=0),
        lambda: norm("GroupNormalization", (4,), (4,), num_groups=3),
    ],
)
def test_shapes_that_onnx_does_not_allow_are_no_weight(piece):
    m = behind(piece(), opset=21)
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert "scale" in codes(m)


@pytest.mark.parametrize("attrs", [{"is_test": 0}, {"is_test": 1, "spatial": 0}])
def test_old_modes_are_no_weight(attrs):
    m = model(batch_norm(**attrs), op("Conv", "x w", "c"), bn("bn", "c", "y", 4), opset=6)
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


# --- what it must still notice -----------------------------------------------------------------


def wrong(made, change):
    """A folded model with another weight in its only Conv."""
    (name,) = (node.input[1] for node in made.graph.node if node.op_type == "Conv")
    stored = next(t for t in made.graph.initializer if t.name == name)
    values = change(numpy_helper.to_array(stored).astype(np.float64)).astype(np.float32)
    stored.CopyFrom(numpy_helper.from_array(values, name))
    return made


def test_a_wrong_channel_fails():
    def off(weight):
        weight[2] *= 1.01
        return weight

    m = behind(batch_norm())
    assert bnfold.verify(m, wrong(bnfold.fold(m), off)).status == "fail"


@pytest.mark.parametrize("name", NORMS)
def test_a_dropped_epsilon_fails(name, monkeypatch):
    """The certificate reads constants as the fold does; only the comparison can see this."""
    m = standardized(name)
    monkeypatch.setattr(norms, "_epsilon", lambda node: 0.0)
    made = bnfold.fold(m)
    monkeypatch.undo()
    assert bnfold.verify(m, made).status == "fail"


# --- a map of a weight that is stored as integers -----------------------------------------------


def test_maps_of_integers_are_certified():
    """What a DequantizeLinear makes is a constant to a Conv and data to a Mul: a certificate that
    takes it for the Mul's constant finds two of them.
    """
    integers = np.random.default_rng(5).integers(-99, 99, SHAPE).astype(np.int8)
    m = behind(
        (op("DequantizeLinear", "q s", "d"), {"q": integers, "s": np.float32(0.01)}),
        const("Mul", "d", "e", positive(4, 1, 1), name="first"),
        const("Mul", "e", "w", positive(1, 4, 1, 1), name="second"),
        opset=21,
    )
    after = fold(m)
    assert counts(after) == {"DequantizeLinear": 1, "Mul": 2, "Conv": 1}
    assert set(constants(after)) >= {"q", "s"}


def std_conv(x, y, name, gain):
    """A standardized convolution, as torch's newer exporter leaves it: the kernels are a batch of
    one with as many channels, and the BatchNormalization takes its own statistics.
    """
    nodes = [
        op("Reshape", f"{name}.raw rows", f"{name}.flat"),
        op(
            "BatchNormalization",
            f"{name}.flat {name}.gain none none ones",
            f"{name}.norm {name}.m {name}.v",
            training_mode=1,
            name=f"{name}.bn",
        ),
        op("Reshape", f"{name}.norm kernel", f"{name}.w"),
        op("Conv", f"{x} {name}.w {name}.b", y, name=name, pads=[1] * 4),
    ]
    held = {f"{name}.raw": rand(*SHAPE), f"{name}.gain": gain, f"{name}.b": rand(4)}
    return [*nodes[:-1], (nodes[-1], held)]


@pytest.mark.parametrize("zero", [False, True])
def test_a_network_without_norms(zero):
    """``h + 0.2·gain·conv(conv(act(h·β)))``, as NFNet and nf_resnet have it: β goes into the first
    convolution of a branch, the two factors into its last, whose gain begins as 0.
    """
    pieces, h = [], "x"
    for k in range(2):
        last = np.zeros(4, np.float32) if zero else positive(4)
        pieces += [
            const("Mul", h, f"b{k}", np.float32(0.9)),
            op("Relu", f"b{k}", f"r{k}"),
            const("Mul", f"r{k}", f"s{k}", np.float32(1.7)),
            *std_conv(f"s{k}", f"c{k}", f"first{k}", positive(4)),
            op("Sigmoid", f"c{k}", f"t{k}"),
            *std_conv(f"t{k}", f"d{k}", f"last{k}", last),
            const("Mul", f"d{k}", f"e{k}", np.float32(0.7)),
            const("Mul", f"e{k}", f"f{k}", np.float32(0.2)),
            op("Add", f"{h} f{k}", f"h{k}"),
        ]
        h = f"h{k}"
    weights = {
        "rows": np.array([1, 4, -1]),
        "kernel": np.array(SHAPE),
        "none": np.zeros(4, np.float32),
        "ones": np.ones(4, np.float32),
    }
    m = model(*pieces, x=INPUT, y=h, weights=weights)
    after = bnfold.fold(m)
    left = counts(after)
    assert set(left) == {"Add", "Conv", "Relu", "Sigmoid"}
    assert left["Conv"] == 4 and not codes(m)
    assert bnfold.verify(m, after).status == "pass"
    # Not with optimizations off: of a tensor with three axes onnxruntime then takes the variance of
    # n − 1, which its constant folding, as ONNX, does not.
    data = {"x": rand(*INPUT)}
    was, now = (
        ort.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        for one in (m, after)
    )
    assert np.allclose(was.run(None, data)[0], now.run(None, data)[0], rtol=1e-3, atol=1e-3)
