"""Maps between a Cast to a wider type and one back, as converters leave norms in float32.

``onnxruntime.transformers.float16`` writes ``Conv (half) → Cast → BatchNormalization (float) →
Cast`` where norms are on its block list. Sizes agree wherever they can: batch = channels = width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold._core.laws import Way
from bnfold._core.pointwise import Converted
from bnfold._plan import relocation
from bnfold._proof.certificate import certify

from ..functions import function
from ..graphs import (
    BF16,
    DOUBLE,
    FLOAT,
    HALF,
    bn,
    codes,
    const,
    constants,
    conv,
    conv_transpose,
    counts,
    done,
    feeds,
    fold,
    folds,
    model,
    op,
    rand,
    run,
    subgraph,
)

X = (4, 4, 4, 4)
CONV = ("conv", "x", "c", (4, 4, 1, 1))


def wide(piece, elem=FLOAT):
    """A piece whose parameters are stored in a type of their own."""
    node, params = piece
    dtype = helper.tensor_dtype_to_np_dtype(elem)
    return node, {
        name: value
        if isinstance(value, TensorProto)
        else numpy_helper.from_array(np.asarray(value).astype(dtype), name)
        for name, value in params.items()
    }


def up(x, y, to=FLOAT):
    return op("Cast", x, y, to=to, name=f"up_{y}")


def down(x, y, to=HALF):
    return op("Cast", x, y, to=to, name=f"down_{y}")


def between(*pieces, elem=HALF, x=X, **options):
    """A model whose inputs, outputs and bare parameters are of a narrow type."""
    return model(*pieces, x=x, elem=elem, **options)


def kept_norm(*tail, elem=HALF, to=FLOAT, ahead=None, **options):
    return between(
        ahead or conv(*CONV),
        up("c", "f", to),
        wide(bn("bn", "f", "b", 4), to),
        *(tail or [down("b", "y", elem)]),
        elem=elem,
        **options,
    )


# --- what folds --------------------------------------------------------------------------------

AHEAD = {
    "Conv": (conv(*CONV), X),
    "Conv without bias": (conv(*CONV, bias=False), X),
    "Conv, padded": (conv("conv", "x", "c", (4, 4, 3, 3), pads=[1] * 4), X),
    "ConvTranspose": (conv_transpose("conv", "x", "c", (4, 2, 1, 1), group=2), X),
    "Gemm": ((op("Gemm", "x w k", "c"), {"w": rand(4, 4), "k": rand(4)}), (4, 4)),
}


@pytest.mark.parametrize("name", AHEAD)
def test_a_norm_kept_in_float32_folds_and_its_casts_go(name):
    ahead, x = AHEAD[name]
    made = kept_norm(ahead=ahead, x=x)
    after = folds(made, **{ahead[0].op_type: 1})
    assert {t.data_type for t in after.graph.initializer} == {HALF}
    assert bnfold.verify(made, after).status == "pass"


def test_weights_are_rounded_once():
    made = kept_norm()
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in made.graph.initializer}
    scale = held["bn.scale"] / np.sqrt(held["bn.var"] + np.float64(np.float32(0.01)))
    after = constants(bnfold.fold(made))
    wanted = (held["conv.w"] * scale[:, None, None, None]).astype(np.float16)
    np.testing.assert_array_equal(after["conv.w"], wanted)
    bias = (scale * (held["conv.b"] - held["bn.mean"]) + held["bn.bias"]).astype(np.float16)
    np.testing.assert_array_equal(after["conv.b"], bias)


TAILS = {
    "Relu in float32": ([op("Relu", "b", "r"), down("r", "y")], {"Relu": 1}),
    "Abs, then Relu": (
        [op("Abs", "b", "a"), op("Relu", "a", "r"), down("r", "y")],
        {"Abs": 1, "Relu": 1},
    ),
    "a Mul behind the norm": ([wide(const("Mul", "b", "m", rand(4, 1, 1))), down("m", "y")], {}),
    "an Add behind the norm": ([wide(const("Add", "b", "m", rand(4, 1, 1))), down("m", "y")], {}),
    "a scale behind a Relu": (
        [op("Relu", "b", "r"), wide(const("Mul", "r", "m", np.abs(rand(4, 1, 1)))), down("m", "y")],
        {"Relu": 1},
    ),
    "two casts back": ([down("b", "p"), down("b", "q"), op("Add", "p q", "y")], {"Add": 1}),
    "each kept apart": (
        [down("b", "h"), up("h", "g"), wide(const("Mul", "g", "m", rand(4, 1, 1))), down("m", "y")],
        {},
    ),
    "a Relu in half behind": ([down("b", "h"), op("Relu", "h", "y")], {"Relu": 1}),
    "half maps behind": ([down("b", "h"), const("Mul", "h", "y", rand(4, 1, 1))], {}),
    # Casts that something else needs, or that cannot go, stay.
    "a maximum in float32": (
        [op("MaxPool", "b", "r", kernel_shape=[2, 2]), down("r", "y")],
        {"MaxPool": 1, "Cast": 2},
    ),
    "a Relu that is a Max, and a Min": (
        [
            wide(const("Max", "b", "r", np.float32(0))),
            wide(const("Min", "r", "s", np.float32(6))),
            down("s", "y"),
        ],
        {"Max": 1, "Min": 1, "Cast": 2},
    ),
    "a Relu and a cast": (
        [op("Relu", "b", "r"), down("r", "p"), down("b", "q"), op("Add", "p q", "y")],
        {"Relu": 1, "Add": 1},
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_what_may_stand_between_the_norm_and_the_cast_back(name):
    tail, left = TAILS[name]
    made = kept_norm(*tail)
    told = onnx.shape_inference.infer_shapes(made)  # with the types of tensors that are told
    after = folds(told, Conv=1, **left)
    assert bnfold.verify(made, after).status == "pass"


def test_notes_on_tensors_that_change_name_and_type_go():
    """The scale crosses the Relu and both Casts, so that its input has another name besides."""
    made = between(
        up("x", "f"),
        wide(conv("conv", "f", "c", (4, 4, 1, 1))),
        down("c", "h"),
        up("h", "g"),
        op("Relu", "g", "r"),
        down("r", "s"),
        const("Mul", "s", "m", np.abs(rand(4, 1, 1))),
        op("Abs", "m", "y"),
    )
    after = folds(onnx.shape_inference.infer_shapes(made), Conv=1, Relu=1, Abs=1, Cast=2)
    written = {name for node in after.graph.node for name in node.output}
    assert {value.name for value in after.graph.value_info} <= written


def test_outputs_of_the_graph_keep_their_names():
    """One cast back is an output, and the Conv's other name is read on."""
    made = kept_norm(down("b", "y"), op("Relu", "y", "z"), y="y z")
    after = folds(made, Conv=1, Relu=1)
    assert [n.output[0] for n in after.graph.node] == ["y", "z"]


