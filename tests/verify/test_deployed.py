"""What onnxruntime makes of a folded model once it optimizes: its own bugs are told from ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

import bnfold
from bnfold._judge import deployment
from bnfold._judge.deployment import Deployment, Expected
from bnfold._run.input_sets import InputSet, Port
from bnfold._run.providers import CPU, PROVIDERS, Provider
from bnfold._run.source import Source

from ..cli.command import bnfold as command
from ..graphs import bn, const, conv, feeds, model, op, positive, rand

DIGITS = Path(__file__).parents[2] / "examples" / "digits.onnx"


def gap(made: ModelProto) -> float:
    """How far onnxruntime's optimizations move a model's first output."""
    found = []
    levels = onnxruntime.GraphOptimizationLevel
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(
            made.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found.append(session.run(None, feeds(made))[0])
    return float(np.abs(found[0] - found[1]).max())


def padded_pool() -> ModelProto:
    """Folding the Mul brings Pad and MaxPool together, which onnxruntime then merges, as if a
    maximum over zeros were one over nothing.
    """
    return model(
        conv("conv", "x", "a", (4, 3, 1, 1)),
        (op("Pad", "a p", "b"), {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}),
        const("Mul", "b", "c", positive(4, 1, 1), name="mul"),
        op("MaxPool", "c", "y", kernel_shape=[2, 2]),
    )


@pytest.fixture
def brought_to_light():
    made = padded_pool()
    if gap(made) > 1e-3 or gap(bnfold.fold(made)) < 1e-3:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} does not merge Pad and MaxPool")
    return made


def test_a_bug_of_the_runtime_that_a_fold_brings_to_light(brought_to_light):
    result = bnfold.verify(brought_to_light, bnfold.fold(brought_to_light))
    assert result.status == "fail"
    assert all(check.status == "pass" for check in result.checks)
    (check,) = result.providers
    note = check.note
    assert "a bug of onnxruntime" in note
    assert "not for the original" in note
    assert result.divergence is None


def test_no_file_is_written_then(brought_to_light, tmp_path):
    onnx.save(brought_to_light, tmp_path / "m.onnx")
    run = command(tmp_path / "m.onnx", "-o", tmp_path / "out.onnx")
    assert run.code == 1
    assert "a bug of onnxruntime" in run.out
    assert not (tmp_path / "out.onnx").exists()
    run = command(tmp_path / "m.onnx", "--output-format", "github")
    assert run.code == 1
    assert "::error" in run.out
    assert "a bug of onnxruntime" in run.out


def test_a_bug_that_both_models_meet_is_the_runtime_s_own():
    """MatMul → Transpose → BatchNormalization: merged along the wrong axis, in both."""
    made = model(
        (op("MatMul", "x w", "a", name="product"), {"w": rand(4, 5)}),
        op("Transpose", "a", "b", perm=[1, 0]),
        bn("bn", "b", "c", 5),
        op("Relu", "c", "d"),
        const("Mul", "d", "e", positive(5), name="mul"),
        (op("MatMul", "e v", "y", name="last"), {"v": rand(5, 3)}),
        x=(5, 4),
    )
    folded = bnfold.fold(made)
    if min(gap(made), gap(folded)) < 1e-3:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} merges no such norm")
    result = bnfold.verify(made, folded)
    assert result.status == "pass"
    (check,) = result.providers
    note = check.note
    assert "its own doing" in note


def test_right_folds_have_nothing_to_say_of_it():
    made = model(conv("conv", "x", "a", (4, 3, 3, 3)), bn("bn", "a", "b", 4), op("Relu", "b", "y"))
    result = bnfold.verify(made, bnfold.fold(made))
    assert (result.status, result.providers[0].note) == ("pass", "")


# --- providers ----------------------------------------------------------------------------------


def small() -> ModelProto:
    return model(conv("conv", "x", "a", (4, 3, 3, 3)), bn("bn", "a", "b", 4), op("Relu", "b", "y"))


def missing() -> str:
    """A provider that this onnxruntime does not have."""
    return next(name for name, provider in PROVIDERS.items() if not provider.is_there)


def test_a_provider_that_is_missing_leaves_the_question_open():
    made, name = small(), missing()
    result = bnfold.verify(made, bnfold.fold(made), providers=["cpu", name])
    assert result.status == "inconclusive"
    assert all(check.status == "pass" for check in result.checks)
    cpu, other = result.providers
    assert (cpu.status, other.status) == ("pass", "inconclusive")
    assert f"install {PROVIDERS[name].install}" in other.note


@pytest.mark.parametrize(
    "ours, theirs, status",
    [(1.0, np.nan, "fail"), (np.nan, np.nan, "pass"), (1.0, 1.0, "pass"), (1.0, np.inf, "fail")],
)
def test_what_is_not_finite_as_deployed_is_no_small_difference(ours, theirs, status, monkeypatch):
    """As if optimizations made NaN of the folded model's numbers, or of both models' numbers."""

    class Engine:
        active = frozenset((CPU.full_name,))

        def __init__(self, value: float) -> None:
            self.value = value

        def run(self, feeds: object) -> list[np.ndarray]:
            return [np.array([self.value, 2.0], np.float32)]

    sources = Source(Path("original.onnx")), Source(Path("folded.onnx"))
    values = dict(zip(sources, (ours, theirs), strict=True))
    monkeypatch.setattr(deployment, "opened_session", lambda source, *rest: Engine(values[source]))
    given = Expected(InputSet("given", {}), [np.array([1.0, 2.0], np.float32)], [1e-3])
    ports = [Port("y", "tensor(float)", (2,))]
    assert Deployment(*sources, ports).check(CPU, [given]).status == status


def test_a_provider_that_runs_nothing_is_not_taken_for_one_that_does(monkeypatch):
    """onnxruntime runs what a provider does not take on the CPU, without a word."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that runs nothing")
    monkeypatch.setitem(PROVIDERS, "azure", Provider("azure", "AzureExecutionProvider"))
    made = small()
    result = bnfold.verify(made, bnfold.fold(made), providers=["azure"])
    assert result.status == "inconclusive"
    assert "ran no operator; they ran on CPUExecutionProvider" in result.providers[0].note


