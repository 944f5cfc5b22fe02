"""Operators that say where elements lie: channels are followed through them by known sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ..graphs import bn, const, conv, conv_transpose, model, op, rand
from .nets import goes, stays, weights

Array = Any


def put(kind: str, x: str, y: str, *given: Any, **attrs: Any) -> Any:
    """An operator whose lists are inputs."""
    held = {f"{y}.{n}": np.asarray(v, np.int64) for n, v in enumerate(given)}
    return op(kind, " ".join([x, *held]), y, **attrs), held


def last(x: str, y: str, c: int, kind: str = "Mul") -> Any:
    return const(kind, x, y, rand(c), name="map")


def matmul(x: str, y: str, *shape: int, left: bool = False) -> Any:
    names = f"{y}.w {x}" if left else f"{x} {y}.w"
    return op("MatMul", names, y, name=y), {f"{y}.w": weights(*shape)}


# Batch, channels and width are all equal, or all different.
@pytest.mark.parametrize("x", [(4, 4, 4, 4), (2, 4, 5, 6), ("n", 4, "h", "w")])
def test_transposes_move_the_axis(x):
    to_last = op("Transpose", "a", "b", perm=[0, 2, 3, 1])
    data = {"x": rand(3, 4, 5, 6)} if x[0] == "n" else None
    goes(model(conv("conv", "x", "a", (4, 4, 1, 1)), to_last, last("b", "y", 4), x=x), data)
    goes(model(conv("conv", "x", "a", (4, 4, 1, 1)), to_last, last("b", "y", 4, "Sub"), x=x), data)
    made = model(
        op("Transpose", "x", "b", perm=[0, 2, 3, 1]),
        last("b", "d", 4, "Add"),
        op("Transpose", "d", "e", perm=[0, 3, 1, 2]),
        conv("conv", "e", "y", (3, 4, 1, 1)),
        x=x,
    )
    goes(made, data)


@pytest.mark.parametrize("x", [(4, 4, 4, 4), (2, 4, 5, 6)])
def test_a_map_along_another_axis_than_the_channels_stays(x):
    made = model(
        conv("conv", "x", "a", (4, 4, 1, 1)),
        op("Transpose", "a", "b", perm=[0, 2, 3, 1]),
        bn("map", "b", "y", x[2]),
        x=x,
    )
    stays(made, "axis-mismatch")
    made = model(
        bn("map", "x", "a", x[1]),
        op("Transpose", "a", "b", perm=[0, 2, 1, 3]),
        conv("conv", "b", "y", (3, x[2], 1, 1)),
        x=x,
    )
    stays(made, says="forward, carried forward through Transpose, stopped at conv")


@pytest.mark.parametrize("m, k, n", [(4, 4, 4), (3, 5, 4)])
def test_square_matmul_transpose_norm(m, k, n):
    """The norm's channels are the columns of the weight, not the rows of the data."""
    made = model(
        matmul("x", "a", k, n),
        op("Transpose", "a", "b", perm=[0, 2, 1]),
        bn("map", "b", "y", n),
        x=(2, m, k),
    )
    goes(made, left=1)  # MatMul has no bias: the shift stands
    other = model(
        matmul("x", "a", k, n),
        op("Transpose", "a", "b", perm=[2, 1, 0]),
        bn("map", "b", "y", m),
        x=(2, m, k),
    )
    stays(other, "axis-mismatch")


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("x", [(2, 8, 3, 4), (8, 8, 8, 8), ("n", 8, "h", "w")])
def test_depth_to_space_behind(mode, x):
    data = {"x": rand(2, 8, 3, 3)} if x[0] == "n" else None
    parts = [
        conv("conv", "x", "a", (8, 8, 1, 1)),
        op("DepthToSpace", "a", "b", blocksize=2, mode=mode),
    ]
    goes(model(*parts, bn("map", "b", "y", 2), x=x), data)
    alternating = const("Mul", "b", "y", rand(1, 1, 1, 6), name="map")
    if x == (2, 8, 3, 4):
        wide = const("Mul", "b", "y", rand(1, 1, 1, 8), name="map")
        stays(model(*parts, wide, x=x), "unknown-shape", "axis-mismatch")
    elif x[0] == "n":
        stays(model(*parts, alternating, x=x), "not-carried", "unknown-shape", data=data)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_ahead_needs_equal_maps_within_a_block(mode):
    def made(scale: Array) -> Any:
        return model(
            const("Mul", "x", "a", scale.reshape(8, 1, 1), name="map"),
            op("DepthToSpace", "a", "b", blocksize=2, mode=mode),
            conv("conv", "b", "y", (3, 2, 1, 1)),
            x=(2, 8, 3, 3),
        )

    equal = np.array([2.0, 0.5], np.float32)
    goes(made(np.tile(equal, 4) if mode == "DCR" else np.repeat(equal, 4)))
    says = "forward, b_depthtospace (DepthToSpace)"
    stays(made(np.repeat(equal, 4) if mode == "DCR" else np.tile(equal, 4)), says=says)
    stays(made(rand(8)), says=says)


