"""What a comparison says of errors that it would not notice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import bnfold
from bnfold._judge import half_weights
from bnfold._judge.power import Power
from bnfold._judge.sensitivity import Sensitivity
from bnfold._judge.tolerance import Tolerance
from bnfold._judge.verdict import end_to_end_lines
from bnfold._run.bounds import UNBOUNDED
from bnfold._run.drawing import InputSource
from bnfold._run.onnx_model import OnnxModel
from bnfold._run.perturbable import find_weights
from bnfold._run.session import OnnxRuntime
from bnfold._run.source import Source

from ..graphs import FLOAT, HALF, Piece, bn, const, conv, model, op, rand
from .conftest import Compare


def behind_a_dead_one() -> ModelProto:
    """Layers in pairs; one of the first pair is cut off by a mask."""
    mask = np.full((1, 4, 1, 1), 1e-20, np.float32)
    return model(
        conv("open", "x", "a", (4, 3, 1, 1)),
        conv("hidden", "x", "b", (4, 3, 1, 1)),
        const("Mul", "b", "c", mask, name="mask"),
        op("Add", "a c", "t0"),
        *(conv(f"c{n}", f"t{n}", f"t{n + 1}", (4, 4, 1, 1)) for n in range(4)),
        op("Identity", "t4", "y"),
    )


def test_every_layer_by_itself() -> None:
    made = behind_a_dead_one()
    result = bnfold.verify(made, made)
    assert result.status == "pass"
    result = bnfold.verify(made, made, power=True)
    told = {planted.layers: planted.noticed for planted in result.power}
    assert [layers for layers, noticed in told.items() if not noticed] == [("hidden",)]
    assert result.status == "inconclusive"
    assert any("is not proved" in note for note in result.notes)


def test_parts_of_the_graph_share_their_errors() -> None:
    """One layer of each part shows, which is all that is known by default."""
    layers = [conv(f"c{n}", f"t{n}", f"t{n + 1}", (4, 4, 1, 1)) for n in range(7)]
    made = model(op("Identity", "x", "t0"), *layers, op("Identity", "t7", "y"), x=(1, 4, 5, 5))
    result = bnfold.verify(made, made)
    assert [len(planted.layers) for planted in result.power] == [2, 2, 3]
    assert result.power and all(planted.noticed and planted.ratio > 2 for planted in result.power)


@pytest.mark.parametrize("certified, status", [(True, "pass"), (False, "inconclusive")])
def test_a_certificate_carries_what_does_not_show(
    certified: bool, status: str, judge: Compare, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(behind_a_dead_one(), path)
    touched = ["open.w", "hidden.w", "c0.w", "c1.w", "c2.w", "c3.w"]
    result = judge(path, path, touched=touched, power=True, certified=certified)
    assert result.status == status
    touched.remove("hidden.w")  # a layer that no fold concerns does not matter
    result = judge(path, path, touched=touched, power=True, certified=certified)
    assert result.status == "pass"


def test_an_error_that_shows_fails_when_it_is_made() -> None:
    """What is said to be noticed is: the very error, made in the folded model."""
    made = model(
        conv("one", "x", "a", (6, 3, 3, 3), pads=[1, 1, 1, 1]),
        bn("norm", "a", "b", 6),
        op("Tanh", "b", "c"),
        conv("two", "c", "y", (6, 6, 1, 1)),
    )
    result = bnfold.verify(made, made, power=True)
    assert {p.layers[0] for p in result.power if p.noticed} >= {"one", "norm", "two"}
    for name in ("one.w", "two.w"):
        for channel in range(6):
            wrong = ModelProto()
            wrong.CopyFrom(made)
            (weight,) = (t for t in wrong.graph.initializer if t.name == name)
            values = numpy_helper.to_array(weight).copy()
            values[channel] *= np.float32(1.01)
            weight.CopyFrom(numpy_helper.from_array(values, name))
            assert bnfold.verify(made, wrong).status == "fail", (name, channel)


def test_power_is_that_of_the_tolerance_in_the_end() -> None:
    """Doubt widens the tolerance; what was planted before then has shown less than it seemed."""
    made = model(conv("one", "x", "y", (6, 300, 3, 3)), x=(1, 300, 4, 4))
    wrong = ModelProto()
    wrong.CopyFrom(made)
    (weight,) = (t for t in wrong.graph.initializer if t.name == "one.w")
    values = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, "one.w"))
    same, doubted = (bnfold.verify(made, other) for other in (made, wrong))
    assert [result.status for result in (same, doubted)] == ["pass", "fail"]
    assert (doubted.checks[0].rounding or 0) > (same.checks[0].rounding or 0)
    for result in (same, doubted):
        first = result.checks[0]
        assert first.tolerance and first.power
        assert result.power[0].ratio == pytest.approx(first.power / first.tolerance)


@pytest.mark.parametrize("rows, columns", [(4, 4), (3, 8), (64, 3)])
def test_the_channels_of_a_product_are_those_it_puts_out(rows: int, columns: int) -> None:
    """All inputs but one are 0: an error in their rows could not show, one in a column does."""
    cut = np.zeros(rows, np.float32)
    cut[-1] = 1
    made = model(
        const("Mul", "x", "a", cut, name="cut"),
        (op("MatMul", "a w", "y", name="product"), {"w": rand(rows, columns)}),
        x=(5, rows),
    )
    for seed in range(6):
        told = {p.layers[0]: p for p in bnfold.verify(made, made, power=True, seed=seed).power}
        assert told["product"].noticed


class Counted:
    """Every run with planted errors: the layers they are in, and whether half of the channels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[tuple[tuple[str, ...], bool]] = []
        plant = Sensitivity.plant

        def counted(given: Sensitivity, layers: Any, *rest: Any, half: bool = False) -> list[float]:
            self.runs.append((tuple(layer.label for layer in layers), half))
            return plant(given, layers, *rest, half=half)

        monkeypatch.setattr(Sensitivity, "plant", counted)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def shown() -> Sequence[Piece]:
    return [conv(f"c{n}", f"t{n}" if n else "x", f"t{n + 1}", (4, 4, 1, 1)) for n in range(4)]


