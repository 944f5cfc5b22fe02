"""Maps ahead of LSTM, GRU and RNN go into what x enters their gates by; nothing else does.

Sizes agree by accident wherever they can: steps, batch, inputs and hidden are all 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bnfold

from ..graphs import (
    BF16,
    HALF,
    affine_nodes,
    bn,
    const,
    constants,
    counts,
    done,
    feeds,
    model,
    op,
    overridable,
    rand,
)
from .recurrent import GATES, folded, kept, recurrent, settled

X = (4, 4, 4)
KINDS = list(GATES)
DIRECTIONS = ["forward", "reverse", "bidirectional"]


def scaled(values: Any = None, y: str = "a") -> Any:
    return const("Mul", "x", y, rand(4) if values is None else values, name="scale")


def shifted(values: Any = None, x: str = "x", y: str = "a") -> Any:
    return const("Add", x, y, rand(4) if values is None else values, name="shift")


def both() -> tuple[Any, Any]:
    return scaled(y="m"), shifted(x="m")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("bias", [True, False, ""])
def test_every_direction(kind, direction, bias):
    made = model(*both(), recurrent(kind, bias=bias, direction=direction), x=X)
    done = folded(made)
    assert counts(done) == {kind: 1}
    old, new = constants(made), constants(done)
    assert np.array_equal(old["r"], new["r"])
    rows = GATES[kind] * 4
    stored = new[done.graph.node[0].input[3]]
    was = old["b"] if bias is True else np.zeros((1 + (direction == "bidirectional"), 2 * rows))
    assert stored.shape == was.shape
    assert np.array_equal(stored[:, rows:], was[:, rows:])
    assert (stored[:, :rows] != was[:, :rows]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("sizes", [(3, 2, 5), X])
def test_layouts(kind, layout, sizes):
    """The inputs are on the last axis in either; outputs of layout 1 lie otherwise."""
    inputs, c = sizes[-1], rand(sizes[-1])
    made = model(
        const("Mul", "x", "m", rand(inputs), name="scale"),
        const("Sub", "m", "a", c, left=True, name="shift"),
        recurrent(kind, inputs=inputs, hidden=3, outputs="y h", layout=layout),
        x=sizes,
        y="y h",
    )
    assert counts(folded(made)) == {kind: 1}


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("LSTM", {"clip": 0.3}),
    "clip of a GRU": ("GRU", {"clip": 0.3}),
    "coupled gates": ("LSTM", {"input_forget": 1}),
    "before the reset": ("GRU", {"linear_before_reset": 1}),
    "behind the reset": ("GRU", {"linear_before_reset": 0}),
    "other activations": ("RNN", {"activations": ["Relu"]}),
    "an activation with numbers": (
        "RNN",
        {"activations": ["LeakyRelu"], "activation_alpha": [0.3]},
    ),
    "lengths": ("LSTM", {"reads": "n", "more": {"n": np.array([4, 1, 2, 3], np.int32)}}),
    "a state": ("GRU", {"reads": "_ h", "more": {"h": rand(2, 4, 4)}}),
    "states and peepholes": (
        "LSTM",
        {
            "reads": "_ h c p",
            "more": {"h": rand(2, 4, 4), "c": rand(2, 4, 4), "p": rand(2, 12)},
        },
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_whatever_its_gates_do(name, bias):
    kind, given = OPTIONS[name]
    attrs = dict(given)
    if "activations" in attrs:
        attrs = {key: value * 2 for key, value in attrs.items()}
    made = model(*both(), recurrent(kind, bias=bias, direction="bidirectional", **attrs), x=X)
    assert counts(folded(made)) == {kind: 1}


def test_a_state_that_is_given_may_be_anything():
    made = model(
        *both(), recurrent("GRU", reads="_ h", outputs="y h1"), x={"x": X, "h": (1, 4, 4)}, y="h1"
    )
    assert counts(folded(made)) == {"GRU": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_is_no_uniform_shift(kind):
    """Of an RNN of one hidden unit the shift's image is one number, for one half of B."""
    made = model(*both(), recurrent(kind, hidden=1), x=X)
    folded(made)


