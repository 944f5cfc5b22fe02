"""Shapes of outputs that ONNX's own inference does not give: Reshape, Slice, BatchNormalization.

They follow from integers that the graph computes of sizes, and from what a tensor's elements add up
to. Sizes that are not known are words; so are products of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto

from bnfold._core.index_maps import Size
from bnfold._onnx.read.behind import Behind, of_stored
from bnfold._onnx.read.scopes import type_of
from bnfold._onnx.read.sizes import Following, Numbers, dimensions, factors, quotient, unknown

_MADE_UP = "unk__"
Tensor = TypeProto.Tensor


def declare(inferred: ModelProto, skeleton: GraphProto, overridable: Collection[str]) -> bool:
    """Declare output shapes that ONNX's inference does not give. Gives whether any was new.

    What such a shape tells of the tensors behind it is found out on the way, operator by operator:
    to run all of inference for each Reshape of a long chain would take time by its square.
    """
    graph = inferred.graph
    known = known_shapes(graph)
    hinted = {value.name: value for value in skeleton.value_info}
    following = Following(graph, known, overridable)
    behind = Behind(inferred, known, following.found, overridable)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    found = False
    for node in graph.node:
        if not behind.fresh.isdisjoint(node.input):
            for name, told in behind.outputs(node).items():
                own = known.get(name)
                if own is None or _says_more(told, own):
                    behind.note(name, told if own is None else _joined(own, told))
        following.follow(node)
        if len(node.input) < 2 or not node.output:
            continue
        hint = _hint(node, known, stored, following.found)
        name = node.output[0]
        earlier = hinted.get(name)
        before = earlier.type.tensor_type if earlier is not None else None
        if hint is None or not _says_more(hint, known.get(name)) or not _says_more(hint, before):
            continue
        value = earlier if earlier is not None else skeleton.value_info.add(name=name)
        value.type.tensor_type.CopyFrom(hint)
        behind.note(name, hint)
        found = True
    return found


def _hint(
    node: NodeProto,
    known: Mapping[str, Tensor],
    stored: Mapping[str, TensorProto],
    numbers: Mapping[str, Numbers],
) -> Tensor | None:
    """The shape of a node's output, as far as it is known here; None for other operators."""
    kind = type_of(node)
    if kind == "Reshape":
        target = numbers.get(node.input[1]) or unknown(known.get(node.input[1]))
        source = known.get(node.input[0]) or of_stored(stored.get(node.input[0]))
        return _of_reshape(node, source, known.get(node.output[0]), target)
    if kind == "Slice":
        return _of_slice(node, known.get(node.input[0]), known.get(node.output[0]), numbers)
    if kind in ("Einsum", "com.microsoft::FusedMatMul"):
        found = [known.get(name) or of_stored(stored.get(name)) for name in node.input[:2]]
        return _of_product(node, *found)
    return _of_batch_norm(node, known, stored) if kind == "BatchNormalization" else None


def _joined(own: Tensor, told: Tensor) -> Tensor:
    """What two shapes of a tensor tell: a number first, then the word that it had.

    What it had stays where they contradict each other.
    """
    hint = Tensor()
    hint.CopyFrom(own)
    pairs = zip(dimensions(told), dimensions(own), strict=True)
    for dim, (new, old) in zip(hint.shape.dim, pairs, strict=True):
        if _is_better(new, old):
            _set(dim, new)
    return hint


