"""Two files are proved to be one function, or refuted, or neither: each where it should."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold

from ..graphs import (
    HALF,
    bn,
    const,
    constants,
    conv,
    conv_transpose,
    model,
    op,
    positive,
    rand,
    reseed,
    subgraph,
)
from .pairs import changed, proof


def block(*tail, **more):
    """Two layers with their norms; the values of an output are the tail's."""
    last = tail or (op("Relu", "v", "y"),)
    made = model(
        conv("one", "x", "t", (6, 3, 3, 3), pads=[1, 1, 1, 1]),
        bn("norm", "t", "u", 6),
        op("Relu", "u", "r"),
        conv("two", "r", "s", (4, 6, 1, 1)),
        bn("last", "s", "v", 4),
        *last,
        **{"x": (2, 3, 8, 8), **more},
    )
    return made


def test_a_fold_is_proved_in_both_directions():
    made = block()
    folded = bnfold.fold(made)
    for pair in ((made, folded), (folded, made), (made, made)):
        found = proof(*pair)
        assert found.status == "proved", found
        assert len(found.layers) == 2 and found.distance < 3


def test_a_dropped_epsilon_is_refuted_in_its_layer():
    """With a variance near 1 it is worth forty units in the last place, and no output shows it."""
    made = block()
    for tensor in made.graph.initializer:
        if tensor.name == "norm.var":
            values = np.float32(1) + np.float32(1e-3) * rand(6)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in made.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute[0].f = 1e-5
    wrong = changed(made, "norm.var", lambda v: v - np.float32(1e-5))
    found = proof(made, bnfold.fold(wrong))
    assert (found.status, found.at) == ("refuted", "one"), found


