"""Random numbers of a model, replaced by fixed ones: two models then draw the same.

A seed would not do. An engine goes on drawing from run to run, and without a seed it takes one of
its own for each operator. So each operator that draws reads from a table of its own, over and over
where it draws more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold._onnx.read.scopes import opset_of
from bnfold._run.dropouts import training
from bnfold._run.nodes import RANDOM, subgraphs
from bnfold._run.noise import Array
from bnfold._system.records import record

# How often a Multinomial takes which number depends on all that it reads: a table does not say it.
_FIXED = RANDOM - {"Multinomial"}
_LONGEST = 4099
_MOST_WAYS = 6
Form = tuple[str, list[bytes]]
"""The type of an operator that draws, and its attributes."""
_FIRST_WITH_RANGE, _FIRST_WITH_CAST_LIKE = 11, 15


@record(frozen=True)
class FixedDraws:
    """Replaces the random numbers of a model by fixed ones, in bodies and functions too.

    ``seed`` says which numbers, ``order`` which operator has which of them: by its place among
    those of the file, without an order.
    """

    seed: int
    order: tuple[int, ...] = ()

    def __call__(self, model: onnx.ModelProto) -> None:
        """Replace them, in place."""
        for place, (nodes, node, opset) in enumerate(list(_draws(model))):
            number = self.order[place] if self.order else place
            replacing = _fixed(node, opset, f"{node.output[0]}/drawn", [self.seed, number])
            at = next(k for k, each in enumerate(nodes) if each is node or each == node)
            rest = [*nodes[:at], *replacing, *nodes[at + 1 :]]
            del nodes[:]
            nodes.extend(rest)

    def told(self) -> str:
        """What is done, in words."""
        return "both models draw the same numbers: fixed ones in place of random ones"


def ways_to_draw(
    original: onnx.ModelProto, folded: onnx.ModelProto, seed: int
) -> list[FixedDraws | None]:
    """How the folded model may draw what the original does by `FixedDraws` without an order.

    Likelier ways come first. Operators of one form belong together by the names of what they write,
    by their order in the file, or in any other way. None stands for models that draw for
    themselves: there is no way, or names do not tell it and there are more than are tried.
    """
    ours, theirs = (
        [(node.output[0], _form(node)) for _, node, _ in _draws(model)]
        for model in (original, folded)
    )
    places = {name: place for place, (name, _) in enumerate(ours)}
    ways: dict[tuple[int, ...], None] = {}
    named = len(places) == len(ours) and sorted(ours) == sorted(theirs)
    if named:
        ways[tuple(places[name] for name, _ in theirs)] = None
    if [form for _, form in ours] == [form for _, form in theirs]:
        ways[tuple(range(len(ours)))] = None
    if ours != theirs:  # else names and order say the same
        others = _orders([form for _, form in ours], [form for _, form in theirs])
        ways |= dict.fromkeys(islice(others, _MOST_WAYS + 1))
    if not ours or not ways:
        return [None]
    tried = [FixedDraws(seed, way) for way in islice(ways, _MOST_WAYS)]
    return [*tried, None] if len(ways) > _MOST_WAYS and not named else [*tried]


def _orders(ours: Sequence[Form], theirs: Sequence[Form]) -> Iterator[tuple[int, ...]]:
    """All orders in which each operator of the folded model has one of its form."""
    if sorted(ours) != sorted(theirs):
        return

    def orders(left: tuple[int, ...], at: int) -> Iterator[tuple[int, ...]]:
        if at == len(theirs):
            yield ()
        for place in left:
            if ours[place] == theirs[at]:
                rest = tuple(other for other in left if other != place)
                yield from ((place, *order) for order in orders(rest, at + 1))

    yield from orders(tuple(range(len(ours))), 0)


def _draws(model: onnx.ModelProto) -> Iterator[tuple[Any, onnx.NodeProto, int]]:
    """Yield each operator that draws, the list of nodes that it stands in, and its opset."""
    in_training = training(model)
    holders: list[tuple[Any, Sequence[onnx.OperatorSetIdProto]]] = [
        (model.graph.node, model.opset_import)
    ]
    holders += [(function.node, function.opset_import) for function in model.functions]
    for nodes, imports in holders:
        opset = opset_of(imports)
        if opset >= _FIRST_WITH_RANGE:
            for holder, node in _within(nodes):
                drops = opset >= _FIRST_WITH_CAST_LIKE and in_training(node, opset)
                if node.op_type in _FIXED or (drops and node.op_type == "Dropout"):
                    yield holder, node, opset


def _within(nodes: Any) -> Iterator[tuple[Any, onnx.NodeProto]]:
    for node in nodes:
        if node.domain in ("", "ai.onnx"):
            yield nodes, node
        for body in subgraphs(node):
            yield from _within(body.node)


def _form(node: onnx.NodeProto) -> Form:
    return node.op_type, sorted(each.SerializeToString() for each in node.attribute)


def _fixed(
    node: onnx.NodeProto, opset: int, prefix: str, seed: Sequence[int]
) -> list[onnx.NodeProto]:
    """Operators that put out fixed numbers in place of an operator that draws."""
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    rng, made = np.random.default_rng(seed), list[onnx.NodeProto]()

    def add(kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = f"{prefix}/{len(made)}"
        made.append(helper.make_node(kind, list(inputs), [out or name], name=name, **attributes))
        return out or name

    def constant(value: Array) -> str:
        return add("Constant", value=numpy_helper.from_array(np.asarray(value)))

    drawn = _table(node.op_type, given, rng)
    if node.op_type == "Dropout":
        _drop(node, add, constant, drawn)
        return made
    if node.op_type in ("RandomNormal", "RandomUniform"):
        values = np.resize(drawn, [int(size) for size in given["shape"]])
        last = _cast(add, constant(values), given.get("dtype", TensorProto.FLOAT))
    else:
        like = node.input[0]
        last = _spread(add, constant, like, drawn)
        if node.op_type == "Bernoulli":
            last = add("Less", add("CastLike", last, like), like)
        if "dtype" in given:
            last = _cast(add, last, given["dtype"])
        elif opset >= _FIRST_WITH_CAST_LIKE:
            last = add("CastLike", last, like)
    made[-1].output[0] = node.output[0]
    return made


def _spread(
    add: Callable[..., str], constant: Callable[[Array], str], like: str, drawn: Array
) -> str:
    """The numbers of a table in the shape of a tensor."""
    count = add("Size", like)
    places = add("Range", constant(np.int64(0)), count, constant(np.int64(1)))
    places = add("Mod", places, constant(np.int64(_LONGEST)))
    flat = add("Gather", constant(drawn), places)
    return add("Reshape", flat, add("Shape", like))


def _drop(
    node: onnx.NodeProto,
    add: Callable[..., str],
    constant: Callable[[Array], str],
    drawn: Array,
) -> None:
    """A Dropout in training: ``x / (1 − ratio)`` where a number of the table is no less than the
    ratio, else 0; where it turns out not to be in training, x.
    """
    data, mode = node.input[0], node.input[2]
    ratio = add("Cast", node.input[1], to=TensorProto.FLOAT) if node.input[1] else ""
    ratio = ratio or constant(np.float32(0.5))
    keeps = add("GreaterOrEqual", _spread(add, constant, data, drawn), ratio)
    one = constant(np.float32(1))
    factor = add("CastLike", add("Div", one, add("Sub", one, ratio)), data)
    zero = add("CastLike", constant(np.float32(0)), data)
    dropped = add("Where", keeps, add("Mul", data, factor), zero)
    if len(node.output) > 1 and node.output[1]:
        add("Or", keeps, add("Not", mode), out=node.output[1])
    add("Where", mode, dropped, data, out=node.output[0])


def _cast(add: Callable[..., str], name: str, element: int) -> str:
    return name if element == TensorProto.FLOAT else add("Cast", name, to=element)


def _table(kind: str, given: dict[str, Any], rng: np.random.Generator) -> Array:
    if "Normal" in kind:
        values = rng.normal(given.get("mean", 0.0), given.get("scale", 1.0), _LONGEST)
    else:
        values = rng.uniform(given.get("low", 0.0), given.get("high", 1.0), _LONGEST)
    return values.astype(np.float32)