def newer(made: ModelProto) -> ModelProto:
    """The same model under the next opset, so that no part of the two counts as the same."""
    other = ModelProto.FromString(made.SerializeToString())
    other.opset_import[0].version += 1
    return other


def masked() -> Sequence[Piece]:
    return [
        conv("h0", "x", "h", (4, 4, 1, 1)),
        conv("h1", "h", "g", (4, 4, 1, 1)),
        const("Mul", "g", "z", np.full((1, 4, 1, 1), 1e-20, np.float32), name="mask"),
    ]


@pytest.mark.parametrize("first", [True, False], ids=["first part", "last part"])
def test_a_part_that_no_output_shows_ends_a_set(first: bool, counted: Counted) -> None:
    """The part that hid is tried first on the next set; every other is tried once, on one set."""
    parts = [*masked(), *shown()] if first else [*shown(), *masked()]
    made = model(*parts, op("Add", "t4 z", "y"), x=(1, 4, 5, 5))
    result = bnfold.verify(made, newer(made))
    sets = len(result.checks)
    assert sets == 3
    hidden = ("h0", "h1")
    assert counted.runs.count((hidden, False)) == counted.runs.count((hidden, True)) == sets
    assert len(counted.runs) == 2 * sets + 2
    assert {p.layers: p.noticed for p in result.power} == {
        hidden: False,
        ("c0", "c1"): True,
        ("c2", "c3"): True,
    }
    assert result.status == "inconclusive"
    assert {check.status for check in result.checks} == {"inconclusive"}


def test_an_output_that_was_seen_to_move_is_none_that_hides(counted: Counted) -> None:
    """One output shows all, the other not the masked layers: only the other is in doubt."""
    made = model(
        *masked(),
        *shown(),
        op("Add", "t4 z", "y"),
        op("Add", "g t4", "w"),
        x=(1, 4, 5, 5),
        y="y w",
    )
    result = bnfold.verify(made, newer(made))
    assert {(check.output, check.status) for check in result.checks} == {
        ("y", "inconclusive"),
        ("w", "pass"),
    }
    assert result.power and all(planted.noticed for planted in result.power)
    assert len({layers for layers, _ in counted.runs}) == 3
    first, *others = (check.power for check in result.checks if check.output == "w")
    assert first
    assert others == [None, None]  # not all parts were tried there


def test_half_of_the_channels_show_what_one_does_not(counted: Counted) -> None:
    """Nearly half of the channels are dead: among half of them there is always one that is not."""
    alive = np.zeros((1, 64, 1, 1), np.float32)
    alive[0, :33] = 1
    made = model(
        conv("one", "x", "a", (64, 3, 1, 1)),
        const("Mul", "a", "y", alive, name="mask"),
        x=(1, 3, 4, 4),
    )
    for seed in range(8):
        assert {check.status for check in bnfold.verify(made, made, seed=seed).checks} == {"pass"}
    assert 0 < counted.runs.count((("one",), True)) < 8 == counted.runs.count((("one",), False))


def test_what_still_shows_is_not_planted_again(counted: Counted) -> None:
    """Doubt widens the tolerance, but not as far as the errors move the output."""
    made = model(*shown(), op("Identity", "t4", "y"), x=(1, 4, 5, 5))
    wrong = ModelProto()
    wrong.CopyFrom(made)
    (weight,) = (t for t in wrong.graph.initializer if t.name == "c0.w")
    values = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, "c0.w"))
    same = bnfold.verify(made, made)
    once = len(counted.runs)
    doubted = bnfold.verify(made, wrong)
    assert (doubted.checks[0].rounding or 0) > (same.checks[0].rounding or 0)
    assert doubted.status == "fail"
    assert len(counted.runs) == 2 * once == 6