def known_shapes(graph: GraphProto) -> dict[str, Tensor]:
    """The tensors of a graph whose rank is known."""
    return {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _says_more(hint: Tensor, own: Tensor | None) -> bool:
    """Whether the hint has a size where ``own`` has none, or only a symbol, or a word where that
    has made one up. A hint of another rank says nothing.
    """
    if own is None:
        return True
    if len(hint.shape.dim) != len(own.shape.dim):
        return False
    pairs = zip(dimensions(hint), dimensions(own), strict=True)
    return any(_is_better(new, old) for new, old in pairs)


def _is_better(new: Size, old: Size) -> bool:
    """Whether a size tells more than the one before. A number stays, whatever contradicts it."""
    if new is None or isinstance(old, int):
        return False
    return old is None or isinstance(new, int) or (_is_made_up(old) and not _is_made_up(new))


def _is_made_up(size: Size) -> bool:
    """Whether a word is one that ONNX's inference gives to a size that it knows nothing of."""
    return isinstance(size, str) and size.startswith(_MADE_UP)


def _of_reshape(
    node: NodeProto, source: Tensor | None, own: Tensor | None, target: Numbers | None
) -> Tensor | None:
    """The shape of a Reshape's output, from its target; None if nothing is known.

    The output has as many axes as the target has elements. It has as many elements as the input,
    which may give one missing size. A 0 in the target stands for the size of the input's axis,
    unless ``allowzero`` is set (ONNX Reshape).
    """
    count = None if own is None else len(own.shape.dim)
    if source is None or (target is not None and count not in (None, len(target.values))):
        return None
    hint = TypeProto.Tensor(elem_type=source.elem_type)
    if own is not None:
        hint.CopyFrom(own)
    elif target is None or not target.values:
        return None
    keeps = not any(a.name == "allowzero" and a.i for a in node.attribute)
    for axis, size in enumerate(target.values if target is not None else ()):
        dim = hint.shape.dim[axis] if own is not None else hint.shape.dim.add()
        if dim.dim_value > 0:
            continue
        if size == 0 and keeps and axis < len(source.shape.dim):
            dim.CopyFrom(source.shape.dim[axis])
        elif isinstance(size, str) and (not dim.dim_param or _is_made_up(dim.dim_param)):
            dim.dim_param = size
        elif isinstance(size, int) and size > 0:
            dim.dim_value = size
    return _completed(source, hint) or hint


def _completed(source: Tensor, own: Tensor) -> Tensor | None:
    """A shape with its only unknown size filled in, if the source's sizes tell it; else None."""
    whole = dimensions(source)
    left = factors(whole)[1]
    taken: list[Size] = []
    missing = []
    for axis, size in enumerate(dimensions(own)):
        words = factors([size])[1]
        if size is None or any(words.count(word) > left.count(word) for word in words):
            missing.append(axis)
            continue
        taken.append(size)
        for word in words:
            left.remove(word)
    size = quotient(whole, taken) if len(missing) == 1 else None
    if size is None or size == 0:
        return None
    hint = TypeProto.Tensor()
    hint.CopyFrom(own)
    _set(hint.shape.dim[missing[0]], size)
    return hint


def _of_slice(
    node: NodeProto, source: Tensor | None, own: Tensor | None, numbers: Mapping[str, Numbers]
) -> Tensor | None:
    """The shape of a Slice's output, from bounds that are computed; None where one of these is not
    known. The sizes along its axes follow from those of the input (ONNX Slice).
    """
    bounds = [numbers[name].known if name in numbers else None for name in node.input[1:] if name]
    given = [bound for bound in bounds if bound is not None]
    rank = len(source.shape.dim) if source is not None else 0
    if len(given) < max(2, len(node.input) - 1) or (own and len(own.shape.dim) != rank):
        return None
    starts, ends, *more = given
    axes = more[0] if more else tuple(range(len(starts)))
    steps = more[1] if len(more) > 1 else (1,) * len(starts)
    hint = TypeProto.Tensor()
    if source is None or not all(-rank <= axis < rank for axis in axes):
        return None
    hint.CopyFrom(source)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        dim = hint.shape.dim[axis]
        size = len(range(dim.dim_value)[start:end:step]) if dim.dim_value and step > 0 else None
        _set(dim, size or None)
    return hint


def _set(dim: TensorShapeProto.Dimension, size: Size) -> None:
    dim.Clear()
    if isinstance(size, int):
        dim.dim_value = size
    elif size is not None:
        dim.dim_param = size


def _of_batch_norm(
    node: NodeProto, known: Mapping[str, Tensor], stored: Mapping[str, TensorProto]
) -> Tensor | None:
    """The shape of a BatchNormalization's output: as many channels as its scale has elements."""
    own = known.get(node.output[0])
    if own is None or len(own.shape.dim) < 2 or own.shape.dim[1].dim_value > 0:
        return None
    tensor = of_stored(stored.get(node.input[1])) or known.get(node.input[1])
    scale = () if tensor is None else tuple(dim.dim_value for dim in tensor.shape.dim)
    if len(scale) != 1 or scale[0] < 1:
        return None
    hint = TypeProto.Tensor()
    hint.CopyFrom(own)
    hint.shape.dim[1].Clear()
    hint.shape.dim[1].dim_value = scale[0]
    return hint


_PRODUCTS = {
    b"...km,...kn->...mn": {"transA"},
    b"...mk,...nk->...mn": {"transB"},
    b"...km,...nk->...mn": {"transA", "transB"},
}
"""Equations of an Einsum that stands in for a product, and which operands that turns."""


def _of_product(node: NodeProto, one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The shape of a product of matrices, whose last two axes may be exchanged (FusedMatMul).

    Below opset 12 no operator of ONNX stands in for it, and of operands of unequal ranks ONNX
    infers nothing. None for vectors, and for operands that are broadcast to each other.
    """
    turned = {attribute.name for attribute in node.attribute if attribute.i}
    if node.op_type == "Einsum":
        turned = _PRODUCTS.get(node.attribute[0].s if node.attribute else b"", {"transBatchA"})
    if one is None or other is None or not turned.isdisjoint(("transBatchA", "transBatchB")):
        return None
    ranks = len(one.shape.dim), len(other.shape.dim)
    if min(ranks) < 2:
        return None
    ahead = [list(dimensions(each))[:-2] for each in (one, other)]
    if min(ranks) > 2 and (ahead[0] != ahead[1] or None in ahead[0]):
        return None
    hint = TypeProto.Tensor()
    hint.CopyFrom(one if ranks[0] >= ranks[1] else other)
    hint.shape.dim[-2].CopyFrom(one.shape.dim[-1 if "transA" in turned else -2])
    hint.shape.dim[-1].CopyFrom(other.shape.dim[-2 if "transB" in turned else -1])
    return hint