TAILS = {
    "plain": (op("Relu", "v", "y"),),
    "arg max": (op("ArgMax", "v", "y", axis=1),),
    "saturated": (const("Mul", "v", "w", np.float32(1000)), op("Sigmoid", "w", "y")),
    "custom": (op("Custom", "v", "y", domain="ours"),),
    "softmax": (op("Softmax", "v", "y", axis=1),),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("what", ["channel", "weight", "swap", "bias"])
def test_a_wrong_weight_is_seen_whatever_hides_it(tail, what):
    domains = {"": 17, "ours": 1}
    made = block(*TAILS[tail], domains=domains) if tail == "custom" else block(*TAILS[tail])
    folded = bnfold.fold(made)
    assert proof(made, folded).status == "proved"
    names = {t.name for t in folded.graph.initializer}

    def change(values):
        if what == "channel":
            values[2] *= np.float32(1 + 1e-5)
        elif what == "weight":
            values.reshape(-1)[7] *= np.float32(1.001)
        else:
            values[[0, 1]] = values[[1, 0]]
        return values

    name = "one.w" if what != "bias" else "two.b"
    assert name in names
    found = proof(made, changed(folded, name, change))
    assert found.status != "proved", found
    if found.status == "refuted":
        assert found.at == ("one" if what != "bias" else "two"), found


def test_nearly_equal_channels_that_are_swapped_are_seen():
    made = block()
    close = changed(
        made, "one.w", lambda w: np.concatenate([w[:1], w[:1] * np.float32(1.00002), w[2:]])
    )
    folded = bnfold.fold(close)
    wrong = changed(folded, "one.w", lambda w: w[[1, 0, 2, 3, 4, 5]])
    assert proof(close, folded).status == "proved"
    assert proof(close, wrong).status != "proved"


def test_a_shift_across_zero_padding_is_no_fold():
    """Right inside and wrong at the border; without padding it is right everywhere."""
    for pads, status in (([1, 1, 1, 1], "not proved"), ([0, 0, 0, 0], "proved")):
        shift = np.abs(rand(3, 1, 1))
        made = model(
            const("Add", "x", "a", shift),
            conv("conv", "a", "y", (4, 3, 3, 3), pads=pads),
            x=(2, 3, 6, 6),
        )
        weights = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
        moved = np.einsum("ocij,c->o", weights["conv.w"], shift[:, 0, 0])
        wrong = model(
            op("Conv", "x w b", "y", name="conv", pads=pads),
            x=(2, 3, 6, 6),
            weights={"w": weights["conv.w"], "b": weights["conv.b"] + moved},
        )
        found = proof(made, wrong)
        assert found.status == status, (pads, found)


def test_places_that_may_make_up_for_each_other_refute_nothing():
    """A square is never negative: a shift may pass the Relu behind it, which no law tells."""
    before = model(
        op("Mul", "x x", "s"), const("Add", "s", "t", np.float32(2)), op("Relu", "t", "y"), x=(2, 4)
    )
    behind = model(
        op("Mul", "x x", "s"), op("Relu", "s", "t"), const("Add", "t", "y", np.float32(2)), x=(2, 4)
    )
    assert proof(before, behind).status == proof(behind, before).status == "not proved"


def test_a_channel_that_nothing_reads_refutes_nothing():
    made = block()
    dead = changed(made, "two.w", lambda w: w * (np.arange(6) != 3).reshape(1, 6, 1, 1).astype("f"))
    folded = bnfold.fold(dead)
    wrong = changed(
        folded, "one.w", lambda w: w + np.float32(1) * (np.arange(6) == 3).reshape(6, 1, 1, 1)
    )
    assert proof(dead, wrong).status == "not proved"


def test_channels_in_another_order_are_never_refuted():
    """Both layers carry it: the function is the same."""
    made = bnfold.fold(block())
    order = [3, 1, 0, 2, 5, 4]
    other = changed(made, "one.w", lambda w: w[order])
    other = changed(other, "one.b", lambda b: b[order])
    other = changed(other, "two.w", lambda w: w[:, order])
    assert proof(made, other).status != "refuted"
    half = changed(made, "one.w", lambda w: w[order])
    assert proof(made, half).status != "proved"


def test_scales_that_are_moved_through_a_relu_are_proved():
    """An equalized file; a factor in one channel alone is not made up for."""
    made = bnfold.fold(block())
    scale = np.float32([2, 0.5, 4, 1, 0.25, 8])
    other = changed(made, "one.w", lambda w: w * scale.reshape(-1, 1, 1, 1))
    other = changed(other, "one.b", lambda b: b * scale)
    half = other
    other = changed(other, "two.w", lambda w: w / scale.reshape(1, -1, 1, 1))
    assert proof(made, other).status == "proved"
    found = proof(made, half)
    assert (found.status, found.at) == ("refuted", "one"), found
    negative = changed(made, "one.w", lambda w: -w)
    negative = changed(negative, "one.b", lambda b: -b)
    negative = changed(negative, "two.w", lambda w: -w)
    assert proof(made, negative).status != "proved"


@pytest.mark.parametrize("skip", [False, True])
def test_a_sum_of_branches_is_its_one_convolution(skip):
    made = model(
        conv("wide", "x", "a", (4, 4, 3, 3), pads=[1, 1, 1, 1]),
        bn("n1", "a", "b", 4),
        conv("thin", "x", "c", (4, 4, 1, 1)),
        bn("n2", "c", "d", 4),
        *([bn("n3", "x", "e", 4)] if skip else []),
        op("Sum", "b d e" if skip else "b d", "f"),
        op("Relu", "f", "y"),
        x=(2, 4, 4, 4),
    )
    folded = bnfold.fold(made)
    assert [n.op_type for n in folded.graph.node] == ["Conv", "Relu"]
    assert proof(made, folded).status == "proved"
    (weight,) = (t.name for t in folded.graph.initializer if len(t.dims) == 4)
    for place in ((0, 0, 1, 1), (1, 2, 0, 0), (3, 3, 1, 1)):

        def change(w, place=place):
            w[place] += np.float32(1e-3)
            return w

        found = proof(made, changed(folded, weight, change))
        assert found.status == "refuted", found


def test_layers_in_series_are_their_product():
    made = model(
        conv("first", "x", "a", (6, 4, 1, 1)),
        bn("n1", "a", "b", 6),
        conv("second", "b", "c", (3, 6, 3, 3)),
        op("Relu", "c", "y"),
        x=(2, 4, 6, 6),
    )
    stored = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in made.graph.initializer}
    s = stored["n1.scale"] / np.sqrt(stored["n1.var"] + 0.01)
    t = s * (stored["first.b"] - stored["n1.mean"]) + stored["n1.bias"]
    weight = np.einsum("omij,m,mc->ocij", stored["second.w"], s, stored["first.w"][:, :, 0, 0])
    bias = stored["second.b"] + np.einsum("omij,m->o", stored["second.w"], t)
    for factor, status in ((1.0, "proved"), (1.0001, "refuted")):
        one = model(
            op("Conv", "x w b", "c", name="one"),
            op("Relu", "c", "y"),
            x=(2, 4, 6, 6),
            weights={"w": np.float32(weight * factor), "b": np.float32(bias)},
        )
        assert proof(made, one).status == status
        assert proof(one, made).status == status


