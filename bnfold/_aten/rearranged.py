"""Operators of ATen that only move numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bnfold._aten.call import Call, Made
from bnfold._aten.writer import Like

_LAST = 2**63 - 1


def reshaped(call: Call) -> Made:
    """view, reshape, flatten, squeeze, unsqueeze …: other axes, the same order."""
    data = call.value("self")
    if data is None or not call.like.kind or call.like_of(data).kind != call.like.kind:
        return None  # Also a view of the same bytes as another type.
    return call.reshaped(data, call.like.sizes)


def permuted(call: Call) -> Made:
    """permute, transpose, movedim, t: the axes in another order."""
    data = call.value("self")
    if data is None:
        return None
    rank = call.like_of(data).rank
    if call.kind == "permute":
        order = call.whole("dims")
    elif call.kind == "movedim":
        order = _moved(call.whole("source"), call.whole("destination"), rank)
    else:
        names = ("axis0", "axis1") if call.kind == "swapaxes" else ("dim0", "dim1")
        pair = [-2, -1] if call.kind in ("mT", "t") else [call.given.get(name) for name in names]
        order = _swapped(pair, rank)
    if order is None or len(order) != rank:
        return None
    if rank < 2:
        return data
    return call.write("Transpose", [data], perm=[axis % rank for axis in order])


def _moved(source: list[int] | None, to: list[int] | None, rank: int) -> list[int] | None:
    """The order in which some axes stand at other places, and all others as before."""
    if source is None or to is None or len(source) != len(to) or not rank:
        return None
    places = {there % rank: here % rank for here, there in zip(source, to, strict=True)}
    left = iter([axis for axis in range(rank) if axis not in places.values()])
    return [places[axis] if axis in places else next(left) for axis in range(rank)]


def _swapped(pair: Sequence[object], rank: int) -> list[int] | None:
    order = list(range(rank))
    one, other = pair
    if not isinstance(one, int) or not isinstance(other, int):
        return None
    if rank > 1:
        order[one], order[other] = order[other], order[one]
    return order


def expanded(call: Call) -> Made:
    """expand, expand_as, broadcast_to: copies along axes."""
    data = call.value("self")
    if data is None or None in call.like.sizes:
        return None
    if call.like_of(data).sizes == call.like.sizes:
        return data
    sizes = [size for size in call.like.sizes if isinstance(size, int)]
    asked = call.writer.integers(sizes) if len(sizes) == call.like.rank else ""
    return call.write("Expand", [data, asked], sizes=repr(call.like.sizes))


def joined(call: Call) -> Made:
    """cat, concat: along one axis. Tensors of one axis without numbers do not count there."""
    given, axis = call.given.get("tensors"), call.given.get("dim", 0)
    if not isinstance(given, (list, tuple)) or type(axis) is not int:
        return None
    values = [call.names.get(each) for each in given]
    parts = [None if each is None else call.cast(each, call.like.kind) for each in values]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or any(call.like_of(p).rank != call.like.rank for p in known):
        return None
    if not call.like.rank:
        return None
    return call.write("Concat", known, axis=axis % call.like.rank)


def stacked(call: Call) -> Made:
    """stack: along a new axis."""
    given, axis = call.given.get("tensors"), call.given.get("dim", 0)
    if not isinstance(given, (list, tuple)) or type(axis) is not int:
        return None
    axis %= call.like.rank
    sizes = [1 if k == axis else size for k, size in enumerate(call.like.sizes)]
    parts = []
    for each in given:
        value = call.names.get(each)
        part = None if value is None else call.cast(value, call.like.kind)
        wide = None if part is None else call.reshaped(part, sizes)
        if wide is None:
            return None
        parts.append(wide)
    return call.write("Concat", parts, axis=axis)


def parted(call: Call) -> Made:
    """split, split_with_sizes, chunk, tensor_split, unbind: all parts along one axis."""
    data, axis = call.value("self"), call.given.get("dim", 0)
    if data is None or type(axis) is not int or not call.likes:
        return None
    rank = call.like_of(data).rank
    if not rank:
        return None
    axis %= rank
    whole = call.like_of(data).sizes
    if call.kind == "unbind":
        wide = [(*like.sizes[:axis], 1, *like.sizes[axis:]) for like in call.likes]
    else:
        wide = [like.sizes for like in call.likes]
    parts = [sizes[axis] for sizes in wide]
    numbers = [size for size in parts if isinstance(size, int) and size > 0]
    if len(numbers) < len(parts) or sum(numbers) != whole[axis]:
        return None
    inputs = [data, call.writer.integers(numbers)]
    likes = [Like(call.like.kind, sizes) for sizes in wide]
    made = call.writer.several("Split", inputs, likes, axis=axis)
    if call.kind != "unbind":
        return made
    lean = [call.reshaped(part, call.like.sizes) for part in made]
    known = [part for part in lean if part is not None]
    return known if len(known) == len(lean) else None


def sliced(call: Call) -> Made:
    """slice, narrow: a range of one axis."""
    data, axis = call.value("self"), call.given.get("dim", 0)
    start, end = call.given.get("start"), call.given.get("end")
    step = call.given.get("step", 1)
    if call.kind == "narrow":
        count = call.given.get("length")
        if type(start) is not int or type(count) is not int:
            return None
        end = start + count
        if start < 0 and not end:  # Of −3 and 3 to the end; of 0 and 0 nothing.
            end = _LAST
    start, end = 0 if start is None else start, _LAST if end is None else end
    if data is None or any(type(each) is not int for each in (axis, start, end, step)):
        return None
    rank = call.like_of(data).rank
    held = [call.writer.integers([each]) for each in (start, end, axis % rank, step)]
    return call.write("Slice", [data, *held])


def turned_around(call: Call) -> Made:
    """flip: some axes from the end."""
    data, axes = call.value("self"), call.whole("dims")
    if data is None or not axes or not call.like.rank:
        return None
    starts, ends, steps = [[number] * len(axes) for number in (-1, -(2**63), -1)]
    told = [axis % call.like.rank for axis in axes]
    held = [call.writer.integers(each) for each in (starts, ends, told, steps)]
    return call.write("Slice", [data, *held])


def picked(call: Call) -> Made:
    """select, and index_select at constant places."""
    data, axis = call.value("self"), call.given.get("dim", 0)
    if data is None or type(axis) is not int or not call.like_of(data).rank:
        return None
    like = call.like_of(data)
    axis %= like.rank
    if call.kind == "index_select":
        places = call.value("index")
        if places is None or call.like_of(places).rank != 1:
            return None
        return call.write("Gather", [data, places], axis=axis)
    number, size = call.given.get("index"), like.sizes[axis]
    if type(number) is not int:
        return None
    number = number % size if isinstance(size, int) and size else number
    held = call.writer.integers([number])
    kept = call.write("Gather", [data, held], Like(like.kind, _with(like.sizes, axis)), axis=axis)
    return call.reshaped(kept, call.like.sizes)


def _with(sizes: Sequence[int | str | None], axis: int) -> tuple[int | str | None, ...]:
    """Sizes of which one is 1."""
    return (*sizes[:axis], 1, *sizes[axis + 1 :])


def shuffled(call: Call) -> Made:
    """pixel_shuffle: channels become positions, of a batch."""
    data, factor = call.value("self"), call.given.get("upscale_factor")
    if data is None or type(factor) is not int or call.like.rank != 4:
        return None
    return call.write("DepthToSpace", [data], blocksize=factor, mode="CRD")


RULES: dict[str, Callable[[Call], Made]] = {
    **dict.fromkeys(
        (
            *("_reshape_alias", "_unsafe_view", "flatten", "reshape", "reshape_as", "squeeze"),
            *("squeeze_copy", "unflatten", "unsqueeze", "view", "view_as", "view_copy"),
        ),
        reshaped,
    ),
    **dict.fromkeys(
        ("mT", "movedim", "permute", "swapaxes", "swapdims", "t", "transpose"), permuted
    ),
    **dict.fromkeys(("broadcast_to", "expand", "expand_as"), expanded),
    **dict.fromkeys(("cat", "concat", "concatenate"), joined),
    **dict.fromkeys(
        ("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "unsafe_split"), parted
    ),
    **dict.fromkeys(("index_select", "select"), picked),
    "flip": turned_around,
    "pixel_shuffle": shuffled,
    **dict.fromkeys(("narrow", "slice"), sliced),
    "stack": stacked,
}
"""By the name of the operator."""
