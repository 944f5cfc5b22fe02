"""Preprocessing on the command line, in a configuration and in the Python API; what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import bnfold
from bnfold import Preprocessing
from bnfold._judge import end_to_end

from ..cli.command import bnfold as command
from ..cli.command import refused
from ..graphs import constants, conv, model, op, rand
from .camera import MEAN, STD, picture, same

WORDS = (
    *("--input-mean", "123.675,116.28,103.53", "--input-std", "58.395,57.12,57.375"),
    *("--input-channels", "bgr", "--input-layout", "nhwc", "--input-type", "uint8"),
)
HOW = {"mean": MEAN, "std": STD, "channels": "bgr:rgb", "layout": "nhwc:nchw"}


@pytest.fixture
def net(tmp_path):
    made = model(
        conv("conv1", "x", "h", (8, 3, 3, 3), pads=[1, 1, 1, 1]),
        op("Relu", "h", "r"),
        conv("conv2", "r", "y", (4, 8, 3, 3)),
        x=("n", 3, 8, 8),
    )
    path = tmp_path / "net.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.onnx"


def test_the_command_writes_what_takes_a_picture(net, out):
    run = command(net, "-o", out, *WORDS)
    assert run.code == 0, run.out
    assert run.lines[0] == (
        "input x: takes uint8 [n, 8, 8, 3] in place of float32 [n, 3, 8, 8]; the order of channels "
        "went into conv1; in front of the model Cast, Transpose, Sub stay: conv1: zero padding "
        "would see the shift"
    )
    same(onnx.load(net), onnx.load(out), picture(2, 8, 8, 3), **HOW)


def test_the_report_has_it(net, out, tmp_path):
    report = tmp_path / "report.json"
    command(net, "-o", out, *WORDS, "--report", report)
    (told,) = json.loads(report.read_text())["inputs"]
    assert told["mean"] == list(MEAN)
    assert told["operators"] == ["Cast", "Transpose", "Sub"]
    assert told["reordered"] == ["conv1"]


def test_rounding_is_that_of_the_original(net, out, monkeypatch):
    """Those of another order would move its outputs by their size."""
    asked = []

    def seen(*given, parameters, **more):
        asked.append(parameters)
        return right(*given, parameters=parameters, **more)

    right = end_to_end.compare
    monkeypatch.setattr(end_to_end, "compare", seen)
    command(net, "-o", out, "--input-channels", "bgr")
    own = constants(onnx.load(net))
    assert asked and all(asked)
    for name, values in [item for parameters in asked for item in parameters.items()]:
        np.testing.assert_array_equal(values, own[name])


def test_verify_takes_the_original_behind_it(net, out):
    assert command(net, "-o", out, *WORDS).code == 0
    assert command("verify", net, out, *WORDS).code == 0


WRONG = {
    "rgb for bgr": ("--input-channels", "rgb"),
    "mean in other units": ("--input-mean", "0.485,0.456,0.406"),
    "std forgotten": ("--input-std", "1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_verify_notices_a_wrong_setting(name, net, out):
    assert command(net, "-o", out, "--no-verify", *WORDS).code == 0
    words = list(WORDS)
    option, value = WRONG[name]
    words[words.index(option) + 1] = value
    assert command("verify", net, out, *words).code == 1


def test_verify_without_the_settings_says_that_inputs_differ(net, out):
    command(net, "-o", out, "--no-verify", *WORDS)
    assert command("verify", net, out).code == 1


def test_a_fraction_is_the_scale(net, out):
    run = command(net, "-o", out, "--input-scale", "1/255", "--input-mean", "0.5")
    assert run.code == 0
    given = picture(2, 3, 8, 8, dtype="float32")
    same(onnx.load(net), onnx.load(out), given, scale=1 / 255, mean=0.5)


def test_a_configuration_gives_it_to_fold_and_verify(net, out, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        "[tool.bnfold]\n"
        f"input-mean = {list(MEAN)}\n"
        f"input-std = {{ x = {list(STD)} }}\n"
        'input-scale = "1/1"\n'
    )
    refused(command(net, cwd=tmp_path), "some --input options name an input and some do not")
    (tmp_path / "pyproject.toml").write_text(
        "[tool.bnfold]\n"
        f"input-mean = {{ x = {list(MEAN)} }}\n"
        f"input-std = {{ x = {list(STD)} }}\n"
        'input-channels = { x = "bgr" }\n'
    )
    assert command(net, "-o", out, cwd=tmp_path).code == 0
    assert command("verify", net, out, cwd=tmp_path).code == 0
    assert command("verify", net, out, "--no-config", cwd=tmp_path).code == 1
    how = {"mean": MEAN, "std": STD, "channels": "bgr:rgb"}
    same(onnx.load(net), onnx.load(out), picture(2, 3, 8, 8, dtype="float32"), **how)


def test_python_gives_the_same_file(net, out, tmp_path):
    command(net, "-o", out, "--no-verify", *WORDS)
    how = Preprocessing(mean=MEAN, std=np.array(STD), channels="bgr", layout="nhwc", dtype="uint8")
    other = bnfold.fold(net, tmp_path / "other.onnx", preprocessing=how)
    assert other.read_bytes() == out.read_bytes()
    assert bnfold.verify(net, other, preprocessing={"x": how}).status == "pass"
    plan = bnfold.plan(net, preprocessing=how)
    assert [kept.code for kept in plan.kept] == ["zero-padding"]


def test_the_file_itself_can_be_written_over_once(net):
    """The second time the input is of integers: nothing is normalized twice unseen."""
    assert command(net, "--in-place", *WORDS).code == 0
    refused(command(net, "--in-place", *WORDS), "is its preprocessing in the model already?")


def test_every_model_of_a_folder_gets_it(net, tmp_path):
    """The process of each model gets the options in words."""
    folder = tmp_path / "models"
    folder.mkdir()
    net.rename(folder / "net.onnx")
    run = command(folder, "--output-dir", tmp_path / "out", *WORDS)
    assert run.code == 0, run.out + run.err
    made = onnx.load(tmp_path / "out" / "net.onnx")
    same(onnx.load(folder / "net.onnx"), made, picture(2, 8, 8, 3), **HOW)


def test_external_weights_that_are_reordered(tmp_path, out):
    made = model(conv("conv1", "x", "y", (64, 3, 3, 3)), x=(1, 3, 8, 8))
    path = tmp_path / "external.onnx"
    onnx.save(made, path, save_as_external_data=True, size_threshold=0)
    run = command(path, "-o", out, *WORDS)
    assert run.code == 0, run.out
    same(onnx.load(path), onnx.load(out), picture(1, 8, 8, 3), **HOW)


def test_a_mean_in_the_units_of_another_scale_is_told(net):
    run = command(net, *WORDS, "--input-scale", "1/255", "--no-verify")
    assert "lies outside of 0 to 1" in run.err
    run = command(net, "--input-type", "uint8", "--input-std", "0.229", "--no-verify")
    assert "the network gets numbers up to 1114" in run.err
    run = command(net, *WORDS, "--no-verify")
    assert run.err == ""


REFUSED = {
    "std 0": (("--input-std", "1,0,1"), "std 1,0,1 holds a 0"),
    "scale 0": (("--input-scale", "0"), "scale is 0"),
    "scale that is nothing": (("--input-scale", "1e-310"), "scale: a number does not fit"),
    "no number": (("--input-mean", "1,x,3"), "'x' is no number"),
    "NaN": (("--input-mean", "nan"), "mean holds nan: give finite numbers"),
    "infinite": (("--input-std", "inf"), "std holds inf"),
    "a division by 0": (("--input-scale", "1/0"), "'1/0' is no number"),
    "lengths differ": (("--input-mean", "1,2", "--input-std", "1,2,3"), "mean has 2 numbers"),
    "other channels": (("--input-mean", "1,2"), "as nchw it has 3 channels, not 2"),
    "two scales": (("--input-scale", "1,2"), "scale has 2 numbers; give one"),
    "order unknown": (("--input-channels", "yuv"), "say which order the network takes"),
    "no permutation": (("--input-channels", "bgg:rgb"), "the same letters, each of them once"),
    "order too short": (("--input-channels", "ab:ba"), "it has 3 channels, not 2"),
    "no channels": (("--input-layout", "nhw"), "one letter has to be c"),
    "axes": (("--input-layout", "nhc"), "has 4 axes, not the 3 of layout nhc"),
    "last": (("--input-layout", "nhwc:nhwc", "--input-mean", "1,2,3"), "it has 8 channels, not 3"),
    "type": (("--input-type", "uint7"), "type uint7: an input may be of"),
    "name": (("--input-mean", "z=1"), "the model has no input z"),
    "twice": (("--input-mean", "1", "--input-mean", "2"), "--input-mean is given twice"),
    "nothing": (("--input-mean", "x="), "give a value"),
    "check": (("--check", "--input-mean", "1"), "leave out --input-mean"),
    "too small for the type": (("--input-std", "1e-60"), "does not fit into float32"),
    "too large for the type": (("--input-mean", "1e60"), "does not fit into float32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused(name, net):
    words, message = REFUSED[name]
    refused(command(net, *words), message)


def test_an_input_that_is_an_output(tmp_path):
    """One name cannot be both, before and after."""
    made = model(conv("a", "x", "y", (4, 3, 2, 2)), y="y x")
    path = tmp_path / "through.onnx"
    onnx.save(made, path)
    refused(command(path, *WORDS), "input x is an output of the model, too")


def test_a_file_that_is_no_valid_model_is_no_breakdown(net, tmp_path):
    made = onnx.load(net)
    del made.graph.node[0].input[1:]
    path = tmp_path / "broken.onnx"
    onnx.save(made, path)
    refused(command(path, "--input-channels", "bgr"), f"{path} is not a valid ONNX model")


def test_two_inputs_have_to_be_told_apart(tmp_path):
    made = model(op("Add", "a b", "y"), x={"a": (2, 3), "b": (2, 3)})
    path = tmp_path / "two.onnx"
    onnx.save(made, path)
    refused(command(path, "--input-mean", "1"), "the model has 2 inputs (a, b): say which")


def test_three_axes_have_no_layout_of_their_own(tmp_path):
    made = model(op("Relu", "x", "y"), x=(3, 3, 3))
    path = tmp_path / "three.onnx"
    onnx.save(made, path)
    refused(command(path, "--input-mean", "1,2,3"), "any may hold the channels")
    assert command(path, "--input-mean", "1,2,3", "--input-layout", "hwc").code in (0, 3)


def test_a_type_of_python(net):
    """A type may be NumPy's; what is no text is refused."""
    assert Preprocessing(dtype=np.uint8) == Preprocessing(dtype="uint8")
    assert Preprocessing(dtype=np.dtype("uint8")).dtype == "uint8"
    with pytest.raises(bnfold.UsageError, match="give letters"):
        Preprocessing(layout=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"bnfold\.Preprocessing"):
        bnfold.fold(net, preprocessing={"mean": 1.0})  # type: ignore[dict-item]


