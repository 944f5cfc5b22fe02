"""Short files that ask for much: what they ask for does not grow beyond them.

Each case would end in no time that anybody waits where amounts or parts were written out.
"""

from __future__ import annotations

import pytest

from bnfold._relation import amounts
from bnfold._relation.sizes import Sizes
from bnfold._relation.table import Table

from ..graphs import model, op
from .pairs import ints, proof

NAMES = [amounts.named(("size", "", "x", axis)) for axis in range(3)]


def made(*nodes, x=("n", "m"), **weights):
    whole = model(*nodes, x={"x": x}, weights=weights)
    whole.graph.output[0].type.tensor_type.ClearField("shape")
    return whole


def outer(steps):
    """A vector times itself, as a vector, over and over."""
    nodes, data = [], "x"
    for k in range(steps):
        nodes += [op("Reshape", f"{data} column", f"a{k}"), op("Reshape", f"{data} row", f"b{k}")]
        nodes += [op("MatMul", f"a{k} b{k}", f"c{k}"), op("Reshape", f"c{k} flat", f"d{k}")]
        data = f"d{k}"
    held = {"column": ints(-1, 1), "row": ints(1, -1), "flat": ints(-1)}
    return made(*nodes, op("Relu", data, "y"), x=("n",), **held)


def squared(steps):
    """Zeros in as many rows and columns as x has numbers, squared over and over."""
    nodes = [op("Shape", "x", "s0")]
    for k in range(steps):
        nodes.append(op("ReduceProd", f"s{k}", f"p{k}"))
        nodes.append(op("Concat", f"p{k} p{k}", f"s{k + 1}", axis=0))
    return made(*nodes, op("ConstantOfShape", f"s{steps}", "y"))


def divided(steps):
    """Zeros in a third of a third of the sizes of x, over and over."""
    nodes = [op("Shape", "x", "s0")]
    nodes += [op("Div", f"s{k} three", f"s{k + 1}") for k in range(steps)]
    return made(*nodes, op("ConstantOfShape", f"s{steps}", "y"), three=ints(3, 3))


@pytest.mark.parametrize("of", [outer, squared, divided])
def test_sizes_that_grow_at_each_step_take_a_name(of):
    assert proof(of(150), of(150)).status == "proved"


@pytest.mark.parametrize("steps", [8, 12])
def test_sizes_too_long_to_be_written_out_are_told_apart(steps):
    """Behind the first few steps they are names alone."""
    assert proof(squared(steps), squared(steps + 1)).status != "proved"


def chained(count):
    """A Concat of a Concat, over and over, and a Slice of each."""
    nodes, data = [], "x"
    for k in range(count):
        nodes += [op("Concat", f"{data} x", f"c{k}", axis=0), op("Slice", f"c{k} one far", f"s{k}")]
        data = f"c{k}"
    outputs = [op("Concat", " ".join(f"s{k}" for k in range(count)), "y", axis=0)]
    return made(*nodes, *outputs, x=(2, 3), one=ints(2), far=ints(9**9))


def test_parts_of_a_concat_are_written_out_so_many_times_alone():
    """Of this file each time that they are read they would be some ten million."""
    for count in (4, 300):
        one = chained(count)
        assert proof(one, one).status == "proved"
    held = Table()
    assert held.affords(held.parts_left)
    assert not held.affords(1)
    held.reset()
    assert held.affords(1)


def test_numbers_of_a_long_axis_are_not_written_out():
    """A part of a billion of them is a part; an index tells where it begins alone."""
    parts = [op("Relu", "x", "r"), op("Concat", "r x", "c", axis=0)]
    taken = op("Slice", "c none many", "y")
    held = {"none": ints(0), "many": ints(10**9)}
    one = made(*parts, taken, x=(10**9, 1), **held)
    assert proof(one, made(op("Relu", "x", "y"), x=(10**9, 1))).status == "proved"
    gathered = made(*parts, op("Gather", "c none", "y", axis=0), x=(10**9, 1), **held)
    assert proof(gathered, gathered).status == "proved"
    assert proof(gathered, one).status != "proved"


def long(*names):
    return amounts.product_of([name for name in names for _ in range(amounts._MOST)])


def test_what_is_too_long_to_be_written_out_may_hold_any_name():
    """So nothing is learned of it where a name in it is in doubt, and it may be 0."""
    one, other = long(NAMES[0]), long(NAMES[1])
    assert amounts.name_of(one) is not None
    assert one != other
    assert one == long(NAMES[0])
    held = Sizes(is_certain=True)
    held.doubt(NAMES[0])
    held.learn(one, 4)
    held.learn(NAMES[1], one)
    assert not held.equal
    held.open.add(amounts.name_of(NAMES[0]))
    assert held.is_open(one)


def test_sums_of_many_names_take_a_name():
    total = 0
    for number in range(2 * amounts._MOST):
        total = amounts.plus(total, amounts.named(("size", "", "x", number)))
        assert amounts.weight(total) <= amounts._MOST
    factor = NAMES[0]
    for _ in range(2 * amounts._LONGEST):
        factor = amounts.plus(factor, factor)
    assert amounts.weight(factor) < 4
    number = 3
    for _ in range(200):
        number = amounts.product_of([number, number])
    assert amounts.name_of(number) is not None or amounts.weight(number) <= amounts._MOST
