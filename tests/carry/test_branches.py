"""Operators that join branches or take them apart: sums, gates, products, Concat, Split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ..graphs import bn, codes, const, conv, conv_transpose, counts, model, op, rand
from .nets import affine, goes, holds, stays

Array = Any
X = (4, 4, 4, 4)  # batch, channels and sizes agree by accident
SHAPES = [X, (2, 4, 3, 5)]


def scale(x: str, y: str, values: Any, name: str = "map") -> Any:
    return const("Mul", x, y, np.asarray(values, np.float32).reshape(-1, 1, 1), name=name)


def shift(x: str, y: str, values: Any, name: str = "map") -> Any:
    return const("Add", x, y, np.asarray(values, np.float32).reshape(-1, 1, 1), name=name)


def two_convs(c: int = 4) -> list[Any]:
    """Behind a Relu, so that the second one is no convolution of what the first one reads."""
    return [
        conv("c1", "x", "a", (c, c, 1, 1)),
        op("Relu", "x", "r"),
        conv("c2", "r", "b", (c, c, 3, 3), pads=[1] * 4),
    ]


@pytest.mark.parametrize("x", SHAPES)
@pytest.mark.parametrize("kind", ["Add", "Sub", "Sum"])
def test_a_norm_behind_a_sum_goes_into_both_branches(kind, x):
    goes(model(*two_convs(), op(kind, "a b", "s"), bn("map", "s", "y", 4), x=x))


@pytest.mark.parametrize("kind", ["Add", "Sub"])
def test_a_shift_goes_into_one_branch_where_the_other_takes_none(kind):
    """The second way of a sum: the first branch is an input of the graph."""
    c2 = conv_transpose("c2", "x", "b", (4, 4, 1, 1))
    goes(model(c2, op(kind, "x b", "s"), shift("s", "y", rand(4)), x=X))
    goes(model(c2, op(kind, "b x", "s"), shift("s", "y", rand(4)), x=X))
    stays(model(c2, op(kind, "x b", "s"), scale("s", "y", rand(4)), x=X))


def test_a_norm_behind_a_residual_stays():
    """The branch that is added is what the convolution read: changing it changes both."""
    made = model(
        conv("c0", "x", "a", (4, 4, 1, 1)),
        conv_transpose("c1", "a", "b", (4, 4, 1, 1)),
        op("Add", "a b", "s"),
        scale("s", "y", rand(4)),
        x=X,
    )
    stays(made)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Sum"])
@pytest.mark.parametrize("x", SHAPES)
def test_shifts_ahead_of_a_sum_pass_freely(kind, x):
    made = model(
        conv("c1", "x", "a", (4, 4, 1, 1)),
        op("Sigmoid", "x", "g"),
        shift("g", "h", rand(4)),
        op(kind, "a h", "s"),
        conv("c2", "s", "y", (3, 4, 1, 1)),
        x=x,
    )
    goes(made)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Sum"])
def test_scales_ahead_of_a_sum_pass_where_they_agree(kind):
    def made(other: Any) -> Any:
        return model(
            op("Sigmoid", "x", "g"),
            scale("g", "a", [2, -3, 0, 5]),
            op("Tanh", "x", "h"),
            scale("h", "b", other, name="map2"),
            op(kind, "a b", "s"),
            conv("c2", "s", "y", (3, 4, 1, 1)),
            x=X,
        )

    goes(made([2, -3, 0, 5]))
    stays(made([2, -3, 1, 5]), says="its inputs do not carry the same scale")


@pytest.mark.parametrize("kind", ["Mul", "Div"])
@pytest.mark.parametrize("x", SHAPES)
def test_scales_pass_gates_and_shifts_do_not(kind, x):
    gate = op("Sigmoid", "x", "g")
    c1 = conv("c1", "x", "a", (4, 4, 1, 1))
    behind = [c1, gate, op(kind, "a g", "s")]
    goes(model(*behind, scale("s", "y", [1, -2, 0, 3]), x=x))
    stays(model(*behind, shift("s", "y", rand(4)), x=x), "not-carried")
    last = conv("c2", "s", "y", (3, 4, 1, 1))
    goes(model(scale("x", "a", [1, -2, 0, 3]), gate, op(kind, "a g", "s"), last, x=x))
    stays(model(shift("x", "a", rand(4)), gate, op(kind, "a g", "s"), last, x=x))


def test_a_scale_does_not_pass_a_divisor():
    gate = op("Sigmoid", "x", "g")
    made = model(
        gate, scale("g", "a", [1, 2, 3, 4]), op("Div", "x a", "s"),
        conv("c2", "s", "y", (3, 4, 1, 1)), x=X,
    )  # fmt: skip
    stays(made, says="the scale does not pass through a divisor")
    behind = model(
        conv("c1", "x", "a", (4, 4, 1, 1), False),
        op("Div", "x a", "s"),
        scale("s", "y", [1, 2, 3, 4]),
        x=X,
    )
    stays(behind)


def test_a_square_takes_a_scale_twice():
    last = conv("c2", "s", "y", (3, 4, 1, 1))
    goes(model(scale("x", "a", [1, -2, 0, 3]), op("Mul", "a a", "s"), last, x=X))
    c1 = conv("c1", "x", "a", (4, 4, 1, 1))
    stays(model(c1, op("Mul", "a a", "s"), scale("s", "y", [1, 4, 9, 16]), x=X), "shared-output")


def test_a_shift_vanishes_where_a_tensor_is_taken_from_itself():
    made = model(
        op("Sigmoid", "x", "g"),
        shift("g", "a", rand(4)),
        op("Sub", "a a", "s"),
        op("Sigmoid", "s", "y"),
        x=X,
    )
    goes(made)


@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_a_branch_that_is_broadcast_has_no_place_for_each_channel(kind):
    """One channel against four: a map of the four is none of the one."""
    both = [conv("c1", "x", "a", (4, 4, 1, 1)), conv("c2", "x", "b", (1, 4, 1, 1))]
    made = model(*both, op(kind, "a b", "s"), scale("s", "y", rand(4)), x=X)
    if kind == "Mul":
        goes(made)  # the other factor takes it
    else:
        stays(made, "not-carried")
    number = model(*both, op(kind, "a b", "s"), const("Mul", "s", "y", np.float32(3)), x=X)
    goes(number)
    ahead = model(
        op("Sigmoid", "x", "g"),
        scale("g", "a", rand(4)),
        conv("c2", "x", "b", (1, 4, 1, 1)),
        op(kind, "a b", "s"),
        conv("c3", "s", "y", (3, 4, 1, 1)),
        x=X,
    )
    (goes if kind == "Mul" else stays)(ahead)


def test_ranks_are_aligned_from_the_right():
    """Axis 1 of four is axis 0 of three."""
    parts = [
        conv("c1", "x", "a", (4, 4, 1, 1)),
        (op("MatMul", "w z", "b", name="left"), {"w": rand(4, 4)}),
        op("Mul", "a b", "s"),
    ]
    x = {"x": X, "z": (4, 4, 4)}
    goes(model(*parts, scale("s", "y", rand(4)), x=x))
    sums = [parts[0], parts[1], op("Add", "a b", "s")]
    stays(model(*sums, scale("s", "y", rand(4)), x=x), "axis-mismatch")


@pytest.mark.parametrize("x", SHAPES)
@pytest.mark.parametrize("axis", [1, -3])
def test_concat_behind_and_ahead(axis, x):
    parts = [conv("c1", "x", "a", (4, 4, 1, 1)), conv("c2", "x", "b", (2, 4, 1, 1))]
    joined = op("Concat", "a b", "s", axis=axis)
    goes(model(*parts, joined, bn("map", "s", "y", 6), x=x))
    read_twice = [*parts, joined, op("Sigmoid", "b", "z")]
    stays(model(*read_twice, scale("s", "y", rand(6)), x=x, y="y z"), "shared-output")
    untouched = np.concatenate([np.asarray(rand(4)), np.ones(2)])
    goes(model(*read_twice, scale("s", "y", untouched), x=x, y="y z"))
    ahead = model(
        op("Sigmoid", "x", "g"),
        bn("map", "g", "a", 4),
        op("Concat", "a x", "s", axis=axis),
        conv("c3", "s", "y", (3, 8, 1, 1)),
        x=x,
    )
    goes(ahead)


def test_concat_along_another_axis_asks_all_inputs_for_one_map():
    parts = [conv("c1", "x", "a", (4, 4, 1, 1)), conv("c2", "x", "b", (4, 4, 1, 1))]
    joined = op("Concat", "a b", "s", axis=2)
    goes(model(*parts, joined, bn("map", "s", "y", 4), x=X))
    along = const("Mul", "s", "y", rand(8, 1), name="map")
    stays(model(*parts, joined, along, x=X), "axis-mismatch")
    last = conv("c3", "s", "y", (3, 4, 1, 1))
    gates = [op("Sigmoid", "x", "g"), op("Tanh", "x", "h")]
    same = [scale("g", "a", [1, 2, 3, 4]), scale("h", "b", [1, 2, 3, 4], "map2")]
    goes(model(*gates, *same, joined, last, x=X))
    other = [scale("g", "a", [1, 2, 3, 4]), scale("h", "b", [1, 2, 3, 5], "map2")]
    stays(model(*gates, *other, joined, last, x=X), says="do not all carry the same map")


def test_concat_with_unknown_sizes_stays():
    c1 = conv("c1", "x", "a", (4, 4, 1, 1))
    made = model(
        c1, op("Concat", "a z", "s", axis=1), bn("map", "s", "y", 6),
        x={"x": X, "z": (4, "c", 4, 4)},
    )  # fmt: skip
    data = {"x": rand(*X), "z": rand(4, 2, 4, 4)}
    stays(made, "unknown-shape", says="the sizes of its inputs are not known", data=data)


def split(x: str, names: str, *sizes: int, axis: int = 1) -> Any:
    return op("Split", f"{x} sizes", names, axis=axis), {"sizes": np.array(sizes, np.int64)}


@pytest.mark.parametrize("x", SHAPES)
def test_split_ahead_and_behind(x):
    last = [conv("c2", "a", "y", (3, 1, 1, 1)), conv("c3", "b", "z", (3, 3, 1, 1))]
    made = model(bn("map", "x", "s", 4), split("s", "a b", 1, 3), *last, x=x, y="y z")
    goes(made)
    open_end = [last[0], op("Relu", "b", "z")]
    stays(model(bn("map", "x", "s", 4), split("s", "a b", 1, 3), *open_end, x=x, y="y z"))
    kept = [1.5, 1, 1, 1]  # the part that nobody may change is not changed
    goes(model(scale("x", "s", kept), split("s", "a b", 1, 3), *open_end, x=x, y="y z"))
    behind = [conv("c1", "x", "s", (4, 4, 1, 1)), split("s", "a b", 1, 3)]
    goes(model(*behind, bn("map", "b", "y", 3), x=x, y="y a"))
    goes(model(*behind, scale("b", "y", [2, -3, 0]), bn("map2", "a", "z", 1), x=x, y="y z"))


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_split_of_every_opset(opset):
    if opset < 13:
        node: Any = op("Split", "s", "a b", axis=-3, split=[2, 2])
    elif opset < 18:
        node = op("Split", "s", "a b", axis=1)
    else:
        node = op("Split", "s", "a b", axis=1, num_outputs=2)
    if opset == 9:
        node = op("Split", "s", "a b", axis=1, split=[2, 2])
    behind = [conv("c1", "x", "s", (4, 4, 1, 1)), node]
    goes(model(*behind, bn("map", "b", "y", 2), x=X, y="y a", opset=opset))


def test_a_map_of_one_part_along_another_axis_would_change_the_other():
    behind = [conv("c1", "x", "s", (4, 4, 1, 1)), split("s", "a b", 1, 3, axis=2)]
    stays(model(*behind, scale("b", "y", rand(4)), x=X, y="y a"), "not-carried")


def test_slice_and_gather_along_the_channels():
    c1 = conv("c1", "x", "s", (6, 4, 1, 1))
    lists = {"st": [5], "en": [-7], "ax": [1], "sp": [-2]}
    held = {k: np.array(v, np.int64) for k, v in lists.items()}
    cut = op("Slice", "s st en ax sp", "a"), held
    goes(model(c1, cut, bn("map", "a", "y", 3), x=X))
    back = op("Slice", "x st en ax sp", "a"), held
    wide = (2, 6, 4, 4)
    scaled = op("Slice", "s st en ax sp", "a"), held
    last = conv("c2", "a", "y", (4, 3, 1, 1))
    goes(model(bn("map", "x", "s", 6), scaled, last, x=wide))
    assert back[0].op_type == "Slice"

    def picked(*places: int) -> Any:
        return op("Gather", "s at", "a", axis=1), {"at": np.array(places, np.int64)}

    goes(model(c1, picked(5, 0, -3), bn("map", "a", "y", 3), x=X))
    twice = picked(2, 2, 4)
    goes(model(c1, twice, scale("a", "y", [3, 3, -1]), x=X))
    stays(model(c1, twice, scale("a", "y", [3, 2, -1]), x=X), "not-carried", says="twice")
    goes(model(bn("map", "x", "s", 6), twice, last, x=wide))


def test_a_gather_of_one_index_takes_the_axis_away():
    one = op("Gather", "s at", "a", axis=2), {"at": np.array(1, np.int64)}
    made = model(bn("map", "x", "s", 4), one, conv("c2", "a", "y", (3, 4, 1)), x=X)
    goes(made)
    gone = op("Gather", "s at", "a", axis=1), {"at": np.array(1, np.int64)}
    goes(model(bn("map", "x", "s", 4), gone, conv("c2", "a", "y", (3, 4, 1)), x=X))


@pytest.mark.parametrize("shapes", [((4, 4, 4), (4, 4, 4)), ((2, 3, 5), (2, 5, 4))])
def test_scales_pass_products_of_two_activations(shapes):
    (n, m, k), (_, _, p) = shapes
    x = {"x": shapes[0], "z": shapes[1]}
    rows = op("MatMul", "u v", "s", name="product")
    left = op("MatMul", "w x", "u", name="left"), {"w": rand(m, m)}
    right = op("MatMul", "z r", "v", name="right"), {"r": rand(p, p)}
    number = const("Mul", "s", "y", np.float32(-0.125), name="map")
    goes(model(left, right, rows, number, x=x))
    goes(model(left, right, rows, const("Mul", "s", "y", rand(m, 1), name="map"), x=x))
    goes(model(left, right, rows, const("Mul", "s", "y", rand(p), name="map"), x=x))
    stays(model(left, right, rows, const("Mul", "s", "y", rand(n, 1, 1), name="map"), x=x))
    stays(model(left, right, rows, const("Add", "s", "y", np.float32(1), name="map"), x=x))
    after = op("MatMul", "s e", "y", name="after"), {"e": rand(p, 3)}
    ahead = [const("Mul", "z", "v", rand(p), name="map"), op("MatMul", "x v", "s"), after]
    goes(model(*ahead, x=x))
    summed = [const("Mul", "z", "v", rand(k, 1), name="map"), op("MatMul", "x v", "s"), after]
    stays(model(*summed, x=x), says="the product sums over axis 1, or it is a batch axis")


def test_attention_scores_take_their_scale_into_the_query():
    """Both factors are computed; √d goes into the weights of one of them."""
    parts = [
        (op("MatMul", "x wq", "q", name="q"), {"wq": rand(8, 8)}),
        (op("MatMul", "x wk", "k", name="k"), {"wk": rand(8, 8)}),
        op("Transpose", "k", "t", perm=[0, 2, 1]),
        op("MatMul", "q t", "s", name="scores"),
        const("Div", "s", "d", np.float32(np.sqrt(8)), name="map"),
        op("Softmax", "d", "p", axis=-1),
        (op("MatMul", "x wv", "v", name="v"), {"wv": rand(8, 8)}),
        op("MatMul", "p v", "y", name="mixed"),
    ]
    goes(model(*parts, x=(2, 8, 8)))


def test_readers_that_agree_and_readers_that_do_not():
    c1 = conv("c1", "x", "a", (4, 4, 1, 1))
    same = [scale("a", "y", [1, 2, 3, 4]), scale("a", "z", [1, 2, 3, 4], "map2")]
    made = model(c1, *same, x=X, y="y z")
    assert affine(made) == 2
    other = [scale("a", "y", [1, 2, 3, 4]), scale("a", "z", [1, 2, 3, 5], "map2")]
    stays(model(c1, *other, x=X, y="y z"), "shared-output", "graph-output")
    assert set(codes(made)) <= {"map", "map2"}


def test_operators_never_grow_where_a_map_would_have_to_stand_twice():
    """A shift behind a sum of two products without a bias."""
    parts = [
        (op("MatMul", "x w1", "a", name="m1"), {"w1": rand(4, 4)}),
        (op("MatMul", "x w2", "b", name="m2"), {"w2": rand(4, 4)}),
        op("Sum", "a b", "s"),
        const("Add", "s", "y", rand(4), name="map"),
    ]
    made = model(*parts, x=(2, 2, 4))
    stays(made, "no-gain", "not-carried", "no-linear-operator")
    assert counts(made)["Add"] == 1
    goes(model(*parts, x=(2, 4)))  # one of the two becomes a Gemm


@pytest.mark.parametrize("by", ["gather", "slice"])
@pytest.mark.parametrize("others", [True, False])
def test_parts_of_one_tensor_that_ask_for_maps_of_their_own(by, others):
    """Queries and keys picked from one projection, each with its scale; a reader of all of it sees
    both.
    """
    numbers = {"axes": np.array([0], np.int64), "split": np.array([0, 0, 2, 4], np.int64)}
    pieces = []
    for k in range(2):
        numbers[f"at{k}"] = np.array(k if by == "gather" else [k], np.int64)
        numbers[f"end{k}"] = np.array([k + 1], np.int64)
        if by == "gather":
            pieces.append(op("Gather", f"t at{k}", f"p{k}", axis=0))
        else:
            pieces.append(op("Slice", f"t at{k} end{k} axes", f"u{k}"))
            pieces.append(op("Squeeze", f"u{k} axes", f"p{k}"))
    made = model(
        (op("MatMul", "x w", "m"), {"w": rand(6, 8)}),
        const("Add", "m", "a", rand(8)),
        op("Reshape", "a split", "r"),
        op("Transpose", "r", "t", perm=[2, 0, 1, 3]),
        *pieces,
        const("Mul", "p0", "q", np.float32(0.4), name="map"),
        const("Mul", "p1", "k", np.float32(1.7)),
        *([] if others else [op("Tanh", "t", "z")]),
        op("Add", "q k", "y"),
        x=(2, 5, 6),
        y="y" if others else "y z",
        weights=numbers,
    )
    left = counts(holds(made)).get("Mul", 0)
    assert left == (0 if others else 2)
    assert others or codes(made)["map"] == "shared-output"
