"""Folded models on a GPU: the operators run there, and the verdict is that of the CPU."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper

import bnfold
from bnfold._run.providers import ran_on

from .device import MODELS, NAME, PROVIDER, missing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(missing()), reason=missing() or "there")]


def judged(original, folded):
    return bnfold.verify(original, folded, providers=["cpu", NAME])


@pytest.mark.parametrize("name", MODELS)
def test_the_verdict_is_that_of_the_cpu(name):
    """Also on tensor cores, in half precision and between quantizers: no right fold fails."""
    made = MODELS[name]()
    result = judged(made, bnfold.fold(made))
    alone = bnfold.verify(made, bnfold.fold(made))
    assert result.status == alone.status
    assert [one.status for one in result.providers] == ["pass"] * len(result.providers)


def test_its_operators_run_there(tmp_path):
    """A session that falls back to the CPU says nothing: the profile does."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    made = bnfold.fold(MODELS["digits"]())
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=[PROVIDER.full_name]
    )
    value = session.get_inputs()[0]
    session.run(None, {value.name: np.zeros((2, 1, 8, 8), np.float32)})
    session.end_profiling()
    (profile,) = tmp_path.iterdir()
    ran = ran_on(profile)
    assert ran[PROVIDER.full_name] >= 0.8 * sum(ran.values()), Counter(ran)


@pytest.mark.parametrize("name", ["digits", "float16", "MobileNetV2"])
def test_a_planted_bug_is_noticed(name):
    """One channel of one layer, two percent off."""
    made = MODELS[name]()
    wrong = bnfold.fold(made)
    held = next(t for t in wrong.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(held).copy()
    values[0] = (values[0].astype(np.float64) * 1.02).astype(values.dtype)
    held.CopyFrom(numpy_helper.from_array(values, held.name))
    assert judged(made, wrong).status != "pass"


@pytest.mark.skipif(NAME != "cuda", reason="only CUDA has TF32")
@pytest.mark.parametrize("tf32", ["0", "1"])
def test_tf32(tf32):
    """Its products have ten bits: both models are off alike, and by no more than that."""
    made = MODELS["digits"]()
    data = np.random.default_rng(0).random((8, 1, 8, 8), np.float32) * 16
    found = []
    for one in (made, bnfold.fold(made)):
        session = onnxruntime.InferenceSession(
            one.SerializeToString(), providers=[(PROVIDER.full_name, {"use_tf32": tf32})]
        )
        found.append(session.run(None, {session.get_inputs()[0].name: data})[0])
    apart = np.abs(found[0] - found[1]).max() / np.abs(found[0]).max()
    assert apart < (1e-2 if tf32 == "1" else 1e-4)


def test_a_module_on_the_gpu():
    """It folds where it is, and gives the same numbers there."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    device = NAME if NAME == "cpu" or torch.cuda.is_available() else None
    if device is None:
        pytest.skip("this PyTorch has no CUDA")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    )
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    net = net.eval().to(device)
    example = torch.randn(2, 3, 16, 16, device=device)
    folded = bnfold.fold(net, (example,))
    assert isinstance(folded[1], torch.nn.Identity)
    assert {parameter.device.type for parameter in folded.parameters()} == {device}
    with torch.no_grad():
        torch.testing.assert_close(folded(example), net(example), rtol=1e-3, atol=1e-4)
    assert bnfold.verify(net, folded, (example,)).status == "pass"
