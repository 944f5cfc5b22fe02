"""The proof from weights knows an order of channels: in front of layers, and at the border."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold import Preprocessing
from bnfold._pipeline.proving import prove_models

from ..graphs import const, conv, i64, model, op, rand
from .camera import MEAN, STD

CYCLE = "gbr:rgb"
RIGHT = Preprocessing(mean=MEAN, std=STD, channels=CYCLE, layout="nhwc", dtype="uint8")


def padded(*pieces, **more):
    front = pieces or (conv("a", "x", "h", (4, 3, 3, 3), pads=[1, 1, 1, 1]),)
    return model(*front, op("Relu", "h", "y"), x=(2, 3, 6, 6), **more)


@pytest.mark.parametrize("pads", [0, 1])
def test_a_folded_order_is_proved(pads):
    made = padded(conv("a", "x", "h", (4, 3, 3, 3), pads=[pads] * 4))
    folded = bnfold.fold(made, preprocessing=RIGHT)
    assert prove_models(made, folded, preprocessing=(("", RIGHT),)).status == "proved"


@pytest.mark.parametrize(
    "wrong", [{"channels": "rgb"}, {"channels": "brg:rgb"}, {"std": 1.0}, {"mean": 0.5}]
)
def test_another_preprocessing_is_refuted(wrong):
    made = padded()
    folded = bnfold.fold(made, preprocessing=RIGHT)
    how = {"mean": MEAN, "std": STD, "channels": CYCLE, "layout": "nhwc", "dtype": "uint8"}
    other = Preprocessing(**{**how, **wrong})
    assert prove_models(made, folded, preprocessing=(("", other),)).status != "proved"


def test_a_shift_in_a_bias_is_not_proved_where_padding_sees_it():
    """Right inside and wrong along the border: the classic."""
    how = Preprocessing(mean=MEAN, std=STD, channels=CYCLE)
    made = padded()
    folded = bnfold.fold(made, preprocessing=how)
    (sub,) = (node for node in folded.graph.node if node.op_type == "Sub")
    stored = {tensor.name: tensor for tensor in folded.graph.initializer}
    numbers = {name: np.frombuffer(t.raw_data, np.float32) for name, t in stored.items()}
    (layer,) = (node for node in folded.graph.node if node.op_type == "Conv")
    weight = numbers[layer.input[1]].reshape(4, 3, 9).sum(axis=2)
    bias = numbers[layer.input[2]] - weight @ numbers[sub.input[1]]
    stored[layer.input[2]].raw_data = bias.astype(np.float32).tobytes()
    layer.input[0] = sub.input[0]
    folded.graph.node.remove(sub)
    assert prove_models(made, folded, preprocessing=(("", how),)).status != "proved"


ORDERS = {
    "of channels": ((2, 3, 6, 6), 1, (1, 2, 0), True),
    "of channels, counted from the end": ((2, 3, 6, 6), -3, (1, 2, -3), True),
    "of a batch": ((3, 3, 6, 6), 0, (1, 2, 0), False),
    "of rows": ((2, 3, 3, 3), 2, (1, 2, 0), False),
    "with a channel twice": ((2, 3, 6, 6), 1, (1, 2, 2), False),
}


@pytest.mark.parametrize("name", ORDERS)
def test_which_orders_are_known(name):
    """Weights in the order of the channels; elsewhere the same weights prove nothing."""
    shape, axis, order, right = ORDERS[name]
    weight = rand(4, 3, 2, 2)
    first = model(
        op("Gather", "x i", "g", axis=axis),
        op("Conv", "g w", "h"),
        op("Relu", "h", "y"),
        x=shape,
        weights={"i": i64(*order), "w": weight},
    )
    back = np.argsort(np.asarray(order) % 3)
    second = model(
        op("Conv", "x w", "h"), op("Relu", "h", "y"), x=shape, weights={"w": weight[:, back]}
    )
    assert (bnfold.prove(first, second).status == "proved") == right


def test_features_in_an_order():
    """The last axis, ahead of a MatMul; sizes agree by accident."""
    weight = rand(3, 3)
    first = model(
        op("Gather", "x i", "g", axis=2),
        op("MatMul", "g w", "h"),
        op("Relu", "h", "y"),
        x=(3, 3, 3),
        weights={"i": i64(1, 2, 0), "w": weight},
    )
    for rows, right in (((2, 0, 1), True), ((1, 2, 0), False)):
        second = model(
            op("MatMul", "x w", "h"),
            op("Relu", "h", "y"),
            x=(3, 3, 3),
            weights={"w": weight[list(rows)]},
        )
        assert (bnfold.prove(first, second).status == "proved") == right


def test_an_order_behind_a_shift_and_ahead_of_padding():
    """The image of the shift is that of the data which the order reads."""
    made = padded(
        const("Sub", "x", "s", rand(3, 1, 1)),
        op("Gather", "s i", "g", axis=1),
        conv("a", "g", "h", (4, 3, 3, 3), pads=[1, 1, 1, 1]),
        weights={"i": i64(1, 2, 0)},
    )
    assert bnfold.prove(made, made).status == "proved"
    back, weights = [2, 0, 1], {t.name: t for t in made.graph.initializer}
    shift = np.frombuffer(weights["s_sub.k"].raw_data, np.float32).reshape(3, 1, 1)
    kernel = np.frombuffer(weights["a.w"].raw_data, np.float32).reshape(4, 3, 3, 3)
    bias = np.frombuffer(weights["a.b"].raw_data, np.float32)
    for moved, right in ((shift, True), (shift[back], False)):
        other = padded(
            const("Sub", "x", "s", moved),
            op("Conv", "s w b", "h", pads=[1, 1, 1, 1]),
            weights={"w": kernel[:, back], "b": bias},
        )
        assert (bnfold.prove(made, other).status == "proved") == right
