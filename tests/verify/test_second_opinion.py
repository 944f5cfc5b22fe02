"""The few runs of two files that are proved: what they cost, and what they still see.

A bug of a runtime is planted: the sessions that a test names give other numbers. No weight shows
that, so the proof holds, and only a run can notice it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

import bnfold
from bnfold._judge.verdict import Cause, EndToEnd
from bnfold._run.session import OnnxRuntime

from ..graphs import bn, const, conv, model, op, reseed

PROVES = True
Bug = Callable[[Any, list[Any]], list[Any]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    reseed(3)


class Sessions:
    """The sessions that were loaded, and how often each ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[int] = []
        self.optimized: list[bool] = []
        self.bug: Bug = lambda session, outputs: outputs
        load, fetch = OnnxRuntime.__init__, OnnxRuntime._fetch

        def loaded(session: Any, source: Any, *rest: Any, **options: Any) -> None:
            load(session, source, *rest, **options)
            data = source.read_bytes() if isinstance(source, Path) else source
            session.number, session.as_it_is = len(self.runs), isinstance(source, Path)
            session.folded = b"BatchNormalization" not in data
            session.optimized = options.get("optimized", False)
            self.runs.append(0)
            self.optimized.append(session.optimized)

        def fetched(session: Any, *given: Any) -> list[Any]:
            self.runs[session.number] += 1
            return self.bug(session, fetch(session, *given))

        monkeypatch.setattr(OnnxRuntime, "__init__", loaded)
        monkeypatch.setattr(OnnxRuntime, "_fetch", fetched)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    return Sessions(monkeypatch)


def verified(made: ModelProto, folder: Path, **options: Any) -> EndToEnd:
    """The verdict on a model and its folded form, on disk."""
    one, other = folder / "one.onnx", folder / "other.onnx"
    onnx.save(made, one)
    onnx.save(bnfold.fold(made), other)
    return bnfold.verify(one, other, **options)


def network(*ending: Any, x: Any = (1, 3, 8, 8)) -> ModelProto:
    pieces = (conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "t", 4))
    return model(*pieces, *ending, x=x)


def plain() -> ModelProto:
    return network(op("Relu", "t", "y"))


def ending_in(function: str) -> ModelProto:
    return network(op(function, "t", "y"))


def test_two_sessions_and_a_run_of_each_on_every_set(tmp_path, sessions):
    result = verified(plain(), tmp_path)
    assert result.status == "pass"
    assert result.proof is not None
    assert result.proof.status == "proved"
    sets = {check.inputs for check in result.checks}
    assert sessions.optimized in ([False, True], [True, False])
    assert len(sets) == 3
    assert sum(sessions.runs) <= 2 * len(sets) + 3  # a set of inputs may be rounded
    assert result.power == ()
    assert all(check.rounding is None and check.power is None for check in result.checks)
    assert all(check.ratio is not None and check.ratio <= 1 for check in result.checks)
    assert [each.status for each in result.providers] == ["pass"]


def off(factor: float, which: Callable[[Any], bool], *numbers: int) -> Bug:
    """Some outputs of some sessions are wrong in one place."""

    def wrong(session: Any, outputs: list[Any]) -> list[Any]:
        for number in numbers if which(session) else ():
            if number < len(outputs):
                outputs[number] = outputs[number].copy()
                largest = np.abs(outputs[number]).argmax()
                outputs[number].flat[largest] *= factor
        return outputs

    return wrong


@pytest.mark.parametrize("factor", [1.001, 1.0001, np.inf])
def test_a_bug_of_the_runtime_is_noticed(factor, tmp_path, sessions):
    sessions.bug = off(factor, lambda session: session.folded and session.optimized, 0)
    result = verified(plain(), tmp_path)
    assert result.status == "fail"
    assert result.proof is not None
    assert result.proof.status == "proved"
    assert any(each.status == "fail" for each in result.providers)


@pytest.mark.parametrize("function", ["Softmax", "Sigmoid", "Tanh", "HardSigmoid", "Softsign"])
def test_a_bug_that_a_saturated_output_hides_is_noticed(function, tmp_path, sessions):
    """The tensor ahead is put out as the second output."""
    sessions.bug = off(1.01, lambda session: session.folded, 1)
    result = verified(ending_in(function), tmp_path)
    assert result.status == "inconclusive"
    assert any(check.cause is Cause.DIFFERS_AHEAD for check in result.checks)


@pytest.mark.parametrize("function", ["Sigmoid", "Tanh", "HardSigmoid", "Softsign"])
def test_what_is_deployed_runs_as_it_is(function, tmp_path, sessions):
    """With what is ahead put out, onnxruntime would not make one operator of the last two."""
    sessions.bug = off(1.01, lambda session: session.folded and session.as_it_is, 0)
    result = verified(ending_in(function), tmp_path)
    assert True in sessions.optimized
    assert any(each.status == "fail" for each in result.providers)


def test_more_is_done_where_it_is_asked_for(tmp_path, sessions):
    assert verified(plain(), tmp_path, power=True).power
    assert verified(plain(), tmp_path, rtol=1e-3).checks[0].rounding is not None


def test_indices_are_compared_in_full(tmp_path, sessions):
    """Equal indices hide how near the numbers are that they were chosen from."""
    made = network(op("ArgMax", "t", "y", axis=1))
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert verified(made, tmp_path).status == "pass"
    assert len(sessions.runs) > 2


def test_a_constant_output_is_told(tmp_path):
    made = network(const("Mul", "t", "z", np.float32(0)), const("Add", "z", "y", np.float32(2)))
    result = verified(made, tmp_path)
    assert result.status == "pass"
    assert {check.cause for check in result.checks} == {Cause.PROVED_THOUGH}
    assert "constant" in result.checks[0].note


def test_numbers_of_very_different_sizes_are_compared_size_by_size(tmp_path, sessions):
    """An error in the small ones is lost beside the rounding of the large ones."""
    sizes = np.array([1e6, 1, 1, 1], np.float32).reshape(1, 4, 1, 1)
    made = network(const("Mul", "t", "y", sizes))

    def wrong(session: Any, outputs: list[Any]) -> list[Any]:
        if session.folded and session.optimized:
            outputs[0] = outputs[0].copy()
            outputs[0][:, 2] *= 1.001
        return outputs

    assert verified(made, tmp_path).checks[0].rounding is None
    sessions.bug = wrong
    assert verified(made, tmp_path).checks[0].rounding is not None  # all of it was compared


def test_what_is_not_proved_is_compared_in_full(tmp_path):
    result = verified(plain(), tmp_path, prove=False)
    assert result.proof is None
    assert result.power
