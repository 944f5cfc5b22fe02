"""Each law of merging where it holds, and one step outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bnfold

from ..graphs import (
    bn,
    codes,
    const,
    constants,
    conv,
    fold,
    folds,
    model,
    op,
    overridable,
    rand,
    run,
    subgraph,
    within_ulps,
)

X = (2, 4, 6, 7)
SAME = {"pads": [1, 1, 1, 1]}


def two(first: Any, second: Any, kind: str = "Add", **options: Any) -> Any:
    """Two branches on x, given as shape and attributes, added up."""
    branches = [
        conv(name, "x", f"{name}y", shape, **attributes)
        for name, (shape, attributes) in zip("ab", (first, second))
    ]
    options.setdefault("x", X)
    return model(*branches, op(kind, "ay by", "y"), **options)


def attributes(made: Any) -> dict[str, Any]:
    (node,) = (n for n in made.graph.node if n.op_type == "Conv")
    return {a.name: list(a.ints) or a.i for a in node.attribute}


def unmerged(made: Any, *expected: str, runtime: bool = True) -> None:
    """Nothing merges, and the reasons given are these."""
    plan = bnfold.plan(made)
    assert not [f for f in plan.folds if "merge" in f.laws[0]], plan.folds
    assert [k.code for k in plan.kept] == list(expected), plan.kept
    fold(made, runtime=runtime)


# --- side by side ------------------------------------------------------------------------------

PAIRS = {
    "3x3-and-1x1": (((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}), [3, 3], 1),
    "3x3-and-3x3": (((5, 4, 3, 3), SAME), ((5, 4, 3, 3), SAME), [3, 3], 1),
    "3x3-and-1x3": (((4, 4, 3, 3), SAME), ((4, 4, 1, 3), {"pads": [0, 1, 0, 1]}), [3, 3], 1),
    "5x5-and-3x3-shifted": (
        ((4, 4, 5, 5), {"pads": [2, 2, 2, 2]}),
        ((4, 4, 3, 3), {"pads": [2, 0, 0, 2]}),
        [5, 5],
        1,
    ),
    "even-kernels": (
        ((4, 4, 2, 2), {"pads": [0, 0, 1, 1]}),
        ((4, 4, 2, 2), {"pads": [1, 0, 0, 1]}),
        [3, 2],
        1,
    ),
    "dilated-and-1x1": (
        ((4, 4, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ((4, 4, 1, 1), {}),
        [3, 3],
        1,
    ),
    "strided": (
        ((4, 4, 3, 3), {"strides": [2, 2], **SAME}),
        ((4, 4, 1, 1), {"strides": [2, 2]}),
        [3, 3],
        1,
    ),
    "without-padding": (((4, 4, 3, 3), {}), ((4, 4, 1, 1), {"pads": [-1] * 4}), [3, 3], 1),
    "depthwise": (
        ((4, 1, 3, 3), {"group": 4, **SAME}),
        ((4, 1, 1, 1), {"group": 4}),
        [3, 3],
        4,
    ),
    "depthwise-in-dense": (((4, 4, 3, 3), SAME), ((4, 1, 3, 3), {"group": 4, **SAME}), [3, 3], 1),
    "grouped-in-dense": (((6, 4, 3, 3), SAME), ((6, 2, 1, 1), {"group": 2}), [3, 3], 1),
}


@pytest.mark.parametrize("kind", ["Add", "Sub", "Sum"])
@pytest.mark.parametrize("name", [n for n in PAIRS if n != "without-padding"])
def test_two_convolutions_are_one(name, kind):
    first, second, kernel, group = PAIRS[name]
    for branches in ((first, second), (second, first)):
        folded = folds(two(*branches, kind), Conv=1)
        found = attributes(folded)
        assert (found["kernel_shape"], found["group"]) == (kernel, group)


def test_where_all_sizes_agree():
    """Batch, channels, height and width are 3."""
    folds(two(((3, 3, 3, 3), SAME), ((3, 3, 1, 1), {}), x=(3, 3, 3, 3)), Conv=1)


@pytest.mark.parametrize("x, w", [((2, 4, 9), (4, 4, 3)), ((1, 2, 4, 5, 6), (2, 2, 3, 3, 3))])
def test_any_rank(x, w):
    space = len(x) - 2
    branches = (w, {"pads": [1] * 2 * space}), ((*w[:2], *(1,) * space), {})
    folds(two(*branches, x=x), Conv=1)


def test_weights_are_rounded_once():
    """Norms on both branches and one behind the sum: one rounding of all of it."""
    made = model(
        conv("a", "x", "ay", (4, 4, 3, 3), False, **SAME),
        bn("an", "ay", "az", 4),
        conv("b", "x", "by", (4, 4, 1, 1)),
        bn("bn", "by", "bz", 4),
        op("Add", "az bz", "s"),
        bn("n", "s", "y", 4),
        x=X,
    )
    p = {k: v.astype(np.float64) for k, v in constants(made).items()}

    def norm(name):
        s = p[f"{name}.scale"] / np.sqrt(p[f"{name}.var"] + np.float64(np.float32(0.01)))
        return s, p[f"{name}.bias"] - p[f"{name}.mean"] * s

    (s, t), (a, c), (b, d) = norm("n"), norm("an"), norm("bn")
    wanted = p["a.w"] * a.reshape(-1, 1, 1, 1)
    wanted[:, :, 1, 1] += (p["b.w"] * b.reshape(-1, 1, 1, 1))[:, :, 0, 0]
    folded = folds(made, Conv=1)
    stored, (node,) = constants(folded), folded.graph.node
    within_ulps(stored[node.input[1]], wanted * s.reshape(-1, 1, 1, 1))
    within_ulps(stored[node.input[2]], s * (c + b * p["b.b"] + d) + t)


def test_names_are_those_of_the_main_branch():
    made = two(PAIRS["3x3-and-1x1"][0], PAIRS["3x3-and-1x1"][1])
    (node,) = fold(made).graph.node
    assert (node.name, list(node.input), list(node.output)) == (
        "a",
        ["x", "a.w_merged", "a.b_merged"],
        ["y"],
    )


@pytest.mark.parametrize("skip", ["x", "norm", "minus", "scaled", "twice"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_skip_is_a_kernel(skip, group):
    pieces = {
        "x": [op("Add", "x c", "y")],
        "norm": [bn("n", "x", "m", 4), op("Add", "c m", "y")],
        "minus": [op("Sub", "c x", "y")],
        "scaled": [const("Mul", "x", "m", rand(4, 1, 1)), op("Sub", "m c", "y")],
        "twice": [op("Sum", "x c x", "y")],
    }[skip]
    made = model(conv("a", "x", "c", (4, 4 // group, 3, 3), group=group, **SAME), *pieces, x=X)
    folds(made, Conv=1)


def test_a_token_mixer():
    """``x + γ·(mixer(x) − norm(x))`` with norms inside."""
    made = model(
        conv("a", "x", "a0", (4, 1, 3, 3), False, group=4, **SAME),
        bn("an", "a0", "a1", 4),
        conv("b", "x", "b0", (4, 1, 1, 1), False, group=4),
        bn("bn", "b0", "b1", 4),
        op("Add", "a1 b1", "s"),
        bn("sn", "x", "s1", 4),
        op("Add", "s s1", "mixer"),
        bn("nn", "x", "n", 4),
        op("Sub", "mixer n", "d"),
        const("Mul", "d", "g", rand(4, 1, 1)),
        op("Add", "x g", "y"),
        x=X,
    )
    folds(made, Conv=1)


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_an_average_is_a_kernel_if_it_counts_padding(counted, padded):
    pads = [int(padded)] * 4
    made = model(
        conv("a", "x", "c", (4, 4, 3, 3), pads=pads),
        op("AveragePool", "x", "p", kernel_shape=[3, 3], pads=pads, count_include_pad=counted),
        op("Add", "c p", "y"),
        x=X,
    )
    if counted or not padded:
        folds(made, Conv=1)
    else:
        unmerged(made, "not-mergeable")


def test_an_average_in_ceil_mode_is_none():
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2]}
    made = model(
        conv("a", "x", "c", (4, 4, 2, 2), strides=[2, 2]),
        op("AveragePool", "x", "p", ceil_mode=1, **attrs),
        op("Add", "c p", "y"),
        x=(2, 4, 6, 8),
    )
    unmerged(made, "not-mergeable")


@pytest.mark.parametrize("tree", ["((a+b)+c)+d", "a+(b+(c+d))", "(a+b)-(c-d)", "sum"])
def test_any_association(tree):
    sums = {
        "((a+b)+c)+d": [("Add", "a b", "s"), ("Add", "s c", "t"), ("Add", "t d", "y")],
        "a+(b+(c+d))": [("Add", "c d", "s"), ("Add", "b s", "t"), ("Add", "a t", "y")],
        "(a+b)-(c-d)": [("Add", "a b", "s"), ("Sub", "c d", "t"), ("Sub", "s t", "y")],
        "sum": [("Sum", "a b c d", "y")],
    }[tree]
    branches = [conv(f"c{y}", "x", y, (4, 4, 3, 3), **SAME) for y in "abcd"]
    folds(model(*branches, *(op(*one) for one in sums), x=X), Conv=1)


@pytest.mark.parametrize(
    "sums, left",
    [
        ([("Add", "a r", "s"), ("Add", "s b", "y")], {"Add": 1}),
        ([("Sub", "a r", "s"), ("Add", "b s", "y")], {"Sub": 1}),
        ([("Sub", "r a", "s"), ("Sub", "s b", "y")], {"Add": 1}),
        ([("Sub", "r a", "s"), ("Add", "s b", "y")], {"Add": 1}),
        ([("Sub", "a r", "s"), ("Sub", "s b", "y")], {"Sub": 1}),
        ([("Sub", "a r", "s"), ("Sub", "b s", "y")], {"Add": 1}),
        ([("Sum", "a r b", "y")], {"Sum": 1}),
        ([("Add", "r a", "s"), ("Add", "r b", "t"), ("Sub", "s t", "y")], {"Sub": 2}),
        ([("Sum", "r a r", "s"), ("Sub", "s b", "y")], {"Sum": 1}),
    ],
    ids=str,
)
def test_other_summands_stay_with_their_signs(sums, left):
    made = model(
        conv("ca", "x", "a", (4, 4, 3, 3), **SAME),
        conv("cb", "x", "b", (4, 4, 1, 1)),
        op("Sigmoid", "x", "r"),
        *(op(*one) for one in sums),
        x=X,
    )
    folds(made, Conv=1, Sigmoid=1, **left)


def test_a_sum_of_many_loses_operators_not_operands():
    """``z + x + conv(x) + x`` would be as many operators as before."""
    pieces = [conv("ca", "x", "a", (4, 4, 3, 3), **SAME)]
    made = model(*pieces, op("Sum", "z x a x", "y"), x={"x": X, "z": X})
    unmerged(made)
    made = model(*pieces, op("Sum", "z x a", "s"), op("Add", "s x", "y"), x={"x": X, "z": X})
    folds(made, Conv=1, Add=1)


@pytest.mark.parametrize("shift", [False, True])
def test_where_a_sum_of_many_cannot_subtract_another_operand_takes_the_place(shift):
    made = model(
        conv("ca", "x", "a", (4, 4, 3, 3), **SAME),
        *([const("Sub", "a", "b", np.float32(0.5))] if shift else []),
        op("Sigmoid", "x", "r"),
        op("Sum", f"{'b' if shift else 'a'} r z", "s"),
        op("Sub", "x s", "d"),
        op("Add", "d x", "y"),
        x={"x": X, "z": X},
    )
    folds(made, Conv=1, Sigmoid=1, Sum=1, Sub=1)


@pytest.mark.parametrize("kind", ["Add", "Sub"])
def test_branches_on_two_sources_become_one_operator_each(kind):
    """In one sum, of which no part is a sum of one source alone."""
    made = model(
        *(conv(f"{s}{n}", s, f"{s}{n}y", (4, 4, 1, 1)) for s in "xz" for n in (1, 2)),
        op("Add", "x1y z1y", "p"),
        op(kind, "x2y z2y", "q"),
        op("Add", "p q", "y"),
        x={"x": X, "z": X},
    )
    folds(made, Conv=2, Add=1)


def test_a_summand_that_broadcasts_stays():
    made = model(
        conv("ca", "x", "a", (4, 4, 3, 3), **SAME),
        conv("cb", "x", "b", (4, 4, 1, 1)),
        op("Add", "z a", "s"),
        op("Add", "s b", "y"),
        x={"x": X, "z": (2, 1, 6, 7)},
    )
    folds(made, Conv=1, Add=1)


# One step outside: each stays, and says why.
OUTSIDE = {
    "strides": (((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {"strides": [2, 2]}), (2, 4, 1, 1)),
    "output-sizes": (((4, 4, 3, 3), SAME), ((4, 4, 3, 3), {"pads": [1, 1, 1, 0]}), (2, 4, 5, 2)),
    "channels": (((4, 4, 3, 3), SAME), ((1, 4, 3, 3), SAME), X),
}


@pytest.mark.parametrize("name", ["strides", "channels"])
def test_branches_of_other_shapes_stay(name):
    """Sizes agree by accident, or are broadcast."""
    first, second, x = OUTSIDE[name]
    unmerged(two(first, second, x=x), "not-mergeable")


def test_sizes_that_agree_by_accident_are_not_taken_for_equal():
    """With a stride of 2 both give 3 columns from 6, but 4 and 3 from 7."""
    first = ((4, 4, 1, 1), {"strides": [2, 2]})
    second = ((4, 4, 2, 2), {"strides": [2, 2]})
    unmerged(two(first, second, x=(2, 4, 6, 6)), "not-mergeable")


@pytest.mark.parametrize("x", [X, ("N", 4, "H", "W")])
def test_a_merge_that_grows_the_work_stays_and_says_by_how_much(x):
    first, second = ((4, 1, 3, 3), {"group": 4, **SAME}), ((4, 4, 1, 1), {})
    made = two(first, second, x=x)
    unmerged(made, "merge-cost")
    (kept,) = bnfold.plan(made).kept
    assert "144 multiply-adds per position instead of 56, 2.57 times" in kept.message


def test_crosswise_kernels_stay_apart():
    row = ((4, 4, 1, 5), {"pads": [0, 2, 0, 2]})
    column = ((4, 4, 5, 1), {"pads": [2, 0, 2, 0]})
    unmerged(two(row, column), "merge-cost")


def test_dilations_without_a_common_grid_stay_apart():
    first = ((4, 4, 3, 3), SAME)
    second = ((4, 4, 3, 3), {"dilations": [2, 2], "pads": [2] * 4})
    unmerged(two(first, second), "merge-cost")


def test_only_what_pays_is_taken():
    """The dense 1×1 convolution stays beside the depthwise ones, which become one."""
    made = model(
        conv("a", "x", "ay", (4, 1, 3, 3), group=4, **SAME),
        conv("b", "x", "by", (4, 4, 1, 1)),
        conv("c", "x", "cy", (4, 1, 3, 3), group=4, **SAME),
        op("Add", "ay by", "s"),
        op("Add", "s cy", "y"),
        x=X,
    )
    folds(made, Conv=2, Add=1)


@pytest.mark.parametrize("where", ["end", "middle"])
def test_a_branch_with_an_activation_stays(where):
    made = model(
        conv("a", "x", "ay", (4, 4, 3, 3), **SAME),
        conv("b", "x", "b0", (4, 4, 1, 1)),
        op("Relu", "b0", "b1"),
        *([] if where == "end" else [conv("c", "b1", "b2", (4, 4, 1, 1))]),
        op("Add", f"ay {'b1' if where == 'end' else 'b2'}", "y"),
        x=X,
    )
    unmerged(made, *(["not-mergeable"] if where == "end" else []))


def test_an_activation_alone_is_no_branch():
    made = model(
        conv("a", "x", "ay", (4, 4, 3, 3), **SAME),
        op("Sigmoid", "x", "s"),
        op("Add", "ay s", "y"),
        x=X,
    )
    unmerged(made)


def test_a_branch_that_someone_else_reads_stays():
    made = two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}), y="y by")
    unmerged(made, "graph-output")
    made.graph.node.append(op("Relu", "ay", "z"))
    made.graph.output[1].name = "z"
    unmerged(made, "shared-output")


def test_a_branch_that_a_body_reads_stays():
    body = subgraph(op("Relu", "ay", "z"), y="z")
    made = model(
        conv("a", "x", "ay", (4, 4, 3, 3), **SAME),
        conv("b", "x", "by", (4, 4, 1, 1)),
        op("Add", "ay by", "y"),
        op("If", "on", "w", then_branch=body, else_branch=body),
        x=X,
        y="y w",
        weights={"on": np.array(True)},
    )
    unmerged(made, "shared-output")


def test_a_parameter_that_a_caller_may_set_is_not_merged():
    made = overridable(two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {})), "b.w")
    unmerged(made, "overridable-weight")


def test_different_sources_are_no_candidates():
    made = model(
        conv("a", "x", "ay", (4, 4, 3, 3), **SAME),
        conv("b", "z", "by", (4, 4, 1, 1)),
        op("Add", "ay by", "y"),
        x={"x": X, "z": X},
    )
    unmerged(made)


def test_shared_weights_are_cloned():
    """Another convolution reads the same weight, and takes in a norm of its own."""
    weight = rand(4, 4, 3, 3)
    made = model(
        op("Conv", "x w", "ay", name="a", **SAME),
        conv("b", "x", "by", (4, 4, 1, 1)),
        op("Add", "ay by", "s"),
        op("Relu", "s", "r"),
        op("Conv", "r w", "cy", name="c", **SAME),
        bn("n", "cy", "y", 4),
        x=X,
        weights={"w": weight},
    )
    folds(made, Conv=2, Relu=1)


def test_automatic_padding():
    same = {"auto_pad": "SAME_UPPER"}
    folds(two(((4, 4, 3, 3), same), ((4, 4, 1, 1), {})), Conv=1)
    free = two(((4, 4, 3, 3), same), ((4, 4, 2, 2), same), x=("N", 4, "H", "W"))
    folds(free, Conv=1)
    strided = {"strides": [2, 2], **same}
    folds(two(((4, 4, 3, 3), strided), ((4, 4, 1, 1), strided)), Conv=1)
    free = two(((4, 4, 3, 3), strided), ((4, 4, 1, 1), strided), x=("N", 4, "H", "W"))
    unmerged(free)


# --- in series ---------------------------------------------------------------------------------


def row(first: Any, second: Any, *between: Any, bias: bool = True, x: Any = X) -> Any:
    (shape, attrs), (after, others) = first, second
    last = between[-1][0].output[0] if between else "a"
    return model(
        conv("a", "x", "a", shape, bias, **attrs),
        *between,
        conv("b", last, "y", after, **others),
        x=x,
    )


@pytest.mark.parametrize(
    "first, second, kernel",
    [
        (((3, 4, 1, 1), {}), ((4, 3, 1, 1), {}), [1, 1]),
        (((8, 4, 1, 1), {}), ((4, 8, 3, 3), {}), [3, 3]),
        (((8, 4, 3, 3), SAME), ((4, 8, 1, 1), {}), [3, 3]),
        (((4, 4, 1, 1), SAME), ((4, 4, 3, 3), {}), [3, 3]),
        (((8, 4, 1, 1), {"strides": [2, 2]}), ((4, 8, 2, 2), {}), [2, 2]),
        (((8, 4, 2, 2), {}), ((4, 8, 1, 1), {"strides": [2, 2]}), [2, 2]),
        (((4, 1, 3, 3), {"group": 4, **SAME}), ((4, 1, 1, 1), {"group": 4}), [3, 3]),
        (((8, 2, 1, 1), {"group": 2}), ((4, 4, 3, 3), {"group": 2}), [3, 3]),
    ],
)
def test_a_row_is_one(first, second, kernel):
    folded = folds(row(first, second, bn("n", "a", "m", first[0][0])), Conv=1)
    assert attributes(folded)["kernel_shape"] == kernel


def test_padding_ahead_of_a_row():
    """A 1×1 convolution with a bias, then a padded 3×3 one: right inside, wrong at the border."""
    first, second = ((8, 4, 1, 1), {}), ((4, 8, 3, 3), SAME)
    unmerged(row(first, second), "zero-padding")
    folds(row(first, second, bias=False), Conv=1)
    shifted = row(first, second, const("Add", "a", "m", rand(8, 1, 1)), bias=False)
    assert codes(shifted)["b"] == "zero-padding"
    scaled = row(first, second, const("Mul", "a", "m", rand(8, 1, 1)), bias=False)
    folds(scaled, Conv=1)


def test_padding_behind_a_wide_kernel():
    """What the first one would write beyond its ends is not zero."""
    unmerged(row(((8, 4, 3, 3), SAME), ((4, 8, 3, 3), SAME), bias=False), "zero-padding")
    first, second = ((8, 4, 2, 2), {"pads": [1, 1, 0, 0]}), ((1, 8, 2, 2), {"pads": [0, 0, 1, 1]})
    unmerged(row(first, second, bias=False), "zero-padding")
    folds(row(first, ((1, 8, 2, 2), {}), bias=False), Conv=1)


@pytest.mark.parametrize("x", [X, ("N", 4, "H", "W")])
def test_a_row_that_grows_the_work_stays(x):
    made = row(((1, 4, 1, 1), {}), ((4, 1, 1, 1), {}), x=x)
    unmerged(made, "merge-cost")
    (kept,) = bnfold.plan(made).kept
    assert "16 multiply-adds per position instead of 8, 2 times" in kept.message


def test_a_row_that_someone_else_reads_stays():
    made = row(((8, 4, 1, 1), {}), ((4, 8, 3, 3), {}))
    made.graph.output.add().CopyFrom(made.graph.output[0])
    made.graph.output[1].name = "a"
    made.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 8
    made.graph.output[1].type.tensor_type.shape.dim[2].dim_value = 6
    made.graph.output[1].type.tensor_type.shape.dim[3].dim_value = 7
    unmerged(made)


def test_an_average_behind_a_convolution_where_it_pays():
    pool = op("AveragePool", "a", "y", kernel_shape=[2, 2], strides=[2, 2])
    folds(model(conv("a", "x", "a", (4, 4, 3, 3)), pool, x=(2, 4, 8, 8)), Conv=1)
    unmerged(model(conv("a", "x", "a", (4, 4, 1, 1)), pool, x=(2, 4, 8, 8)))


# --- matrix products ---------------------------------------------------------------------------


def product(name: str, x: str, y: str, w: Any) -> Any:
    return op("MatMul", f"{x} {name}", y, name=f"{name}n"), {name: w}


@pytest.mark.parametrize("x", [(5, 4), (2, 5, 4), (4, 4), (2, 3, 4, 4)])
def test_a_low_rank_update_is_one_product(x):
    made = model(
        product("w", "x", "a", rand(4, 4)),
        product("down", "x", "b", rand(4, 1)),
        product("up", "b", "c", rand(1, 4)),
        const("Mul", "c", "d", np.float32(0.5)),
        op("Add", "a d", "y"),
        x=x,
    )
    folds(made, MatMul=1)


def test_biases_become_one_add():
    made = model(
        product("w", "x", "a", rand(4, 3)),
        const("Add", "a", "b", rand(3)),
        product("v", "x", "c", rand(4, 3)),
        const("Add", "c", "d", rand(3)),
        op("Add", "b d", "y"),
        x=(2, 5, 4),
    )
    folds(made, MatMul=1, Add=1)


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_gemms(opset):
    weights = {"w": rand(3, 4), "c": rand(3), "v": rand(4, 3)}
    made = model(
        op("Gemm", "x w c", "a", transB=1, alpha=0.5, beta=2.0),
        op("MatMul", "x v", "b"),
        op("Sub", "b a", "s"),
        op("Relu", "s", "y"),
        x=(5, 4),
        weights=weights,
        opset=opset,
    )
    folds(made, Gemm=1, Relu=1)


def test_layers_in_series():
    made = model(
        product("w", "x", "a", rand(4, 6)),
        const("Add", "a", "b", rand(6)),
        product("v", "b", "c", rand(6, 3)),
        const("Add", "c", "y", rand(3)),
        x=(2, 5, 4),
    )
    folds(made, MatMul=1, Add=1)
    narrow = model(
        product("w", "x", "a", rand(4, 1)), product("v", "a", "y", rand(1, 4)), x=(2, 5, 4)
    )
    unmerged(narrow, "merge-cost")


def test_a_map_along_another_axis_is_no_part_of_a_product():
    """Sizes agree: 4 rows, 4 columns, 4 channels."""
    made = model(
        product("w", "x", "a", rand(4, 4)),
        const("Mul", "a", "b", rand(4, 1)),
        op("Add", "x b", "y"),
        x=(4, 4, 4),
    )
    plan = bnfold.plan(made)
    assert not [f for f in plan.folds if "merge" in f.laws[0]]
    fold(made)


def test_a_product_along_space_is_no_convolution():
    made = model(
        conv("a", "x", "ay", (4, 4, 1, 1)),
        product("w", "x", "by", rand(4, 4)),
        op("Add", "ay by", "y"),
        x=(4, 4, 4, 4),
    )
    unmerged(made)


def test_constants_of_full_shape():
    """Numbers that are all the same, laid out over the whole tensor."""
    made = model(
        conv("a", "x", "a0", (4, 4, 3, 3), strides=[2, 2], **SAME),
        const("Div", "a0", "a1", np.full((2, 4, 3, 4), 1.5, np.float32)),
        conv("b", "x", "b0", (4, 4, 1, 1), strides=[2, 2]),
        const("Add", "b0", "b1", np.full((3, 1), 0.5, np.float32)),
        op("Add", "a1 b1", "y"),
        x=X,
    )
    folds(made, Conv=1)
    rows = model(
        op("Gemm", "x w c", "a", beta=0.0),
        (op("MatMul", "x v", "b"), {"w": rand(4, 3), "v": rand(4, 3), "c": rand(5, 1)}),
        const("Mul", "b", "d", np.full((5, 1), 2, np.float32)),
        op("Add", "a d", "y"),
        x=(5, 4),
    )
    folds(rows, Gemm=1)


# --- where graphs are --------------------------------------------------------------------------


def test_in_a_body():
    inner = [
        conv("a", "x", "ay", (4, 4, 3, 3), **SAME),
        conv("b", "x", "by", (4, 4, 1, 1)),
        op("Add", "ay by", "z"),
    ]
    body = subgraph(*inner, y="z")
    made = model(
        op("If", "on", "y", then_branch=body, else_branch=body),
        x=X,
        weights={"on": np.array(True)},
    )
    folded = fold(made)
    for attribute in folded.graph.node[0].attribute:
        assert [n.op_type for n in attribute.g.node] == ["Conv"]


def test_half_precision():
    from ..graphs import HALF

    folds(two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}), elem=HALF), Conv=1)


def test_before_opset_7_nothing_merges():
    made = two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}), opset=6)
    assert not bnfold.plan(made).folds


def test_what_it_saves_is_counted():
    made = two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}))
    plan = bnfold.plan(made)
    assert (plan.before, plan.after) == ({"Conv": 2, "Add": 1}, {"Conv": 1})
    (merge,) = plan.folds
    assert (set(merge.nodes), merge.into, merge.laws) == (
        {"b", "y_add"},
        "a",
        ("merge in parallel",),
    )


def test_infinite_weights_stay():
    made = two(((4, 4, 3, 3), SAME), ((4, 4, 1, 1), {}))
    weight = next(t for t in made.graph.initializer if t.name == "b.w")
    values = np.frombuffer(weight.raw_data, np.float32).copy()
    values[0] = np.inf
    weight.raw_data = values.tobytes()
    assert codes(made)["a"] == "non-finite"
    assert bnfold.fold(made).SerializeToString() == made.SerializeToString()


def test_weights_that_would_overflow_stay():
    made = two(((4, 4, 1, 1), {}), ((4, 4, 1, 1), {}))
    for tensor in made.graph.initializer:
        if tensor.name.endswith(".w"):
            tensor.raw_data = np.full((4, 4), 3e38, np.float32).tobytes()
    assert "overflow" in codes(made).values()


def test_it_computes_the_same_at_every_size():
    """The whole of a small input is border."""
    made = two(((4, 4, 5, 5), {"pads": [2] * 4}), ((4, 4, 3, 3), SAME), x=("N", 4, "H", "W"))
    folded = fold(made)
    for size in range(1, 6):
        x = np.random.default_rng(size).normal(size=(1, 4, size, size + 1)).astype(np.float32)
        (one,), (other,) = run(made, {"x": x}), run(folded, {"x": x})
        assert np.abs(one - other).max() <= 1e-5
