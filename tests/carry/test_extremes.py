"""Max and Min with a constant: types, opsets, ranks, graphs, and what enlarges a tensor; with Mean,
of branches.

`test_laws` has every kind of map in both directions; here is what decides whether there is a law.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from bnfold._proof.certificate import certify

from ..graphs import (
    BF16,
    DOUBLE,
    FLOAT,
    HALF,
    bn,
    const,
    conv,
    counts,
    done,
    model,
    op,
    overridable,
    positive,
    rand,
    run,
    subgraph,
)
from .nets import affine, goes, stays

ZERO = np.float32(0)


def matmul(x: str, y: str, weight: Any) -> Any:
    return op("MatMul", f"{x} {y}.w", y), {f"{y}.w": weight}


def bounded(x: str, y: str, kind: str = "Max", value: Any = ZERO, **attrs: Any) -> Any:
    return const(kind, x, y, np.asarray(value, np.float32), name="extreme", **attrs)


def extremes(made: ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node if node.op_type in ("Max", "Min")]


@pytest.mark.parametrize("elem", [FLOAT, DOUBLE, HALF, BF16])
@pytest.mark.parametrize("kind", ["Max", "Min"])
def test_a_norm_of_one_sign_goes_through_in_every_type(kind, elem):
    """As a product: onnxruntime has a Conv of float32 alone, and BF16 it has hardly anything of."""
    scale = positive(4) if kind == "Max" else -positive(4)
    made = model(
        matmul("x", "h", rand(3, 4)),
        bounded("h", "r", kind, 0.25),
        const("Mul", "r", "s", scale),
        const("Add", "s", "y", rand(4)),
        x=(2, 3), elem=elem,
    )  # fmt: skip
    once = done(made)
    assert affine(once.folded) <= 1  # the Add that a MatMul's shift needs
    assert extremes(once.folded) == ["Max"]
    assert all(one.holds for one in certify(made, once.folded, once.applied))


def test_a_batchnorm_goes_through_a_relu_that_is_a_max():
    scale = {"bn.scale": positive(4)}
    made = model(
        conv("c", "x", "h", (4, 3, 3, 3)), bounded("h", "r", left=True), bn("bn", "r", "y", 4),
        weights=scale,
    )  # fmt: skip
    folded = goes(made)
    (bound,) = (t for t in folded.graph.initializer if t.name.startswith("extreme"))
    assert list(bound.dims) == [4, 1, 1]


@pytest.mark.parametrize("scale", [[1, 2, -1, 1], [1, 2, 0, 1], [0, 0, 0, 0]])
def test_scales_of_both_signs_or_zero_stay(scale):
    k = np.array(scale, np.float32).reshape(4, 1, 1)
    made = model(
        conv("c", "x", "h", (4, 3, 1, 1)), bounded("h", "r"), const("Mul", "r", "y", k, name="map")
    )
    stays(made, "not-carried", says="not positive")


def test_what_may_be_enlarged_passes_one_number_for_all_only():
    """[4, 1, 1] makes [N, 4, H, W] of [N, 1, H, W]; five axes make another one axis 1."""
    head = conv("c", "x", "h", (1, 3, 1, 1))
    for k in ((4, 1, 1), (1, 1, 1, 1, 1), (3, 1, 1, 1, 1)):
        x = (2, 3, 6, 6)
        enlarged = bounded("h", "r", value=rand(*k))
        goes(model(head, enlarged, const("Mul", "r", "y", np.float32(-2)), x=x))
        along = const("Mul", "r", "y", positive(6), name="map")
        stays(model(head, enlarged, along, x=x), "unknown-shape", says="enlarges")


@pytest.mark.parametrize("value", [0.5, [0.5], [[0.5]], rand(4)], ids=np.shape)
def test_of_a_rank_that_is_not_known_one_number_for_all_passes(value):
    made = model(
        op("Tanh", "x", "a"), matmul("a", "h", rand(3, 4)),
        bounded("h", "r", value=value), const("Mul", "r", "y", np.float32(-2), name="map"),
        x={"x": None},
    )  # fmt: skip
    once = done(made)
    assert affine(once.folded) == 0, once.plan.kept
    assert all(one.holds for one in certify(made, once.folded, once.applied))
    data = {"x": rand(2, 5, 3)}
    np.testing.assert_allclose(run(once.folded, data)[0], run(made, data)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [1, 6, 7])
def test_old_opsets_do_not_broadcast(opset):
    """Both have one shape, which a map keeps."""
    old = opset < 7
    attrs = {"broadcast": 1} if old else {}

    def made(value: Any) -> ModelProto:
        return model(
            conv("c", "x", "h", (4, 3, 1, 1)), bounded("h", "r", value=value),
            const("Mul", "r", "y", np.full(1 if old else (), 2, np.float32), name="map", **attrs),
            opset=opset,
        )  # fmt: skip

    once = done(made(rand(2, 4, 8, 8)))
    assert counts(once.folded) == {"Conv": 1, "Max": 1}
    shapes = [tuple(t.dims) for t in once.folded.graph.initializer if "extreme" in t.name]
    assert shapes == [(2, 4, 8, 8)]
    assert counts(done(made(rand(4))).folded)["Mul"] == 1


def test_a_bound_that_is_no_number_stays():
    made = model(
        conv("c", "x", "h", (4, 3, 1, 1)), bounded("h", "r", value=np.nan),
        const("Mul", "r", "y", positive(4, 1, 1), name="map"),
    )  # fmt: skip
    assert counts(done(made).folded)["Mul"] == 1


def test_a_bound_that_leaves_its_type_stays():
    made = model(
        conv("c", "x", "h", (4, 3, 1, 1)), bounded("h", "r", "Min", 3e38),
        const("Mul", "r", "y", np.float32(2), name="map"),
    )  # fmt: skip
    stays(made, "not-carried", says="range")


def test_several_that_share_a_bound_get_their_own():
    zero = {"zero": np.float32(0.5)}
    made = model(
        conv("a", "x", "ha", (4, 3, 1, 1)), (op("Max", "ha zero", "ra"), zero),
        conv("b", "x", "hb", (4, 3, 1, 1)), (op("Max", "zero hb", "rb"), zero),
        const("Mul", "ra", "y", positive(4, 1, 1)), const("Mul", "rb", "z", -positive(4, 1, 1)),
        y="y z",
    )  # fmt: skip
    assert extremes(goes(made)) == ["Max", "Min"]


def test_one_operand_and_a_constant_among_several_are_another_operator():
    for inputs in ("h g k", "h k k", "h"):
        made = model(
            conv("c", "x", "h", (4, 3, 1, 1)), op("Tanh", "h", "g"),
            (op("Max", inputs, "r"), {"k": ZERO}),
            const("Mul", "r", "y", np.float32(2), name="map"), y="y g",
        )  # fmt: skip
        assert counts(done(made).folded)["Mul"] == 1


# --- of branches -------------------------------------------------------------------------------

SCALES = {
    "positive": positive(4, 1, 1),
    "zero": np.array([0, 1, 2, 0], np.float32).reshape(4, 1, 1),
    "number": np.float32(1.5),
    "negative": -positive(4, 1, 1),
    "mixed": np.array([1, -1, 2, 1], np.float32).reshape(4, 1, 1),
}


def branches(count: int = 2) -> list[Any]:
    return [conv(f"c{n}", "x", f"h{n}", (4, 3, 1, 1)) for n in range(count)]


@pytest.mark.parametrize("kind", ["Max", "Min", "Mean"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("count", [2, 3])
def test_a_map_that_keeps_order_goes_into_all_branches(kind, scale, count):
    """Batch, channels, height and width are all 4. A shift goes, whatever the scale ahead of it. A
    mean asks for no order.
    """
    names = " ".join(f"h{n}" for n in range(count))
    made = model(
        *branches(count), op(kind, names, "r"), const("Mul", "r", "m", SCALES[scale], name="map"),
        const("Add", "m", "y", rand(4, 1, 1)), x=(4, 3, 4, 4),
    )  # fmt: skip
    goes(made, left=1 if scale in ("negative", "mixed") and kind != "Mean" else 0)


def test_halves_of_a_split_take_what_their_maximum_does():
    made = model(
        conv("c", "x", "h", (8, 3, 1, 1)), op("Split", "h", "a b", axis=1), op("Max", "a b", "r"),
        bn("bn", "r", "y", 4), weights={"bn.scale": positive(4)}, x=(4, 3, 4, 4), opset=13,
    )  # fmt: skip
    goes(made)


def test_one_tensor_twice_takes_it_once():
    made = model(
        *branches(1), op("Max", "h0 h0", "r"), const("Mul", "r", "y", positive(4, 1, 1), name="map")
    )
    goes(made)


@pytest.mark.parametrize("kind", ["Max", "Mean"])
@pytest.mark.parametrize("other", [1, 2, 3])
def test_forward_all_branches_have_to_carry_the_same(kind, other):
    made = model(
        const("Mul", "x", "a", np.float32(1), name="none"),
        const("Mul", "x", "b", np.float32(3), name="map"),
        const("Mul", "z", "d", np.float32(other), name="other"),
        op(kind, "b d", "r"), conv("c", "r", "y", (4, 3, 1, 1)), op("Tanh", "a", "u"),
        x={"x": (4, 3, 4, 4), "z": (4, 3, 4, 4)}, y="y u",
    )  # fmt: skip
    once = done(made)
    assert all(one.holds for one in certify(made, once.folded, once.applied))
    assert affine(once.folded) == {1: 1, 2: 2, 3: 0}[other]


@pytest.mark.parametrize("kind", ["Max", "Mean"])
def test_a_branch_that_is_a_constant_or_an_input_takes_no_map_in(kind):
    """The map would have to go into all of them."""
    third = np.asarray(rand(2, 4, 4, 4))
    for other, says in (("k", "k is a constant"), ("z", "it reads z, which enters the graph")):
        made = model(
            *branches(), op(kind, f"h0 h1 {other}", "r"), bn("map", "r", "y", 4),
            weights={"k": third, "map.scale": positive(4)},
            x={"x": (2, 3, 4, 4), "z": (2, 4, 4, 4)},
        )  # fmt: skip
        once = done(made)
        assert affine(once.folded) == 1
        (kept,) = once.plan.kept
        if kind == "Mean" or other == "z":
            assert says in kept.message, kept


@pytest.mark.parametrize("opset", [7, 8])
def test_below_opset_8_nothing_broadcasts_and_nothing_passes(opset):
    made = model(
        *branches(), op("Mean", "h0 h1", "r"), const("Mul", "r", "y", rand(4, 1, 1), name="map"),
        x=(4, 3, 4, 4), opset=opset,
    )  # fmt: skip
    assert affine(done(made).folded) == (opset < 8)


def test_a_branch_that_is_broadcast_has_no_place_for_channels():
    """One of a channel, and one of fewer axes, whose axis 1 is another one."""
    one = conv("d", "x", "g", (1, 3, 1, 1))
    for map_ in (positive(4, 1, 1), np.float32(2)):
        made = model(
            *branches(1), one, op("Min", "g h0", "r"), const("Mul", "r", "y", map_, name="map"),
            x=(4, 3, 4, 4),
        )  # fmt: skip
        if map_.size > 1:
            stays(made, "not-carried", says="no place of its own")
        else:
            goes(made)
    product = (op("Gemm", "x W", "p"), {"W": rand(4, 4)})
    batches = (op("MatMul", "z V", "q"), {"V": rand(4, 4)})
    for map_, left in ((positive(4), 0), (positive(4, 1), 1)):
        made = model(
            product, batches, op("Max", "p q", "r"), const("Mul", "r", "y", map_, name="map"),
            x={"x": (4, 4), "z": (4, 4, 4)},
        )  # fmt: skip
        assert affine(done(made).folded) == left


def test_bodies_and_functions():
    body = subgraph(
        conv("c", "h", "b", (4, 4, 1, 1)), bounded("b", "r"),
        const("Mul", "r", "out", -positive(4, 1, 1)), y="out",
    )  # fmt: skip
    other = subgraph(op("Identity", "h", "out2"), y="out2")
    made = model(
        conv("first", "x", "h", (4, 3, 1, 1)),
        op("If", "cond", "y", then_branch=body, else_branch=other),
        x={"x": (2, 3, 8, 8), "cond": ()},
    )
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    once = done(made)
    assert all(one.holds for one in certify(made, once.folded, once.applied))
    for taken in (True, False):
        data = {"x": rand(2, 3, 8, 8), "cond": np.array(taken)}
        for was, now in zip(run(made, data), run(once.folded, data), strict=True):
            np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-5)
    folded = once.folded
    (branch,) = (a.g for a in folded.graph.node[-1].attribute if a.name == "then_branch")
    assert [n.op_type for n in branch.node] == ["Conv", "Min"]


def test_a_wrong_bound_does_not_get_past_the_certificate():
    """Far from what normal numbers would show, in one channel alone."""
    bound = np.array([0.5, 80, -300, 2], np.float32).reshape(4, 1, 1)
    made = model(
        conv("c", "x", "h", (4, 3, 1, 1)), bounded("h", "r", value=bound),
        const("Mul", "r", "y", positive(4, 1, 1)),
    )  # fmt: skip
    once = done(made)
    held = next(t for t in once.folded.graph.initializer if t.name.startswith("extreme"))
    assert all(one.holds for one in certify(made, once.folded, once.applied))
    for channel in range(4):
        values = numpy_helper.to_array(held).copy()
        values[channel] *= np.float32(1.01)
        wrong = ModelProto()
        wrong.CopyFrom(once.folded)
        place = next(t for t in wrong.graph.initializer if t.name == held.name)
        place.CopyFrom(numpy_helper.from_array(values, held.name))
        assert any(one.fails for one in certify(made, wrong, once.applied)), channel


def test_a_bound_that_a_caller_sets_stays():
    made = model(
        conv("c", "x", "h", (4, 3, 1, 1)),
        bounded("h", "r"),
        const("Mul", "r", "y", positive(4, 1, 1)),
    )
    assert counts(done(overridable(made, "extreme.k")).folded)["Mul"] == 1


@pytest.mark.parametrize("kind", ["Clip", "Max"])
def test_a_bound_that_is_rounded_to_half_precision_holds(kind):
    """Its rounding is that of its type, not of float32; two units of it are one bug."""
    bound = {"low": np.float32(0.3)}
    made = model(
        conv("c", "x", "h", (4, 3, 1, 1)), (op(kind, "h low", "r"), bound),
        const("Mul", "r", "y", np.float32(1.7)), elem=HALF,
    )  # fmt: skip
    once = done(made)
    assert counts(once.folded) == {"Conv": 1, kind: 1}
    assert all(one.holds for one in certify(made, once.folded, once.applied))
    held = next(t for t in once.folded.graph.initializer if t.name.startswith("low"))
    values = numpy_helper.to_array(held) * np.float16(1.004)
    held.CopyFrom(numpy_helper.from_array(values, held.name))
    assert any(one.fails for one in certify(made, once.folded, once.applied))


@pytest.mark.parametrize(
    ("kind", "held", "shift", "goes_through"),
    [
        ("Max", 0.25, -15, True),
        ("Max", 0.25, -17, False),
        ("Max", -6, -17, True),
        ("Max", 5, -17, False),
        ("Max", 0.25, 1e30, True),
        ("Max", 0.25, -1e38, False),
        ("Min", 0.25, 15, True),
        ("Min", 0.25, 17, False),
        ("Min", 0.25, 1e38, False),
        ("Min", 0.25, -1e30, True),
    ],
)
def test_a_bound_that_would_be_lost_beside_a_shift_stays(kind, held, shift, goes_through):
    """``min(x + 1e38, 0.25)`` is 0.25; ``min(x, 0.25 − 1e38) + 1e38`` is 0."""
    middle = {
        "Max": op("Clip", "a low", "c", name="extreme"),
        "Min": op("Clip", "a _ low", "c", name="extreme"),
    }[kind]
    made = model(
        op("Tanh", "x", "t"),
        const("Add", "t", "a", np.float32(shift)),
        (middle, {"low": np.float32(held)}),
        conv("b", "c", "y", (4, 3, 1, 1)),
    )
    once = done(made)
    x = {"x": rand(2, 3, 8, 8)}
    assert ("Add" not in counts(once.folded)) == goes_through
    np.testing.assert_allclose(run(once.folded, x), run(made, x), rtol=1e-4, atol=1e-5)
