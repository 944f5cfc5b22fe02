"""Branches that become one operator, and one step outside the law."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold

from ..graphs import (
    bn,
    check,
    const,
    constants,
    conv,
    fold,
    folds,
    model,
    op,
    overridable,
    rand,
    subgraph,
    within_ulps,
)
from .branches import SAME, X, attributes, two, unmerged

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


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("taps", [1, 2])
def test_same_padding_of_a_size_that_is_not_known(mode, taps):
    """A kernel of one tap is never padded; where a larger one is, is not known."""
    same = ((4, 4, taps, taps), {"auto_pad": mode, "strides": [2, 2]})
    made = two(same, ((4, 4, 1, 1), {"strides": [2, 2]}), x=(2, 4, "H", "W"))
    if taps == 1:
        folded = folds(made, {"x": rand(2, 4, 7, 6)}, Conv=1)
        check(made, folded)
    else:
        unmerged(made, "unknown-shape")


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
    unmerged(free, "unknown-shape")
