"""The checks of what changes a graph before maps move: merges, and maps dropped as equal.

For a merge the old operators and the merged one run by definition, in float64. Both read the same
drawn data. Its sizes are so small that most positions lie at a border. Merged
weights are not rounded yet, so the outputs may differ only by what float64 itself may lose. The
weights that are stored in the end are checked against these, as in any other fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold._onnx.merge.patch import Patch
from bnfold._onnx.read.scopes import Scope, label, type_of
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.definitions import evaluate
from bnfold._proof.evidence import Mismatch, Obstacle, Unchecked
from bnfold._proof.full_rank_maps import Double

_SLACK = 1024 * float(np.finfo(np.float64).eps)
_ROWS = 3
_RESIDUES = 3
# Types of maps, which put out the same for the same inputs.
_FUNCTIONS = ("Add", "BatchNormalization", "Div", "Mul", "Neg", "Sub", "ai.onnx.ml::Scaler")
_ELEMENTWISE = ("Add", "Div", "Gemm", "Mul", "Sub")


def check_merge(model: CheckedModel, scope: Scope, patch: Patch) -> float | Unchecked:
    """How far a merged operator is off, in units of what float64 may lose of its terms.

    ``scope`` is the graph before the merge. Returns `Unchecked` where the old operators cannot run,
    or put out no finite numbers.

    Raises:
        Mismatch: another operator reads a tensor that is gone, or a new tensor takes a name that
            is in use. Or the new operators cannot run.
    """
    typed = {p for p, one in patch.nodes.items() if one is not None and one.op_type == "CastLike"}
    places = [position for position in patch.nodes if position not in typed]
    old = [scope.nodes[position] for position in places if scope.nodes[position].op_type]
    new = [node for place in places if (node := patch.nodes[place]) is not None]
    for node in old:
        if node.op_type in ("Cast", "CastLike") and not model.is_no_cast(scope, node):
            raise Mismatch(f"{label(node)} changes the type, and so is no part of one operator")
    written, made = ({n for node in part for n in node.output if n} for part in (old, new))
    seen = {name for name in written if _is_seen(scope, patch, name)}
    if not seen or not seen <= made:
        raise Mismatch(f"nothing writes {', '.join(sorted(seen - made)) or 'what was merged'}")
    clash = {name for name in made - written if scope.owner(name) is not None}
    if clash:
        raise Mismatch(f"{', '.join(sorted(clash))} is the name of another tensor")
    stored = {name: constant.load() for name, constant in patch.constants.items()}
    operator = patch.nodes.get(patch.into)
    if operator is None:
        raise Mismatch("no operator stands where one is said to")
    for position in typed:
        _same_type(scope.nodes[position], patch.nodes[position], operator.input[0])
    worst = 0.0
    for shape in _shapes(model, scope, operator, stored, old):
        generator = np.random.default_rng(0)
        given: dict[str, Double] = {operator.input[0]: generator.normal(size=shape)}
        for name in dict.fromkeys(n for node in (*old, *new) for n in node.input):
            if name and name not in written | made and name not in given:
                values = stored.get(name, model.values(scope, name))
                free = generator.normal() if values is None else values
                given[name] = np.asarray(free).astype(np.float64)
        try:
            wanted, bulk = (_run(old, given, magnitude) for magnitude in (False, True))
        except Mismatch as error:  # A kernel has no place, say: there is nothing to be equal to.
            return Unchecked(Obstacle.DOES_NOT_RUN, str(error))
        found, more = (_run(new, given, magnitude) for magnitude in (False, True))
        for name in seen:
            if wanted[name].shape != found[name].shape:
                sizes = f"{found[name].shape} instead of {wanted[name].shape}"
                raise Mismatch(f"{name} would have the shape {sizes}")
            if not wanted[name].size or not np.isfinite(wanted[name]).all():
                obstacle = Obstacle.NOT_FINITE if wanted[name].size else Obstacle.EMPTY
                return Unchecked(obstacle, name)
            scale = np.maximum(bulk[name], more[name])
            off = np.abs(wanted[name] - found[name])
            ratio = float(np.max(off / (_SLACK * np.maximum(scale, _least(scale)))))
            if not np.isfinite(ratio):
                return float("inf")
            worst = max(worst, ratio)
    return worst


def check_equal(model: CheckedModel, scope: Scope, patch: Patch, gone: int, into: int) -> None:
    """Check that one map that a patch takes out is equal to the one at ``into``.

    Both put out the same, bit for bit, if that holds for all other maps of the patch. No operator
    is behind itself, so it holds for all of them if it holds for each. ``scope`` is the graph
    before. Raises `Mismatch` where that is not so.
    """

    def in_place(name: str) -> str:
        stays = patch.equal.get(scope.producers.get(name, -1))
        return name if stays is None else scope.nodes[stays].output[0]

    def same(one: str, other: str) -> bool:
        one, other = in_place(one), in_place(other)
        return one == other or _same_bits(model.fixed(scope, one), model.fixed(scope, other))

    first, second = scope.nodes[into], scope.nodes[gone]
    names = f"{label(first)} and {label(second)}"
    if patch.equal.get(gone) != into or into in patch.equal:
        raise Mismatch(f"{label(first)} does not stay in the place of {label(second)}")
    if type_of(first) != type_of(second) or type_of(first) not in _FUNCTIONS:
        raise Mismatch(f"{names} are not one kind of map")
    if _attributes(first) != _attributes(second):
        raise Mismatch(f"{names} have other attributes")
    counts = [(len(node.input), len(node.output)) for node in (first, second)]
    if counts[0] != counts[1] or counts[0][1] != 1:
        raise Mismatch(f"{names} have other inputs or outputs")
    turned = first.op_type in ("Add", "Mul") and not first.attribute
    orders = [second.input, second.input[::-1]] if turned else [second.input]
    if not any(all(map(same, first.input, order)) for order in orders):
        raise Mismatch(f"what {names} read may differ")
    (old,) = second.output
    if old in scope.outputs or old in scope.captures:
        raise Mismatch(f"{old} is read by its name")


def check_rereading(scope: Scope, patch: Patch, checked: Iterable[tuple[int, ...]]) -> None:
    """Check that who read a map that a patch takes out reads the one in its place, and no more.

    ``checked`` has the maps that are known to be equal to those. ``scope`` is the graph before.
    Raises `Mismatch` where another operator changes, or one reads what is gone.
    """
    gone = {position for position, node in patch.nodes.items() if node is None}
    if gone != patch.equal.keys() or {(one,) for one in gone} != set(checked) or patch.constants:
        raise Mismatch("more than the maps that are equal to others has changed")
    instead = {
        scope.nodes[old].output[0]: scope.nodes[new].output[0] for old, new in patch.equal.items()
    }
    for old in instead:
        for position in scope.readers.get(old, ()):
            if position not in patch.nodes:
                raise Mismatch(f"{label(scope.nodes[position])} reads {old} as before")
    for position, node in patch.nodes.items():
        expected = NodeProto()
        expected.CopyFrom(scope.nodes[position])
        expected.input[:] = [instead.get(name, name) for name in expected.input]
        if node is not None and node != expected:
            raise Mismatch(f"{label(expected)} does not read what is in the place of equal maps")


def _attributes(node: NodeProto) -> dict[str, bytes]:
    return {a.name: a.SerializeToString(deterministic=True) for a in node.attribute}


def _same_bits(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Whether two constants are the same number for number, as they are stored."""
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.tobytes() == other.tobytes()


