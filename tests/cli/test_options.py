"""``--power``, ``--rtol`` and ``--atol``, ``--threads``, ``--timeout``, ``--memory``."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bnfold._command import options as options_module

from .. import graphs
from . import examples
from .command import TOO_LARGE, bnfold, process, refused, tree

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds data as it is told")


# --- what means nothing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, words",
    [
        (("--rtol", "-1"), "rtol is a number that is 0 or more"),
        (("--rtol", "nan"), "rtol is a number that is 0 or more"),
        (("--atol", "inf"), "atol is a number that is 0 or more"),
        (("--atol", "1e999"), "atol is a number that is 0 or more"),
        (("--seed", "18446744073709551616"), "a seed is a whole number from 0 to 2^64 - 1"),
        (("--threads", "-1"), "threads are a whole number from 1 to 1024"),
        (("--threads", "99999999999"), "threads are a whole number from 1 to 1024"),
        (("--timeout", "0"), "above 0"),
        (("--timeout", "-3"), "above 0"),
        (("--timeout", "nan"), "above 0"),
        (("--ops-library", "no.so"), "no.so: there is no such library of operators"),
        (("--ops-library", __file__), "onnxruntime cannot load it as a library of operators"),
        (("--memory", "lots"), "such as 4GB"),
        (("--memory", "4TB"), "such as 4GB"),
        (("--memory", "-4GB"), "such as 4GB"),
        (("--memory", "0.0"), "such as 4GB"),
        (("--memory", "0.5"), "such as 4GB"),
        (("--memory", "4G B"), "such as 4GB"),
        (("--memory", ""), "such as 4GB"),
        (("--memory", "\u0664GB"), "such as 4GB"),
        (("--memory", "9" * 400), "such as 4GB"),
    ],
)
def test_a_value_that_means_nothing(option, words, model, tmp_path):
    before = tree(tmp_path)
    refused(bnfold(model, "-o", tmp_path / "o.onnx", *option), words)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("option", ["--rtol", "--atol", "--threads", "--timeout"])
def test_a_value_that_is_no_number(option, model):
    run = bnfold("verify", model, model, option, "1,5")
    assert (run.code, run.out) == (2, "")
    assert option in run.err and "1,5" in run.err


@pytest.mark.parametrize(
    "option",
    [
        ("--power",),
        ("--rtol", "1"),
        ("--atol", "1"),
        ("--threads", "1"),
        ("--seed", "0"),
        ("--ops-library", "no.so"),
    ],
)
def test_what_is_about_comparing_is_refused_where_nothing_is_compared(option, model):
    refused(bnfold(model, "--check", *option), "--check", option[0])
    refused(bnfold(model, "--no-verify", *option), "--no-verify", option[0])


# --- power --------------------------------------------------------------------------------------


def test_layers_whose_errors_do_not_show(tmp_path):
    """They rest on the proof or on their certificates; without any, nothing is proved of them."""
    model = examples.save(examples.hiding(), tmp_path / "hiding.onnx")
    target = tmp_path / "folded.onnx"
    usual = bnfold(model, "-o", target)
    assert (usual.code, "planted" in usual.out) == (0, False)
    run = bnfold(model, "--power")
    assert run.code == 0
    assert "  planted errors of 1 % show in 6 of 12 layers" in run.lines
    hidden = [line.split()[2].rstrip(":") for line in run.lines if line.startswith("    not in ")]
    assert hidden == ["conv1", "bn1", "conv3", "bn3", "conv5", "bn5"]
    assert "rests on the proof" in run.out
    assert "rests on its certificate" in bnfold(model, "--power", "--no-prove").out
    assert bnfold("verify", model, target).code == 0
    run = bnfold("verify", model, target, "--power")
    assert run.code == 0 and "rests on the proof" in run.out
    run = bnfold("verify", model, target, "--power", "--no-prove")
    assert (run.code, run.lines[-1]) == (3, "verification: inconclusive")
    assert "is not proved" in run.out


def test_what_power_tells_is_so(tmp_path):
    """An error of 1 % in a layer that is said to show is found; in one that is not, it is not, and
    the weights alone tell it.
    """
    model = examples.save(examples.hiding(), tmp_path / "hiding.onnx")
    for layer, code in (("conv0", 1), ("conv1", 0)):
        made = onnx.load(model)
        (weight,) = (t for t in made.graph.initializer if t.name == f"{layer}.w")
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(made, tmp_path / "other.onnx")
        assert bnfold("verify", model, tmp_path / "other.onnx", "--no-prove").code == code
        run = bnfold("verify", model, tmp_path / "other.onnx")
        assert (run.code, run.lines[0].partition(":")[0]) == (1, f"refuted at {layer}")


# --- rtol and atol ------------------------------------------------------------------------------


def test_a_tolerance_is_that_of_numpy(model, wrong, tmp_path):
    """Just below the largest difference it fails, just above it passes, as ``allclose`` does."""
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    np.savez(tmp_path / "in.npz", **feeds)
    (left,), (right,) = graphs.run(model, feeds), graphs.run(wrong, feeds)
    apart = np.abs(left.astype(np.float64) - right)
    relative = float(np.max(apart / np.abs(left)))
    both = float(np.max((apart - 1e-4) / np.abs(left)))
    for options, wanted in (
        (("--atol", f"{apart.max() * 0.999}"), 1),
        (("--atol", f"{apart.max() * 1.001}"), 0),
        (("--rtol", f"{relative * 0.999}"), 1),
        (("--rtol", f"{relative * 1.001}"), 0),
        (("--rtol", f"{both * 0.999}", "--atol", "1e-4"), 1),
        (("--rtol", f"{both * 1.001}", "--atol", "1e-4"), 0),
    ):
        chosen = {name[2:]: float(value) for name, value in zip(options[::2], options[1::2])}
        assert np.allclose(right, left, **{"rtol": 0, "atol": 0, **chosen}) == (wanted == 0)
        run = bnfold("verify", model, wrong, "--inputs", tmp_path / "in.npz", *options)
        assert run.code == wanted, options


def test_a_tolerance_of_nothing_lets_equal_models_pass(model, folded):
    assert bnfold("verify", model, model, "--rtol", "0").code == 0
    assert bnfold("verify", model, folded, "--atol", "0").code == 1


def test_a_tolerance_that_hides_every_error_decides_nothing(model, folded, tmp_path):
    """A folder's configuration may come with a model: it must not make any comparison pass."""
    run = bnfold("verify", model, folded, "--atol", "1000", "--no-prove")
    assert run.code == 3
    assert "as a planted error in some layers would be" in run.out
    assert "the tolerance that was asked for hides every planted error" in run.out
    assert bnfold(model, "-o", tmp_path / "o.onnx", "--atol", "1000").code == 0  # certified
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.bnfold]\nrtol = 1e30\natol = 1e30\n")
    run = bnfold("verify", model, folded, "--no-prove", cwd=tmp_path)
    assert run.code == 3
    assert f"the tolerance is rtol = 1e+30 and atol = 1e+30, as {project} says" in run.out
    project.write_text("[tool.bnfold]\natol = 1e-4\n")
    run = bnfold("verify", model, folded, cwd=tmp_path)
    assert run.code == 0
    assert f"as {project} says" in run.out
    assert "says" not in bnfold("verify", model, folded, "--atol", "1e-4", cwd=tmp_path).out


