"""How large constants are that operators make: made once, or not at all."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import bnfold
from bnfold._core import parts as laws_of_parts
from bnfold._core.affine import AffineMap
from bnfold._onnx.read import evaluation as reading
from bnfold._onnx.read import growth
from bnfold._onnx.read.evaluation import evaluate

from .graphs import (
    bn,
    const,
    conv,
    folds,
    i64,
    model,
    op,
    rand,
)

CONV = ("conv", "x", "c", (4, 3, 3, 3))


def test_large_constants_are_made_once_each(monkeypatch):
    """Each Add reads the one before twice: made anew for each reader, 2²⁰ would be made."""
    made = []

    def counted(node, *rest):
        made.append(node)
        assert len(made) < 99
        return evaluate(node, *rest)

    monkeypatch.setattr(reading, "evaluate", counted)
    steps = [op("Add", f"k{n} k{n}", f"k{n + 1}") for n in range(20)]
    m = model(
        (op("ConstantOfShape", "s", "k0"), {"s": i64(300_000)}),
        *steps,
        op("ReduceMean", "k20", "k", keepdims=0),
        conv(*CONV),
        op("Add", "c k", "y"),
    )
    bnfold.plan(m)
    assert len(made) < 2 * len(m.graph.node)


HUGE = {
    "constant of shape": (op("ConstantOfShape", "s", "k"), {"s": i64(10**9)}),
    "tile": (op("Tile", "one s", "k"), {"one": rand(1), "s": i64(10**9)}),
    "expand": (op("Expand", "one s", "k"), {"one": rand(1), "s": i64(10**5, 10**5)}),
    "pad": (op("Pad", "one s", "k"), {"one": rand(1), "s": i64(0, 10**9)}),
    "outer product": (op("Mul", "a b", "k"), {"a": rand(20_000, 1), "b": rand(20_000)}),
    "matrix product": (op("MatMul", "a b", "k"), {"a": rand(20_000, 1), "b": rand(1, 20_000)}),
    "einsum": (
        op("Einsum", "a b", "k", equation="i,j->ij"),
        {"a": rand(20_000), "b": rand(20_000)},
    ),
    "gather": (op("Gather", "a b", "k"), {"a": rand(1, 20_000), "b": np.zeros(20_000, np.int64)}),
    "gather by several axes": (
        op("GatherND", "a b", "k"),
        {"a": rand(1, 20_000), "b": np.zeros((20_000, 1), np.int64)},
    ),
    "gather in batches": (
        op("GatherND", "a b", "k", batch_dims=1),
        {"a": rand(1, 1, 20_000), "b": np.zeros((1, 20_000, 1), np.int64)},
    ),
    "pad some axes": (
        op("Pad", "one s _ axes", "k"),
        {"one": rand(1, 20_000), "s": i64(0, 20_000), "axes": i64(0)},
    ),
    "pad an axis from behind": (
        op("Pad", "one s _ axes", "k"),
        {"one": rand(20_000, 1), "s": i64(0, 20_000), "axes": i64(-1)},
    ),
    "gemm": (
        op("Gemm", "a b", "k", transA=1),
        {"a": rand(1, 20_000), "b": rand(1, 20_000)},
    ),
    "gemm, the other one turned": (
        op("Gemm", "a b", "k", transB=1),
        {"a": rand(20_000, 1), "b": rand(20_000, 1)},
    ),
    "einsum without an arrow": (
        op("Einsum", "a b", "k", equation="i,j"),
        {"a": rand(20_000), "b": rand(20_000)},
    ),
    "einsum with an ellipsis": (
        op("Einsum", "a b", "k", equation="...i,j->...j"),
        {"a": rand(20_000, 1), "b": rand(20_000)},
    ),
    "einsum with two ellipses and no arrow": (
        op("Einsum", "a b", "k", equation="...i,...i"),
        {"a": rand(20_000, 1, 1), "b": rand(1, 20_000, 1)},
    ),
    "clip": (op("Clip", "a b", "k"), {"a": rand(20_000, 1), "b": rand(1, 20_000)}),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_few_numbers_blow_up_is_not_made(name, monkeypatch):
    """No constant of a gigabyte is made from kilobytes of file."""
    monkeypatch.setattr(reading, "evaluate", lambda *_: pytest.fail("it was made"))
    m = model(
        HUGE[name], conv(*CONV), op("ReduceMean", "k", "r", keepdims=0), op("Mul", "c r", "y")
    )
    assert "y_mul" not in {k.node for k in bnfold.plan(m).folds}


SIZES = {
    **{
        f"Einsum {equation}": op(
            "Einsum", " ".join("ab"[: equation.count(",") + 1]), "k", equation=equation
        )
        for equation in (
            "ij,jk",
            "ij,jk->ki",
            "...i,...i",
            "i...,...i->i",
            "ij...",
            "ba,cb",
            "ii",
            "Ab,bc",
        )
    },
    **{f"Gemm {a} {b}": op("Gemm", "a b", "k", transA=a, transB=b) for a in (0, 1) for b in (0, 1)},
    "Gemm and C": op("Gemm", "a b a", "k"),
    "MatMul": op("MatMul", "a b", "k"),
    "Pad": op("Pad", "a p", "k"),
    "Pad axes": op("Pad", "a q _ r", "k"),
    "GatherND": op("GatherND", "a i", "k"),
    "GatherND deep": op("GatherND", "a j", "k"),
    "GatherND batch": op("GatherND", "a l", "k", batch_dims=1),
    "Gather": op("Gather", "a i", "k", axis=1),
    "Clip": op("Clip", "a c c", "k"),
    "Sum": op("Sum", "a c a", "k"),
}


_SHAPES = ((3, 3), (3, 3, 3), (1, 3), (3, 1), (4, 2), (3,))


@pytest.mark.parametrize("name", SIZES)
def test_the_size_that_is_told_is_no_less_than_the_size_that_is_made(name):
    """The oracle is what onnx's evaluator makes, for all shapes that it takes."""
    node, made = SIZES[name], 0
    fixed = {
        "p": i64(1, 0, 2, 3),
        "q": i64(5, 4),
        "r": i64(-1),
        "c": rand(2, 1, 1, 1),
        "i": i64([0], [1], [0], [1], [0]),
        "j": i64([0, 1], [1, 0]),
        "l": i64([[0]], [[1]], [[0]]),
    }
    for a in _SHAPES:
        for b in _SHAPES:
            held = {"a": rand(*a), "b": rand(*b), **fixed}
            inputs = [held[name] if name else None for name in node.input]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    size = evaluate(node, inputs, 18).size
            except Exception:
                continue
            made += 1
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(growth, "LARGEST", size)
                growth.refuse_huge(node, inputs, 0)  # what fits is made
                patch.setattr(growth, "LARGEST", 0)
                if size > sum(v.size for v in inputs if v is not None):
                    with pytest.raises(ValueError, match="it would have"):
                        growth.refuse_huge(node, inputs, 0)
    assert made