def test_a_wrong_fold_fails_whatever_is_missing():
    made = small()
    wrong = bnfold.fold(made)
    for tensor in wrong.graph.initializer:
        values = numpy_helper.to_array(tensor) * np.float32(1.5)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert bnfold.verify(made, wrong, providers=[missing()]).status == "fail"


def test_an_unknown_provider():
    with pytest.raises(bnfold.UsageError, match="no provider 'gpu'; there are cpu, cuda"):
        bnfold.verify(small(), small(), providers=["gpu"])


def test_the_command_says_what_to_install(tmp_path):
    onnx.save(small(), tmp_path / "m.onnx")
    name = missing()
    run = command(tmp_path / "m.onnx", "--provider", f"cpu,{name}")
    assert run.code == 3
    assert f"  on {name}: inconclusive, this onnxruntime has no" in run.out
    run = command("verify", tmp_path / "m.onnx", tmp_path / "m.onnx", "--provider", "gpu")
    assert run.code == 2
    assert "there is no provider 'gpu'" in run.err


@pytest.mark.gpu
@pytest.mark.parametrize("made", [small(), onnx.load(DIGITS)], ids=["small", "digits"])
def test_on_cuda(made):
    if not PROVIDERS["cuda"].is_there:
        pytest.skip("this onnxruntime has no CUDAExecutionProvider")
    result = bnfold.verify(made, bnfold.fold(made), providers=["cuda"])
    if "is not active" in result.providers[0].note:
        pytest.skip(result.providers[0].note)
    assert (result.status, result.providers[0].note) == ("pass", "")
    assert [check.to_dict() for check in result.checks] == [
        check.to_dict() for check in bnfold.verify(made, bnfold.fold(made)).checks
    ]