# --- the reverse --------------------------------------------------------------------------------


def test_a_normalization_is_taken_out(tmp_path, out):
    """What the caller is told to do, done by NumPy, is what the model did."""
    made = model(
        op("Div", "x k", "a"),
        op("Sub", "a m", "b"),
        op("Div", "b s", "c"),
        conv("conv1", "c", "y", (4, 3, 3, 3), pads=[1, 1, 1, 1]),
        x=(2, 3, 6, 6),
        weights={
            "k": np.array(255.0, np.float32),
            "m": np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1),
            "s": np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1),
        },
    )
    path, report = tmp_path / "net.onnx", tmp_path / "report.json"
    onnx.save(made, path)
    run = command(path, "-o", out, "--expose-normalization", "--report", report)
    assert run.code == 0, run.out
    assert run.lines[0].startswith(
        "input x: Div, Sub, Div go out of the model; give it (x - mean) / std"
    )
    (told,) = json.loads(report.read_text())["inputs"]
    assert told["exposed"]
    assert np.allclose(told["mean"], MEAN)
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Conv"]
    given = picture(2, 3, 6, 6, dtype="float32")
    how = {"mean": told["mean"], "std": told["std"]}
    same(onnx.load(out), made, given, **how)


EXPOSED = {
    "a norm": (
        lambda: model(
            op("BatchNormalization", "x g b m v", "h"),
            op("Relu", "h", "y"),
            x=(2, 3, 6, 6),
            weights={"g": rand(3), "b": rand(3), "m": rand(3), "v": np.abs(rand(3))},
        ),
        1,
    ),
    "channels last": (
        lambda: model(
            op("Sub", "x m", "h"),
            op("Relu", "h", "y"),
            x=(2, 6, 6, 3),
            weights={"m": rand(3)},
        ),
        3,
    ),
    "constant minus x": (
        lambda: model(
            op("Sub", "m x", "h"), op("Relu", "h", "y"), x=(2, 3), weights={"m": rand(3)}
        ),
        1,
    ),
    "an inner tensor is read twice": (
        lambda: model(
            op("Sub", "x m", "h"),
            op("Mul", "h m", "k"),
            op("Add", "h k", "y"),
            x=(2, 3),
            weights={"m": rand(3)},
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", EXPOSED)
def test_other_normalizations(name, tmp_path, out):
    make, axis = EXPOSED[name]
    made, path, report = make(), tmp_path / "net.onnx", tmp_path / "report.json"
    onnx.save(made, path)
    run = command(path, "-o", out, "--expose-normalization", "--report", report)
    assert run.code == 0, run.out
    (told,) = json.loads(report.read_text())["inputs"]
    shape = [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim]
    given = picture(*shape, dtype="float32")
    same(onnx.load(out), made, given, mean=told["mean"], std=told["std"], axis=axis)


@pytest.mark.parametrize("option", [(), ("--no-verify",)])
def test_a_normalization_that_makes_channels_stays(option, tmp_path, out):
    """Three means of one channel are three channels: without them a Conv would read one."""
    made = model(
        op("Sub", "x m", "h"),
        conv("a", "h", "y", (4, 3, 3, 3)),
        x=(2, 1, 6, 6),
        weights={"m": rand(3, 1, 1)},
    )
    path = tmp_path / "gray.onnx"
    onnx.save(made, path)
    refused(
        command(path, "-o", out, "--expose-normalization", *option),
        "begins with no normalization",
    )
    assert not out.exists()


def test_there_is_nothing_to_take_out(net, tmp_path):
    refused(
        command(net, "--expose-normalization"),
        "begins with no normalization to take out (x: conv1 reads it)",
    )
    refused(command(net, "--expose-normalization", "--input-mean", "1"), "leave out --input-mean")
    made = model(op("Sub", "x m", "y"), x=(2, 3), weights={"m": rand(3)})
    path = tmp_path / "whole.onnx"
    onnx.save(made, path)
    refused(command(path, "--expose-normalization"), "begins with no normalization")