def test_no_tolerance_lets_a_wrong_fold_through(model, tmp_path):
    """Its certificate does not hold, whatever the outputs are."""
    run = bnfold(model, "-o", tmp_path / "o.onnx", "--rtol", "10", "--atol", "10", factor=TOO_LARGE)
    assert (run.code, run.lines[-1]) == (1, "no file was written")
    assert not (tmp_path / "o.onnx").exists()


# --- threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, threads", [((), 0), (("--threads", "2"), 2)])
def test_every_session_of_a_comparison_has_the_threads(options, threads, model, wrong, monkeypatch):
    """With ``--bisect`` and ``--power``, and where the two differ, there are many."""
    session, seen = ort.InferenceSession, []

    def recorded(source, options, **others):
        seen.append(options.intra_op_num_threads)
        return session(source, options, **others)

    monkeypatch.setattr(ort, "InferenceSession", recorded)
    for other in (model, wrong):
        run = bnfold("verify", model, other, "--power", "--bisect", *options)
        assert run.code == (other is wrong)
    assert set(seen) == {threads}


# --- timeout ------------------------------------------------------------------------------------


@pytest.fixture
def endless(tmp_path):
    return examples.save(examples.endless(), tmp_path / "endless.onnx")


def test_a_model_that_never_ends(endless, tmp_path):
    """Without a bound on time, nor would this test."""
    target = tmp_path / "out" / "o.onnx"
    target.parent.mkdir()
    run = bnfold(endless, "-o", target, "--timeout", "0.5", "--no-prove")
    assert (run.code, run.err) == (3, "")
    assert run.lines[-3:] == [
        "  note: time is up after 0.5 s (--timeout)",
        "verification: inconclusive",
        f"wrote {target}",
    ]
    assert list(tree(target.parent)) == ["o.onnx"]
    assert examples.operators(target).count("BatchNormalization") == 0
    form = ("--output-format", "json")
    run = bnfold("verify", endless, target, "--timeout", "0.5", "--no-prove", *form)
    told = json.loads(run.out)
    assert (run.code, told["status"], told["checks"]) == (3, "inconclusive", [])
    assert told["notes"] == ["time is up after 0.5 s (--timeout)"]
    told = json.loads(bnfold("verify", endless, target, "--timeout", "0.5", *form).out)
    assert (told["status"], told["checks"]) == ("pass", [])
    assert told["notes"][1].startswith("the two were not compared in a run")


