"""`bnfold.run`: the work on one model, as an engine on a cluster calls it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import click
import pytest

import bnfold
import bnfold.registry
from bnfold import UsageError
from bnfold._command import cli, many

from . import examples
from .command import bnfold as command
from .command import refused, tree


def test_a_report_is_plain_data(model, wrong, tmp_path):
    told = bnfold.run(model)
    assert pickle.loads(pickle.dumps(told)) == told
    assert (told.verdict, told.output, told.report) == ("pass", None, None)
    assert told.details is not None and told.details["schema"] == "bnfold.report/1"
    assert told.operators == (8, 7) and told.bytes is not None and 0 <= (told.distance or -1) < 1
    missing = bnfold.run(tmp_path / "no.onnx")
    assert (missing.status, missing.code) == ("error", 2)
    assert "there is no such file" in missing.message


def test_what_a_verdict_rests_on(model):
    """An index that says no more than "inconclusive" sends people to each report."""
    assert bnfold.run(model).message == ""
    told = bnfold.run(model, provider="cpu,tensorrt")
    assert (told.verdict, told.code) == ("inconclusive", 3)
    assert "onnxruntime-gpu" in told.message


def test_options_of_python(model, tmp_path):
    told = bnfold.run(
        model,
        report=tmp_path / "r.json",
        draw=["signed", "large"],
        dim={"batch": [1, 4]},
        power=True,
        threads=1,
        timeout=None,
    )
    said = json.loads((tmp_path / "r.json").read_bytes())
    assert said["options"] == {"--draw": "signed,large", "--dim": "batch=1,4", "--power": ""}
    assert said["bounds"] == {"--threads": "1"}
    assert told.status == "error" and "batch" in told.message
    assert "no such option" in bnfold.run(model, nonsense=1).message
    with pytest.raises(UsageError, match="takes no option 'check'"):
        bnfold.run(model, check=True)
    with pytest.raises(UsageError, match="is the input itself"):
        bnfold.run(model, model)


VALUES = {
    "path": "a b/x.npz",
    "integer": "7",
    "integer range": "7",
    "float": "0.25",
    "text": "cpu",
}
SPECIAL = {
    **{"draw": "signed,large", "provider": "cpu", "dim": "batch=1,4", "memory": "4GB"},
    **{"input_mean": "1.5,2,3e-7", "input_std": "x=y=2", "input_scale": "x=1/255"},
    **{"input_channels": "x=rgb:bgr", "input_layout": "nhwc", "input_type": "uint8"},
}


def test_every_option_reaches_the_work_as_it_was_given(tmp_path):
    """Also one that is added later: what the process of a model is told means the same."""
    arguments: list[str] = []
    for parameter in cli.fold.params:
        name = parameter.name or ""
        if name in many._OWN or not isinstance(parameter, click.Option):
            continue
        arguments.append(parameter.opts[0])
        if not parameter.is_flag:
            value = SPECIAL.get(name, VALUES.get(parameter.type.name))
            assert value is not None, f"say here what --{name} is given"
            arguments.append(value)
    given = cli.fold.make_context("fold", [*arguments, "--no-config", "m.onnx"])
    said = [part for option in many.options_of(given) for part in option if part is not None]
    again = cli.fold.make_context("fold", [*said, "--no-config", "m.onnx"])
    for name, value in given.params.items():
        if name == "inputs":
            assert again.params[name] == Path.cwd() / value
        elif name == "ops_library":
            assert again.params[name] == tuple(Path.cwd() / path for path in value)
        elif name not in many._OWN:
            assert again.params[name] == value, name
    assert len(many.options_of(given)) > 15


@pytest.mark.parametrize(
    "words, said",
    [
        ((), {"--draw": "signed", "--input-scale": "=0.5"}),
        (("--draw", "large"), {"--draw": "large", "--input-scale": "=0.5"}),
        (("--no-verify",), {"--no-verify": "", "--input-scale": "=0.5"}),
        (("--expose-normalization",), {"--expose-normalization": "", "--draw": "signed"}),
    ],
)
def test_a_project_has_its_say(words, said, models, tmp_path):
    """What [tool.bnfold] says is part of what a result depends on, where it has a use."""
    table = '[tool.bnfold]\ndraw = ["signed"]\ninput-scale = 0.5\n'
    (tmp_path / "pyproject.toml").write_text(table)
    run = command(models / "m.onnx", "--output-dir", "out", *words, cwd=tmp_path)
    assert run.code == 0 or "no normalization to take out" in run.out
    told = json.loads((tmp_path / "out" / "m.onnx.report.json").read_bytes())
    assert told["options"] == said


@pytest.mark.parametrize("name", ["m.onnx", "w.bin", "o.onnx", "soft", "a\0b"])
def test_a_report_takes_no_place_of_the_run(name, tmp_path):
    """Of the model, of its weights, of the output, and of none of them by a link."""
    examples.save(examples.foldable(), tmp_path / "m.onnx", conv1_w="w.bin")
    (tmp_path / "soft").symlink_to("m.onnx")
    before = tree(tmp_path)
    with pytest.raises(bnfold.UsageError, match=r"overwrite|holds the weights|has a NUL"):
        bnfold.run(tmp_path / "m.onnx", tmp_path / "o.onnx", report=tmp_path / name)
    assert tree(tmp_path) == before
    model = tmp_path / "m.onnx"
    for words in ((tmp_path, "--check"), ("verify", model, model)):
        if name in ("m.onnx", "w.bin"):
            refused(command(*words, "--report", tmp_path / name), name)
            assert tree(tmp_path) == before
