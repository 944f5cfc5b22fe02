"""What a file tells of its sizes, and tensors that are put together or taken apart in steps.

The first file runs only where some sizes agree, and the second may know of a tensor what the first
does not. Neither is believed of operators that need not run.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from bnfold._relation import amounts
from bnfold._relation.sizes import Sizes

from ..graphs import const, model, op, rand, subgraph
from .pairs import differ, ints, proof, value

INT = np.int64
SHAPE = ("a", "b", "c")
W = rand(4, 3)
PARTS = [
    op("Shape", "x", "s"),
    op("Gather", "s first", "u", axis=0),
    op("Gather", "s last", "v", axis=0),
    op("ReduceProd", "u", "p", keepdims=1),
    op("Concat", "p v", "to", axis=0),
]
TAKEN = {"first": ints(0, 1), "last": ints(2)}


def rows(*target, x=SHAPE, behind="z w", y="y", nodes=()):
    """``x`` as rows, and a product that they have to fit."""
    held = TAKEN | {"w": W} if not target else {"to": ints(*target), "w": W}
    ahead = () if target else PARTS
    product = [op("MatMul", behind, "y")] if behind else []
    return model(
        *ahead, op("Reshape", "x to", "z"), *product, *nodes, x={"x": x}, weights=held, y=y
    )


def test_a_product_tells_how_long_its_rows_are():
    assert proof(rows(), rows(-1, 4)).status == "proved"
    assert proof(rows(-1, 4), rows()).status != "proved"  # That runs where x has rows of 8, too.
    assert proof(rows(), rows(-1, 2)).status != "proved"


def test_a_product_that_need_not_run_tells_nothing():
    """One of another output, one that nothing reads, and one in a branch."""
    relu = [op("Relu", "z", "r")]
    for outputs in ("r y", "r"):
        one, other = (rows(*to, y=outputs, nodes=relu) for to in ((), (-1, 4)))
        assert proof(one, other).status != "proved"
    feeds = {"x": rand(1, 2, 8)}
    assert differ(*(rows(*to, behind="", nodes=relu, y="r") for to in ((), (-1, 4))), feeds)

    def chosen(*target):
        branches = [subgraph(op("MatMul", "z w", "q"), y="q"), subgraph(op("Abs", "z", "k"), y="k")]
        node = op("If", "c", "y", then_branch=branches[0], else_branch=branches[1])
        whole = rows(*target, behind="", nodes=[node])
        whole.graph.input.append(value("c", TensorProto.BOOL))
        if not any(each.name == "w" for each in whole.graph.initializer):
            whole.graph.initializer.append(rows().graph.initializer[-1])
        return whole

    assert differ(chosen(), chosen(-1, 4), feeds | {"c": np.array(False)})
    assert proof(chosen(), chosen(-1, 4)).status != "proved"


def spread(*target, end, wide=True):
    """The first places of an axis, each summed up, and as many numbers as the axis has places."""
    sizes = [op("Shape", "x", "s"), op("Slice", "s k0 k1 k0", "n")]
    sizes.append(op("Concat", "n k1", "asked", axis=0))
    nodes = [
        *sizes,
        op("Slice", "x k0 end k0", "z"),
        op("ReduceSum", "z k1", "m", keepdims=0),
        op("Reshape", f"m {'to' if target else 'asked'}", "r"),
        *([op("Expand", "r asked", "e")] if wide else [op("Relu", "r", "e")]),
        op("Exp", "e", "y"),
    ]
    held = {"k0": ints(0), "k1": ints(1), "end": ints(end)}
    held |= {"to": ints(*target)} if target else {}
    return model(*nodes, x={"x": ("n", 4)}, weights=held, opset=17)


def test_a_reshape_to_a_size_tells_that_there_are_as_many():
    """It runs only where the axis is no longer than the part that is taken."""
    assert proof(spread(end=3), spread(-1, 1, end=3)).status == "proved"
    assert proof(spread(-1, 1, end=3), spread(end=3)).status != "proved"
    one, other = spread(-1, 1, end=1), spread(-1, 1, end=1, wide=False)
    assert differ(one, other, {"x": np.abs(rand(5, 4))})
    assert proof(one, other).status != "proved"


def counted(of):
    """Rows that are asked for as many as there are numbers other than 0, and how many rows."""
    sizes = [op("NonZero", "z", "at"), op("Shape", "at", "s"), op("Slice", "s k1 k2 k0", "m")]
    sizes += [op("Shape", "x", "d"), op("Slice", "d k0 k1 k0", "n")]
    nodes = [op("Concat", "m k4", "to", axis=0), op("Reshape", "x to", "r")]
    nodes += [op("Cast", of, "c", to=TensorProto.FLOAT), op("Add", "r c", "y")]
    held = {"k0": ints(0), "k1": ints(1), "k2": ints(2), "k4": ints(4)}
    return model(*sizes, *nodes, x={"x": ("n", 4), "z": ("i",)}, weights=held)


def test_a_reshape_to_none_copies_a_size_and_tells_nothing():
    one, other = counted("m"), counted("n")
    assert differ(one, other, {"x": rand(3, 4), "z": np.zeros(2, np.float32)})
    assert proof(one, other).status != "proved"
    assert proof(other, one).status != "proved"
    assert proof(one, one).status == "proved"


def single(*target, of="x", x=("a", "b", 6), sizes=(1, 2)):
    """Rows that are there only once, and another Reshape that says so or asks for the size."""
    nodes = [op("Shape", "x", "s"), op("Gather", "s first", "u", axis=0)]
    nodes += [op("Gather", "s both", "v", axis=0), op("Reshape", "x v", "r", allowzero=1)]
    nodes += [op("Concat", "u minus", "asked", axis=0)]
    nodes += [op("Reshape", f"r {'to' if target else 'asked'}", "q"), op("Exp", "q", "y")]
    held = {"first": ints(0), "both": ints(*sizes), "minus": ints(-1)}
    return model(*nodes, x={"x": x}, weights=held | {"to": ints(*target)} if target else held)


def test_a_reshape_tells_that_an_axis_is_one():
    assert proof(single(), single(1, -1)).status == "proved"
    assert proof(single(), single(2, -1)).status != "proved"
    assert proof(single(sizes=(0, 1, 2)), single(1, -1, sizes=(0, 1, 2))).status != "proved"


def test_a_size_that_may_be_none_is_not_divided_by():
    """As many of none as of none once more: x may have more rows than one."""

    def made(*target):
        nodes = [op("NonZero", "z", "at"), op("Cast", "at", "w", to=TensorProto.FLOAT)]
        nodes += [
            op("Mul", "x w", "t"),
            op("Shape", "w", "s"),
            op("Reshape", "t s", "r", allowzero=1),
        ]
        nodes += [op("ReduceSum", "r", "e", keepdims=0), op("Shape", "x", "d")]
        nodes += [op("Gather", "d first", "u", axis=0), op("Concat", "u minus", "asked", axis=0)]
        nodes += [op("Reshape", f"x {'to' if target else 'asked'}", "q"), op("Add", "q e", "y")]
        held = {"first": ints(0), "minus": ints(-1)} | ({"to": ints(*target)} if target else {})
        return model(*nodes, x={"x": ("a", 1, 1), "z": ("i", "j")}, weights=held)

    feeds = {"x": rand(3, 1, 1), "z": np.zeros((2, 2), np.float32)}
    assert differ(made(), made(1, -1), feeds)
    assert proof(made(), made(1, -1)).status != "proved"


def test_what_may_be_none_is_not_learned_from():
    """A target that may be 0 tells no size, and nothing is divided by what may be 0."""
    many, few = (amounts.named(("size", "", name, 0)) for name in ("x", "at"))
    held = Sizes(is_certain=True, inputs={("size", "", "x", 0)})
    held.doubt(few)
    held.doubt(many)
    held.learn(few, 4)
    held.learn(few, many)
    held.learn_of_all([5, few], [few])
    held.learn_of_all([many, few], [few])
    assert not held.equal
    plain = Sizes(is_certain=True, inputs={("size", "", "x", 0)})
    plain.learn_of_all([many, few], [few])
    assert not plain.equal
    held.learn_of_all([many, many, 2], [2, many])
    assert held.equal == {("size", "", "x", 0): 1}


def ranked(*nodes, take=0):
    """How long an axis is of what has one rank or another."""
    bodies = [
        subgraph(op("Relu", "x", "q"), y="q"),
        subgraph(const("Unsqueeze", "x", "k", ints(0))),
    ]
    bodies[1].output[0].name = "k"
    node = op("If", "c", "t", then_branch=bodies[0], else_branch=bodies[1])
    last = "t" if not nodes else nodes[-1].output[0]
    sizes = [op("Shape", last, "s"), op("Gather", "s at", "g", axis=0)]
    cast = op("Cast", "g", "y", to=TensorProto.FLOAT)
    whole = model(node, *nodes, *sizes, cast, x={"x": ("n", 4, "m")}, weights={"at": INT(take)})
    whole.graph.input.append(value("c", TensorProto.BOOL))
    return whole


def test_the_second_file_tells_the_first_what_it_knows_of_a_tensor():
    turns = [
        op("Transpose", "t", "t1", perm=[2, 0, 1]),
        op("Transpose", "t1", "t2", perm=[1, 2, 0]),
    ]
    assert proof(ranked(), ranked(*turns)).status == "proved"
    assert proof(ranked(), ranked(*turns, take=2)).status != "proved"
    assert proof(ranked(), ranked(take=1)).status != "proved"


def joined(*steps, x=(2, 3), y="y"):
    """Each step is a Concat: what it reads, what it puts out, and its axis."""
    nodes = [op("Relu", "x", "r"), op("Neg", "x", "n")]
    nodes += [op("Concat", read, out, axis=axis) for read, out, axis in steps]
    made = model(*nodes, x={"x": x}, weights={"k": rand_k(x), "j": rand_k(x) + 1}, y=y)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


def rand_k(x):
    return np.arange(np.prod(x), dtype=np.float32).reshape(x)


# Rows of models that are the same function; no two rows are.
SAME = [
    [
        joined(("r n k", "y", 0)),
        joined(("r n", "z", 0), ("z k", "y", 0)),
        joined(("n k", "z", -2), ("r z", "y", 0)),
        joined(("r n", "z", 0), ("k", "v", 0), ("z v", "y", -2)),
    ],
    [joined(("n r k", "y", 0)), joined(("n r", "z", 0), ("z k", "y", 0))],
    [joined(("r n j", "y", 0)), joined(("n j", "z", 0), ("r z", "y", 0))],
    [joined(("r n k", "y", 1)), joined(("n k", "z", 1), ("r z", "y", 1))],
    [joined(("r n k", "z", 0), ("z z", "y", 0)), joined(("r n k r n k", "y", 0))],
    [joined(("r n", "z", 1), ("z z", "y", 0))],
    [joined(("r n r n", "y", 0)), joined(("r n", "z", 0), ("z z", "y", 0))],
    [joined(("r n r n", "y", 1))],
    [joined(("r n", "z", 0), ("z z", "y", 1))],
]


@pytest.mark.parametrize("first", range(len(SAME)))
def test_parts_are_put_together_at_once_or_in_steps(first):
    for one in SAME[first]:
        for other in SAME[first]:
            assert proof(one, other).status == "proved"
    for second in range(len(SAME)):
        if second != first:
            pair = SAME[first][-1], SAME[second][-1]
            assert differ(*pair, {"x": rand(2, 3)})
            assert proof(*pair).status != "proved"


def test_a_factor_between_two_steps_stays_there():
    def made(*nodes):
        return model(op("Relu", "x", "r"), *nodes, x={"x": (2, 3)})

    scaled = made(
        op("Concat", "x r", "z", axis=0),
        const("Mul", "z", "s", np.float32(2)),
        op("Concat", "s x", "y", axis=0),
    )
    plain = made(op("Concat", "x r x", "y", axis=0))
    assert differ(scaled, plain, {"x": rand(2, 3)})
    assert proof(scaled, plain).status != "proved"
    assert proof(plain, scaled).status != "proved"
    assert proof(scaled, scaled).status == "proved"


END = 2**63 - 1
# A Slice and whether it takes all there is of an axis whose size nobody knows.
WHOLE = [
    ((0, END, 1), True),
    ((0, 2**31 - 1, 1), True),
    ((0, END, 2), False),
    ((1, END, 1), False),
    ((0, -1, 1), False),
    ((0, 4, 1), False),
    ((-1, END, 1), False),
    ((-1, -END - 1, -1), False),
    ((END, -END - 1, -1), False),
]


@pytest.mark.parametrize(("bounds", "whole"), WHOLE)
def test_a_slice_of_all_there_is_is_none(bounds, whole):
    weights = dict(zip("sek", map(ints, bounds), strict=True)) | {"a": ints(1)}
    cut = model(
        op("Relu", "x", "r"),
        op("Slice", "r s e a k", "z"),
        op("Exp", "z", "y"),
        x={"x": (2, "n")},
        weights=weights,
    )
    none = model(op("Relu", "x", "r"), op("Exp", "r", "y"), x={"x": (2, "n")})
    assert differ(cut, none, {"x": rand(2, 5)}) != whole
    assert (proof(cut, none).status == "proved") == whole
    assert (proof(none, cut).status == "proved") == whole


def parted(*nodes, opset=17, **weights):
    """What is taken of a product ``z`` of which inference does not know the rank."""
    asked = [op("Shape", "x", "d"), op("Size", "d", "rank"), op("Equal", "rank two", "c")]
    bodies = [
        subgraph(op("Relu", "x", "q"), y="q"),
        subgraph(const("Unsqueeze", "x", "h", ints(0))),
    ]
    bodies[1].output[0].name = "h"
    chosen = op("If", "c", "t", then_branch=bodies[0], else_branch=bodies[1])
    held = {"w": rand_k((4, 6)), "two": INT(2)} | weights
    ahead = [*asked, chosen, op("MatMul", "t w", "z")]
    return model(*ahead, *nodes, x={"x": ("n", 4)}, weights=held, opset=opset)


def test_even_parts_are_ranges():
    def sliced(start, end):
        bounds = {"s": ints(start), "e": ints(end), "a": ints(1)}
        return parted(op("Slice", "z s e a", "y"), **bounds)

    even = parted(op("Split", "z", "p y", axis=-1))
    told = parted(op("Split", "z k", "p y", axis=1), k=ints(4, 2))
    assert proof(even, sliced(3, 6)).status == "proved"
    assert proof(told, sliced(4, 6)).status == "proved"
    assert proof(told, sliced(3, 6)).status != "proved"
    assert proof(even, sliced(0, 3)).status != "proved"


def test_the_last_of_uneven_parts_is_the_smaller_one():
    """From opset 18 on: of 7 places the first two of three parts have 3 each."""
    uneven = parted(op("Split", "z", "p q y", axis=1, num_outputs=3), opset=18)
    for start, end, same in ((4, 6, True), (3, 6, False)):
        bounds = {"s": ints(start), "e": ints(end), "a": ints(1)}
        other = parted(op("Slice", "z s e a", "y"), opset=18, **bounds)
        assert (proof(uneven, other).status == "proved") == same
    wide = {"w": rand_k((4, 7))}
    uneven = parted(op("Split", "z", "p q y", axis=1, num_outputs=3), opset=18, **wide)
    for start, end, same in ((6, 7, True), (5, 7, False), (4, 7, False)):
        bounds = {"s": ints(start), "e": ints(end), "a": ints(1)} | wide
        other = parted(op("Slice", "z s e a", "y"), opset=18, **bounds)
        assert differ(uneven, other, {"x": rand(2, 4)}) != same
        assert (proof(uneven, other).status == "proved") == same


def test_a_reduction_takes_its_own_axes_away():
    def summed(axis, keeps, *more):
        last = "y" if not more else "m"
        return parted(op("ReduceSum", "z a", last, keepdims=keeps), *more, a=ints(axis))

    kept = summed(0, 1)
    assert proof(summed(0, 0, const("Unsqueeze", "m", "y", ints(0))), kept).status == "proved"
    for axis, place in ((1, 1), (0, 1), (1, 0)):
        other = summed(axis, 0, const("Unsqueeze", "m", "y", ints(place)))
        assert differ(other, kept, {"x": np.abs(rand(3, 4))})
        assert proof(other, kept).status != "proved"


def test_an_axis_that_is_spread_over_another_is_none_of_the_two():
    def counted(of):
        sizes = [op("Shape", of, "s"), op("Gather", "s at", "g", axis=0)]
        nodes = [op("Exp", "x", "e"), op("Max", "e z", "t"), *sizes]
        cast = op("Cast", "g", "y", to=TensorProto.FLOAT)
        return model(*nodes, cast, x={"x": ("n", 4), "z": ("m", 4)}, weights={"at": INT(0)})

    feeds = {"x": rand(1, 4), "z": rand(3, 4)}
    assert differ(counted("t"), counted("x"), feeds)
    for other in ("x", "z"):
        assert proof(counted("t"), counted(other)).status != "proved"
    assert proof(counted("x"), counted("e")).status == "proved"