def test_two_outputs_of_one_value_keep_the_casts():
    made = kept_norm(down("b", "y"), down("b", "z"), y="y z")
    folds(made, Conv=1, Cast=3)


@pytest.mark.parametrize("elem, to", [(HALF, DOUBLE), (FLOAT, DOUBLE), (BF16, FLOAT)])
def test_other_pairs_of_types(elem, to):
    """onnxruntime has no Conv of bfloat16, and no BatchNormalization of mixed ones."""
    made = kept_norm(elem=elem, to=to)
    after = fold(made, runtime=elem != BF16)
    assert counts(after) == {"Conv": 1}


def test_types_neither_of_which_holds_the_other_do_not():
    made = kept_norm(elem=HALF, to=BF16)
    assert codes(made) == {"bn": "no-linear-operator"}
    assert bnfold.fold(made) == made


def test_in_a_branch():
    inner = subgraph(
        op("Conv", "x conv.w", "c", name="conv"),
        up("c", "f"),
        op("BatchNormalization", "f s b m v", "n", name="bn"),
        down("n", "t"),
        y="t",
    )
    inner.output[0].type.tensor_type.elem_type = HALF
    other = subgraph(op("Neg", "x", "e"), y="e")
    other.output[0].type.tensor_type.elem_type = HALF
    values = {k: numpy_helper.from_array(np.abs(rand(4)), k) for k in "sbmv"}
    made = between(
        op("If", "go", "y", then_branch=inner, else_branch=other),
        weights={"conv.w": rand(4, 4, 1, 1), **values},
    )
    made.graph.input.append(helper.make_tensor_value_info("go", TensorProto.BOOL, ()))
    after = bnfold.fold(made)
    assert counts(after) == {"If": 1, "Conv": 1, "Neg": 1}
    given = {"x": rand(*X).astype(np.float16), "go": np.array(True)}
    one, two = run(made, given)[0], run(after, given)[0]
    np.testing.assert_allclose(one, two, rtol=2e-2, atol=2e-2)


