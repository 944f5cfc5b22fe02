"""``depthwise=True``: norms that nothing takes in become depthwise convolutions, or Mul and Add."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import bnfold
from bnfold._onnx.fold import prepare
from bnfold._onnx.write.applied import Applied
from bnfold._proof.certificate import certify

from .cli.command import bnfold as command
from .graphs import (
    DOUBLE,
    HALF,
    bn,
    const,
    conv,
    feeds,
    graphs,
    model,
    op,
    rand,
    run,
    subgraph,
    valid,
)


def kinds(made: ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]


def between(*shape: Any, **options: Any) -> ModelProto:
    """A norm that nothing takes in, on data of a shape."""
    old = {"is_test": 1} if options.get("opset", 17) < 7 else {}
    return model(
        op("Tanh", "x", "t"),
        bn("bn", "t", "b", shape[1], **old),
        op("Sigmoid", "b", "y"),
        x={"x": shape},
        **options,
    )


def rewritten(made: ModelProto, wanted: list[str], close: float = 1e-5) -> ModelProto:
    """The model without norms; it is the same function, and its certificates hold."""
    before = made.SerializeToString()
    folded, plan = bnfold.fold(made, depthwise=True), bnfold.plan(made, depthwise=True)
    assert made.SerializeToString() == before
    assert kinds(folded) == wanted
    if valid(made):
        onnx.checker.check_model(folded, full_check=True)
    planned = prepare(copied(made), None, depthwise=True)
    assert plan == planned.plan
    for certificate in certify(made, folded, applied(made)):
        assert certificate.holds, certificate
    inside = [node.op_type for nodes, _ in graphs(folded) for node in nodes]
    assert {k: n for k, n in plan.after.items() if n} == Counter(inside)
    given = feeds(made)
    for a, b in zip(run(made, given), run(folded, given), strict=True):
        assert a.dtype == b.dtype
        assert np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=close, atol=close)
    return folded


def applied(made: ModelProto) -> Sequence[Applied]:
    return prepare(copied(made), None, depthwise=True).apply().applied


def copied(made: ModelProto) -> ModelProto:
    return copy.deepcopy(made)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 3, 3), (2, 4, 2, 4, 3)])
def test_a_convolution_of_its_rank(shape):
    """Sizes that agree by accident: C = H = W, and C as large as an axis of five."""
    folded = rewritten(between(*shape), ["Tanh", "Conv", "Sigmoid"])
    node = folded.graph.node[1]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {"group": shape[1], "kernel_shape": [1] * (len(shape) - 2)}
    tensors = {t.name: tuple(t.dims) for t in folded.graph.initializer}
    assert tensors[node.input[1]] == (shape[1], 1, *[1] * (len(shape) - 2))
    assert tensors[node.input[2]] == (shape[1],) and len(tensors) == 2
    assert node.name == "bn_conv" and node.output[0] == "b"


@pytest.mark.parametrize("shape", [(3, 3), (1, 3), (2, 3, 1, 2, 2, 2)])
def test_mul_and_add_elsewhere(shape):
    folded = rewritten(between(*shape), ["Tanh", "Mul", "Add", "Sigmoid"])
    assert folded.graph.node[2].output[0] == "b"
    sizes = {tuple(t.dims) for t in folded.graph.initializer}
    assert sizes == {(3, *(1,) * (len(shape) - 2))}


def test_what_folds_still_folds():
    made = model(conv("conv", "x", "c", (3, 3, 1, 1)), bn("bn", "c", "y", 3))
    assert kinds(bnfold.fold(made, depthwise=True)) == ["Conv"]
    assert bnfold.fold(made, depthwise=True) == bnfold.fold(made)


def test_no_option_no_change():
    assert kinds(bnfold.fold(between(2, 3, 4, 4))) == ["Tanh", "BatchNormalization", "Sigmoid"]


def test_maps_that_the_norm_would_take_in_go_along():
    """A norm that stays takes in what follows; the convolution has all of it."""
    made = model(
        op("Tanh", "x", "t"),
        bn("bn", "t", "b", 3),
        const("Mul", "b", "m", rand(3, 1, 1)),
        op("MaxPool", "m", "p", kernel_shape=[2, 2]),
        const("Add", "p", "y", rand(3, 1, 1)),
        x=(2, 3, 4, 4),
    )
    rewritten(made, ["Tanh", "Conv", "MaxPool"])


def test_norms_in_a_row_become_one():
    made = model(op("Tanh", "x", "t"), bn("a", "t", "b", 3), bn("c", "b", "y", 3), x=(2, 3, 4, 4))
    rewritten(made, ["Tanh", "Conv"])
    plan = bnfold.plan(made, depthwise=True)
    assert str(plan.folds[0]) == "a, c → a (write as Conv)" and not plan.kept
    assert "would rewrite 1 norm that nothing takes in" in str(plan)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4)])
def test_all_readers_and_outputs_keep_their_names(shape):
    """The norm reads an input of the model, is an output, and two others and a branch read it."""
    branch = [subgraph(op(kind, "y", "z"), y="z") for kind in ("Relu", "Neg")]
    made = model(
        bn("bn", "x", "y", 3),
        op("Relu", "y", "r"),
        op("Tanh", "y", "t"),
        op("If", "cond", "i", then_branch=branch[0], else_branch=branch[1]),
        x={"x": shape},
        y="y r t i",
        weights={"cond": np.array(True)},
    )
    new = ["Conv"] if len(shape) > 2 else ["Mul", "Add"]
    folded = rewritten(made, [*new, "Relu", "Tanh", "If"])
    assert [o.name for o in folded.graph.output] == ["y", "r", "t", "i"]


def test_in_bodies_and_functions():
    body = subgraph(op("Tanh", "x", "a"), bn("inner", "a", "z", 3), y="z")
    other = subgraph(op("Neg", "x", "z"), y="z")
    called = helper.make_function(
        "own",
        "Twice",
        ["p", "s", "b", "m", "v"],
        ["q"],
        [op("Tanh", "p", "o"), op("BatchNormalization", "o s b m v", "q", name="called")],
        [helper.make_opsetid("", 17)],
    )
    _, weights = bn("bn", "x", "y", 3)
    names = list(weights)
    made = model(
        op("If", "cond", "i", then_branch=body, else_branch=other),
        op("Twice", f"i {' '.join(names)}", "y", domain="own"),
        x=(2, 3, 4, 4),
        weights={**weights, "cond": np.array(True)},
        functions=[called],
        domains={"own": 1},
    )
    made.graph.value_info.append(helper.make_tensor_value_info("i", 1, [2, 3, 4, 4]))
    folded = bnfold.fold(made, depthwise=True)
    inside = [node.op_type for nodes, _ in graphs(folded) for node in nodes]
    assert "BatchNormalization" not in inside and inside.count("Conv") == 2
    given = feeds(made)
    assert np.allclose(run(made, given)[0], run(folded, given)[0], atol=1e-6)
    assert bnfold.verify(made, folded).status == "pass"


def test_types():
    """onnxruntime has no Conv in float64; half has its own range."""
    rewritten(between(2, 3, 4, 4, elem=DOUBLE), ["Tanh", "Mul", "Add", "Sigmoid"])
    rewritten(between(2, 3, 4, 4, elem=HALF), ["Tanh", "Conv", "Sigmoid"], close=4e-3)


def with_numbers(made: ModelProto, **values: Any) -> ModelProto:
    """The model with other parameters of its norm."""
    for tensor in made.graph.initializer:
        name = tensor.name.partition(".")[2]
        if name in values:
            old = numpy_helper.to_array(tensor)
            new = np.full_like(old, values[name])
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return made


def mixed() -> ModelProto:
    """Data in half, parameters in single precision, as opset 15 allows."""
    made = between(2, 3, 4, 4, elem=HALF)
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return made


def unranked() -> ModelProto:
    made = model(op("Unknown", "x", "t", domain="own"), bn("bn", "t", "y", 3), domains={"own": 1})
    return made


STAYS = {
    "overflow": (
        lambda: with_numbers(between(2, 3, 4, 4, elem=HALF), var=0, scale=60000),
        "overflow",
    ),
    "underflow": (
        lambda: with_numbers(between(2, 3, 4, 4, elem=HALF), scale=6e-8, var=30000),
        "underflow",
    ),
    "negative": (lambda: with_numbers(between(2, 3, 4, 4), var=-1), "non-positive-variance"),
    "not finite": (lambda: with_numbers(between(2, 3, 4, 4), mean=np.nan), "non-finite"),
    "two types": (mixed, "unsupported-dtype"),
    "no rank": (unranked, "unknown-shape"),
    "vector of one axis": (
        lambda: model(op("Tanh", "x", "t"), bn("bn", "t", "y", 1), x=(5,)),
        "unsupported-opset",
    ),
    "old and flat": (lambda: between(2, 3, opset=6, ir=4), "unsupported-opset"),
    "training": (
        lambda: model(
            op("Tanh", "x", "t"), bn("bn", "t", "y a b", 3, training_mode=1), x=(2, 3, 4, 4)
        ),
        "training-mode",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_norms_that_stay_say_why(name):
    build, code = STAYS[name]
    made = build()
    folded, plan = bnfold.fold(made, depthwise=True), bnfold.plan(made, depthwise=True)
    assert kinds(folded).count("BatchNormalization") == 1
    assert [(kept.node, kept.code) for kept in plan.kept] == [("bn", code)]
    assert not plan.folds


def test_free_sizes_do_not_matter():
    made = between("n", 3, "h", "w")
    folded = bnfold.fold(made, depthwise=True)
    assert kinds(folded) == ["Tanh", "Conv", "Sigmoid"]
    assert bnfold.verify(made, folded, dims={"n": [1, 3], "h": [3, 5], "w": 3}).status == "pass"


def test_an_old_opset_has_convolutions():
    made = between(2, 3, 4, 4, opset=6, ir=4)
    folded = bnfold.fold(made, depthwise=True)
    assert kinds(folded) == ["Tanh", "Conv", "Sigmoid"]
    assert all(c.holds for c in certify(made, folded, applied(made)))
    assert bnfold.verify(made, folded).status == "pass"


def test_initializers_that_are_inputs_too():
    made = between(2, 3, 4, 4, ir=3)
    folded = rewritten(made, ["Tanh", "Conv", "Sigmoid"])
    assert [i.name for i in folded.graph.input] == ["x", "bn_conv_weight", "bn_conv_bias"]


def test_a_norm_of_one_channel():
    rewritten(between(2, 1, 1, 1), ["Tanh", "Conv", "Sigmoid"])


def test_a_scale_or_shift_alone():
    made = with_numbers(between(2, 3), mean=0, bias=0)
    rewritten(made, ["Tanh", "Mul", "Sigmoid"])
    made = with_numbers(between(2, 3), scale=1, var=0.99)  # and ε is 0.01
    rewritten(made, ["Tanh", "Add", "Sigmoid"])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4)])
@pytest.mark.parametrize("which", [0, 1])
def test_the_certificate_sees_a_wrong_number(shape, which):
    made = between(*shape)
    folded = bnfold.fold(made, depthwise=True)
    tensor = folded.graph.initializer[which]
    wrong = numpy_helper.to_array(tensor).copy()
    wrong.reshape(-1)[1] *= np.float32(1 + 1e-6)
    tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    assert not all(c.holds for c in certify(made, folded, applied(made)))


@pytest.mark.parametrize(
    "change",
    [
        {"group": 1},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2]},
        {"pads": [0, 0, 1, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ],
)
def test_the_certificate_sees_another_convolution(change):
    made = between(2, 1, 4, 4) if "group" in change else between(2, 3, 4, 4)
    folded = bnfold.fold(made, depthwise=True)
    node = next(node for node in folded.graph.node if node.op_type == "Conv")
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(k, v) for k, v in {**given, **change}.items())
    holds = all(c.holds for c in certify(made, folded, applied(made)))
    assert holds is ("group" in change)  # a group of one channel is that channel


def test_external_data(tmp_path):
    made = between(2, 3, 4, 4)
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    out = tmp_path / "out" / "f.onnx"
    out.parent.mkdir()
    bnfold.fold(tmp_path / "m.onnx", out, depthwise=True)
    assert kinds(onnx.load(out)) == ["Tanh", "Conv", "Sigmoid"]
    assert bnfold.verify(tmp_path / "m.onnx", out).status == "pass"


def test_the_command(tmp_path):
    path, out = tmp_path / "m.onnx", tmp_path / "f.onnx"
    onnx.save(between(2, 3, 4, 4), path)
    assert "nothing to fold" in command(path).out
    assert command(path, "--check").code == 0
    assert command(path, "--check", "--no-batchnorm").code == 1
    done = command(path, "--no-batchnorm", "-o", out, "-v")
    assert done.code == 0
    assert "rewrote 1 norm that nothing takes in" in done.lines
    assert "  bn → bn (write as Conv)" in done.lines
    assert "certificates: 1 of 1 hold" in done.lines and "verification: pass" in done.lines
    assert kinds(onnx.load(out)) == ["Tanh", "Conv", "Sigmoid"]
    assert command(out, "--check", "--no-batchnorm").code == 0
