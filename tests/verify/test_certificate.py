"""The certificate on small folds of every kind: it holds for right numbers and for no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from bnfold._onnx.files.load import load_model
from bnfold._proof import absorption
from bnfold._proof.certificate import certify

from ..graphs import (
    bn,
    const,
    conv,
    conv_transpose,
    model,
    op,
    rand,
    tensor,
)
from .folds import (
    BITS,
    CASES,
    SPLIT,
    STANDING,
    branches,
    case,
    every_case,
    every_type,
    folded,
    function,
    none_holds,
    put,
    values,
)

Array = Any
SLOW = pytest.mark.slow


@pytest.fixture(params=[1 << 20, 5], ids=["whole", "in parts"])
def _at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights are looked at part by part; these are small, so that the parts have to be."""
    monkeypatch.setattr(absorption, "_AT_ONCE", request.param)


part_by_part = pytest.mark.usefixtures("_at_once")
"""For what is about numbers of weights, and not about operators."""


@pytest.fixture(params=[pytest.param(1 << 20, marks=SLOW), 5], ids=["whole", "in parts"])
def _mostly_in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is whole is one part: what parts notice, it notices, and those tests that take
    both ways have shown that it can.
    """
    monkeypatch.setattr(absorption, "_AT_ONCE", request.param)


in_parts = pytest.mark.usefixtures("_mostly_in_parts")


@part_by_part
@every_type
@every_case
def test_right_fold_holds(name: str, elem: str) -> None:
    done = case(name, elem)
    assert done.new() or name == "gemm-ignored-c"
    for fold, certificate in zip(done.applied, done.certificates(), strict=True):
        assert certificate.holds
        assert certificate.ulps <= 1
        assert certificate.problem == ""
        labels = [n.name for n in done.original.graph.node]
        assert certificate.into == labels[fold.into]
        assert certificate.maps == tuple(labels[i] for i in fold.maps)


@part_by_part
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=SLOW) for n in range(4, 60))])
def test_right_fold_of_any_numbers_holds(seed: int) -> None:
    for name, build in CASES.items():
        made = build()
        rng = np.random.default_rng(seed)
        for stored in made.graph.initializer:
            old = numpy_helper.to_array(stored)
            new = 10 ** rng.uniform(-3, 3, old.shape)
            if not stored.name.endswith("var"):
                new *= rng.choice([-1, 1], old.shape)
            stored.CopyFrom(tensor(new.astype(old.dtype), stored.name))
        for certificate in folded(made).certificates():
            assert certificate.holds, (name, certificate)


@part_by_part
@pytest.mark.parametrize("build, count", [(branches, 2), (function, 1)])
def test_right_fold_inside_another_graph_holds(build: Callable[[], ModelProto], count: int) -> None:
    done = folded(build())
    found = done.certificates()
    assert len(found) == count
    assert all(c.holds and c.graph for c in found)


def test_wrong_number_in_a_branch_is_seen_there_only() -> None:
    done = folded(branches())
    wrong = done.copy()
    then = next(a.g for a in wrong.graph.node[0].attribute if a.name == "then_branch")
    stored = next(t for t in then.initializer if t.name.startswith("one.w"))
    stored.CopyFrom(tensor(nudged(numpy_helper.to_array(stored), 0, 2), stored.name))
    held = {c.into: c.holds for c in done.certificates(wrong)}
    assert held == {"one": False, "two": True}


def test_weights_in_external_files(tmp_path: Path) -> None:
    paths = [tmp_path / side / "m.onnx" for side in ("old", "new")]
    done = case("conv-2d")
    for path, proto in zip(paths, (done.original, done.folded)):
        path.parent.mkdir()
        onnx.save(proto, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    models = [load_model(path) for path in paths]
    (certificate,) = certify(*models, done.applied, *(path.parent for path in paths))
    assert certificate.holds
    other = case("conv-square")
    onnx.save(other.folded, paths[1], save_as_external_data=True, location="m.bin")
    (certificate,) = certify(
        models[0], load_model(paths[1]), done.applied, *(p.parent for p in paths)
    )
    assert not certificate.holds


# --- wrong numbers -----------------------------------------------------------------------------


def nudged(array: Array, place: int, steps: int) -> Array:
    """The array with one number some representable steps further from zero."""
    bits = array.reshape(-1).view(BITS[array.dtype.itemsize]).copy()
    bits[place] += bits.dtype.type(steps)
    return bits.view(array.dtype).reshape(array.shape)


def spots(array: Array) -> Iterator[int]:
    return iter(sorted({0, array.size // 2, array.size - 1}))


def least(name: str, elem: str) -> int:
    """How many steps no right number can be off. Float64 forgives what computing in it may lose;
    where something still stands behind the operator, two or three numbers are rounded each.
    """
    return (64 if name in SPLIT + STANDING else 2) * (4096 if elem == "fp64" else 1)


@part_by_part
@every_type
@every_case
def test_number_that_is_off_is_seen(name: str, elem: str) -> None:
    done = case(name, elem)
    for constant in done.new():
        right = values(done.folded, constant)
        for place in spots(right):
            if right.reshape(-1)[place] == 0:  # the mean of a new BatchNormalization
                continue
            wrong = done.copy()
            put(wrong, constant, nudged(right, place, least(name, elem)))
            assert none_holds(done.certificates(wrong)), (constant, place)


AHEAD: dict[str, Callable[[], ModelProto]] = {
    "conv-grouped": lambda: model(
        bn("bn", "x", "n", 4), conv("conv", "n", "y", (6, 2, 2, 2), group=2), x=(2, 4, 5, 6)
    ),
    "conv-transpose": lambda: model(
        bn("bn", "x", "n", 4), conv_transpose("up", "n", "y", (4, 3, 1, 1)), x=(2, 4, 5, 6)
    ),
    "gemm": lambda: model(
        bn("bn", "x", "n", 4),
        (op("Gemm", "n fc.w", "y", name="fc"), {"fc.w": rand(4, 3)}),
        x=(5, 4),
    ),
    "gemm-turned": lambda: model(
        bn("bn", "x", "n", 4),
        (op("Gemm", "n fc.w", "y", name="fc", transB=1, alpha=0.5), {"fc.w": rand(3, 4)}),
        x=(5, 4),
    ),
    "gemm-left": lambda: model(
        const("Mul", "x", "s", rand(4, 1)),
        const("Add", "s", "n", rand(4, 1)),
        (op("Gemm", "fc.w n", "y", name="fc"), {"fc.w": rand(5, 4)}),
        x=(4, 3),
    ),
    "matmul": lambda: model(
        const("Mul", "x", "n", rand(4)),
        (op("MatMul", "n mm.w", "m", name="mm"), {"mm.w": rand(4, 3)}),
        const("Add", "m", "y", rand(3)),
        x=(2, 5, 4),
    ),
}


@part_by_part
@pytest.mark.parametrize("name", AHEAD)
def test_number_of_an_operator_that_absorbed_what_came_ahead_is_seen(name: str) -> None:
    done = folded(AHEAD[name]())
    certificates = done.certificates()
    assert len(done.folded.graph.node) < len(done.original.graph.node)
    assert certificates and all(c.holds for c in certificates), certificates
    assert done.new()
    for constant in done.new():
        right = values(done.folded, constant)
        for place in range(right.size):
            wrong = done.copy()
            put(wrong, constant, nudged(right, place, 200))
            assert not all(c.holds for c in done.certificates(wrong)), (constant, place)


@part_by_part
@pytest.mark.parametrize("name", ["conv-2d", "transposed-grouped", "gemm-full-c", "layer-norm"])
def test_rounding_to_either_side_is_forgiven(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for place in spots(right):
            wrong = done.copy()
            put(wrong, constant, nudged(right, place, 1))
            (certificate,) = done.certificates(wrong)
            assert 0.5 <= certificate.ulps < 1.5


@in_parts
@every_case
def test_swapped_channels_are_seen(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for axis, size in enumerate(right.shape):
            if size == 1 or not right.any():
                continue
            for turned in (np.roll(right, 1, axis), np.flip(right, axis)):
                if (turned == right).all():
                    continue
                wrong = done.copy()
                put(wrong, constant, turned)
                assert none_holds(done.certificates(wrong)), (constant, axis)


@in_parts
@every_case
def test_one_channel_off_by_a_percent_is_seen(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for axis, size in enumerate(right.shape):
            factors = np.ones(size, np.float32)
            factors[size // 2] = 1.01
            wrong = done.copy()
            along = factors.reshape([size if k == axis else 1 for k in range(right.ndim)])
            put(wrong, constant, right * along)
            assert none_holds(done.certificates(wrong)) == bool(right.any()), (constant, axis)


@in_parts
@every_case
def test_numbers_of_before_are_seen(name: str) -> None:
    """Each constant that the fold wrote is put back to what its operator read before."""
    done = case(name)
    before = next(n for n in done.original.graph.node if n.name == done.node(done.folded).name)
    for at, constant in enumerate(done.node(done.folded).input):
        if constant not in done.new() or at >= len(before.input):
            continue
        wrong = done.copy()
        old = values(done.original, before.input[at])
        put(wrong, constant, np.broadcast_to(old, values(wrong, constant).shape).copy())
        assert none_holds(done.certificates(wrong)), constant


@in_parts
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0], ids=str)
@every_case
def test_special_numbers_are_seen(name: str, value: float) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        if not right.any():
            continue
        wrong, spoilt = done.copy(), right.copy()
        spoilt.reshape(-1)[0] = value
        put(wrong, constant, spoilt)
        assert none_holds(done.certificates(wrong)), constant


@pytest.mark.parametrize("name", list(CASES))
def test_numbers_of_another_shape_are_seen(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for axis, size in enumerate(right.shape):
            first = np.take(right, [0], axis)
            if size == 1 or (right == first).all():
                continue
            for other in (first, np.concatenate([right, right], axis)):
                wrong = done.copy()
                put(wrong, constant, other)
                assert none_holds(done.certificates(wrong)), (constant, other.shape)


@part_by_part
@pytest.mark.parametrize("statistic", ["mean", "var"])
def test_changed_statistics_of_an_absorbing_batch_norm_are_seen(statistic: str) -> None:
    done = case("batch-norm-mul-add")
    wrong = done.copy()
    put(wrong, f"bn.{statistic}", values(wrong, f"bn.{statistic}") * np.float32(1.01))
    assert none_holds(done.certificates(wrong))


def test_each_fold_is_judged_for_itself() -> None:
    done = folded(
        model(
            conv("one", "x", "a", (4, 3, 1, 1)),
            bn("bn1", "a", "b", 4),
            op("Relu", "b", "r"),
            conv("two", "r", "c", (5, 4, 1, 1)),
            bn("bn2", "c", "y", 5),
        )
    )
    for name, seen in (("one.w", [False, True]), ("two.b", [True, False])):
        constant = next(n for n in done.new() if n.startswith(name))
        wrong = done.copy()
        put(wrong, constant, nudged(values(wrong, constant), 0, 2))
        assert [c.holds for c in done.certificates(wrong)] == seen