def test_a_half_map_goes_into_a_wider_operator():
    """Toward float32 a map always may: what was rounded twice is rounded once."""
    made = between(
        up("x", "f"),
        wide(conv("conv", "f", "c", (4, 4, 1, 1))),
        down("c", "h"),
        bn("bn", "h", "y", 4),
    )
    after = folds(made, Conv=1, Cast=2)
    assert {t.data_type for t in after.graph.initializer} == {FLOAT}


def test_a_half_map_goes_ahead_of_a_wider_operator():
    made = between(
        const("Mul", "x", "m", rand(4, 1, 1)),
        up("m", "f"),
        wide(conv("conv", "f", "c", (4, 4, 1, 1))),
        down("c", "y"),
    )
    folds(made, Conv=1, Cast=2)


def test_a_half_map_goes_into_a_norm_that_stands_in_float32():
    made = between(
        op("Relu", "x", "r"),
        const("Mul", "r", "m", rand(4, 1, 1)),
        up("m", "f"),
        wide(bn("bn", "f", "b", 4)),
        down("b", "y"),
    )
    after = folds(made, Relu=1, Cast=2, BatchNormalization=1)
    assert {t.data_type for t in after.graph.initializer} == {FLOAT}


# --- what stays --------------------------------------------------------------------------------


def kept(made, code, node="bn"):
    """Nothing folds, whatever could pay, and the reason is told."""
    assert codes(made).get(node) == code
    assert bnfold.fold(made) == made


