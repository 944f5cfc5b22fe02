"""Every opset's own rules, oldest to newest."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold

from .graphs import (
    NEWEST,
    bn,
    codes,
    const,
    conv,
    conv_transpose,
    counts,
    fold,
    folds,
    model,
    op,
    positive,
    rand,
    stays,
)
from .runtimes import newest_opset

CONV = ("conv", "x", "c", (4, 3, 3, 3))
SAME = {"pads": [1, 1, 1, 1]}
OPSETS = range(7, NEWEST + 1)


@pytest.mark.parametrize("opset", OPSETS)
def test_conv_batchnorm(opset):
    m = model(conv(*CONV), bn("bn", "c", "y", 4), opset=opset)
    folds(m, runtime=opset <= newest_opset(), Conv=1)


@pytest.mark.parametrize("opset", OPSETS)
def test_conv_dropout_mul_add(opset):
    m = model(
        conv(*CONV),
        op("Dropout", "c", "d"),
        const("Mul", "d", "e", rand(4, 1, 1)),
        const("Add", "e", "y", rand(1)),
        opset=opset,
    )
    after = fold(m, runtime=opset <= newest_opset())
    assert not {"Mul", "Add"} & set(counts(after))


@pytest.mark.parametrize("opset", [7, 8])
def test_a_scale_behind_a_sum(opset):
    """Before opset 8 all terms of a Sum have one shape; they are added all the same."""
    m = model(
        conv("a", "x", "a0", (4, 3, 3, 3), **SAME),
        conv("b", "x", "b0", (4, 3, 1, 1)),
        op("Relu", "b0", "b1"),
        op("Sum", "a0 b1", "s"),
        const("Mul", "s", "y", positive(4, 1, 1)),
        opset=opset,
    )
    folds(m, Conv=2, Relu=1, Sum=1)


@pytest.mark.parametrize("opset", OPSETS)
def test_conv_transpose_and_gemm(opset):
    m = model(
        conv_transpose("up", "x", "c", (3, 4, 2, 2)),
        bn("bn", "c", "b", 4),
        op("GlobalAveragePool", "b", "p"),
        op("Flatten", "p", "f"),
        op("Gemm", "f w k", "g", name="fc"),
        bn("bn2", "g", "y", 5),
        opset=opset,
        weights={"w": rand(4, 5), "k": rand(5)},
    )
    folds(
        m,
        runtime=opset <= newest_opset(),
        ConvTranspose=1,
        GlobalAveragePool=1,
        Flatten=1,
        Gemm=1,
    )


@pytest.mark.parametrize("opset", [7, 8])
def test_spatial_zero_is_per_element_and_stays(opset):
    shape = (4, 6, 6)
    m = model(
        conv(*CONV),
        op("BatchNormalization", "c s t m v", "y", name="bn", spatial=0),
        opset=opset,
        weights={
            "s": rand(*shape),
            "t": rand(*shape),
            "m": rand(*shape),
            "v": np.abs(rand(*shape)),
        },
    )
    stays(m, {"bn": "not-per-channel"}, runtime=False)


@pytest.mark.parametrize("opset", [7, 8])
def test_spatial_zero_on_rows_is_per_channel(opset):
    """On [N, C] one value per element of a row is one per channel: either is right."""
    m = model(
        op("Gemm", "x w b", "g", name="fc"),
        bn("bn", "g", "y", 4, spatial=0),
        x=(5, 3),
        opset=opset,
        weights={"w": rand(3, 4), "b": rand(4)},
    )
    folds(m, Gemm=1, runtime=False)


@pytest.mark.parametrize("opset", [7, 8])
@pytest.mark.parametrize("sizes, per_channel", [((1, 1), True), ((1, 4), False)])
def test_spatial_zero_behind_single_pixels_is_per_channel(opset, sizes, per_channel):
    shape = (4, *sizes)
    m = model(
        op("Conv", "x w", "c", name="conv"),
        op("BatchNormalization", "c s t m v", "y", name="bn", spatial=0),
        x=(2, 3, *sizes),
        opset=opset,
        weights={
            "w": rand(4, 3, 1, 1),
            "s": rand(*shape),
            "t": rand(*shape),
            "m": rand(*shape),
            "v": np.abs(rand(*shape)),
        },
    )
    if per_channel:
        folds(m, Conv=1)
    else:
        stays(m, {"bn": "not-per-channel"})


def test_one_number_for_each_channel_is_none_for_each_element():
    m = model(conv(*CONV), bn("bn", "c", "y", 4, spatial=0), opset=8)
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["bn"] == "not-per-channel"


def test_parameters_of_more_axes_than_one_are_per_channel_for_spatial_zero_alone():
    m = model(conv("conv", "x", "c", (4, 3, 1, 1)), bn("bn", "c", "y", 4), x=(2, 3, 1, 1), opset=8)
    for tensor in m.graph.initializer:
        if tensor.name.startswith("bn."):
            tensor.dims.extend([1, 1])
    stays(m, {"bn": "not-per-channel"}, runtime=False)


@pytest.mark.parametrize("opset", [7, 8])
def test_spatial_one_given_folds(opset):
    folds(model(conv(*CONV), bn("bn", "c", "y", 4, spatial=1), opset=opset), Conv=1)


@pytest.mark.parametrize("opset", [7, 9])
def test_momentum_means_nothing_in_inference(opset):
    folds(model(conv(*CONV), bn("bn", "c", "y", 4, momentum=0.5), opset=opset), Conv=1)


@pytest.mark.parametrize("opset", [6])
def test_batchnorm_6_in_test_mode(opset):
    m = model(conv(*CONV), bn("bn", "c", "y", 4, is_test=1), opset=opset)
    after = fold(m, runtime=False)
    if counts(after) != {"Conv": 1}:
        assert codes(m)["bn"] == "unsupported-opset"


@pytest.mark.parametrize("opset", [1, 6])
def test_batchnorm_not_in_test_mode_stays(opset):
    more = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset == 1 else {}
    m = model(conv(*CONV), bn("bn", "c", "y", 4, **more), opset=opset)
    assert codes(m)["bn"] in ("training-mode", "unsupported-opset")
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_batchnorm_1_in_test_mode():
    m = model(
        conv(*CONV),
        bn("bn", "c", "y", 4, is_test=1, consumed_inputs=[0, 0, 0, 1, 1]),
        opset=1,
    )
    after = fold(m, runtime=False)
    if counts(after) != {"Conv": 1}:
        assert codes(m)["bn"] == "unsupported-opset"


@pytest.mark.parametrize("kind", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize(
    "axis,shape,stays_put",
    [(1, (4,), False), (2, (6,), True), (3, (6,), True), (None, (1,), False), (0, (2,), True)],
    ids=["channels", "height", "width", "scalar", "batch"],
)
def test_opset_6_broadcast_axis(kind, axis, shape, stays_put):
    """Below 7 a vector is aligned at `axis`, not at the last one."""
    attrs = {"broadcast": 1} | ({} if axis is None else {"axis": axis})
    m = model(conv(*CONV), const(kind, "c", "y", rand(*shape), name="k", **attrs), opset=6)
    after = fold(m, runtime=False)
    if stays_put:
        assert after.SerializeToString() == m.SerializeToString()
    elif counts(after) != {"Conv": 1}:
        assert codes(m)["k"] == "unsupported-opset"


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_opset_6_broadcast_axis_of_equal_sizes(axis):
    m = model(
        conv("conv", "x", "c", (4, 4, 1, 1)),
        const("Mul", "c", "y", rand(4), name="k", broadcast=1, axis=axis),
        opset=6,
        x=(4, 4, 4, 4),
    )
    after = fold(m, runtime=False)
    assert axis == 1 or after.SerializeToString() == m.SerializeToString()


def test_opset_6_dropout_in_training_stops():
    m = model(conv(*CONV), op("Dropout", "c", "d"), bn("bn", "d", "y", 4, is_test=1), opset=6)
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert "bn" in codes(m)


def test_opset_6_dropout_in_test_mode():
    m = model(
        conv(*CONV),
        op("Dropout", "c", "d", is_test=1),
        bn("bn", "d", "y", 4, is_test=1),
        opset=6,
    )
    fold(m, runtime=False)


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize("broadcast", [1, 0])
def test_a_gemm_takes_numbers_for_columns_where_its_c_broadcasts(opset, broadcast):
    m = model(
        op("Gemm", "x w b", "g", name="fc", broadcast=broadcast),
        bn("bn", "g", "y", 4, is_test=1, **({"consumed_inputs": [0] * 5} if opset < 6 else {})),
        opset=opset,
        x=(5, 3),
        weights={"w": rand(3, 4), "b": rand(4) if broadcast else rand(5, 4)},
    )
    if broadcast:
        folds(m, Gemm=1, runtime=False)
    else:
        stays(m, {"bn": "no-linear-operator"}, runtime=False)


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_gemm_that_needs_c_keeps_one(opset):
    """Below 11 Gemm's C is not optional."""
    m = model(
        op("Gemm", "x w b", "g", name="fc", beta=0.0),
        bn("bn", "g", "y", 4),
        opset=opset,
        x=(5, 3),
        weights={"w": rand(3, 4), "b": rand(4)},
    )
    after = folds(m, Gemm=1)
    assert len(after.graph.node[0].input) == 3


