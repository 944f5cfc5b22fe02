"""Whole graphs drawn at random: every operator that maps cross or that takes them in.

Sizes agree by accident in half of the graphs; scales are positive, mixed, uniform or partly zero,
shifts are there or not; batch and spatial sizes may be symbols.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from onnx import ModelProto

from ..graphs import model
from .draw_joining import Joining
from .draw_linear import Linear
from .draw_pointwise import Pointwise
from .draw_shaping import Shaping
from .sketch import Array, Shape

LINEAR = "conv conv conv conv_transpose gemm gemm matmul matmul".split()
AFFINE = "bn bn bn constant constant constant constant neg".split()
CROSSED = (
    "identity dropout transpose transpose squeeze unsqueeze flatten reshape reshape expand shuffle "
    "depth_to_space space_to_depth relu relu leaky prelu abs clip clip max_pool max_pool "
    "average_pool average_pool global_pool reduce reduce resize resize pad pad concat concat split "
    "slice gather add add sum mul div product"
).split()
OTHER = "sigmoid tanh norm".split()


class Drawing(Linear, Pointwise, Shaping, Joining):
    """A graph in the making that takes any operator next."""

    def step(self) -> None:
        kinds = self.source.choices((LINEAR, AFFINE, CROSSED, OTHER), (22, 30, 45, 3))[0]
        kind = self.source.choice(kinds)
        getattr(self, {"add": "add_"}.get(kind, kind))()


def drawn(source: random.Random, least: int = 2, most: int = 16) -> tuple[ModelProto, Any]:
    """A model of about so many operators, and data for it."""
    d = Drawing(source)
    given: dict[str, Shape] = {}
    rank = d.among(4, 4, 4, 4, 3, 3, 2, 5)
    given["x"] = d.shape(rank)
    if d.chance(4):
        given["z"] = given["x"] if d.chance(2) else d.shape(rank)
    d.shapes |= given
    wanted = source.randint(least, most)
    for _ in range(3 * wanted):
        if len(d.nodes) >= wanted:
            break
        d.step()
    read = {name for node in d.nodes for name in node.input}
    outputs = [k for k in d.shapes if k not in read and k not in given]
    inner = [k for k in d.shapes if k in read and k not in given]
    if inner and d.chance(8):
        outputs.append(source.choice(inner))
    if not outputs:
        last = d.add("Relu", "x", given["x"])
        assert last is not None
        outputs = [last]
    free = d.among((), (), (0,), (2, 3, 4), (0, 2, 3, 4), (1,), (0, 1, 2, 3, 4))
    if d.opset == 10 and any(node.op_type == "Slice" for node in d.nodes):
        free = ()  # its inference says that a part of a symbol is as long, and runtimes believe it
    declared = {
        k: [f"{k}{axis}" if axis in free else s for axis, s in enumerate(shape)]
        for k, shape in given.items()
    }
    made = model(*d.nodes, x=declared, y=" ".join(outputs), weights=d.weights, opset=d.opset)
    del made.graph.initializer[:]
    for name, value in d.weights.items():
        if name in read:
            made.graph.initializer.append(_tensor(name, value))
    if free:  # What ONNX infers of a Slice or a Resize is not always so.
        for out in made.graph.output:
            for dim in out.type.tensor_type.shape.dim:
                dim.Clear()
    data = {k: d.rng.normal(size=shape).astype(np.float32) for k, shape in given.items()}
    return made, data


def _tensor(name: str, value: Array) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(value), name)