STAYS = {
    "its result stays in float32": [op("Identity", "b", "y")],
    "something else reads its result in float32": [
        down("b", "h"),
        op("Sigmoid", "b", "s"),
        down("s", "t"),
        op("Add", "h t", "y"),
    ],
    "what is added to its result": [
        op("Relu", "b", "r"),
        wide(const("Add", "r", "a", rand(4, 1, 1))),
        down("a", "y"),
    ],
    "a sum of two": [up("x", "g"), op("Add", "b g", "a"), down("a", "y")],
    "a mean": [op("AveragePool", "b", "a", kernel_shape=[2, 2]), down("a", "y")],
    "a slope, which may bring back into range what has left it": [
        op("LeakyRelu", "b", "r", alpha=0.3),
        down("r", "y"),
    ],
    "a scale, which may bring back into range what has left it": [
        op("Relu", "b", "r"),
        wide(const("Mul", "r", "m", np.float32([1, 2, 3, 0.5]))),
        down("m", "y"),
    ],
    "a scale above 1, which enlarges errors of numbers that are not normal": [
        wide((op("Clip", "b l h", "r"), {"l": np.float32(0), "h": np.float32(9)})),
        wide(const("Mul", "r", "m", np.float32([1, 2, 3, 4]))),
        down("m", "y"),
    ],
    "a sigmoid": [op("Sigmoid", "b", "a"), down("a", "y")],
    "a cast to something narrower still": [down("b", "y", BF16)],
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_not_stored_in_half_anyway_stays(name):
    made = kept_norm(*STAYS[name])
    kind = {"its result stays in float32": FLOAT, "a cast to something narrower still": BF16}
    made.graph.output[0].type.tensor_type.elem_type = kind.get(name, HALF)
    kept(made, "not-carried")


def test_a_part_that_would_stay_behind_keeps_all():
    """A MatMul of rank 3 has no bias: its shift would stay, and be added to a rounded number."""
    made = between(
        (op("MatMul", "x w", "c"), {"w": rand(4, 4)}),
        up("c", "f"),
        wide(const("Mul", "f", "m", rand(4), name="scale")),
        wide(const("Add", "m", "a", rand(4), name="shift")),
        down("a", "y"),
        x=(4, 4, 4),
    )
    kept(made, "no-gain", "scale")


def test_a_matmul_of_rank_2_becomes_a_gemm():
    made = between(
        (op("MatMul", "x w", "c"), {"w": rand(4, 4)}),
        up("c", "f"),
        wide(const("Mul", "f", "m", rand(4))),
        wide(const("Add", "m", "a", rand(4))),
        down("a", "y"),
        x=(4, 4),
    )
    after = folds(made, Gemm=1)
    assert {t.data_type for t in after.graph.initializer} == {HALF}


def test_terms_that_may_be_larger_than_their_mean_are_not_rounded_first():
    made = between(
        conv(*CONV),
        up("c", "f"),
        op("AveragePool", "f", "a", kernel_shape=[2, 2]),
        wide(bn("bn", "a", "b", 4)),
        down("b", "y"),
    )
    kept(made, "not-carried")


def test_a_standing_operator_in_half_takes_no_map_from_float32():
    made = between(
        op("Relu", "x", "r"),
        const("Add", "r", "m", rand(4, 1, 1), name="half"),
        up("m", "f"),
        wide(bn("bn", "f", "b", 4)),
        down("b", "y"),
    )
    after = fold(made)
    assert counts(after) == {"Relu": 1, "Cast": 2, "BatchNormalization": 1}
    assert {t.data_type for t in after.graph.initializer} == {FLOAT}


def test_no_map_goes_forward_to_the_narrow_side():
    made = between(
        op("Relu", "x", "r"),
        up("r", "f"),
        wide(const("Sub", "f", "m", 100 * np.abs(rand(4, 1, 1)), name="mean")),
        down("m", "h"),
        conv("conv", "h", "y", (4, 4, 1, 1)),
    )
    kept(made, "not-carried", "mean")


@pytest.mark.parametrize("io", [HALF, FLOAT])
@pytest.mark.parametrize("pads", [[0] * 4, [1] * 4], ids=["plain", "padded"])
def test_a_norm_in_half_goes_ahead_into_a_conv_in_half(pads, io):
    """With ``keep_io_types`` Casts stand at the ends. Padding of zeros lets no shift in."""
    first, last = ([], []) if io == HALF else ([down("x", "i")], [up("o", "y")])
    norm = wide(bn("bn", "i" if first else "x", "b", 4), HALF)
    made = between(
        *first, norm, wide(conv("c", "b", "o" if last else "y", (4, 4, 3, 3), pads=pads), HALF),
        *last, elem=io,
    )  # fmt: skip
    once = done(made)
    assert all(one.holds for one in certify(made, once.folded, once.applied))
    casts = {"Cast": 2} if first else {}
    assert counts(once.folded) == {"Conv": 1, **casts, **({"Add": 1} if any(pads) else {})}
    assert [k.code for k in once.plan.kept] == (["zero-padding"] if any(pads) else [])
    assert bnfold.verify(made, once.folded).status == "pass"
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in made.graph.initializer}
    scale = held["bn.scale"] / np.sqrt(held["bn.var"] + np.float64(np.float32(0.01)))
    after = {t.name: t for t in once.folded.graph.initializer}
    wanted = (held["c.w"] * scale[:, None, None]).astype(np.float16)
    np.testing.assert_array_equal(numpy_helper.to_array(after["c.w"]), wanted)
    wrong = wanted.copy()
    wrong[1, 2, 0, 0] = np.nextafter(np.nextafter(wrong[1, 2, 0, 0], np.float16(9)), np.float16(9))
    after["c.w"].CopyFrom(numpy_helper.from_array(wrong, "c.w"))
    assert not all(one.holds for one in certify(made, once.folded, once.applied))