def test_time_that_is_up_does_not_hide_a_wrong_fold(endless, tmp_path):
    """What is certified is certified before."""
    run = bnfold(endless, "-o", tmp_path / "o.onnx", "--timeout", "0.5", factor=TOO_LARGE)
    assert (run.code, run.lines[-1]) == (1, "no file was written")
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("seconds", ["600", "inf", "1e300"])
def test_time_enough(seconds, model):
    run = bnfold(model, "--timeout", seconds)
    assert (run.code, run.err, run.lines[-3]) == (0, "", "verification: pass")


# --- memory -------------------------------------------------------------------------------------


@pytest.fixture
def heavy(tmp_path):
    """Weights of 38 MB."""
    pieces, source = [], "x"
    for k in range(4):
        pieces += [
            graphs.conv(f"conv{k}", source, f"c{k}", (512, 512, 3, 3), pads=[1, 1, 1, 1]),
            graphs.bn(f"bn{k}", f"c{k}", f"b{k}", 512),
        ]
        source = f"b{k}"
    made = graphs.model(*pieces, x=(1, 512, 4, 4), y=source)
    return examples.save(made, tmp_path / "heavy.onnx")


@pytest.mark.parametrize(
    "size, bytes_",
    [
        ("8 GB", 8 * 10**9),
        ("8000M", 8 * 10**9),
        ("8000000000", 8 * 10**9),
        ("7.5G", 75 * 10**8),
        ("8000000kB", 8 * 10**9),
    ],
)
def test_amounts_of_memory(size, bytes_):
    assert options_module.amount(size) == bytes_


@linux
def test_memory_bounds_any_run(model, folded, tmp_path):
    assert process(model, "--memory", "8GB").code == 0
    assert process("verify", model, folded, "--memory", "8GB").code == 0
    for args in ((model,), (model, "--check"), (model, "--no-verify"), ("verify", model, model)):
        run = bnfold(*args, "--memory", "1MB")
        refused(run, "bnfold itself takes", "give --memory more than that")


@pytest.mark.parametrize("size", [10**17, 10**25])
def test_inputs_that_fit_no_memory(size, tmp_path):
    made = examples.foldable()
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    path = examples.save(made, tmp_path / "free.onnx")
    run = bnfold(path, "--dim", f"n={size}", "--no-prove")
    assert (run.code, run.err) == (3, "")
    assert "  note: out of memory" in run.lines


@linux
def test_more_than_can_be_said(model):
    refused(bnfold(model, "--memory", "999999999999999GB"), "memory cannot be bounded")


@linux
def test_a_bound_that_is_there_already_is_not_widened(heavy):
    import resource

    def tight() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (130_000_000, resource.RLIM_INFINITY))

    run = process(heavy, "--memory", "8GB", "--no-verify", before=tight)
    assert (run.code, run.out, run.err) == (3, "", OUT_OF_MEMORY)


OUT_OF_MEMORY = "error: out of memory\n"
# MB that may be enough where sessions take little: over twice what the model holds.
_MAY_DO = 90


@linux
@pytest.mark.parametrize(
    "spare",
    [40, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (*range(5, 300, 15), 300))],
)
def test_memory_that_runs_out(spare, heavy, tmp_path):
    """Wherever it does: one line and no file, or no verdict; never a crash, and nothing else said.

    ``spare`` is what there is beyond what bnfold takes by itself, in MB.
    """
    said = process(heavy, "--memory", "1MB").err
    own = int(said.split("takes ")[1].split(" MB")[0])
    target = tmp_path / "out" / "o.onnx"
    target.parent.mkdir()
    run = process(heavy, "-o", target, "--memory", f"{own + spare}MB")
    if run.code == 0:
        assert spare >= _MAY_DO, "it takes less than these models hold"
        assert list(tree(target.parent)) == ["o.onnx"]
        return
    assert run.code == 3
    if run.err == OUT_OF_MEMORY:
        assert run.out == ""
        assert tree(target.parent) == {}
    else:
        assert (run.err, "  note: out of memory" in run.lines) == ("", True)
        assert list(tree(target.parent)) == ["o.onnx"]
