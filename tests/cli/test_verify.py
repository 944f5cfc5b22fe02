"""``bnfold verify A B``: are these two the same function?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from . import examples
from .command import TOO_LARGE, bnfold, refused, tree


def changed(path, edit):
    """A copy of a model with one change."""
    made = onnx.load(path)
    edit(made.graph)
    other = path.with_name("other.onnx")
    onnx.save(made, other)
    return other


def test_a_model_and_its_fold(model, folded, tmp_path):
    before = tree(tmp_path)
    run = bnfold("verify", model, folded)
    assert (run.code, run.err) == (0, "")
    assert len(run.lines) == 3
    assert run.lines[0].startswith("proved: 2 of 2 layers agree within ")
    assert run.lines[1].startswith("  y on ") and ": pass, difference " in run.lines[1]
    assert run.lines[2] == "verification: pass"
    layers = bnfold("verify", model, folded, "-v").lines[:3]
    assert [line.partition(":")[0] for line in layers] == ["proved", "  conv1", "  conv2"]
    lines = bnfold("verify", model, folded, "-v", "--no-prove").lines
    assert [" inputs: pass, " in line for line in lines] == [True] * 3 + [False] * 3
    assert lines[3] == "  inputs drawn with seed 0"
    assert lines[4] == "  planted errors of 1 % show in 3 of 3 parts of the graph"
    assert tree(tmp_path) == before


def test_a_model_and_itself(settled):
    assert bnfold("verify", settled, settled).code == 0


def test_a_wrong_fold(model, tmp_path):
    target = tmp_path / "wrong.onnx"
    assert bnfold(model, "-o", target, "--no-verify", factor=TOO_LARGE).code == 0
    run = bnfold("verify", model, target)
    assert (run.code, run.err) == (1, "")
    assert run.lines[-1] == "verification: fail"
    assert "fail, difference " in run.out


def rename_input(graph):
    graph.input[0].name = graph.node[0].input[0] = "image"


def rename_output(graph):
    graph.output[0].name = graph.node[-1].output[0] = "z"


def add_output(graph):
    graph.output.append(onnx.helper.make_empty_tensor_value_info("c1"))


def reshape_input(graph):
    graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16
    del graph.output[0].type.tensor_type.shape.dim[:]
    graph.output[0].type.tensor_type.ClearField("shape")


@pytest.mark.parametrize(
    "edit, words",
    [
        (add_output, "outputs are not the same: lost [], new ['c1']"),
        (reshape_input, "input x is [2, 3, 8, 8] and [2, 3, 16, 8]"),
    ],
)
def test_another_signature(edit, words, model):
    run = bnfold("verify", model, changed(model, edit))
    assert (run.code, run.err) == (1, "")
    assert words in run.out
    assert run.lines[-1] == "verification: fail"


@pytest.mark.parametrize(
    "edit, words",
    [(rename_input, "inputs by position: x is image"), (rename_output, "by position: y is z")],
)
def test_another_name(edit, words, model):
    run = bnfold("verify", model, changed(model, edit))
    assert (run.code, run.err) == (0, "")
    assert words in run.out


def test_a_missing_output(model):
    wider = changed(model, add_output)
    run = bnfold("verify", wider, model)
    assert run.code == 1
    assert "outputs are not the same: lost ['c1'], new []" in run.out


def test_what_cannot_run_cannot_be_judged(strange):
    run = bnfold("verify", strange, strange, "--no-prove")
    assert (run.code, run.err) == (3, "")
    assert run.lines[-1] == "verification: inconclusive"


@pytest.mark.parametrize(
    "which, trouble",
    [
        ("first", "missing"),
        ("second", "missing"),
        ("second", "cut off"),
        ("second", "empty"),
        ("second", "a folder"),
        ("second", "no operators"),
    ],
)
def test_an_unreadable_file_is_not_a_failed_check(which, trouble, model, tmp_path):
    bad = tmp_path / "bad.onnx"
    if trouble == "cut off":
        bad.write_bytes(model.read_bytes()[:1000])
    elif trouble == "empty":
        bad.touch()
    elif trouble == "a folder":
        bad.mkdir()
    elif trouble == "no operators":
        made = onnx.load(model)
        del made.graph.node[:]
        bad.write_bytes(made.SerializeToString())
    pair = (bad, model) if which == "first" else (model, bad)
    refused(bnfold("verify", *pair), str(bad))


def test_missing_data_of_the_second_model(external, tmp_path):
    made = onnx.load(external)
    whole = examples.save(made, tmp_path / "whole.onnx")
    (tmp_path / "two.bin").unlink()
    refused(bnfold("verify", whole, external), "two.bin", "there is no such file")


def test_given_inputs(model, folded, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", x=rng.normal(size=(2, 3, 8, 8)).astype(np.float32))
    run = bnfold("verify", model, folded, "--inputs", tmp_path / "in.npz")
    assert run.code == 0
    assert run.lines[1].startswith("  y on in.npz inputs: pass, ")
    np.savez(tmp_path / "in.npz", image=np.zeros(1))
    run = bnfold("verify", model, folded, "--inputs", tmp_path / "in.npz")
    refused(run, "in.npz", "['x']", "['image']")


def test_one_model_is_not_enough(model):
    run = bnfold("verify", model)
    assert (run.code, run.out) == (2, "")
    assert "FOLDED" in run.err


# --- inputs to draw, and samples --------------------------------------------------------------


@pytest.fixture
def free(model):
    """The model with a batch of any size."""

    def edit(graph):
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "n"

    return changed(model, edit)


def labels(run):
    """The input sets of which a verbose run says something."""
    said = [line for line in run.lines if " inputs: " in line]
    return [line.split(" on ")[1].split(" inputs: ")[0] for line in said]


def test_kinds_and_sizes_of_inputs(free, tmp_path):
    folded = tmp_path / "free.onnx"
    assert bnfold(free, "-o", folded, "--draw", "signed", "--dim", "n=2").code == 0
    model = free
    run = bnfold("verify", model, folded, "-v", "--draw", "structured,large", "--dim", "n=3,1,2")
    assert run.code == 0
    assert labels(run) == ["structured n=3", "large n=1", "structured n=2"]


@pytest.mark.parametrize(
    "options, words",
    [
        (("--dim", "m=3"), ["no free dimension 'm'", "it has none"]),
        (("--dim", "n"), ["--dim n", "NAME=SIZE"]),
        (("--dim", "n=x"), ["--dim n=x", "NAME=SIZE"]),
        (("--dim", "n=1,0"), ["sizes of 1 or more"]),
        (("--draw", "wild"), ["no 'wild' inputs", "structured"]),
        (("--draw", "signed", "--inputs", "x.npz"), ["--draw", "--inputs"]),
    ],
)
def test_inputs_that_cannot_be_drawn(model, folded, options, words):
    refused(bnfold("verify", model, folded, *options), *words)
    refused(bnfold(model, *options), *words)


def test_a_provider_that_there_is_not_is_said_even_where_nothing_is_run(settled):
    refused(bnfold(settled, "--provider", "gpu"), "no provider 'gpu'", "cuda")
    refused(bnfold(settled, "--provider", "cuda", "--no-verify"), "--provider")
    refused(bnfold(settled, "--provider", "cuda", "--check"), "--provider")


def test_samples_in_a_folder(model, folded, tmp_path):
    shape = [
        dim.dim_value or 2 for dim in onnx.load(model).graph.input[0].type.tensor_type.shape.dim
    ]
    samples = tmp_path / "samples"
    samples.mkdir()
    for number in range(2):
        values = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        np.save(samples / f"{number}.npy", values)
    run = bnfold("verify", model, folded, "-v", "--inputs", samples)
    assert run.code == 0
    assert labels(run) == ["0.npy", "1.npy"]
    assert bnfold("verify", model, folded, "--inputs", samples / "0.npy").code == 0
