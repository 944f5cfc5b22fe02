"""The certificate of maps ahead of LSTM, GRU and RNN: it holds for right folds alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import bnfold

from .. import runtimes
from ..carry.recurrent import GATES, recurrent
from ..graphs import Piece, const, model, op, rand
from .folds import Folded, folded, put, values

Array = Any
ROWS = GATES["LSTM"] * 4
Change = Callable[[Array], Array]


def maps() -> tuple[Piece, Piece]:
    return const("Mul", "x", "m", rand(4)), const("Add", "m", "a", rand(4))


def lstm(**given: Any) -> Folded:
    node = recurrent("LSTM", direction="bidirectional", **given)
    return folded(model(*maps(), node, x=(4, 4, 4)))


def holds(done: Folded, name: str, change: Change) -> bool:
    """Whether a certificate holds once what the folded model has under a name is another."""
    made = done.copy()
    put(made, name, change(values(made, name).copy()))
    return all_hold(done, made)


def all_hold(done: Folded, made: ModelProto) -> bool:
    """Of what was taken out, and of what took it in."""
    return all(certificate.holds for certificate in done.certificates(made))


def swapped(array: Array) -> Array:
    return array[::-1]


def halves(array: Array) -> Array:
    return np.concatenate([array[:, ROWS:], array[:, :ROWS]], axis=1)


def one(array: Array, *place: int) -> Array:
    array[place] *= np.float32(1.001)
    return array


def test_a_right_fold_holds():
    for bias in (True, False, ""):
        for certificate in lstm(bias=bias).certificates():
            assert certificate.holds and certificate.ulps <= 1
            assert certificate.law in ("absorb", "carry")


BIASES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "a forgotten shift": lambda new, old, t: old,
    "the other half": lambda new, old, t: np.concatenate(
        [old[:, :ROWS], old[:, ROWS:] + (new - old)[:, :ROWS]], axis=1
    ),
    "both halves": lambda new, old, t: old + np.tile((new - old)[:, :ROWS], 2),
    "the shift in one direction": lambda new, old, t: np.stack([new[0], old[1]]),
    "directions swapped": lambda new, old, t: old + (new - old)[::-1],
    "the shift twice": lambda new, old, t: new + (new - old),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_wrong_bias_fails(name):
    done = lstm()
    old = values(done.original, "b")
    assert holds(done, "b", lambda new: new)
    assert not holds(done, "b", lambda new: BIASES[name](new, old, new))


CHANGES: dict[str, tuple[str, Change]] = {
    "directions of W swapped": ("w", swapped),
    "halves of B swapped": ("b", halves),
    "one weight": ("w", lambda w: one(w, 1, 15, 3)),
    "one bias": ("b", lambda b: one(b, 1, 15)),
    "one bias of the recurrence": ("b", lambda b: one(b, 0, 31)),
    "a weight of the recurrence": ("r", lambda r: one(r, 0, 0, 0)),
    "a peephole": ("p", lambda p: one(p, 1, 0)),
    "a first state": ("h", lambda h: one(h, 1, 0, 0)),
    "lengths": ("n", swapped),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_else_changes_fails(name):
    """Those of a fold that is right but for this one number."""
    more = {
        "n": np.array([4, 1, 2, 3], np.int32),
        "h": rand(2, 4, 4),
        "c": rand(2, 4, 4),
        "p": rand(2, 12),
    }
    done = lstm(reads="n h c p", more=more)
    assert not holds(done, *CHANGES[name])


def test_a_made_bias_that_is_forgotten_fails():
    done = lstm(bias=False)
    made = done.copy()
    del done.node(made).input[3:]
    assert not all_hold(done, made)


def test_a_scale_along_the_rows_fails():
    """Of as many rows as inputs a wrong axis fits."""
    done = folded(model(maps()[0], op("Identity", "m", "a"), recurrent("RNN"), x=(4, 4, 4)))
    old = values(done.original, "w")
    assert not holds(done, "w", lambda new: old * (new / old).transpose(0, 2, 1))


@pytest.mark.parametrize("attribute", ["direction", "clip", "layout"])
def test_another_attribute_fails(attribute):
    done = lstm(clip=0.5)
    made = done.copy()
    node = done.node(made)
    for held in [a for a in node.attribute if a.name == attribute]:
        node.attribute.remove(held)
    if attribute == "layout":
        node.attribute.add(name="layout", type=2, i=1)
    assert not all_hold(done, made)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("layout", [0, 1])
def test_the_comparison_passes_and_sees_a_wrong_half(kind, layout):
    """Layout 1 in onnx's reference, for onnxruntime does not run it."""
    if layout and runtimes.is_old():
        pytest.skip("the reference of an old onnx runs one direction alone")
    node = recurrent(kind, direction="bidirectional", **({"layout": 1} if layout else {}))
    made = model(*maps(), node, x=(4, 4, 4))
    done = bnfold.fold(made)
    verdict = bnfold.verify(made, done)
    assert verdict.status == "pass", verdict
    rows = GATES[kind] * 4
    old, new = values(made, "b"), values(done, "b")
    put(done, "b", np.concatenate([old[:, :rows] / 2, new[:, rows:]], axis=1))
    assert bnfold.verify(made, done).status == "fail"