def _same_type(old: NodeProto, new: NodeProto | None, source: str) -> None:
    """Raise `Mismatch` unless a CastLike is as before, but for the source of its type."""
    expected = NodeProto()
    expected.CopyFrom(old)
    expected.input[1] = source
    if new != expected:
        raise Mismatch(f"{label(old)} is no longer what it was")


def _least(scale: Double) -> float:
    """The least size that a difference is divided by, so that nothing is divided by 0."""
    return float(max(scale.max(initial=0.0) * 1e-30, np.finfo(np.float64).tiny))


def _is_seen(scope: Scope, patch: Patch, name: str) -> bool:
    """Whether a tensor is an output, or an operator reads it that was not merged."""
    outside = (position for position in scope.readers.get(name, ()) if position not in patch.nodes)
    return name in scope.outputs or name in scope.captures or any(True for _ in outside)


def _shapes(
    model: CheckedModel,
    scope: Scope,
    operator: NodeProto,
    stored: Mapping[str, Double],
    old: list[NodeProto],
) -> Iterator[tuple[int, ...]]:
    """Yield shapes of the data to draw.

    The kernel fits into each a few times. The sizes of several shapes have different remainders
    after division by the stride. The data's own sizes are used where `_goes_by_sizes`.
    """
    weight = stored.get(operator.input[1])
    if weight is None:
        raise Mismatch(f"{label(operator)} has no merged weight")
    known = model.shapes.shape(scope, operator.input[0])
    attributes = {a.name: a for a in operator.attribute}
    space = weight.ndim - 2 if operator.op_type == "Conv" else 0
    sized = known is not None and _goes_by_sizes(model, scope, old, space)
    if operator.op_type != "Conv":
        turned = "transB" in attributes and attributes["transB"].i
        own = known if known is not None else (None, None)
        rows = [n if n is not None and sized else 1 for n in own[:-2]]
        last = own[-2] if sized and own[-2] is not None else _ROWS
        yield (*rows, last, weight.shape[1 if turned else 0])
        return
    group = attributes["group"].i if "group" in attributes else 1
    channels = weight.shape[1] * group
    steps, strides = (
        list(attributes[name].ints) if name in attributes else [1] * space
        for name in ("dilations", "strides")
    )
    extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], steps, strict=True)]
    for more in range(min(max(strides), _RESIDUES)):
        shape = (1, channels, *(e + s + more for e, s in zip(extents, strides, strict=True)))
        if sized and known is not None:
            yield tuple(n if n is not None else m for n, m in zip(known, shape, strict=True))
            return
        yield shape


