"""How planning time grows with the graph: chains, combs and residual towers of neutral nodes.

    python benchmarks/planning.py [--nodes 100000]

For each kind of graph it plans one of a tenth of the nodes and one of all of them, and prints both
times and their ratio: 10 is linear, 13 is n·log n at this size, 100 would be quadratic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import click
import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.joins import Aligned, Concatenated, Summed
from bnfold._core.pointwise import Homogeneous
from bnfold._core.reasons import Reason
from bnfold._core.view import OPAQUE, Absorber, Affine, Crossing, InputSide, Node, Role, Value, View
from bnfold._plan.planner import plan

Row = tuple[Role, tuple[int, ...], int]
RELU = Crossing(Homogeneous())
CONV = Absorber({1: 2}, ahead=InputSide(0, {1: 2}))
SHAPE = (1, 2, 4, 4)
SUM = Crossing(Summed((1, 1), Aligned((SHAPE, SHAPE), SHAPE)), (0, 1))
WIDE = 1000


def norm(sign: float = 1.0) -> Affine:
    """A BatchNorm of two channels, one of which may have a negative scale."""
    map_ = AffineMap.of(np.array([2.0, 3.0 * sign]), np.array([4.0, 5.0]), 1)
    return Affine(map_, operations=2, absorber=Absorber({1: 2}))


def chain(*roles: Role) -> Callable[[int], Iterator[Row]]:
    """The roles in a row, again and again."""

    def rows(count: int) -> Iterator[Row]:
        for n in range(count):
            yield roles[n % len(roles)], (n,), n + 1

    return rows


def comb(count: int) -> Iterator[Row]:
    """One tensor that every tooth reads: a BatchNorm each, or one behind a Relu."""
    yield OPAQUE, (0,), 1
    for n in range(count // 3):
        yield norm(), (1,), 3 * n + 2
        yield RELU, (1,), 3 * n + 3
        yield norm(), (3 * n + 3,), 3 * n + 4


def tower(count: int) -> Iterator[Row]:
    """Pre-activation blocks: ``x + conv(norm(x))``, with a norm behind every other sum."""
    value = 0
    for n in range(count // 4):
        first = 4 * n + 1
        yield norm(), (value,), first
        yield CONV, (first,), first + 1
        yield SUM, (value, first + 1), first + 2
        yield (norm(-1) if n % 2 else RELU), (first + 2,), first + 3
        value = first + 3


def fan(count: int) -> Iterator[Row]:
    """A thousand BatchNorms into one Concat, and a long way behind it."""
    yield OPAQUE, (0,), 1
    for n in range(WIDE):
        yield norm(), (1,), n + 2
    join = Concatenated(1, (2,) * WIDE)
    inputs = tuple(range(2, WIDE + 2))
    yield Crossing(join, tuple(range(WIDE))), inputs, WIDE + 2
    for n in range(count):
        yield RELU, (WIDE + 2 + n,), WIDE + 3 + n


GRAPHS: dict[str, Callable[[int], Iterator[Row]]] = {
    "BatchNorm, Relu": chain(norm(), RELU),
    "BatchNorm with a negative scale, Relu": chain(norm(-1), RELU),
    "Conv, Relu, BatchNorm": chain(CONV, RELU, norm()),
    "Relus alone, and a BatchNorm": lambda n: (
        (norm() if k == n - 1 else RELU, (k,), k + 1) for k in range(n)
    ),
    "comb": comb,
    "tower": tower,
    "fan": fan,
}


def view(rows: Iterator[Row]) -> View:
    """A view of nodes that each write one value; what nobody reads is an output."""
    nodes = tuple(Node(f"n{n}", "", role, ins, (out,)) for n, (role, ins, out) in enumerate(rows))
    producers = {node.outputs[0]: n for n, node in enumerate(nodes)}
    readers: dict[int, list[int]] = {}
    for n, node in enumerate(nodes):
        for value in node.inputs:
            readers.setdefault(value, []).append(n)
    output = Reason("graph-output", "output", "it is an output")
    count = max(producers) + 1
    return View(
        nodes,
        tuple(
            Value(
                f"v{v}",
                producers.get(v),
                tuple(readers.get(v, ())),
                None if v in readers else output,
            )
            for v in range(count)
        ),
    )


def seconds(made: View) -> float:
    """The processor time of planning a view."""
    start = time.process_time()
    plan(made, {})
    return time.process_time() - start


@click.command()
@click.option("--nodes", default=100_000, show_default=True, help="Nodes of the larger graph.")
def main(nodes: int) -> None:
    """Time the planner on graphs of a tenth of the nodes and of all of them."""
    click.echo(f"{'':40}{nodes // 10:>12,}{nodes:>12,}{'ratio':>8}")
    for name, rows in GRAPHS.items():
        few, many = seconds(view(rows(nodes // 10))), seconds(view(rows(nodes)))
        click.echo(f"{name:40}{few:>10.2f} s{many:>10.2f} s{many / few:>8.1f}")


if __name__ == "__main__":
    main()
