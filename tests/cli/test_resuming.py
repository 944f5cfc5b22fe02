"""Many models with one command, which goes on where an earlier run has ended."""

from __future__ import annotations

import json
import signal

import pytest

import bnfold
import bnfold.registry

from . import examples
from .command import bnfold as command
from .command import process, start, wait_for
from .registries import listed, stamps


def test_nothing_is_done_twice(models, tmp_path):
    out = tmp_path / "out"
    first = command(models, "--output-dir", out)
    before, told = stamps(out), listed(out)
    again = command(models, "--output-dir", out, "--resume")
    assert "4 of them were done before and have not changed" in again.lines
    assert (again.code, stamps(out), listed(out)) == (first.code, before, told)


def _touch_data(models, out):
    with (models / "deep" / "two.bin").open("r+b") as file:
        file.write(b"\0\0\0\0")


def _mend(models, out):
    examples.save(examples.settled(), models / "deep" / "broken.onnx")


def _spoil_output(models, out):
    with (out / "deep" / "one.bin").open("r+b") as file:
        file.write(b"\0\0\0\0")


@pytest.mark.parametrize(
    "change, words, anew",
    [
        (_touch_data, (), {"deep/x.onnx"}),
        (_mend, (), {"deep/broken.onnx"}),
        (lambda models, out: (out / "m.onnx").unlink(), (), {"m.onnx"}),
        (_spoil_output, (), {"deep/x.onnx"}),
        (lambda models, out: (out / "m.onnx.report.json").write_text("{}"), (), {"m.onnx"}),
        (lambda models, out: None, ("--memory", "8GB"), {"deep/broken.onnx"}),
        (lambda models, out: None, ("--seed", "1"), {"m.onnx", "deep/x.onnx", "deep/broken.onnx"}),
    ],
)
def test_what_has_changed_is_done_anew(change, words, anew, models, tmp_path):
    out = tmp_path / "out"
    command(models, "--output-dir", out)
    change(models, out)
    before = {path: path.stat().st_ino for path in out.rglob("*.report.json")}
    command(models, "--output-dir", out, "--resume", *words)
    written = {
        path.relative_to(out).as_posix().removesuffix(".report.json")
        for path in out.rglob("*.report.json")
        if before.get(path) != path.stat().st_ino
    }
    assert written - {"deep/er/settled.onnx"} == anew
    assert listed(out)["deep/x.onnx"]["verdict"] == "pass"


@pytest.mark.parametrize(
    "status, done",
    [
        *[(status, False) for status in ("crashed", "killed", "out of memory", "timeout")],
        ("not written", False),
        ("error", True),
    ],
)
def test_what_came_to_no_end_is_tried_again(status, done, settled, tmp_path):
    report = tmp_path / "r.json"
    bnfold.run(settled, report=report)
    told = json.loads(report.read_bytes())
    report.write_text(json.dumps({**told, "status": status, "verdict": None, "report": None}))
    assert bnfold.run(settled, report=report, resume=True).resumed is done


def test_a_place_that_cannot_be_written_is_tried_again(model, tmp_path):
    output, report = tmp_path / "out.onnx", tmp_path / "r.json"
    output.mkdir()
    told = bnfold.run(model, output=output, report=report)
    assert (told.status, told.code) == ("not written", 2)
    output.rmdir()
    again = bnfold.run(model, output=output, report=report, resume=True)
    assert (again.status, again.verdict, again.resumed) == ("done", "pass", False)


def test_a_bound_that_was_too_small_is_not_for_good(settled, tmp_path):
    report = tmp_path / "r.json"
    small = bnfold.run(settled, report=report, memory="20MB")
    assert (small.status, small.code) == ("error", 2)
    assert bnfold.run(settled, report=report, memory="20MB", resume=True).resumed
    again = bnfold.run(settled, report=report, memory="4GB", resume=True)
    assert (again.verdict, again.resumed) == ("unchanged", False)


def test_another_version_does_it_anew(model, tmp_path):
    report = tmp_path / "r.json"
    assert not bnfold.run(model, tmp_path / "o.onnx", report=report, resume=True).resumed
    assert bnfold.run(model, tmp_path / "o.onnx", report=report, resume=True).resumed
    told = json.loads(report.read_bytes())
    told["versions"]["bnfold"] = "0.0.1"
    report.write_text(json.dumps(told))
    assert not bnfold.run(model, tmp_path / "o.onnx", report=report, resume=True).resumed


def at_the_last(models, out):
    """A run that has come to the last model, which takes seconds."""
    (models / "last").mkdir()
    examples.save(examples.slow(), models / "last" / "z.onnx")
    running = start(models, "--output-dir", out)
    wait_for(lambda: list(out.glob("last/.bnfold-*/z.onnx")))
    return running


def test_interrupted_and_resumed(models, tmp_path):
    """The index says so, nothing is left in between, and what was done is not done again."""
    out = tmp_path / "out"
    running = at_the_last(models, out)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate()
    assert (running.returncode, told.decode().strip()) == (130, "interrupted")
    data = json.loads((out / "index.json").read_bytes())
    assert not data["complete"] and len(data["models"]) == 4
    assert "The run is not over" in (out / "index.html").read_text()
    assert not list(tmp_path.rglob(".bnfold-*"))
    before = stamps(out)
    assert not [name for name in before if name.startswith("last")]
    examples.save(examples.settled(), models / "last" / "z.onnx")
    again = process(models, "--output-dir", out, "--resume")
    assert "4 of them were done before and have not changed" in again.lines
    assert {n: i for n, i in stamps(out).items() if not n.startswith("last")} == before
    assert listed(out)["last/z.onnx"]["verdict"] == "unchanged"
    assert json.loads((out / "index.json").read_bytes())["complete"]


def test_killed_and_resumed(models, tmp_path):
    """Whoever kills the command kills all that it has started."""
    out = tmp_path / "out"
    running = at_the_last(models, out)
    running.kill()
    running.communicate()
    wait_for(lambda: not list(out.rglob(".bnfold-*")))
    assert not (out / "last" / "z.onnx").exists()
    examples.save(examples.settled(), models / "last" / "z.onnx")
    again = process(models, "--output-dir", out, "--resume")
    assert "4 of them were done before and have not changed" in again.lines
