"""A certificate whose check did not run neither holds nor fails; what rests on it has to show.

Caught here and nowhere else: a check that returns "no difference" because it ran nothing, and a
verdict that takes such a certificate for one that holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnfold._core.laws import Mixed
from bnfold._judge.settings import Settings
from bnfold._onnx.fold import prepare
from bnfold._onnx.write.applied import Applied
from bnfold._pipeline.models import fold_file
from bnfold._pipeline.outcome import Outcome
from bnfold._proof import certificate, crossings, operator_data
from bnfold._proof import local_probe as local
from bnfold._proof.certificate import certify
from bnfold._proof.checked_model import CheckedModel, follow
from bnfold._proof.evidence import Certificate, Mismatch, Obstacle
from bnfold._proof.full_rank_maps import FullRankMap
from bnfold._report import findings, text
from bnfold._run.bounds import UNBOUNDED, Bounds
from bnfold._run.session import EngineError

from ..graphs import bn, const, conv, done, model, op, rand


def without_shapes(made: ModelProto) -> ModelProto:
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.ClearField("shape")
    return made


def enlarged(read: str, written: str) -> tuple[Any, dict[str, Any]]:
    """A Resize to twice the size."""
    made = helper.make_node("Resize", [read, "", "sizes"], [written], name="resize", mode="nearest")
    return made, {"sizes": np.array([1, 1, 2, 2], np.float32)}


def resized(*behind: Any, **options: Any) -> ModelProto:
    """Conv → Relu → Resize → Mul → Conv."""
    factor = options.pop("factor", 2.0)
    return model(
        conv("one", "x", "a", (4, 3, 3, 3)),
        op("Relu", "a", "b", name="relu"),
        enlarged("b", "c"),
        const("Mul", "c", "d", np.float32(factor), name="mul"),
        *(behind or (conv("two", "d", "y", (4, 4, 3, 3)),)),
        **options,
    )


def certificates(
    made: ModelProto, folder: Path, bounds: Bounds = UNBOUNDED, spoil: Any = None
) -> dict[str, Certificate]:
    """The certificates of a fold by what they are of; ``spoil`` may change the original then."""
    original = ModelProto()
    original.CopyFrom(made)
    applied = prepare(made, folder).apply().applied
    if spoil is not None:
        spoil(original)
    found = certify(original, made, applied, folder, folder, bounds=bounds)
    return {f"{one.law} {one.into}": one for one in found}


def unchecked(found: dict[str, Certificate]) -> dict[str, Obstacle]:
    return {name: one.unchecked.obstacle for name, one in found.items() if one.unchecked}


@pytest.mark.parametrize("kind", ["Relu", "Abs", "LeakyRelu"])
@pytest.mark.parametrize("map_", ["Mul", "Add", "BatchNormalization", "Mul Add"])
def test_a_rank_that_follows_from_weights_is_known_to_the_certificate(
    kind: str, map_: str, tmp_path: Path
) -> None:
    """Right folds behind an operator whose output has no shape; none was seen to be wrong. The
    rank comes from the convolution ahead, through what keeps it and through constants.
    """
    pieces = [conv("one", "x", "a", (4, 4, 3, 3)), op(kind, "a", "b", name="act")]
    read = "b"
    for number, each in enumerate(map_.split()):
        written = f"m{number}"
        if each == "BatchNormalization":
            pieces.append(bn(f"map{number}", read, written, 4))
        else:
            values = np.abs(rand(4, 1, 1)) + 0.5
            pieces.append(const(each, read, written, values, name=f"map{number}"))
        read = written
    made = without_shapes(model(*pieces, conv("two", read, "y", (4, 4, 1, 1))))
    found = certificates(made, tmp_path)
    assert found
    assert not any(one.fails for one in found.values()), found


def test_a_norm_of_unknown_rank_takes_in_a_number(tmp_path: Path) -> None:
    norm = op("InstanceNormalization", "x g b", "a", name="norm")
    weights = {"g": rand(4), "b": rand(4)}
    made = without_shapes(model(norm, op("Neg", "a", "y"), weights=weights))
    found = certificates(made, tmp_path)
    assert [one.holds for one in found.values()] == [True]


@pytest.mark.parametrize("kind", ["Identity", "Neg", "Mul", "Add", "BatchNormalization", "Conv"])
def test_the_certificate_follows_no_operator_of_another_domain(kind: str) -> None:
    """A name is no definition: nothing is known of it, neither its map nor its rank."""
    inputs = {"Identity": "x", "Neg": "x", "BatchNormalization": "x w w w w"}.get(kind, "x w")
    node = op(kind, inputs, "y", domain="my")
    made = model(node, weights={"w": rand(4, 1, 1, 1)}, domains={"my": 1})
    side = CheckedModel.of(made, None)
    scope = side.scopes[""]
    with pytest.raises(Mismatch):
        follow(side, scope, made.graph.node[0], FullRankMap.identity(4))
    assert side.rank(scope, "y") is None


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1), (4, 1, 1, 1)])
def test_channels_and_constants_do_not_meet_at_a_rank_that_is_not_known(
    shape: tuple[int, ...],
) -> None:
    """Of a tensor of unknown rank axis 1 is not the one that a constant varies along."""
    norm = bn("norm", "x", "a", 4)
    made = without_shapes(model(norm, const("Mul", "a", "y", rand(*shape), name="mul")))
    scope = CheckedModel.of(made, None).scopes[""]
    fold = Applied("", "compose", 0, (0, 1), (0, 1), "x", "y")
    side = CheckedModel.of(made, None)
    rank = certificate._least_rank(scope, fold)
    line = FullRankMap.identity(rank)
    for node in scope.nodes:
        follow(side, scope, node, line)
    assert line.scale.shape[1] == 4 and line.scale.size == 16


def folded(made: ModelProto, folder: Path, **options: Any) -> Outcome:
    onnx.save(made, folder / "model.onnx")
    output = folder / "folded.onnx"
    arguments: dict[str, Any] = {"verify": True, "inputs": None, "progress": lambda step: None}
    return fold_file(folder / "model.onnx", output, **arguments, settings=Settings(**options))


# --- the ways of being unchecked ----------------------------------------------------------------


def shaped(kind: str) -> ModelProto:
    """To a shape that only the data of a run has."""
    made = model(
        conv("one", "x", "a", (4, 3, 1, 1)),
        op("Shape", "x", "s"),
        op("Sub", "s more", "t"),
        op(kind, "a t", "c", name="shaped"),
        const("Mul", "c", "d", np.float32(2.0), name="mul"),
        op("Sigmoid", "d", "y"),
        x=("n", 3, "h", "w"),
        weights={"more": np.array([0, -1, 0, 0])},
    )
    made.graph.value_info.append(helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, "abcd"))
    return made


def sliced() -> ModelProto:
    """Further out than any size that is made up."""
    places = {"from": np.array([10]), "to": np.array([12]), "along": np.array([3])}
    return model(
        conv("one", "x", "a", (4, 3, 1, 1)),
        op("Slice", "a from to along", "c", name="slice"),
        const("Mul", "c", "d", np.float32(2.0), name="mul"),
        op("Sigmoid", "d", "y"),
        x=("n", 3, "h", "w"),
        weights=places,
    )


def crossed(shape: tuple[Any, ...], factor: float = 2.0) -> ModelProto:
    return model(
        conv("one", "x", "a", (4, 3, 1, 1), bias=False),
        op("Relu", "a", "c", name="relu"),
        const("Mul", "c", "d", np.float32(factor), name="mul"),
        op("Sigmoid", "d", "y"),
        x=shape,
    )


def break_runs(patch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        raise EngineError("no kernel")

    patch.setattr(crossings, "OnnxRuntime", refuse)


WAYS: dict[str, tuple[Callable[[], ModelProto], str, Obstacle]] = {
    "unknown shape": (lambda: without_shapes(resized()), "cross resize", Obstacle.SHAPE_UNKNOWN),
    "too large": (lambda: crossed((1, 3, 1200, 1200)), "cross relu", Obstacle.TOO_LARGE),
    "shape of a run": (lambda: shaped("Expand"), "cross shaped", Obstacle.NOT_DRAWABLE),
    "empty": (sliced, "cross slice", Obstacle.EMPTY),
    "overflow": (lambda: crossed((2, 3, 5, 5), 3e38), "cross relu", Obstacle.NOT_FINITE),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_crossing_that_says_nothing_is_unchecked(way: str, tmp_path: Path) -> None:
    make, name, obstacle = WAYS[way]
    found = certificates(make(), tmp_path)
    assert unchecked(found)[name] is obstacle
    assert not found[name].holds
    assert not found[name].fails
    assert all(one.holds for one in found.values() if not one.unchecked)


def test_a_scale_across_a_reshape_to_the_shape_of_a_run_is_checked() -> None:
    """One number for all elements: any target shows whether it is right."""
    made = shaped("Reshape")
    once = done(made)
    after, applied = once.folded, once.applied
    assert all(one.holds for one in certify(made, after, applied))
    at = next(k for k, step in enumerate(applied) if step.law == "cross")
    related = dict(applied[at].related)
    relation = related["c"]
    wrong = [replace(factor, scale=factor.scale * 1.01) for factor in relation.new]
    related["c"] = replace(relation, new=tuple(wrong))
    applied[at] = replace(applied[at], related=related)
    assert certify(made, after, applied)[at].fails


@pytest.mark.parametrize("shift", [np.zeros(1), np.zeros(4)], ids=["one", "channels"])
def test_a_sum_of_unknown_shapes_is_checked_by_single_numbers_alone(shift: Any) -> None:
    """A shift for each channel has an axis, and a row that is made up has none like it."""
    convs = (conv(n, "x", n, (4, 3, 1, 1)) for n in "ab")
    relus = (op("Relu", n, f"r{n}") for n in "ab")
    added = op("Add", "ra rb", "c"), const("Mul", "c", "y", np.float32(2.0))
    made = without_shapes(model(*convs, *relus, *added))
    after = ModelProto()
    after.CopyFrom(made)
    applied = prepare(after, None).apply().applied
    laws = [(step.law, made.graph.node[step.into].op_type) for step in applied]
    at = laws.index(("cross", "Add"))
    related = {
        name: replace(
            relation,
            new=tuple(
                replace(f, shift=shift, axis=1 if shift.size > 1 else None) for f in relation.new
            ),
        )
        for name, relation in applied[at].related.items()
    }
    applied[at] = replace(applied[at], related=related)
    found = certify(made, after, applied)[at]
    told = found.unchecked.obstacle if found.unchecked else None
    assert (found.holds, told) == (
        (True, None) if shift.size == 1 else (False, Obstacle.SHAPE_UNKNOWN)
    )


@pytest.mark.parametrize("shift", [np.zeros(1), np.zeros(4)], ids=["one", "channels"])
def test_a_reshape_to_sizes_of_a_run_is_checked_by_single_numbers_alone(shift: Any) -> None:
    """Any target will do for them. A shift for each channel goes where the sizes say."""
    made = model(
        conv("a", "x", "r", (4, 3, 1, 1)),
        op("Reshape", "r to", "c"),
        const("Mul", "c", "y", np.float32(2.0)),
    )
    made.graph.input.append(helper.make_tensor_value_info("to", TensorProto.INT64, (4,)))
    after = ModelProto()
    after.CopyFrom(made)
    applied = prepare(after, None).apply().applied
    at = next(k for k, step in enumerate(applied) if step.law == "cross")
    related = {
        name: replace(
            relation,
            **{
                side: tuple(
                    replace(f, shift=shift, axis=1 if shift.size > 1 else None)
                    for f in getattr(relation, side)
                )
                for side in ("old", "new")
            },
        )
        for name, relation in applied[at].related.items()
    }
    applied[at] = replace(applied[at], related=related)
    assert certify(made, after, applied)[at].holds is (shift.size == 1)


def test_an_operator_that_does_not_run_is_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_runs(monkeypatch)
    found = certificates(resized(), tmp_path)
    assert set(unchecked(found).values()) == {Obstacle.DOES_NOT_RUN}
    assert str(found["cross relu"].unchecked) == "it does not run by itself: no kernel"


def test_time_that_is_up_leaves_the_rest_unchecked(tmp_path: Path) -> None:
    found = certificates(resized(), tmp_path, Bounds.beginning(1, 1e-9))
    assert unchecked(found) == {
        "cross resize": Obstacle.EXHAUSTED,
        "cross relu": Obstacle.EXHAUSTED,
    }
    assert "time is up" in str(found["cross relu"].unchecked)


def test_where_all_runs_nothing_is_unchecked(tmp_path: Path) -> None:
    assert not unchecked(certificates(resized(), tmp_path))


def test_a_merge_of_what_is_not_finite_is_unchecked(tmp_path: Path) -> None:
    made = model(
        conv("one", "x", "a", (4, 3, 3, 3), pads=[1, 1, 1, 1]),
        conv("two", "x", "b", (4, 3, 1, 1)),
        op("Add", "a b", "y"),
    )

    def spoil(original: ModelProto) -> None:
        (weight,) = (t for t in original.graph.initializer if t.name == "two.w")
        values = numpy_helper.to_array(weight).copy()
        values[0] = np.nan
        weight.CopyFrom(numpy_helper.from_array(values, "two.w"))

    found = certificates(made, tmp_path, spoil=spoil)
    (name,) = (name for name in found if name.startswith("merge"))
    assert unchecked(found)[name] is Obstacle.NOT_FINITE


@pytest.mark.parametrize("spoiled", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_no_probe(spoiled: float, tmp_path: Path) -> None:
    """They are passed over, and where there is no other, nothing was probed."""
    made = model(conv("one", "x", "a", (4, 3, 1, 1)), bn("norm", "a", "y", 4))
    original = ModelProto()
    original.CopyFrom(made)
    (fold,) = prepare(made, tmp_path).apply().applied
    before, after = CheckedModel.of(original, None), CheckedModel.of(made, None)
    numbers = rand(2, 3, 8, 8)
    found = local.probe(before, after, fold, numbers)
    assert found is not None
    assert found <= 1.0
    assert local.probe(before, after, fold, np.full_like(numbers, spoiled)) is None
    for tensor in made.graph.initializer:
        values = numpy_helper.to_array(tensor) * np.float32(np.nan)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert local.probe(before, CheckedModel.of(made, None), fold, numbers) == np.inf


# --- what rests on them -------------------------------------------------------------------------


def test_it_is_told_everywhere(tmp_path: Path) -> None:
    outcome = folded(without_shapes(resized()), tmp_path)
    assert outcome.verdict.status == "pass"  # an error in what rests on them was seen to show
    lines = list(text.outcome_lines(outcome, verbose=False))
    assert "certificates: 3 of 4 hold, 0 fail, 1 unchecked" in lines
    assert "  resize: unchecked, the shape of b is not known" in lines
    told = json.loads(text.json_text(text.outcome_document(outcome)))["verification"][
        "certificates"
    ]
    by_name = {(one["law"], one["into"]): one for one in told}
    resize = by_name["cross", "resize"]
    assert (resize["holds"], resize["ulps"]) == (False, None)
    assert resize["unchecked"] == "the shape of b is not known"
    assert by_name["absorb", "one"]["unchecked"] == ""
    found = {f.name: f.status for f in findings.of_fold(outcome) if f.group == "certificate"}
    assert [name for name, status in found.items() if status == "inconclusive"] == ["resize"]


def hidden(factor: float, gate: str) -> ModelProto:
    """A map is carried across a gate, open ("Div") or shut ("Sub"), and other operators; folds next
    to it are not, and the first of those is in the same part of the graph when errors are planted.
    """
    others = [
        piece
        for k in range(6)
        for piece in (
            conv(f"conv{k}", f"t{k}" if k else "x", f"c{k}", (4, 4 if k else 3, 1, 1)),
            bn(f"bn{k}", f"c{k}", f"t{k + 1}", 4),
        )
    ]
    return model(
        conv("one", "x", "a", (4, 3, 3, 3)),
        op("MaxPool", "a", "b", kernel_shape=[2, 2], name="pool"),
        enlarged("b", "c"),
        op("ReduceSum", "x", "sum", keepdims=0),
        op(gate, "sum sum", "gate"),
        op("Mul", "c gate", "d"),
        const("Mul", "d", "e", np.float32(factor), name="mul"),
        *others,
        op("ReduceMean", "t6", "f"),
        op("Add", "e f", "y"),
    )


def pass_negative(patch: pytest.MonkeyPatch) -> None:
    """Let scales of any sign across a MaxPool."""
    right = Mixed._moved
    patch.setattr(Mixed, "_moved", lambda self, *rest: right(replace(self, positive=False), *rest))


@pytest.mark.parametrize(
    "shapes, gate, status",
    [
        (True, "Div", "fail"),
        (True, "Sub", "fail"),
        (False, "Div", "fail"),
        (False, "Sub", "inconclusive"),
    ],
)
def test_a_wrong_fold_with_an_unchecked_certificate_does_not_pass(
    shapes: bool, gate: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the shut gate the comparison notices nothing, and no check of the fold has run."""
    pass_negative(monkeypatch)
    made = hidden(-2.0, gate)
    outcome = folded(made if shapes else without_shapes(made), tmp_path)
    assert outcome.plan.folds
    assert outcome.verdict.status == status
    if status == "inconclusive":
        assert outcome.verdict.end_to_end is not None
        notes = outcome.verdict.end_to_end.notes
        assert any("certificate of pool is unchecked" in note for note in notes)