@pytest.mark.parametrize("outputs, y", [("_ h", "h"), ("y _ c", "c"), ("_ _ c", "c")])
def test_outputs_that_are_left_out(outputs, y):
    node, held = recurrent("LSTM", outputs="q", direction="reverse")
    node.output[:] = ["" if name == "_" else name for name in outputs.split()]
    made = model(*both(), (node, held), x=X, y=y)
    assert counts(folded(made)) == {"LSTM": 1}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layout", [0, 1])
def test_steps_and_batch_are_no_inputs(axis, layout):
    values = rand(4).reshape([-1 if k == axis else 1 for k in range(3)])
    lstm = recurrent("LSTM", layout=layout)
    for map_ in (scaled(values), shifted(values)):
        kept(
            model(map_, lstm, x=X),
            "no-linear-operator",
            f"forward, the map varies along axis {axis}",
        )
    folded(model(scaled(np.float32(1.5), y="m"), shifted(np.float32(0.3), "m"), lstm, x=X))


def test_a_norm_of_channels_comes_in_through_a_transpose():
    """[batch, channels, steps] becomes [steps, batch, channels], as exporters write it."""
    turned = op("Transpose", "n", "a", perm=[2, 0, 1])
    made = model(bn("bn", "x", "n", 4), turned, recurrent("LSTM"), x=X)
    assert counts(folded(made)) == {"LSTM": 1, "Transpose": 1}
    turned = op("Transpose", "n", "a", perm=[1, 0, 2])
    made = model(bn("bn", "x", "n", 4), turned, recurrent("LSTM"), x=X)
    kept(made, "no-linear-operator", "varies along axis 0")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_goes_in_from_behind(kind):
    made = model(recurrent(kind, "x", outputs="h"), const("Mul", "h", "y", rand(4)), x=X)
    kept(made, "no-linear-operator", "which cannot absorb it")


def test_who_else_reads_it_sees_what_it_did():
    lstm = recurrent("LSTM")
    made = model(*both(), lstm, op("Sigmoid", "a", "z"), x=X, y="y z")
    kept(made, "no-linear-operator", "(Sigmoid) reads it, and no map passes")
    made = model(*both(), lstm, x=X, y="y a")
    kept(made, "no-linear-operator", "a is an output of the graph")
    state = recurrent("GRU", reads="_ a", hidden=4)
    made = model(*both(), state, x=(1, 4, 4))
    kept(made, "no-linear-operator", "cannot take it in")


def test_a_weight_that_is_given_stays():
    node, held = recurrent("LSTM")
    w = held.pop("w")
    made = model(*both(), (node, held), x={"x": X, "w": w.shape})
    kept(made, "no-linear-operator", "w is an input of the graph")
    made = overridable(model(*both(), recurrent("LSTM"), x=X), "w")
    kept(made, "no-linear-operator", "a parameter that a caller may override")


def test_a_bias_that_is_given_stops_the_shift_alone():
    made = overridable(model(*both(), recurrent("GRU"), x=X), "b")
    kept(made, "no-linear-operator", "b is a parameter that a caller may override", left=1)
    node, held = recurrent("GRU")
    b = held.pop("b")
    made = model(*both(), (node, held), x={"x": X, "b": b.shape})
    kept(made, "no-linear-operator", "b is an input of the graph", left=1)
    folded(model(scaled(), (node, held), x={"x": X, "b": b.shape}))


def test_a_weight_that_is_read_twice_is_cloned():
    """Of as many inputs as hidden units one tensor may be W and R."""
    node, held = recurrent("RNN", hidden=4)
    node.input[2] = "w"
    del held["r"]
    done = folded(model(*both(), (node, held), x=X))
    assert done.graph.node[0].input[1] != done.graph.node[0].input[2] == "w"


WRONG = {"directions": (2, 16, 4), "gates": (1, 15, 4), "hidden": (1, 12, 4), "rank": (16, 4)}


@pytest.mark.parametrize("name", WRONG)
def test_a_weight_of_another_shape(name):
    node, held = recurrent("LSTM")
    made = model(*both(), (node, {**held, "w": rand(*WRONG[name])}), x=X)
    assert [each.code for each in bnfold.plan(made).kept] == ["no-linear-operator"] * 2
    assert "has a shape that its operator does not allow" in bnfold.plan(made).kept[0].message


def test_a_bias_of_another_shape():
    node, held = recurrent("LSTM")
    made = model(*both(), (node, {**held, "b": rand(1, 16)}), x=X)
    assert counts(bnfold.fold(made)) == {"LSTM": 1, "Add": 1}