def test_unsqueeze_axes_as_attribute():
    m = model(
        conv(*CONV),
        op("Unsqueeze", "raw", "k", axes=[1, 2]),
        op("Mul", "c k", "y", name="mul"),
        opset=11,
        weights={"raw": rand(4)},
    )
    folds(m, Conv=1)


def test_ai_onnx_domain_written_out():
    """ "ai.onnx" is another name of the default domain."""
    m = model(conv(*CONV), bn("bn", "c", "y", 4))
    for node in m.graph.node:
        node.domain = "ai.onnx"
    m.opset_import[0].domain = "ai.onnx"
    after = bnfold.fold(m)
    assert [n.op_type for n in after.graph.node] == ["Conv"]
    assert after.graph.node[0].domain == "ai.onnx"


def test_operators_of_other_domains_are_not_ours():
    m = model(
        conv(*CONV),
        op("BatchNormalization", "c s t m v", "y", name="bn", domain="com.example"),
        op("Mul", "y s", "z", domain="com.example"),
        y="z",
        domains={"com.example": 1},
        weights={k: rand(4) for k in "stmv"},
    )
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert bnfold.plan(m).folds == ()


def test_custom_operator_between_stops():
    m = model(
        conv(*CONV),
        op("Identity", "c", "i", domain="com.example"),
        bn("bn", "i", "y", 4),
        domains={"com.example": 1},
    )
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()
    assert codes(m)["bn"] == "no-linear-operator"


def test_newer_opset_than_onnx_knows():
    m = model(conv(*CONV), bn("bn", "c", "y", 4))
    m.opset_import[0].version = NEWEST + 50
    after = bnfold.fold(m)
    if after.SerializeToString() == m.SerializeToString():
        assert codes(m)["bn"] == "unsupported-opset"
