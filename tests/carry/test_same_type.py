"""A Cast to the type that a tensor has already: maps cross it, and no other Cast."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

import bnfold
from bnfold._onnx.read import graph
from bnfold._proof.certificate import certify

from ..functions import DOMAIN, constant, function
from ..graphs import (
    DOUBLE,
    FLOAT,
    HALF,
    bn,
    codes,
    const,
    conv,
    counts,
    done,
    fold,
    folds,
    model,
    op,
    positive,
    rand,
    stays,
    subgraph,
)
from .nets import MAPS, ahead, behind, goes


def cast(x: str, y: str, to: int = FLOAT, **attrs):
    return op("Cast", x, y, to=to, **attrs)


def chain(x: str, y: str):
    return [cast(x, "p"), op("Identity", "p", "q"), cast("q", y, name="")]


def like(x: str, y: str):
    return [op("CastLike", f"{x} x", y)]


MIDDLES = {"one": lambda x, y: [cast(x, y)], "chain": chain, "like": like}


@pytest.mark.parametrize("kind", ["norm", "shift", "mixed"])
@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
def test_every_map_crosses_in_both_directions(middle, kind):
    goes(behind(middle, kind))
    goes(ahead(middle, kind))


@pytest.mark.parametrize("elem", [HALF, DOUBLE])
def test_in_every_type(elem):
    pieces = conv("c", "x", "a", (4, 3, 1, 1)), cast("a", "b", elem), bn("n", "b", "y", 4)
    runs = elem != DOUBLE  # onnxruntime has no Conv of float64.
    folds(model(*pieces, elem=elem), Conv=1, Cast=1, runtime=runs)


@pytest.mark.parametrize("ahead_of_it", [True, False])
def test_between_maps_that_become_one(ahead_of_it):
    pieces = const("Mul", "x", "a", rand(3, 1, 1)), cast("a", "b"), const("Add", "b", "c", rand(1))
    end = bn("n", "c", "y", 3) if ahead_of_it else op("Tanh", "c", "y")
    folded = fold(model(*pieces, end))
    assert counts(folded)["Cast"] == 1
    assert len(folded.graph.node) == (2 if ahead_of_it else 4)


@pytest.mark.parametrize("last", ["norm", "conv"])
def test_the_certificate_does_not_take_the_reading_s_word(monkeypatch, last):
    """Any Cast is read as the identity: what folds or merges over one that is none is wrong."""
    monkeypatch.setitem(graph.ROWS, "Cast", graph.ROWS["Identity"])
    end = bn("n", "e", "y", 4) if last == "norm" else conv("d", "e", "y", (2, 4, 1, 1))
    casts = cast("a", "b", TensorProto.INT32), cast("b", "e")
    made = model(conv("c", "x", "a", (4, 3, 1, 1)), *casts, end)
    once = done(made)
    assert any(each.fails for each in certify(made, once.folded, once.applied))


def test_a_cast_to_another_type_is_not_the_identity():
    """What the norm puts out would have been rounded to the type of the Conv."""
    node, values = MAPS["norm"]("b", "y", 4)
    wide = {name: value.astype(np.float64) for name, value in values.items()}
    made = model(conv("c", "x", "a", (4, 3, 1, 1)), cast("a", "b", DOUBLE), (node, wide))
    made.graph.output[0].type.tensor_type.elem_type = DOUBLE
    assert codes(made) == {"map": "not-carried"}
    assert bnfold.fold(made) == made


def test_there_and_back_is_two_other_types():
    pieces = conv("c", "x", "a", (4, 3, 1, 1)), cast("a", "b", TensorProto.INT32), cast("b", "c")
    stays(model(*pieces, MAPS["positive"]("c", "y", 4)), {"map": "no-linear-operator"})


def test_below_opset_6_a_word_names_the_type():
    for word, left in (("FLOAT", 0), ("DOUBLE", 1)):
        middle = [op("Cast", "a", "b", to=word)]
        made = model(
            conv("c", "x", "a", (4, 3, 1, 1)),
            *middle,
            (
                op(
                    "BatchNormalization",
                    "b s t m v",
                    "y",
                    is_test=1,
                    consumed_inputs=[0, 0, 0, 1, 1],
                )
            ),
            weights={name: np.full(4, 1.5, np.float32) for name in "stmv"},
            opset=5,
        )
        assert counts(bnfold.fold(made)).get("BatchNormalization", 0) == left


def test_a_tensor_that_others_see_stays_as_it_is():
    pieces = conv("c", "x", "a", (4, 3, 1, 1)), cast("a", "b"), bn("n", "b", "y", 4)
    stays(model(*pieces, y="y b"), {"n": "graph-output"})
    stays(model(*pieces, op("Tanh", "a", "z"), y="y z"), {"n": "shared-output"})
    folds(
        model(*pieces, op("Shape", "b", "z"), op("Cast", "z", "z2", to=FLOAT), y="y z2"),
        Conv=1,
        Cast=2,
        Shape=1,
    )


def test_inside_a_body():
    inside = subgraph(
        conv("c", "x", "a", (4, 3, 1, 1)), cast("a", "b"), bn("n", "b", "z", 4), y="z"
    )
    other = subgraph(conv("d", "x", "w", (4, 3, 1, 1)), y="w")
    node = op("If", "cond", "y", then_branch=inside, else_branch=other)
    made = model(node, weights={"cond": np.array(True)})
    assert counts(fold(made)) == {"If": 1, "Conv": 2, "Cast": 1}


def test_inside_a_function_a_type_follows_from_operators_alone():
    """Of what a call passes no type is known: another call may pass another."""
    weights = [constant("w", rand(3, 3, 1, 1)), *(constant(n, positive(3)) for n in "stmv")]
    last = op("BatchNormalization", "f s t m v", "y", name="norm")
    nodes = [*weights, op("Conv", "x w", "a"), op("Identity", "a", "b"), cast("b", "f"), last]
    made = model(
        op("Block", "x", "y", domain="my"),
        functions=[function("Block", "x", "y", nodes)],
        domains=DOMAIN,
    )
    assert codes(made) == {}
    assert "BatchNormalization" not in counts(fold(made))


def test_what_a_call_passes_has_no_type_in_a_function():
    """Another call may pass another. This one is not inlined, as it puts out what it reads."""
    weights = [constant(name, positive(3)) for name in "stmv"]
    last = op("BatchNormalization", "b s t m v", "y", name="norm")
    nodes = [*weights, op("Abs", "x", "a", name="abs"), cast("a", "b"), last]
    made = model(
        op("Block", "x", "y z", domain="my"),
        functions=[function("Block", "x", "y x", nodes)],
        domains=DOMAIN,
    )
    assert codes(made) == {"norm": "no-linear-operator"}


def test_operators_that_merge_take_a_cast_along():
    pieces = conv("c", "x", "a", (4, 3, 1, 1)), cast("a", "b"), conv("d", "b", "y", (2, 4, 1, 1))
    folds(model(*pieces, op("Tanh", "y", "z"), y="z"), Conv=1, Tanh=1)
    halves = cast("a", "b", TensorProto.INT32), cast("b", "e"), conv("d", "e", "y", (2, 4, 1, 1))
    made = model(pieces[0], *halves)
    assert bnfold.fold(made) == made