@pytest.mark.parametrize("elem", [HALF, BF16])
def test_other_types(elem):
    """No provider runs these: the certificate alone tells."""
    made = model(*both(), recurrent("GRU", direction="bidirectional"), x=X, elem=elem)
    settled(made, done(made), 0)


@pytest.mark.parametrize(
    "scale, shift, code",
    [(1e5, 0.0, "overflow"), (1.0, 6e4, "overflow"), (1e-6, 0.0, "underflow")],
)
def test_what_half_precision_cannot_hold(scale, shift, code):
    maps = (
        scaled(np.full(4, min(scale, 6e4), np.float32), y="m"),
        shifted(np.full(4, shift, np.float32), "m"),
    )
    node, held = recurrent("LSTM")
    held = {**held, "w": np.full_like(held["w"], 4.0 if scale >= 1 else 1e-3)}
    made = model(*maps, (node, held), x=X, elem=HALF)
    once = done(made)
    assert code in {each.code for each in once.plan.kept}
    assert affine_nodes(once.folded)
    settled(made, once, len(affine_nodes(once.folded)))


def test_integers_stay_and_their_scale_takes_the_map_in():
    node, held = recurrent("LSTM", direction="bidirectional")
    w = held.pop("w")
    held |= {"q": np.round(w * 100).astype(np.int8), "s": np.float32(0.01)}
    dequantized = op("DequantizeLinear", "q s", "w")
    made = model(*both(), dequantized, (node, held), x=X)
    done = folded(made)
    assert counts(done) == {"LSTM": 1, "DequantizeLinear": 1}
    assert np.array_equal(constants(done)["q"], held["q"])


def test_integers_with_a_scale_for_each_row_take_no_map_of_inputs():
    node, held = recurrent("LSTM")
    w = held.pop("w")
    held |= {"q": np.round(w * 100).astype(np.int8), "s": rand(16) / 100}
    dequantized = op("DequantizeLinear", "q s", "w", axis=1)
    made = model(scaled(), dequantized, (node, held), x=X)
    kept(made, "quantized-weight", "no scale for each channel")
    folded(model(shifted(), dequantized, (node, held), x=X))


def test_two_that_read_one_tensor_and_share_a_weight():
    """As exporters write a direction each: both take the map in, one in a clone."""
    first, held = recurrent("GRU", outputs="y")
    second, _ = recurrent("GRU", outputs="z", direction="reverse")
    second.name = "other"
    made = model(*both(), (first, held), second, x=X, y="y z")
    assert counts(folded(made)) == {"GRU": 2}
    alone = model(*both(), (first, held), op("GRU", "x w r b", "z", hidden_size=4), x=X, y="y z")
    done = folded(alone)
    assert np.array_equal(constants(done)["w"], constants(alone)["w"])


def test_zero_scales():
    values = np.array([0, 1, -2, 0], np.float32)
    folded(model(scaled(values, "m"), shifted(x="m"), recurrent("LSTM"), x=X))


def test_older_operators_stay():
    made = model(*both(), recurrent("LSTM"), x=X, opset=6)
    assert bnfold.fold(made).SerializeToString() == made.SerializeToString()


def test_free_sizes():
    made = model(*both(), recurrent("LSTM"), x=("t", "n", 4))
    assert counts(folded(made, feeds(made))) == {"LSTM": 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", ["MatMul", "LayerNormalization"])
def test_the_rank_of_what_it_reads_is_3_where_nothing_else_tells_it(kind, behind):
    """The last axis is its axis of inputs. Steps, batch, inputs and hidden are all 4."""
    known = (op(behind, "x k", "h"), {"k": rand(4, 4) if behind == "MatMul" else rand(4)})
    made = model(
        known, op("Tanh", "h", "t"), (op(behind, "t q", "m"), {"q": known[1]["k"]}),
        shifted(x="m"), recurrent(kind), x={"x": None}, opset=17,
    )  # fmt: skip
    assert counts(folded(made, {"x": rand(4, 4, 4)}))[kind] == 1
    made = model(known, shifted(x="h", values=rand(1, 1, 4)), recurrent(kind), x={"x": None})
    once = done(made)
    assert [k.code for k in once.plan.kept] == ["unknown-shape"]  # A row may become [1, 1, 4].