@pytest.mark.parametrize("shape", [(4, 4, 4, 4), (4, 4, 1, 4)])
def test_no_axis_is_told_by_a_size_that_agrees(shape):
    """C = W = batch: a map along another axis is another map."""
    made = model(const("Mul", "x", "y", rand(4, 1, 1)), x=shape)
    for other in ((4,), (4, 1), (4, 1, 1, 1)):
        values = numpy_helper.to_array(made.graph.initializer[0]).reshape(other)
        wrong = model(const("Mul", "x", "y", values), x=shape)
        same = other == (4, 1) and shape[2] == 1
        assert proof(made, wrong).status != "proved" or same, other


def test_branches_of_an_if_are_walked_whether_or_not_they_are_taken():
    def made(factor):
        def body(k):
            scale = np.float32(factor if k else 1)
            last = bn(f"bn{k}", "t", "b", 4)
            last[1][f"bn{k}.scale"] *= scale
            return subgraph(conv(f"c{k}", "x", "t", (4, 4, 1, 1)), last, y="b")

        from ..graphs import reseed

        reseed(1)
        chosen = op("If", "cond", "y", then_branch=body(0), else_branch=body(1))
        whole = model(chosen, x=(2, 4, 5, 5))
        whole.graph.input.append(helper.make_tensor_value_info("cond", TensorProto.BOOL, ()))
        return whole

    right = made(1)
    assert proof(right, bnfold.fold(right)).status == "proved"
    assert proof(right, bnfold.fold(made(1.001))).status != "proved"


def test_half_precision_has_its_own_units():
    """Numbers near the smallest one of a type are off by more than its unit."""
    made = block(elem=HALF)
    folded = bnfold.fold(made)
    assert proof(made, folded).status == "proved"
    wrong = changed(
        folded,
        "one.w",
        lambda w: w * np.where(np.arange(6) == 2, 1.05, 1).reshape(-1, 1, 1, 1).astype(w.dtype),
    )
    assert proof(made, wrong).status == "refuted"
    small = changed(made, "one.w", lambda w: w * np.float16(1e-4))
    small = changed(small, "one.b", lambda b: b * np.float16(1e-4))
    assert proof(small, bnfold.fold(small)).status == "proved"


@pytest.mark.parametrize(("steps", "status"), [(1, "proved"), (2, "not proved")])
def test_two_of_the_smallest_numbers_of_half_precision_are_no_rounding(steps, status):
    """They are 2⁻²⁴ apart. Neighbours may both be what one number is rounded to."""

    def made(value):
        weight = rand(3, 4).astype(np.float16) * 0 + np.float16(1)
        weight[1, 2] = value
        return model(op("Gemm", "x w", "y"), x=(2, 3), weights={"w": weight}, elem=HALF)

    found = proof(made(0), made(np.float16(steps * 2.0**-24))).status
    assert found == status or (status != "proved" and found != "proved")


def test_what_is_not_a_number_is_not_proved():
    made = bnfold.fold(block())

    def change(w):
        w[0, 0, 0, 0] = np.nan
        return w

    assert proof(made, changed(made, "one.w", change)).status != "proved"


OTHERS = ("pads", "strides", "group", "order", "attribute", "type", "default", "shape")


@pytest.mark.parametrize("what", OTHERS)
def test_another_graph_is_not_proved(what):
    def made(w=(4, 4, 3, 3), out="y", x=(2, 4, 8, 8), **attrs):
        from ..graphs import reseed

        reseed(3)
        return model(conv("c", "x", "a", w, **attrs), op("Relu", "a", out), x=x)

    right = made(pads=[1, 1, 1, 1])
    if what == "pads":
        wrong = made(pads=[0, 2, 2, 0])
    elif what == "strides":
        wrong = made(pads=[1, 1, 1, 1], strides=[2, 2])
    elif what == "group":
        right, wrong = (made((4, 2, 3, 3), group=2), made((4, 2, 3, 3), group=2))
        wrong = changed(wrong, "c.w", lambda w: w[:, ::-1])
    elif what == "order":
        right = model(op("Div", "x z", "y"), x={"x": (2, 3), "z": (2, 3)})
        wrong = model(op("Div", "z x", "y"), x={"x": (2, 3), "z": (2, 3)})
    elif what == "attribute":
        right, wrong = (model(op("Softmax", "x", "y", axis=k), x=(4, 4)) for k in (0, 1))
    elif what == "type":
        wrong = made(pads=[1, 1, 1, 1])
        wrong.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    elif what == "shape":
        wrong = made(pads=[1, 1, 1, 1], x=(2, 4, 9, 8))
    else:
        right, wrong = (_with_default(value) for value in (1.0, 2.0))
    assert proof(right, right).status == "proved"
    assert proof(right, wrong).status != "proved"