def _goes_by_sizes(model: CheckedModel, scope: Scope, old: list[NodeProto], space: int) -> bool:
    """Whether the old operators work with the data's own sizes only.

    They do where padding follows from the sizes, and where a constant varies along another axis
    than the channels'.
    """
    automatic = (a.s for node in old for a in node.attribute if a.name == "auto_pad")
    if any(mode not in (b"", b"NOTSET") for mode in automatic):
        return True
    for node in old:
        if node.op_type == "BatchNormalization" and not space:
            return True
        if node.op_type not in _ELEMENTWISE:
            continue
        for name in node.input[2:] if node.op_type == "Gemm" else node.input:
            values = model.values(scope, name)
            sizes = values.shape[::-1] if values is not None else ()
            if any(size > 1 for axis, size in enumerate(sizes) if axis != space):
                return True
    return False


def _run(nodes: list[NodeProto], given: Mapping[str, Double], magnitude: bool) -> dict[str, Double]:
    """The values of all tensors, by name: those given, and the outputs of the nodes.

    Raises:
        Mismatch: a node reads a tensor that no node writes.
    """
    values = dict(given)
    todo = nodes
    while todo:
        later = []
        for node in todo:
            if all(name in values for name in node.input if name):
                operands = [values[name] if name else None for name in node.input]
                values[node.output[0]] = evaluate(node, operands, magnitude)
            else:
                later.append(node)
        if len(later) == len(todo):
            raise Mismatch(f"{label(later[0])} reads what nothing writes")
        todo = later
    return values