@pytest.mark.parametrize("pads", [[0] * 4, [1] * 4], ids=["plain", "padded"])
@pytest.mark.parametrize("kind", ["Mul", "Add", "norm"])
def test_what_a_converter_kept_in_float32_ahead_of_a_conv_stays(kind, pads):
    """A Relu stops it backward. Forward it would be rounded by s·x, not by s·x + t."""
    map_ = bn("map", "f", "m", 4) if kind == "norm" else const(kind, "f", "m", -rand(4, 1, 1))
    made = between(
        conv(*CONV), op("Tanh", "c", "r"), up("r", "f"), wide(map_), down("m", "h"),
        conv("last", "h", "y", (4, 4, 3, 3), pads=pads),
    )  # fmt: skip
    once = done(made)
    assert once.folded.SerializeToString() == made.SerializeToString()
    (kept,) = once.plan.kept
    assert "it rounds to float16" in kept.message


@pytest.mark.parametrize("factor, code", [(1e6, "overflow"), (1e-8, "underflow")])
def test_weights_that_leave_the_range_of_half_stay(factor, code):
    """A map that float32 holds and float16 does not."""
    made = between(
        conv(*CONV),
        up("c", "f"),
        wide(const("Mul", "f", "m", np.float32(factor), name="scale")),
        down("m", "y"),
    )
    kept(made, code, "scale")


def test_a_bias_that_leaves_the_range_of_half_stays():
    made = between(
        conv(*CONV),
        up("c", "f"),
        wide(const("Add", "f", "m", np.float32(1e5), name="shift")),
        down("m", "y"),
    )
    kept(made, "overflow", "shift")


def test_a_cast_that_two_norms_share():
    """They ask for different maps of what the Conv puts out."""
    made = kept_norm(
        down("b", "h"), wide(bn("other", "f", "g", 4)), down("g", "i"), op("Add", "h i", "y")
    )
    kept(made, "shared-output")


def test_casts_of_the_model_itself_stay():
    """A pair with nothing in between that no map has crossed is the model's own."""
    made = between(conv(*CONV), up("c", "f"), down("f", "h"), bn("bn", "h", "y", 4))
    after = fold(made)
    assert counts(after) == {"Conv": 1}  # crossed by the norm, and needed by nobody
    ahead = between(
        bn("bn", "x", "b", 4), up("b", "f"), down("f", "h"), conv("c", "h", "y", (4, 4, 1, 1))
    )
    folds(ahead, Conv=1)
    alone = between(op("Relu", "x", "r"), up("r", "f"), down("f", "y"))
    assert bnfold.fold(alone) == alone


def test_in_a_function_that_is_given_its_weights():
    body = function(
        "F",
        "x w s b m v",
        "y",
        [
            op("Conv", "x w", "c", name="conv"),
            up("c", "f"),
            op("BatchNormalization", "f s b m v", "n", name="bn"),
            down("n", "y"),
        ],
    )
    made = between(
        op("F", "x w s b m v", "y", domain="my"),
        functions=[body],
        domains={"my": 1},
        weights={"w": rand(4, 4, 1, 1)}
        | {k: numpy_helper.from_array(np.abs(rand(4)), k) for k in "sbmv"},
    )
    folds(made, Conv=1)


# --- what the certificate sees -----------------------------------------------------------------


def certificates(made, spoil):
    """Whether every certificate of a fold holds once the folded model is spoilt."""
    once = done(made)
    folded, applied = once.folded, once.applied
    spoil(folded)
    return [c for c in certify(made, folded, applied) if c.fails]


def test_a_wrong_channel_fails():
    def spoil(folded):
        held = next(t for t in folded.graph.initializer if t.name == "conv.b")
        values = numpy_helper.to_array(held).copy()
        values[2] *= 1.01
        held.CopyFrom(numpy_helper.from_array(values, held.name))

    assert not certificates(kept_norm(), lambda folded: None)
    assert certificates(kept_norm(), spoil)


def test_a_cast_that_went_where_it_may_not_fails():
    """In the folded model the tensor has the wide type: the weights have been cast, too."""

    def spoil(folded):
        folded.graph.input[0].type.tensor_type.elem_type = FLOAT
        folded.graph.output[0].type.tensor_type.elem_type = FLOAT
        for held in folded.graph.initializer:
            values = numpy_helper.to_array(held).astype(np.float32)
            held.CopyFrom(numpy_helper.from_array(values, held.name))

    assert any("not of type FLOAT16" in c.problem for c in certificates(kept_norm(), spoil))