def _with_default(value):
    made = model(op("Mul", "x k", "y"), x={"x": (2, 3), "k": ()}, weights={"k": np.float32(value)})
    return made


def test_random_numbers_are_drawn_as_often():
    """One draw that is read twice is not two draws."""
    draw = {"shape": [2, 3], "dtype": 1}
    two = model(
        op("RandomNormal", "", "a", **draw),
        op("RandomNormal", "", "b", **draw),
        op("Sub", "a b", "c"),
        op("Mul", "x c", "y"),
        x=(2, 3),
    )
    one = model(
        op("RandomNormal", "", "a", **draw), op("Sub", "a a", "c"), op("Mul", "x c", "y"), x=(2, 3)
    )
    assert proof(two, two).status == "proved"
    assert proof(two, one).status != "proved"


def test_pools_that_padding_meets():
    """A mean that counts zeros of the padding takes no shift along; a largest number does."""
    shift = positive(4, 1, 1)
    for kind, attrs, status in (
        ("AveragePool", {"count_include_pad": 1}, "not proved"),
        ("AveragePool", {}, "proved"),
        ("MaxPool", {}, "proved"),
    ):
        given = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], **attrs}
        before = model(const("Add", "x", "a", shift), op(kind, "a", "y", **given), x=(2, 4, 6, 6))
        behind = model(op(kind, "x", "a", **given), const("Add", "a", "y", shift), x=(2, 4, 6, 6))
        assert proof(before, behind).status == status, kind


def test_a_scale_passes_a_max_pool_if_it_is_positive():
    for sign, status in ((1, "proved"), (-1, "not proved")):
        scale = sign * positive(4, 1, 1)
        given = {"kernel_shape": [2, 2]}
        before = model(
            const("Mul", "x", "a", scale), op("MaxPool", "a", "y", **given), x=(2, 4, 6, 6)
        )
        behind = model(
            op("MaxPool", "x", "a", **given), const("Mul", "a", "y", scale), x=(2, 4, 6, 6)
        )
        assert proof(before, behind).status == status


def test_transposed_convolutions_and_groups():
    made = model(
        conv_transpose("up", "x", "a", (4, 2, 3, 3), group=2, strides=[2, 2]),
        bn("n", "a", "b", 4),
        op("Relu", "b", "y"),
        x=(2, 4, 4, 4),
    )
    folded = bnfold.fold(made)
    assert proof(made, folded).status == "proved"
    wrong = changed(folded, "up.w", lambda w: w[:, ::-1].copy())
    assert proof(made, wrong).status != "proved"


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_the_bias_of_a_convolution_whose_weight_is_computed(kind):
    """The weight is an input of the model; C = Cin = W, so that no axis tells another."""
    shift = rand(4)

    def made_of(bias, behind=None):
        held = {} if bias is None else {"b": bias}
        pieces = [op(kind, f"x w {' '.join(held)}", "c", name="conv", pads=[1, 1, 1, 1])]
        if behind is not None:
            pieces.append(const("Add", "c", "d", behind))
        pieces.append(op("Relu", "c" if behind is None else "d", "y"))
        return model(*pieces, x={"x": (2, 4, 4, 4), "w": (4, 4, 3, 3)}, weights=held)

    made = made_of(None, shift.reshape(4, 1, 1))
    assert proof(made, made_of(shift)).status == "proved"
    assert proof(made_of(shift, shift.reshape(4, 1, 1)), made_of(2 * shift)).status == "proved"
    if kind == "Conv":
        assert proof(made, bnfold.fold(made)).status == "proved"
    off = shift * np.float32([1, 1, 1, 1 + 1e-5])
    assert proof(made, made_of(off)).status != "proved"
    assert proof(made, made_of(shift[::-1].copy())).status != "proved"
    assert (
        proof(made_of(None, shift), made_of(shift)).status != "proved"
    )  # One number for each column.


def attention(scale, wq, wide):
    """``softmax(q·kᵀ · scale)``: as wide as heads are, so that the scale has no short form."""
    ahead = [] if scale is None else [const("Mul", "s", "d", np.float32(scale))]
    return model(
        op("MatMul", "x wq", "q"),
        op("MatMul", "x wk", "k"),
        op("Transpose", "k", "t", perm=[0, 2, 1]),
        op("MatMul", "q t", "s"),
        *ahead,
        op("Softmax", "s" if scale is None else "d", "y", axis=-1),
        x=(2, wide, wide),
        weights={"wq": wq, "wk": rand(wide, wide)},
    )