def test_what_is_no_larger_than_its_parts_is_made_whatever_its_size(monkeypatch):
    monkeypatch.setattr(growth, "LARGEST", 4)
    chain = [op("Transpose", "raw", "t", perm=[3, 1, 2, 0]), op("MatMul", "t q", "w")]
    m = model(
        *chain,
        op("Conv", "x w", "c"),
        const("Mul", "c", "y", rand(4, 1, 1)),
        weights={"raw": rand(3, 3, 3, 4), "q": rand(3, 3)},
    )
    folds(m, Conv=1)


@pytest.mark.parametrize("chain", ["Concat", "Identity"])
def test_a_concat_of_one_tensor_over_and_over_is_not_made(chain, monkeypatch):
    """Each is no larger than what it reads, and twelve of eight inputs are 2³⁶ numbers."""
    monkeypatch.setattr(growth, "LARGEST", 1 << 12)
    largest = []

    def counted(node, *rest):
        largest.append(evaluate(node, *rest))
        assert largest[-1].size <= 1 << 12
        return largest[-1]

    monkeypatch.setattr(reading, "evaluate", counted)
    steps, source = [], "one"
    for n in range(12):
        copies = [source] * 8 if chain == "Concat" else [f"{source}_{k}" for k in range(8)]
        if chain != "Concat":
            steps += [op(chain, source, copy) for copy in copies]
        source = f"k{n}"
        steps.append(op("Concat", " ".join(copies), source, axis=0))
    m = model(
        *steps,
        op("ReduceMean", source, "r", keepdims=0),
        conv(*CONV),
        op("Mul", "c r", "y"),
        weights={"one": rand(1)},
    )
    assert "y_mul" not in {k.node for k in bnfold.plan(m).folds}


def test_a_concat_of_what_the_file_stores_is_made_whatever_its_size(monkeypatch):
    """Each tensor once: two halves of a weight, and no weight beside itself."""
    monkeypatch.setattr(growth, "LARGEST", 4)
    for parts, folded in (("a b", True), ("a a", False)):
        m = model(
            op("Concat", parts, "w", axis=0),
            op("Conv", "x w", "c"),
            const("Mul", "c", "y", rand(4, 1, 1)),
            weights={"a": rand(2, 3, 3, 3), "b": rand(2, 3, 3, 3)},
        )
        assert bool(bnfold.plan(m).folds) == folded


@pytest.mark.parametrize("ahead", [True, False])
def test_a_map_does_not_grow_with_a_concat_over_and_over(ahead, monkeypatch):
    """Eight negations and their Concat, and so on: a map would have 8ⁿ numbers."""
    monkeypatch.setattr(laws_of_parts, "_WIDEST", 1 << 12)
    widest = 0

    def counted(scale, *rest):
        nonlocal widest
        widest = max(widest, np.size(scale))
        return of(scale, *rest)

    of = AffineMap.of
    monkeypatch.setattr(AffineMap, "of", staticmethod(counted))
    steps, source = ([bn("bn", "x", "b", 4)], "b") if ahead else ([], "x")
    for n in range(6):
        copies = [f"{source}_{k}" for k in range(8)]
        steps += [op("Neg", source, copy) for copy in copies]
        source = f"k{n}"
        steps.append(op("Concat", " ".join(copies), source, axis=1))
    steps.append(op("Identity", source, "y") if ahead else const("Mul", source, "y", np.float32(2)))
    bnfold.plan(model(*steps, x=(1, 4, 2, 2)))
    assert 4 < widest <= 1 << 12
