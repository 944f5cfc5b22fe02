"""Small folds of every kind, with what the rewrite recorded of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnfold._onnx.fold import prepare
from bnfold._onnx.write.applied import Applied
from bnfold._proof.certificate import certify
from bnfold._proof.evidence import Certificate

from ..graphs import (
    BF16,
    DOUBLE,
    FLOAT,
    HALF,
    Piece,
    bn,
    const,
    conv,
    conv_transpose,
    model,
    op,
    positive,
    rand,
    reseed,
    subgraph,
    tensor,
)

Array = Any
Case = Callable[..., ModelProto]
TYPES = {"fp16": HALF, "fp32": FLOAT, "fp64": DOUBLE, "bf16": BF16}
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


# --- folds of every kind -----------------------------------------------------------------------


def chain(*pieces: Piece, x: Any, opset: int = 21, **more: Any) -> Case:
    """A model of the given element type."""
    return partial(model, *pieces, x=x, opset=opset, **more)


def convolution(rank: int, w: tuple[int, ...], bias: bool = True, **attrs: Any) -> Case:
    cin = w[1] * attrs.get("group", 1)
    kernel = (2,) * rank
    return chain(
        conv("conv", "x", "c", (*w, *kernel), bias, **attrs),
        bn("bn", "c", "y", w[0]),
        x=(2, cin, *(4,) * rank),
    )


def transposed(rank: int, w: tuple[int, ...], bias: bool = True, **attrs: Any) -> Case:
    out = w[1] * attrs.get("group", 1)
    return chain(
        conv_transpose("up", "x", "c", (*w, *(2,) * rank), bias, **attrs),
        bn("bn", "c", "y", out),
        x=(2, w[0], *(4,) * rank),
    )


def gemm(
    form: str, c: tuple[int, ...] | None, attrs: dict[str, Any], *maps: Piece, at: str = "right"
) -> Case:
    """Gemm [5, 3]·[3, 4] with the constant on one side, transposed as the attributes say."""
    sizes = {"right": (3, 4), "left": (5, 3)}[at]
    turned = attrs.get("transB" if at == "right" else "transA")
    stored = {"fc.w": rand(*(sizes[::-1] if turned else sizes))}
    inputs = "x fc.w" if at == "right" else "fc.w x"
    if c is not None:
        stored["fc.c"] = rand(*c)
        inputs += " fc.c"
    other = attrs.get("transA" if at == "right" else "transB")
    shape = (5, 3) if at == "right" else (3, 4)
    node = op("Gemm", inputs, "g", name="fc", **attrs), stored
    return chain(node, *maps, x=shape[::-1] if other else shape)


def matmul(w: tuple[int, ...], *maps: Piece, x: tuple[int, ...], at: str = "right") -> Case:
    inputs = "x mm.w" if at == "right" else "mm.w x"
    return chain((op("MatMul", inputs, "m", name="mm"), {"mm.w": rand(*w)}), *maps, x=x)


def norm(kind: str, size: tuple[int, ...], *maps: Piece, bias: bool = True, **attrs: Any) -> Case:
    stored = {"norm.g": rand(*size)} | ({"norm.b": rand(*size)} if bias else {})
    inputs = " ".join(["x", *stored])
    return chain((op(kind, inputs, "n", name="norm", **attrs), stored), *maps, x=(2, 4, 5, 6))


def affine(data: str, *shapes: tuple[int, ...], kinds: str = "Mul Add") -> list[Piece]:
    """A chain of elementwise operators with random constants, from ``data`` to y."""
    names = kinds.split()
    pieces, value = [], data
    for at, (kind, shape) in enumerate(zip(names, shapes, strict=True)):
        kind, left = kind.removeprefix("-"), kind.startswith("-")
        target = "y" if at == len(names) - 1 else f"{data}{at}"
        pieces.append(const(kind, value, target, rand(*shape), left=left))
        value = target
    return pieces


def batch_norm_then(*maps: Piece) -> Case:
    return chain(bn("bn", "x", "n", 4), *maps, x=(2, 4, 5, 6))


def cases() -> dict[str, Case]:
    reseed(5)
    c, per_width = (4, 1, 1), (6,)
    found = {
        "conv-1d": convolution(1, (4, 3)),
        "conv-2d": convolution(2, (4, 3)),
        "conv-3d": convolution(3, (4, 3)),
        "conv-no-bias": convolution(2, (4, 3), False),
        "conv-grouped": convolution(2, (6, 2), group=2, pads=[1, 0, 1, 0]),
        "conv-depthwise": convolution(2, (4, 1), group=4),
        "conv-square": convolution(2, (4, 4), strides=[2, 1]),
        "conv-mul-add": chain(
            conv("conv", "x", "c", (4, 3, 2, 2)), *affine("c", c, c), x=(2, 3, 5, 6)
        ),
        "conv-every-map": chain(
            conv("conv", "x", "c", (4, 3, 2, 2)),
            *affine("c", c, c, (1,), c, c, (), kinds="Mul -Sub Div Add Sub -Add")[:-1],
            op("Neg", "c4", "y"),
            x=(2, 3, 5, 6),
        ),
        "conv-add-to-a-computed-weight": chain(
            op("Conv", "x w", "c", name="conv"),
            const("Add", "c", "y", rand(*c)),
            x={"x": (2, 3, 5, 6), "w": (4, 3, 2, 2)},
        ),
        "transposed-1d": transposed(1, (3, 4)),
        "transposed-2d": transposed(2, (3, 4), strides=[2, 2], output_padding=[1, 1]),
        "transposed-3d": transposed(3, (3, 4)),
        "transposed-square": transposed(2, (4, 4), False),
        "transposed-grouped": transposed(2, (6, 2), group=3),
        "transposed-depthwise": transposed(2, (4, 2), group=4),
        "gemm": gemm("", (4,), {}, bn("bn", "g", "y", 4)),
        "gemm-no-c": gemm("", None, {"transB": 1}, bn("bn", "g", "y", 4)),
        "gemm-scalar-c": gemm("", (), {"transA": 1}, bn("bn", "g", "y", 4)),
        "gemm-row-c": gemm("", (1, 4), {"alpha": 0.5, "beta": -2.0}, bn("bn", "g", "y", 4)),
        "gemm-column-c": gemm("", (5, 1), {"transB": 1, "beta": 0.5}, *affine("g", (4,), (4,))),
        "gemm-full-c": gemm("", (5, 4), {"alpha": -1.5, "transB": 1}, *affine("g", (4,), (1, 4))),
        "gemm-ignored-c": gemm("", (4,), {"beta": 0.0}, bn("bn", "g", "y", 4)),
        "gemm-left": gemm("", (5, 1), {}, *affine("g", (5, 1), (5, 1)), at="left"),
        "gemm-left-turned": gemm(
            "", None, {"transA": 1, "alpha": 2.0}, *affine("g", (5, 1), (1,)), at="left"
        ),
        "matmul": matmul((3, 4), *affine("m", (4,), kinds="Mul"), x=(2, 5, 3)),
        "matmul-add": matmul(
            (3, 4), *affine("m", (4,), (4,), (4,), kinds="Add Mul -Sub"), x=(2, 5, 3)
        ),
        "matmul-left": matmul((5, 3), *affine("m", (5, 1), kinds="Div"), x=(2, 3, 6), at="left"),
        "matmul-batched": matmul((2, 3, 4), *affine("m", (2, 1, 1), kinds="Mul"), x=(2, 5, 3)),
        "matmul-vector": matmul((3, 4), *affine("m", (4,), kinds="Mul"), x=(3,)),
        "layer-norm": norm("LayerNormalization", (6,), *affine("n", (6,), (6,))),
        "layer-norm-no-bias": norm(
            "LayerNormalization", (6,), *affine("n", (6,), (6,)), bias=False
        ),
        "layer-norm-two-axes": norm(
            "LayerNormalization", (5, 6), *affine("n", (5, 1), (6,)), axis=-2
        ),
        "instance-norm": norm("InstanceNormalization", (4,), bn("bn", "n", "y", 4)),
        "group-norm": norm(
            "GroupNormalization", (4,), bn("bn", "n", "y", 4), num_groups=2, epsilon=0.1
        ),
        "batch-norm-mul-add": batch_norm_then(*affine("n", c, c)),
        "batch-norm-batch-norm": batch_norm_then(bn("bn2", "n", "y", 4)),
        "standing-mul-add-mul": chain(*affine("x", c, c, c, kinds="Mul Add Mul"), x=(2, 4, 5, 6)),
        "standing-adds": chain(*affine("x", c, c, kinds="Add Sub"), x=(2, 4, 5, 6)),
        "standing-axes": chain(*affine("x", c, per_width, c, kinds="Mul Mul Mul"), x=(2, 4, 5, 6)),
        "split-scale-goes": chain(
            conv("conv", "x", "c", (4, 3, 2, 2)), *affine("c", c, per_width), x=(2, 3, 6, 7)
        ),
        "split-shift-stays": chain(
            conv("conv", "x", "c", (4, 3, 2, 2)),
            const("Mul", "c", "d", rand(*per_width)),
            bn("bn", "d", "y", 4),
            x=(2, 3, 6, 7),
        ),
        "split-past-another": chain(
            conv("conv", "x", "c", (4, 3, 2, 2)),
            *affine("c", per_width, c, kinds="Add Sub"),
            x=(2, 3, 6, 7),
        ),
        "matmul-gemm": matmul((3, 4), bn("bn", "m", "y", 4), x=(5, 3)),
        "matmul-gemm-left": matmul((5, 3), *affine("m", (5, 1), (5, 1)), x=(3, 6), at="left"),
    }
    return found


CASES = cases()
SPLIT = ("matmul-add", "split-shift-stays", "split-past-another")
STANDING = ("standing-mul-add-mul", "standing-adds", "standing-axes", "batch-norm-mul-add")
every_case = pytest.mark.parametrize("name", CASES)


every_type = pytest.mark.parametrize("elem", TYPES)


@dataclass(frozen=True)
class Folded:
    """A model, its folded form, and what the rewrite recorded."""

    original: ModelProto
    folded: ModelProto
    applied: tuple[Applied, ...]

    def certificates(self, folded: ModelProto | None = None) -> tuple[Certificate, ...]:
        return certify(self.original, self.folded if folded is None else folded, self.applied)

    def copy(self) -> ModelProto:
        made = ModelProto()
        made.CopyFrom(self.folded)
        return made

    def node(self, folded: ModelProto) -> NodeProto:
        """The operator that absorbed the maps, or the first that stands for them."""
        fold = self.applied[0]
        if fold.law == "absorb":
            return next(n for n in folded.graph.node if fold.source in n.output)
        return next(n for n in folded.graph.node if fold.source in n.input)

    def new(self) -> list[str]:
        """Names of the constants that the fold wrote."""
        old = {t.name: t.SerializeToString() for t in self.original.graph.initializer}
        return [
            t.name
            for t in self.folded.graph.initializer
            if old.get(t.name) != t.SerializeToString()
        ]


def folded(made: ModelProto, base_dir: Path | None = None) -> Folded:
    original = ModelProto()
    original.CopyFrom(made)
    applied = tuple(prepare(made, base_dir).apply().applied)
    assert applied
    return Folded(original, made, applied)


def case(name: str, elem: str = "fp32") -> Folded:
    """A fold of its kind, in models that a test may change."""
    original, folded_, applied = _case(name, elem)
    return Folded(ModelProto.FromString(original), ModelProto.FromString(folded_), applied)


@cache
def _case(name: str, elem: str) -> tuple[bytes, bytes, tuple[Applied, ...]]:
    reseed()
    done = folded(CASES[name](elem=TYPES[elem]))
    return done.original.SerializeToString(), done.folded.SerializeToString(), done.applied


def values(model: ModelProto, name: str) -> Array:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def put(model: ModelProto, name: str, array: Array) -> None:
    """Store other numbers under a name."""
    for stored in model.graph.initializer:
        if stored.name == name:
            stored.CopyFrom(tensor(array, name, stored.data_type))


def none_holds(certificates: tuple[Certificate, ...]) -> bool:
    return bool(certificates) and not any(c.holds for c in certificates)


# --- folds in other graphs ---------------------------------------------------------------------


def branches() -> ModelProto:
    then = subgraph(conv("one", "x", "c1", (4, 3, 3, 3)), bn("bn1", "c1", "t", 4), y="t")
    other = subgraph(conv("two", "x", "c2", (4, 3, 3, 3)), bn("bn2", "c2", "e", 4), y="e")
    node = op("If", "cond", "y", name="if", then_branch=then, else_branch=other)
    made = model(node, x=(2, 3, 8, 8))
    made.graph.input.append(helper.make_tensor_value_info("cond", TensorProto.BOOL, ()))
    return made


def function() -> ModelProto:
    nodes = [
        op("Constant", "", "w", value=tensor(rand(4, 3, 3, 3), "")),
        op("Conv", "a w", "c", name="conv"),
        *(op("Constant", "", n, value=tensor(rand(4), "")) for n in ("s", "t", "m")),
        op("Constant", "", "v", value=tensor(positive(4), "")),
        op("BatchNormalization", "c s t m v", "b", name="bn", epsilon=0.01),
    ]
    body = helper.make_function("my", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])
    return model(
        op("F", "x", "y", domain="my"), x=(2, 3, 8, 8), functions=[body], domains={"my": 1}
    )