@pytest.mark.parametrize("each", [False, True])
def test_what_a_wider_tolerance_hides_is_stale(each: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(*shown(), op("Identity", "t4", "y"), x=(1, 4, 5, 5)), path)
    source = Source(path)
    weights = find_weights(source.proto(), tmp_path).values
    original = OnnxModel(source, source.structure(), weights, OnnxRuntime, UNBOUNDED)
    inputs = next(iter(InputSource(source.proto(), 0).first()))
    sets = {0: (inputs, original.run(inputs.feeds))}
    sensitivity = Sensitivity(original, 0)
    sensitivity.draw_rounding(sets)
    power = Power(sensitivity, Tolerance(sensitivity), (), {})
    (power.plant_each if each else power.plant)(sets)
    least = min(planted.ratio for planted in power.planted_errors())
    assert least > 2
    sensitivity.rounding[0, 0] *= least / 4
    assert not power.is_stale()
    sensitivity.rounding[0, 0] *= 4
    assert power.is_stale()
    assert min(planted.ratio for planted in power.planted_errors()) < 2


def three_layers(elem: int) -> ModelProto:
    pieces: list[Piece] = []
    x, channels = "x", 3
    for k in range(3):
        pieces += [
            conv(f"c{k}", x, f"a{k}", (8, channels, 3, 3), pads=[1] * 4),
            bn(f"b{k}", f"a{k}", f"n{k}", 8),
            op("Relu", f"n{k}", f"r{k}"),
        ]
        x, channels = f"r{k}", 8
    return model(*pieces[:-1], x=(1, 3, 16, 16), y="n2", elem=elem)


def with_other(made: ModelProto, position: int, factor: float) -> ModelProto:
    """The same model; the weight or bias of its first Conv is wrong by a factor."""
    wrong = ModelProto()
    wrong.CopyFrom(made)
    name = next(node.input[position] for node in made.graph.node if node.op_type == "Conv")
    stored = next(t for t in wrong.graph.initializer if t.name == name)
    values = numpy_helper.to_array(stored)
    stored.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), name))
    return wrong


@pytest.mark.parametrize("elem, size", [(FLOAT, 0.01), (HALF, 0.1)])
def test_what_is_planted_is_told_as_large_as_it_is(elem: int, size: float) -> None:
    made = three_layers(elem)
    result = bnfold.verify(made, bnfold.fold(made))
    assert result.status == "pass"
    assert {planted.size for planted in result.power} == {size}
    told = f"planted errors of {round(100 * size)} % show"
    assert told in "\n".join(end_to_end_lines(result, True))


@pytest.mark.parametrize("position", [1, 2])
def test_in_half_precision_weights_show_what_outputs_hide(position: int) -> None:
    """An error of 1 % ends within what rounding explains: of right weights the look at them makes
    a pass, of wrong ones none. One of 10 % fails. In float32 both fail.
    """
    made = three_layers(HALF)
    folded = bnfold.fold(made)
    right = bnfold.verify(made, folded)
    assert (right.status, right.notes) == (
        "pass",
        ("once both are folded, their weights are the same",),
    )
    wrong = bnfold.verify(made, with_other(folded, position, 1.01))
    assert wrong.status == "inconclusive"
    assert "once both are folded, weights of c0 are" in wrong.notes[-1]
    assert {check.status for check in wrong.checks} == {"pass"}
    assert bnfold.verify(made, with_other(folded, position, 1.1)).status == "fail"
    single = three_layers(FLOAT)
    other = with_other(bnfold.fold(single), position, 1.01)
    assert bnfold.verify(single, other).status == "fail"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_fold_in_any_precision_passes_by_its_weights(dtype: Any) -> None:
    """Who folds in float16 itself rounds the root, the scale and each product."""
    made = three_layers(HALF)
    other = ModelProto()
    other.CopyFrom(bnfold.fold(made))
    held = {t.name: numpy_helper.to_array(t).astype(dtype) for t in made.graph.initializer}
    for stored in other.graph.initializer:
        layer, part = stored.name.split(".")
        gamma, beta, mean, var = (
            held[f"b{layer[1]}.{n}"] for n in ("scale", "bias", "mean", "var")
        )
        scale = gamma / np.sqrt(var + dtype(0.01))
        new = held[f"{layer}.w"] * scale[:, None, None, None]
        if part == "b":
            new = (held[f"{layer}.b"] - mean) * scale + beta
        stored.CopyFrom(numpy_helper.from_array(new.astype(np.float16), stored.name))
    result = bnfold.verify(made, other)
    assert result.status == "pass"
    assert "their weights are" in result.notes[-1]


def test_a_large_file_is_not_compared_by_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = three_layers(HALF)
    monkeypatch.setattr(half_weights, "_LARGEST", 100)
    result = bnfold.verify(made, bnfold.fold(made))
    assert result.status == "pass"
    assert "an error of 1 % in a channel may not show" in result.notes[-1]


def test_files_of_other_operators_are_not_compared_by_weights() -> None:
    """Then it is said what outputs may hide."""
    made = three_layers(HALF)
    other = bnfold.fold(made)
    relu = next(node for node in other.graph.node if node.op_type == "Relu")
    relu.op_type = "Clip"
    relu.input.append("least")
    other.graph.initializer.append(numpy_helper.from_array(np.float16(0), "least"))
    result = bnfold.verify(made, other)
    assert result.status == "pass"
    assert "an error of 1 % in a channel may not show" in result.notes[-1]