@pytest.mark.parametrize("shapes, status", [(True, "pass"), (False, "inconclusive")])
def test_a_right_fold_that_nothing_shows_rests_on_its_certificate(
    shapes: bool, status: str, tmp_path: Path
) -> None:
    """The same model, folded rightly: what the certificate is missing for is not proved."""
    made = hidden(2.0, "Sub")
    outcome = folded(made if shapes else without_shapes(made), tmp_path)
    assert outcome.plan.folds
    assert outcome.verdict.status == status


@pytest.mark.parametrize(
    "sizes, free, target, wanted",
    [
        ((4, 2, 6, 6), [2, 3], [4, 2, 1, 2, 4], (4, 2, 8, 1)),
        ((2, 27, 2), [0, 2], [3, 81], (9, 27, 1)),
        ((1, 6, 6, 6, 6), [1, 2, 3, 4], [0, 1, 1, 8, 4, 4], (1, 128, 1, 1, 1)),
        ((6, 3), [0], [-1, 4], (4, 3)),  # what is left over takes any count that divides
        ((4, 3), [0], [-1, 4], (4, 3)),
        ((5, 3), [0], [0, 3], (5, 3)),  # a size that is copied is right as it is
        ((5, 6, 2), [0, 1], [0, 4], (5, 2, 2)),
        ((2, 3), [], [4], (2, 3)),
        ((2, 3), [0], [4], (2, 3)),  # no size fits
        ((2, 3), [0], None, (2, 3)),
    ],
)
def test_a_reshape_is_run_at_sizes_that_it_takes_to_its_target(sizes, free, target, wanted):
    """Without them such a crossing would be unchecked, and its fold rest on the comparison."""
    asked = None if target is None else np.array(target)
    assert operator_data._that_reshape(sizes, free, asked) == wanted