def test_scales_of_rows_that_are_the_same_but_for_rounding_are_one_number():
    """A product of data takes one for all. A scale that is another beyond rounding is none."""
    wide = 6
    wq, scale = rand(wide, wide), wide**-0.5
    reseed(1)
    made = attention(scale, wq, wide)
    reseed(1)
    right = attention(None, wq * np.float32(scale), wide)
    assert proof(made, right).status == "proved"
    for factor in (1 + 1e-5, 1 + 1e-6):
        wrong = changed(right, "wq", lambda w, f=factor: w * np.float32([1, 1, f, 1, 1, 1]))
        assert proof(made, wrong).status != "proved"


def test_shifts_of_rows_that_are_the_same_but_for_rounding_are_one_number():
    """The bounds of a Clip move by one shift for all, and stay where it is another in a channel."""
    made = model(
        conv("conv", "x", "a", (4, 4, 1, 1)),
        const("Add", "a", "b", np.float32(0.7)),
        op("Clip", "b low high", "y"),
        x=(2, 4, 4, 4),
        weights={"low": np.float32(-0.1), "high": np.float32(0.95)},
    )
    behind = model(
        conv("conv", "x", "a", (4, 4, 1, 1)),
        op("Clip", "a low high", "b"),
        const("Add", "b", "y", np.float32(0.7)),
        x=(2, 4, 4, 4),
        weights={"low": np.float32(-0.8), "high": np.float32(0.25)},
    )
    for name in ("conv.w", "conv.b"):
        behind = changed(behind, name, lambda _, n=name: constants(made)[n])
    within = bnfold.fold(made)
    assert proof(behind, made).status == proof(within, behind).status == "proved"
    large = changed(behind, "conv.b", lambda b: b * 64)  # A sum with it rounds more than a bound.
    assert proof(bnfold.fold(large), large).status == "proved"
    for off in (1e-5, 1e-6):
        wrong = changed(within, "conv.b", lambda b, o=off: b + np.float32([0, 0, 0, o]))
        assert proof(wrong, behind).status != "proved"
        wrong = changed(behind, "high", lambda b, o=off: b + np.float32(o))
        assert proof(made, wrong).status != "proved"


def test_parts_with_one_scale_have_one_scale_together():
    """The parts lie along the last axis, where a Conv could take in no other."""
    layer = conv("conv", "b", "y", (4, 4, 1, 1))
    made = model(
        const("Mul", "x", "a", np.float32(-1.5)),
        op("Concat", "a a", "b", axis=3),
        layer,
        x=(2, 4, 4, 4),
    )
    folded = bnfold.fold(made)
    assert "Mul" not in [node.op_type for node in folded.graph.node]
    assert proof(made, folded).status == "proved"
    other = model(
        const("Mul", "x", "a", np.float32(-1.5)),
        const("Mul", "x", "c", np.float32(1.5)),
        op("Concat", "a c", "b", axis=3),
        layer,
        x=(2, 4, 4, 4),
    )
    assert proof(other, folded).status != "proved"


def test_a_norm_whose_shape_inference_does_not_know_has_the_rank_of_its_data():
    made = model(
        op("GroupNormalization", "x g b", "n", num_groups=2),
        bn("bn", "n", "y", 4),
        x=(2, 4, 4, 4),
        weights={"g": positive(4), "b": rand(4)},
        opset=21,
    )
    folded = bnfold.fold(made)
    assert [node.op_type for node in folded.graph.node] == ["GroupNormalization"]
    assert proof(made, folded).status == "proved"
    for name in ("g", "b"):
        wrong = changed(folded, name, lambda v: v * np.float32([1, 1, 1.0001, 1]))
        assert proof(made, wrong).status != "proved"


def test_a_scale_that_some_engines_take_for_0_is_0():
    """Two norms become one, whose scale in a channel no type holds."""
    gamma = np.float32([1e-45, -0.8, 0.5])
    norms = [bn("one", "x", "a", 3), bn("two", "a", "y", 3)]
    made = model(*norms, x=(2, 3, 4, 4))
    for name in ("one.scale", "two.scale"):
        made = changed(made, name, lambda _: gamma)
    folded = bnfold.fold(made)
    assert len(folded.graph.node) == 1
    assert proof(made, folded).status == proof(folded, made).status == "proved"
    wrong = changed(folded, "one.scale", lambda g: g + np.float32([1e-6, 0, 0]))
    assert proof(made, wrong).status != "proved"
