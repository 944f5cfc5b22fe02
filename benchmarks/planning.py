"""How planning time grows with the graph: chains, combs, towers, fans, nets, and wide nodes.

    python benchmarks/planning.py [KIND...] [--nodes 100000]

For each kind of graph it plans one of 100 nodes, one of ten times as many, and so on, and prints
the processor times and by what each has grown: 10 is linear, 13 is n·log n, 100 would be quadratic.
It exits with 1 if one of a hundredth of a second or more has grown by more than 13. A graph of up
to 5,000 nodes is planned several times, and the least time counts. Python's search for cycles
leaves out the graph itself: it was there before.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import click
import numpy as np

from bnfold._core.affine import AffineMap
from bnfold._core.bounded import Clipped
from bnfold._core.joins import Aligned, Summed
from bnfold._core.laws import Mixed
from bnfold._core.parts import Concatenated, Picked
from bnfold._core.pointwise import Homogeneous
from bnfold._core.reasons import Reason
from bnfold._core.view import OPAQUE, Absorber, Affine, Crossing, InputSide, Node, Role, Value, View
from bnfold._plan.planner import plan

Row = tuple[Role, tuple[int, ...], int | tuple[int, ...]]
RELU = Crossing(Homogeneous())
CONV = Absorber({1: 2}, ahead=InputSide(0, {1: 2}))
SHAPE = (1, 2, 4, 4)
SUM = Crossing(Summed((1, 1), Aligned((SHAPE, SHAPE), SHAPE)), (0, 1))
POOL = Crossing(Mixed({0: 0, 1: 1}, 1.0, positive=True))
CLIP = Crossing(Clipped(-1.0, 1.0))
WIDE = 1000
AT_MOST = 13.0


def norm(sign: float = 1.0) -> Affine:
    """A BatchNorm of two channels, one of which may have a negative scale."""
    map_ = AffineMap.of(np.array([2.0, 3.0 * sign]), np.array([4.0, 5.0]), 1)
    return Affine(map_, operations=2, absorber=Absorber({1: 2}))


def mul(scale: float, count: int = 2) -> Affine:
    """A Mul by numbers of two channels near a number; by the number itself for one."""
    numbers = scale + 0.0001 * np.arange(count)
    map_ = AffineMap.of(numbers, 0.0, 1 if count > 1 else None)
    return Affine(map_, dtype=np.dtype(np.float32))


def fixed_norm() -> Affine:
    """A BatchNorm without a shift of a tensor whose rank is not known."""
    return replace(norm(), map=mul(1.0001).map, composable=False)


def channels(count: int) -> Affine:
    """A BatchNorm of some channels."""
    map_ = AffineMap.of(np.linspace(1.0, 2.0, count), np.linspace(3.0, 4.0, count), 1)
    return Affine(map_, operations=2, absorber=Absorber({1: count}))


def conv_of(count: int) -> Absorber:
    """A Conv of some channels that puts out two."""
    return Absorber({1: 2}, ahead=InputSide(0, {1: count}))


def concat(count: int) -> Crossing:
    """A Concat of tensors with two channels each."""
    return Crossing(Concatenated(1, (2,) * count), tuple(range(count)))


def behind_conv(*roles: Role) -> Callable[[int], Iterator[Row]]:
    """A Conv, Relus for a quarter of the nodes, and then the roles again and again."""

    def rows(count: int) -> Iterator[Row]:
        for n in range(count):
            yield CONV if n == 0 else RELU if n < count // 4 else roles[n % len(roles)], (n,), n + 1

    return rows


def shared(count: int) -> Iterator[Row]:
    """A Mul and a Relu, again and again, behind a tensor that another operator reads, too."""
    yield RELU, (0,), 1
    yield OPAQUE, (1,), count
    yield mul(1.0001, 1), (1,), 2
    for n in range(2, count - 1):
        yield (mul(1.0001, 1) if n % 2 else RELU), (n,), n + 1


def diamonds(count: int) -> Iterator[Row]:
    """Two branches that are added, and a Mul behind the sum, again and again."""
    value = 0
    for n in range(count // 4):
        first = 4 * n + 1
        yield RELU, (value,), first
        yield RELU, (value,), first + 1
        yield SUM, (first, first + 1), first + 2
        yield mul(1.001, 1), (first + 2,), first + 3
        value = first + 3


def wide(count: int) -> Iterator[Row]:
    """A Mul and a Relu in each term of one sum, and a Mul behind it."""
    terms = count // 2
    yield OPAQUE, (0,), 1
    for n in range(terms):
        yield mul(1.0 + n / count), (1,), 2 * n + 2
        yield RELU, (2 * n + 2,), 2 * n + 3
    shapes = (SHAPE,) * terms
    join = Crossing(Summed((1,) * terms, Aligned(shapes, SHAPE)), tuple(range(terms)))
    yield join, tuple(2 * n + 3 for n in range(terms)), 2 * terms + 2
    yield mul(0.9), (2 * terms + 2,), 2 * terms + 3


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
    yield concat(WIDE), tuple(range(2, WIDE + 2)), WIDE + 2
    for n in range(count):
        yield RELU, (WIDE + 2 + n,), WIDE + 3 + n


def full(count: int) -> Iterator[Row]:
    """Bounds that no scale may move, and Muls behind them."""
    yield Crossing(Clipped(-3.4e38, 3.4e38), dtype=np.dtype(np.float32)), (0,), 1
    for n in range(1, count):
        yield (mul(1.0001, 1) if n % 2 else RELU), (n,), n + 1


def fan_out(count: int) -> Iterator[Row]:
    """A BatchNorm that half of all operators read, each a Relu ahead of a Conv."""
    yield OPAQUE, (0,), 1
    yield norm(), (1,), 2
    for n in range(count // 2 - 1):
        yield RELU, (2,), 2 * n + 3
        yield CONV, (2 * n + 3,), 2 * n + 4


def residual(count: int) -> Iterator[Row]:
    """Sums of a tensor and what a few operators make of it, one behind the other."""
    for n in range(count // 4):
        first = 4 * n + 1
        yield RELU, (first - 1,), first
        yield mul(1.0001, 1), (first,), first + 1
        yield RELU, (first + 1,), first + 2
        yield SUM, (first - 1, first + 2), first + 3


def dense_blocks(count: int) -> Iterator[Row]:
    """Blocks of eight layers; each layer reads a Concat of all that the block has so far."""
    value = 0
    for _ in range(count // 32):
        made, last = [value], value
        for layer in range(8):
            if layer:
                yield concat(layer + 1), tuple(made), last + 1
            first = last + 1 if layer else last
            yield channels(2 * layer + 2), (first,), first + 1
            yield RELU, (first + 1,), first + 2
            yield conv_of(2 * layer + 2), (first + 2,), first + 3
            last = first + 3
            made.append(last)
        value = last


def into_concat(*behind: Role) -> Callable[[int], Iterator[Row]]:
    """A BatchNorm in each input of one Concat, and some operators behind it."""

    def rows(count: int) -> Iterator[Row]:
        yield OPAQUE, (0,), 1
        for n in range(count):
            yield norm(), (1,), n + 2
        yield concat(count), tuple(range(2, count + 2)), count + 2
        for n, role in enumerate((*behind, conv_of(2 * count))):
            yield role, (count + 2 + n,), count + 3 + n

    return rows


def behind_concat(count: int) -> Iterator[Row]:
    """A Concat of many Convs, and a BatchNorm behind it."""
    for n in range(count):
        yield CONV, (0,), n + 1
    yield concat(count), tuple(range(1, count + 1)), count + 1
    yield channels(2 * count), (count + 1,), count + 2


def into_sum(count: int) -> Iterator[Row]:
    """A BatchNorm in each term of one sum, and a Conv behind it."""
    yield OPAQUE, (0,), 1
    for n in range(count):
        yield norm(), (1,), n + 2
    shapes = (SHAPE,) * count
    join = Crossing(Summed((1,) * count, Aligned(shapes, SHAPE)), tuple(range(count)))
    yield join, tuple(range(2, count + 2)), count + 2
    yield CONV, (count + 2,), count + 3


def split_up(ahead: int, *behind: Role) -> Callable[[int], Iterator[Row]]:
    """A Conv, Relus, a Split of half as many outputs as nodes, and operators behind each."""

    def rows(count: int) -> Iterator[Row]:
        parts = count // (1 + len(behind))
        yield Absorber({1: 2 * parts}), (0,), 1
        for n in range(ahead):
            yield RELU, (n + 1,), n + 2
        places = tuple(np.arange(2 * n, 2 * n + 2) for n in range(parts))
        first = ahead + 2
        outputs = tuple(range(first, first + parts))
        yield Crossing(Picked(1, 2 * parts, places)), (ahead + 1,), outputs
        made = first + parts
        for value in outputs:
            for role in behind:
                yield role, (value,), made
                value, made = made, made + 1

    return rows


def u_net(count: int) -> Iterator[Row]:
    """Blocks that go down, and as many that go up and read what went by on its way down."""
    depth, value, by = count // 8, 0, list[int]()
    down: tuple[Role, ...] = (CONV, norm(), RELU, POOL)
    up: tuple[Role, ...] = (channels(4), RELU, conv_of(4))
    for _ in range(depth):
        for place, role in enumerate(down):
            yield role, (value + place,), value + place + 1
        by.append(value + 3)
        value += 4
    for _ in range(depth):
        yield concat(2), (value, by.pop()), value + 1
        for place, role in enumerate(up, start=1):
            yield role, (value + place,), value + place + 1
        value += 4


GRAPHS: dict[str, Callable[[int], Iterator[Row]]] = {
    "BatchNorm, Relu": chain(norm(), RELU),
    "BatchNorm with a negative scale, Relu": chain(norm(-1), RELU),
    "Conv, Relu, BatchNorm": chain(CONV, RELU, norm()),
    "Relus alone, and a BatchNorm": lambda n: (
        (norm() if k == n - 1 else RELU, (k,), k + 1) for k in range(n)
    ),
    "Mul, Relu": chain(mul(1.0001, 1), RELU),
    "Mul, Relu, and the product leaves float32": chain(mul(1e6, 1), RELU),
    "Mul of each channel, Relu": chain(mul(0.9999), RELU),
    "Mul, MaxPool": chain(mul(0.9999), POOL),
    "Mul, Clip": chain(mul(1.0001, 1), CLIP),
    "Muls whose product leaves float32": chain(mul(0.9)),
    "Clip at the end of its range; Mul, Relu": full,
    "norms of unknown rank, Relu": chain(fixed_norm(), RELU),
    "Conv, Relus; Mul, Relu": behind_conv(RELU, mul(1.001, 1)),
    "Mul, Relu behind a shared tensor": shared,
    "diamonds": diamonds,
    "one sum of all": wide,
    "comb": comb,
    "tower": tower,
    "fan": fan,
    "one norm that all read": fan_out,
    "residual": residual,
    "dense blocks": dense_blocks,
    "U-net": u_net,
    "norms into one Concat, Conv": into_concat(),
    "norms into one Concat, Relu": into_concat(RELU),
    "one Concat of Convs, a norm": behind_concat,
    "norms into one sum, Conv": into_sum,
    "one Split, a norm each": split_up(0, norm()),
    "Relu, one Split, a Mul each": split_up(1, mul(1.001)),
    "one Split, a Mul and a Relu each": split_up(4, RELU, mul(1.001), RELU),
}


def view(rows: Iterator[Row]) -> View:
    """A view of nodes that write one value or several; what nobody reads is an output."""
    nodes = tuple(
        Node(f"n{n}", "", role, ins, out if isinstance(out, tuple) else (out,))
        for n, (role, ins, out) in enumerate(rows)
    )
    producers = {value: n for n, node in enumerate(nodes) for value in node.outputs}
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
    """The least processor time of planning a view, once or a few times."""
    times = []
    gc.collect()
    gc.freeze()
    for _ in range(1 if len(made.nodes) > 5_000 else 3):
        start = time.process_time()
        plan(made, {})
        times.append(time.process_time() - start)
    gc.unfreeze()
    return min(times)


@click.command()
@click.argument("kinds", nargs=-1)
@click.option("--nodes", default=100_000, show_default=True, help="Nodes of the largest graph.")
def main(kinds: tuple[str, ...], nodes: int) -> None:
    """Time the planner on graphs of 100 nodes, of 1,000, and so on."""
    sizes = [size for size in (100, 1_000, 10_000, 100_000, 1_000_000) if size <= nodes]
    click.echo(f"{'':40}" + "".join(f"{size:>12,}{'':7}" for size in sizes))
    steep = False
    for name in kinds or GRAPHS:
        line, before = f"{name:40}", 0.0
        for size in sizes:
            took = seconds(view(GRAPHS[name](size)))
            steep = steep or (took >= 0.01 and 0 < AT_MOST * before < took)
            line += f"{took:>10.3f} s" + (f"{took / before:7.1f}" if before else " " * 7)
            before = took
        click.echo(line)
    sys.exit(int(steep))


if __name__ == "__main__":
    main()