@pytest.mark.parametrize("x", [(2, 3, 4, 6), (4, 4, 4, 4), ("n", 4, "h", "w")])
def test_space_to_depth(x):
    c = x[1]
    data = {"x": rand(2, 4, 4, 6)} if x[0] == "n" else None
    made = model(
        bn("map", "x", "a", c),
        op("SpaceToDepth", "a", "b", blocksize=2),
        conv("conv", "b", "y", (3, 4 * c, 1, 1)),
        x=x,
    )
    goes(made, data)

    def behind(scale: Array) -> Any:
        return model(
            conv("conv", "x", "a", (c, c, 1, 1)),
            op("SpaceToDepth", "a", "b", blocksize=2),
            const("Mul", "b", "y", scale.reshape(-1, 1, 1), name="map"),
            x=x,
        )

    goes(behind(np.tile(rand(c), 4)), data)
    stays(behind(np.repeat(rand(c), 4)), "unknown-shape", "axis-mismatch", data=data)


def shuffle(x: str, y: str, groups: int, c: int, *space: int, first: int = 0) -> list[Any]:
    turned = [0, 2, 1, *range(3, 3 + len(space))]
    return [
        put("Reshape", x, f"{y}1", [first, groups, c // groups, *space]),
        op("Transpose", f"{y}1", f"{y}2", perm=turned),
        put("Reshape", f"{y}2", y, [first, c, *space]),
    ]


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("x", [(2, 6, 6, 6), (6, 6, 2, 3), ("n", 6, 4, 4)])
def test_channels_are_followed_through_a_shuffle(groups, x):
    data = {"x": rand(3, 6, 4, 4)} if x[0] == "n" else None
    middle = shuffle("a", "b", groups, 6, *x[2:])
    made = model(conv("conv", "x", "a", (6, 6, 1, 1)), *middle, bn("map", "b", "y", 6), x=x)
    goes(made, data)
    ahead = model(bn("map", "x", "a", 6), *middle, conv("conv", "b", "y", (3, 6, 1, 1)), x=x)
    goes(ahead, data)
    grouped = conv("conv", "b", "y", (6, 2, 1, 1), group=3)
    goes(model(bn("map", "x", "a", 6), *middle, grouped, x=x), data)


@pytest.mark.parametrize("x", [(2, 3, 4, 5), (4, 4, 4, 4), ("n", 4, 2, 2)])
def test_flatten_repeats_each_channel(x):
    n, c, h, w = x
    data = {"x": rand(3, *x[1:])} if n == "n" else None
    size = c * h * w
    gemm = op("Gemm", "b w", "y", name="gemm"), {"w": weights(size, 3)}
    goes(model(bn("map", "x", "a", c), op("Flatten", "a", "b"), gemm, x=x), data)
    behind = [conv("conv", "x", "a", (c, c, 1, 1)), op("Flatten", "a", "b")]
    equal = const("Mul", "b", "y", np.repeat(rand(c), h * w), name="map")
    goes(model(*behind, equal, x=x), data)
    other = const("Mul", "b", "y", np.tile(rand(h * w), c), name="map")
    stays(model(*behind, other, x=x), "axis-mismatch", data=data)


def test_flatten_of_unknown_sizes_lets_a_number_pass_alone():
    data = {"x": rand(2, 4, 3, 3)}
    parts = [conv("conv", "x", "a", (4, 4, 1, 1)), op("Flatten", "a", "b")]
    number = const("Mul", "b", "y", np.float32(-2), name="map")
    goes(model(*parts, number, x=("n", 4, "h", "w")), data)
    vector = bn("map", "b", "y", 36)
    stays(model(*parts, vector, x=("n", 4, "h", "w")), "unknown-shape", data=data)


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_and_unsqueeze(opset):
    def listed(kind: str, x: str, y: str, *axes: int) -> Any:
        if opset < 13:
            return op(kind, x, y, axes=list(axes))
        return put(kind, x, y, list(axes))

    squeezed = listed("Squeeze", "a", "b", 2, 3)
    made = model(
        conv("conv", "x", "a", (4, 4, 4, 4)), squeezed, bn("map", "b", "y", 4), x=(4, 4, 4, 4),
        opset=opset,
    )  # fmt: skip
    goes(made)
    ahead = model(
        const("Mul", "x", "a", rand(4, 1), name="map"),
        listed("Unsqueeze", "a", "b", 3),
        conv("conv", "b", "y", (3, 4, 1, 1)),
        x=(4, 4, 4),
        opset=opset,
    )
    goes(ahead)
    moved = model(
        const("Mul", "x", "a", rand(4, 1), name="map"),
        listed("Unsqueeze", "a", "b", 1),
        conv("conv", "b", "y", (3, 1, 1, 1)),
        x=(4, 4, 4),
        opset=opset,
    )
    stays(moved, says="forward, carried forward through Unsqueeze, stopped at conv")


@pytest.mark.parametrize("x", [(2, 6, 6), (6, 6, 6)])
def test_a_reshape_that_splits_the_channels(x):
    """Six channels as 2 × 3: a map along the first part is one of the channels, and back."""
    apart = put("Reshape", "a", "b", [0, 2, 3, x[2]])
    gamma = const("Mul", "b", "y", rand(2, 1, 1), name="map")
    goes(model(conv("conv", "x", "a", (6, 6, 1)), apart, gamma, x=x))
    inner = const("Mul", "b", "y", rand(3, 1), name="map")
    goes(model(conv("conv", "x", "a", (6, 6, 1)), apart, inner, x=x))
    made = model(bn("map", "x", "a", 6), apart, conv("conv", "b", "y", (3, 2, 1, 1)), x=x)
    stays(made, says="the map varies along several axes")


def test_a_reshape_that_reads_the_same_sizes_in_another_order():
    """[2, 3, 4] as [2, 4, 3]: no axis of either is one of the other."""
    made = model(
        conv("conv", "x", "a", (3, 3, 1)),
        put("Reshape", "a", "b", [2, 4, 3]),
        bn("map", "b", "y", 4),
        x=(2, 3, 4),
    )
    stays(made, "axis-mismatch")
    # With 4 channels of 4 elements the axes are the same, whatever the target says.
    same = model(
        conv("conv", "x", "a", (4, 4, 1)),
        put("Reshape", "a", "b", [-1, 4, 4]),
        bn("map", "b", "y", 4),
        x=("n", 4, 4),
    )
    goes(same, {"x": rand(3, 4, 4)})


def test_a_reshape_of_unknown_batch_that_takes_a_part_of_the_channels():
    """``[n, 4, 4]`` to ``[-1, 2, 4]``: channel c of the output is channel c or c + 2."""
    made = model(
        conv("conv", "x", "a", (4, 4, 1)),
        put("Reshape", "a", "b", [-1, 2, 4]),
        bn("map", "b", "y", 2),
        x=("n", 4, 4),
    )
    data = {"x": rand(3, 4, 4)}
    stays(made, "unknown-shape", data=data)
    fixed = model(
        conv("conv", "x", "a", (4, 4, 1)),
        put("Reshape", "a", "b", [-1, 2, 4]),
        bn("map", "b", "y", 2),
        x=(3, 4, 4),
    )
    goes(fixed)


def test_expand_keeps_maps_along_axes_it_does_not_repeat():
    parts = [conv("conv", "x", "a", (4, 4, 1, 1)), put("Expand", "a", "b", [3, 2, 4, 5, 4])]
    made = model(*parts, const("Mul", "b", "y", rand(4, 1, 1), name="map"), x=(2, 4, 1, 4))
    goes(made)
    repeated = const("Mul", "b", "y", rand(5, 1), name="map")
    stays(model(*parts, repeated, x=(2, 4, 1, 4)), "not-carried")
    new = const("Mul", "b", "y", rand(3, 1, 1, 1, 1), name="map")
    stays(model(*parts, new, x=(2, 4, 1, 4)), "not-carried")


def test_a_transposed_convolution_behind_a_shuffle():
    up = conv_transpose("up", "b", "y", (6, 1, 2, 2), group=3, strides=[2, 2])
    scale = const("Mul", "x", "a", rand(6, 1, 1), name="map")
    goes(model(scale, *shuffle("a", "b", 3, 6, 3, 3), up, x=(2, 6, 3, 3)))
