"""bnfold as a step of other tools: what passes goes on, what does not stops there."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

import bnfold
from bnfold import passes
from bnfold._core import channels

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits.onnx"


def norms(model: ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def computed(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options).run(None, feeds)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one.onnx", "two.onnx"):
        shutil.copy(DIGITS, tmp_path / name)
    return tmp_path


@pytest.fixture
def wrong() -> Iterator[None]:
    """Every folded weight is a hundredth too large."""
    right = channels.scaled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            channels, "scaled", lambda w, *rest: right(w, *rest) * right(w, *rest).dtype.type(1.01)
        )
        yield


def test_folder(folder: Path) -> None:
    """Each file is folded in place, and computes what it computed."""
    plans = passes.fold_folder(folder)
    assert [path.name for path in plans] == ["one.onnx", "two.onnx"]
    image = {"image": np.random.default_rng(0).uniform(0, 16, (2, 1, 8, 8)).astype(np.float32)}
    (expected,) = computed(DIGITS, image)
    for path in plans:
        assert norms(onnx.load(path)) == 0
        (got,) = computed(path, image)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("wrong")
def test_a_wrong_fold_replaces_no_file(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        passes.NotVerified, match=r"one\.onnx is not the same function\n(?s:.*)fail"
    ):
        passes.fold_folder(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_models(tmp_path: Path) -> None:
    with pytest.raises(bnfold.UsageError, match=r"there is no \.onnx file"):
        passes.fold_folder(tmp_path)


def test_verdicts() -> None:
    """What could not be judged is said, and goes on; what passes is silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes.judged("pass", "m.onnx", ["line"])
    with pytest.warns(UserWarning, match=r"m\.onnx is the same function could not be judged\nline"):
        passes.judged("inconclusive", "m.onnx", ["line"])


def test_options_arrive(folder: Path) -> None:
    """An initializer that is an input, too, stays unless the option says that nobody sets it."""
    model = onnx.load(DIGITS)
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    path = folder / "listed.onnx"
    onnx.save(model, path)
    plan = passes.fold_and_verify(path, folder / "kept.onnx")
    assert not plan.folds and {kept.code for kept in plan.kept} == {"overridable-weight"}
    assert passes.fold_and_verify(path, folder / "folded.onnx", freeze_initializers=True).folds


class TestOnnxIr:
    ir = pytest.importorskip("onnx_ir", reason="onnx-ir is not installed")

    def test_pass(self) -> None:
        from bnfold.passes.onnx_ir import FoldPass

        model = self.ir.load(DIGITS)
        before = self.ir.to_proto(model).SerializeToString(deterministic=True)
        step = FoldPass()
        result = step(model)
        assert result.modified and norms(self.ir.to_proto(result.model)) == 0
        assert step.plan is not None and [kept.op for kept in step.plan.kept] == ["Sub"]
        assert self.ir.to_proto(model).SerializeToString(deterministic=True) == before
        again = step(result.model)
        assert not again.modified and again.model is not result.model

    def test_among_others(self) -> None:
        """The protocol holds: in place, functional, in place, and the model that is given stays."""
        from onnx_ir.passes import Sequential, common

        from bnfold.passes.onnx_ir import FoldPass

        model = self.ir.load(DIGITS)
        step = FoldPass()
        assert not step.in_place and not step.changes_input
        steps = Sequential(step, common.RemoveUnusedNodesPass(), common.ShapeInferencePass())
        result = steps(model)
        assert result.modified and norms(self.ir.to_proto(model)) == 6
        assert norms(self.ir.to_proto(result.model)) == 0

    @pytest.mark.usefixtures("wrong")
    def test_a_wrong_fold(self) -> None:
        from bnfold.passes.onnx_ir import FoldPass

        model = self.ir.load(DIGITS)
        with pytest.raises(passes.NotVerified, match="first tensor that differs"):
            FoldPass()(model)
        assert FoldPass(verify=False)(model).modified

    def test_options(self) -> None:
        from bnfold.passes.onnx_ir import FoldPass

        proto = onnx.load(DIGITS)
        scale = next(t for t in proto.graph.initializer if t.name == "stem.1.weight")
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(scale.name, scale.data_type, scale.dims)
        )
        model = self.ir.from_proto(proto)
        assert norms(self.ir.to_proto(FoldPass(verify=False)(model).model)) == 1
        frozen = FoldPass(verify=False, freeze_initializers=True)(model).model
        assert norms(self.ir.to_proto(frozen)) == 0


class TestOlive:
    @pytest.fixture
    def run(self) -> object:
        pytest.importorskip("olive", reason="olive-ai is not installed")
        from olive.model import ONNXModelHandler
        from olive.passes.olive_pass import create_pass_from_dict

        from bnfold.passes.olive import BnfoldFold

        def run(source: Path, target: Path) -> Path:
            step = create_pass_from_dict(BnfoldFold, {}, disable_search=True)
            return Path(step.run(ONNXModelHandler(model_path=str(source)), str(target)).model_path)

        return run

    def test_pass(self, run: object, folder: Path) -> None:
        assert callable(run)
        made = run(folder / "one.onnx", folder / "out")
        assert made.is_relative_to(folder / "out") and norms(onnx.load(made)) == 0
        assert norms(onnx.load(folder / "one.onnx")) == 6

    @pytest.mark.usefixtures("wrong")
    def test_a_wrong_fold(self, run: object, folder: Path) -> None:
        assert callable(run)
        with pytest.raises(passes.NotVerified):
            run(folder / "one.onnx", folder / "out")

    def test_workflow(self, run: object, folder: Path) -> None:
        """Olive finds the pass by its name, and runs it ahead of one of its own."""
        from olive import run as run_workflow

        from bnfold.passes.olive import package_config

        workflow = {
            "input_model": {"type": "ONNXModel", "model_path": str(folder / "one.onnx")},
            "passes": {
                "fold": {"type": "BnfoldFold"},
                "convert": {"type": "OnnxFloatToFloat16"},
            },
            "output_dir": str(folder / "out"),
            "cache_dir": str(folder / "cache"),
        }
        run_workflow(workflow, package_config=package_config())
        (made,) = (folder / "out").rglob("*.onnx")
        assert norms(onnx.load(made)) == 0


def test_optimum(tmp_path: Path) -> None:
    """What Optimum's exporter writes folds in its folder."""
    exporter = pytest.importorskip(
        "optimum.exporters.onnx", reason="optimum-onnx is not installed", exc_type=ImportError
    )
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, layer_type="basic"
    )
    network = transformers.ResNetForImageClassification(config).eval()
    exporter.onnx_export_from_model(
        network, tmp_path, task="image-classification", do_validation=False
    )
    (plan,) = passes.fold_folder(tmp_path).values()
    assert plan.after.get("BatchNormalization", 0) == 0