def test_a_cast_to_another_type_fails():
    def spoil(folded):
        cast = next(n for n in folded.graph.node if n.name == "up_f")
        cast.attribute[0].i = DOUBLE

    made = kept_norm(op("MaxPool", "b", "r", kernel_shape=[2, 2]), down("r", "y"))
    assert not certificates(made, lambda folded: None)
    assert certificates(made, spoil)


def test_other_maps_on_either_side_of_a_cast_fail():
    """A record that tells of a map behind the Cast alone is not one of a right fold."""
    made = kept_norm(op("MaxPool", "b", "r", kernel_shape=[2, 2]), down("r", "y"))
    once = done(made)
    folded, applied = once.folded, once.applied
    (cast,) = (step for step in applied if made.graph.node[step.into].op_type == "Cast")
    wrong = replace(cast, related={"f": cast.related["f"]})
    assert not any(c.fails for c in certify(made, folded, [cast]))
    assert certify(made, folded, [wrong])[0].fails


def test_feeds_show_what_rounding_explains():
    """Folded, the model is no farther from float64 than the original is: one rounding less."""
    made = kept_norm(ahead=conv("conv", "x", "c", (4, 4, 3, 3), pads=[1] * 4))
    after, given = bnfold.fold(made), feeds(made)
    exact = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in made.graph.initializer}
    x = np.pad(given["x"].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    c = sum(
        np.einsum("nihw,oi->nohw", x[:, :, i : i + 4, j : j + 4], exact["conv.w"][:, :, i, j])
        for i in range(3)
        for j in range(3)
    ) + exact["conv.b"].reshape(-1, 1, 1)
    scale = exact["bn.scale"] / np.sqrt(exact["bn.var"] + np.float64(np.float32(0.01)))
    wanted = (c - exact["bn.mean"].reshape(-1, 1, 1)) * scale.reshape(-1, 1, 1)
    wanted += exact["bn.bias"].reshape(-1, 1, 1)
    u, size = 2.0**-11, np.abs(scale).reshape(-1, 1, 1) * np.abs(c).max() * 6 + np.abs(wanted)
    for m in (made, after):
        assert (np.abs(run(m, given)[0].astype(np.float64) - wanted) <= 2 * u * size).all()


@pytest.mark.parametrize("name", STAYS)
def test_a_map_that_may_not_go_to_half_fails(name, monkeypatch):
    """The planner lets it go. What it makes is not rounded to half anyway."""
    monkeypatch.setattr(relocation, "why_unfit", lambda *given: None)
    made = kept_norm(*STAYS[name])
    kind = {"its result stays in float32": FLOAT, "a cast to something narrower still": BF16}
    made.graph.output[0].type.tensor_type.elem_type = kind.get(name, HALF)
    assert bnfold.plan(made).folds
    assert certificates(made, lambda folded: None)


WIDE_PARTS = {
    "terms of a mean": [
        op("AveragePool", "f", "a", kernel_shape=[2, 2]),
        wide(bn("bn", "a", "b", 4)),
        down("b", "y"),
    ],
    "a scale behind that is not all taken": [
        wide(const("Mul", "f", "m", rand(4, 1, 1))),
        op("Relu", "m", "r"),
        wide(const("Mul", "r", "b", rand(4, 1, 1))),
        down("b", "y"),
    ],
}


@pytest.mark.parametrize("name", WIDE_PARTS)
def test_terms_that_were_rounded_first_fail(name, monkeypatch):
    monkeypatch.setattr(relocation, "why_unfit", lambda *given: None)
    made = between(conv(*CONV), up("c", "f"), *WIDE_PARTS[name])
    assert bnfold.plan(made).folds
    assert certificates(made, lambda folded: None)


def test_a_map_that_went_forward_to_half_fails(monkeypatch):
    def forward(self, maps):
        return [Way({0: maps[0]})]

    monkeypatch.setattr(Converted, "forward", forward)
    made = between(
        op("Relu", "x", "r"),
        up("r", "f"),
        wide(const("Sub", "f", "m", 100 * np.abs(rand(4, 1, 1)), name="mean")),
        down("m", "h"),
        conv("conv", "h", "y", (4, 4, 1, 1)),
    )
    assert bnfold.plan(made).folds
    assert certificates(made, lambda folded: None)
