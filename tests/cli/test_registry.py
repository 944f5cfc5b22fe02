"""Many models with one command: what is found, what becomes of each, what is written, resumed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import click
import onnx
import pytest

import bnfold
import bnfold.registry
from bnfold import UsageError
from bnfold._command import cli, many
from bnfold._registry import index, places

from ..graphs import assert_same
from . import examples
from .command import bnfold as command
from .command import on_terminal, process, refused, start, tree, wait_for

DEATHS = {"poison": signal.SIGKILL, "broken-library": signal.SIGSEGV}
SITE = f"""
import importlib.util, os, sys
class Planted:
    def find_spec(self, name, *more):
        if name != "bnfold._pipeline.models":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        right = spec.loader.exec_module
        def exec_module(module):
            right(module)
            fold_file = module.fold_file
            def deadly(path, *args, **kwargs):
                for word, number in { ({w: int(n) for w, n in DEATHS.items()})!r}.items():
                    if word in path.name:
                        os.kill(os.getpid(), number)
                return fold_file(path, *args, **kwargs)
            module.fold_file = deadly
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Planted())
"""
"""Models of some names end the process that folds them."""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A tree of models: two that fold, one with its data beside it, one settled, one broken."""
    folder = tmp_path / "models"
    (folder / "deep" / "er").mkdir(parents=True)
    examples.save(examples.foldable(), folder / "m.onnx")
    data = {"conv1_w": "one.bin", "conv2_w": "two.bin"}
    examples.save(examples.foldable(), folder / "deep" / "x.onnx", **data)
    examples.save(examples.settled(), folder / "deep" / "er" / "settled.onnx")
    (folder / "deep" / "broken.onnx").write_text("no model")
    (folder / "README.md").write_text("# Models")
    return folder


def listed(folder: Path) -> dict[str, Any]:
    """The models of an index, by name."""
    data = json.loads((folder / "index.json").read_bytes())
    return {model["name"]: model for model in data["models"]}


def found(registry: bnfold.registry.Registry) -> list[str]:
    return sorted(item.name for task in registry.tasks for item in task.items)


def stamps(folder: Path) -> dict[str, int]:
    """Which file each one but the index is: who writes it anew changes that."""
    files = (path for path in folder.rglob("*") if path.is_file() and "index." not in path.name)
    return {str(path.relative_to(folder)): path.stat().st_ino for path in files}


# --- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_tree_and_its_bytes(jobs, models, tmp_path):
    """What the command writes for one model, at the same place of another tree."""
    fused = tmp_path / "fused"
    run = process(models, "--output-dir", fused, "--jobs", jobs)
    assert run.code == 2
    assert "deep/broken.onnx: error: " in run.lines[0] and "it is a text" in run.lines[0]
    assert run.lines[1:] == [
        "4 models: 1 error, 2 pass, 1 unchanged",
        "passed over: 3 other files",
        f"wrote {fused / 'index.html'} and index.json",
    ]
    for name in ("m.onnx", "deep/x.onnx", "deep/er/settled.onnx"):
        single = tmp_path / "single" / name
        single.parent.mkdir(parents=True, exist_ok=True)
        assert command(models / name, "-o", single).code == 0
    written = {
        name: data
        for name, data in tree(fused).items()
        if not name.endswith(".report.json") and not name.startswith("index.")
    }
    assert written == tree(tmp_path / "single")
    model = listed(fused)["deep/x.onnx"]
    assert (model["status"], model["verdict"], model["folds"]) == ("done", "pass", 1)
    assert model["operators"] == {"before": 8, "after": 7}
    assert model["output"] == "deep/x.onnx"
    assert json.loads((fused / model["report"]).read_bytes())["report"]["model"].endswith("x.onnx")


@pytest.fixture
def sharing(tmp_path: Path) -> Path:
    """Four models that name one data file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        examples.save(examples.foldable(), folder / f"{name}.onnx", conv1_w="shared.bin")
    return folder


def test_data_of_one_name_are_one_task(sharing, tmp_path):
    """They are folded one after the other; a model of another folder is not among them."""
    (sharing / "more").mkdir()
    examples.save(examples.foldable(), sharing / "more" / "e.onnx", conv1_w="shared.bin")
    registry = bnfold.registry.find(sharing, tmp_path / "out")
    names = [[item.name for item in task.items] for task in registry.tasks]
    assert names == [["a.onnx", "b.onnx", "c.onnx", "d.onnx"], ["more/e.onnx"]]


def test_two_models_with_data_of_one_name(sharing, tmp_path):
    """All would put their weights at one place: each has its own."""
    out = tmp_path / "out"
    assert process(sharing, "--output-dir", out, "--jobs", 4).code == 0
    for name in ("a", "b", "c", "d"):
        assert_same(onnx.load(sharing / f"{name}.onnx"), onnx.load(out / f"{name}.onnx"))
    data = sorted(p.name for p in out.iterdir() if p.suffix in (".bin", ".data"))
    assert data == ["b.onnx.data", "c.onnx.data", "d.onnx.data", "shared.bin"]


def test_a_data_file_that_appears_meanwhile_stays(external, tmp_path, monkeypatch):
    """Two commands, or two machines, may choose one free name."""
    from bnfold._onnx.files import save

    (tmp_path / "out").mkdir()
    right = save.write_external

    def late(*args):
        result = right(*args)
        (tmp_path / "out" / "one.bin").write_text("another run's")
        return result

    monkeypatch.setattr(save, "write_external", late)
    run = command(external, "-o", tmp_path / "out" / "m.onnx", "--no-verify")
    refused(run, "cannot write", "has appeared meanwhile")
    assert tree(tmp_path / "out") == {"one.bin": b"another run's"}


# --- what is found -----------------------------------------------------------------------------


def test_what_is_passed_over_is_counted(models, tmp_path):
    (models / ".git").mkdir()
    examples.save(examples.settled(), models / ".git" / "hidden.onnx")
    examples.save(examples.settled(), models / ".m.onnx")
    (models / "loop").symlink_to(models)
    registry = bnfold.registry.find(models, models / "fused")
    assert found(registry) == ["deep/broken.onnx", "deep/er/settled.onnx", "deep/x.onnx", "m.onnx"]
    counted = {"hidden file": 1, "hidden folder": 1, "linked folder": 1, "other file": 3}
    assert registry.passed_over == counted


def test_an_output_folder_among_the_models(models):
    """What a run has written is no model of the next one."""
    fused = models / "fused"
    (fused / "deep").mkdir(parents=True)
    examples.save(examples.settled(), fused / "deep" / "x.onnx")
    registry = bnfold.registry.find(models, fused)
    assert "fused/deep/x.onnx" not in found(registry) and len(found(registry)) == 4
    registry = bnfold.registry.find(str(models / "**" / "*.onnx"), fused)
    assert len(found(registry)) == 4


@pytest.mark.parametrize("how", ["same", "link"])
def test_no_model_is_written_over(how, models, tmp_path):
    where = models
    if how == "link":
        where = tmp_path / "link"
        where.symlink_to(models)
    before = tree(models)
    refused(command(models, "--output-dir", where), "is the folder of the models")
    registry = bnfold.registry.find(models / "m.onnx", where)
    assert not registry.tasks and "is a model itself" in registry.refused[0].message
    del before["deep/"]
    assert {n: d for n, d in tree(models).items() if n in before} == before


def test_patterns_lists_and_files(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert found(bnfold.registry.find("models/**/*.onnx", out))[-1] == "m.onnx"
    assert found(bnfold.registry.find("models/d*/[sx].onnx", out)) == ["deep/x.onnx"]
    (tmp_path / "list.txt").write_text("models/deep/x.onnx\r\n\n./models/m.onnx\nmodels/m.onnx\n")
    assert found(bnfold.registry.find("@list.txt", out)) == ["deep/x.onnx", "m.onnx"]
    assert found(bnfold.registry.find(["models/deep/x.onnx"], out)) == ["x.onnx"]
    both = ["models/deep/er", "models/deep/x.onnx"]
    assert found(bnfold.registry.find(both, out)) == ["settled.onnx", "x.onnx"]
    with pytest.raises(UsageError, match=r"cannot read nothing.txt: there is no such file"):
        bnfold.registry.find("@nothing.txt", out)
    with pytest.raises(UsageError, match="no model fits this pattern"):
        bnfold.registry.find("models/*.pb", out)


def test_nothing_is_there(models, tmp_path):
    """One empty folder of two is told, and the other one is folded."""
    (tmp_path / "empty").mkdir()
    refused(command(tmp_path / "empty", "--output-dir", tmp_path / "o"), "holds no .onnx file")
    assert not (tmp_path / "o").exists()
    registry = bnfold.registry.find([models, tmp_path / "empty"], tmp_path / "o")
    assert len(registry.tasks) == 4
    assert "holds no .onnx file" in registry.refused[0].message


def test_two_models_of_one_name(models, tmp_path):
    """Neither is written; the others are."""
    other = tmp_path / "other"
    other.mkdir()
    examples.save(examples.settled(), other / "m.onnx")
    run = command(models, other, "--output-dir", tmp_path / "out", "--no-verify")
    assert run.code == 2
    told = [line for line in run.lines if "would be written to one file" in line]
    assert len(told) == 2 and str(other) in told[0] and str(models) in told[0]
    assert not (tmp_path / "out" / "m.onnx").exists()
    assert (tmp_path / "out" / "deep" / "x.onnx").exists()


def test_names_that_differ_by_case(models, tmp_path, monkeypatch):
    """They are two files here, and one where the file system takes them for one."""
    examples.save(examples.settled(), models / "M.onnx")
    assert "M.onnx" in found(bnfold.registry.find(models, tmp_path / "out"))
    monkeypatch.setattr(places, "_ignores_case", lambda folder: True)
    registry = bnfold.registry.find(models, tmp_path / "out")
    assert "m.onnx" not in found(registry) and "M.onnx" not in found(registry)


def test_a_model_that_takes_the_place_of_the_index(tmp_path):
    (tmp_path / "index.html").write_bytes(examples.settled().SerializeToString())
    registry = bnfold.registry.find(tmp_path / "index.html", tmp_path / "out")
    assert "index" in registry.refused[0].message and not registry.tasks


def test_what_cannot_be_opened_is_told(models, tmp_path):
    """A pipe would never end, and a link may lead nowhere."""
    os.mkfifo(models / "pipe.onnx")
    (models / "nowhere.onnx").symlink_to(tmp_path / "gone.onnx")
    command(models, "--output-dir", tmp_path / "out", "--no-verify")
    told = listed(tmp_path / "out")
    assert "not a regular file" in told["pipe.onnx"]["message"]
    assert "there is no such file" in told["nowhere.onnx"]["message"]
    assert told["m.onnx"]["status"] == "done"


def test_an_output_folder_that_cannot_be_written(models, tmp_path, bound):
    (tmp_path / "out").mkdir(0o500)
    run = process(models, "--output-dir", tmp_path / "out", command=bound)
    refused(run, "cannot write", "not writable")


@pytest.mark.parametrize(
    "words", [("--jobs", "2"), ("--resume",), ("--output-dir", "o", "--report", "r.json")]
)
def test_options_that_have_no_use(words, model, tmp_path):
    refused(command(model, *words, cwd=tmp_path), "leave out --")


def test_what_a_program_has_no_use_for():
    """How it is compared and believed does not stop it; what would change the function does."""
    from bnfold._registry.work import applicable

    given = (("--draw", "signed"), ("--trust", None), ("--input-mean", "=0.5"), ("--seed", "1"))
    assert applicable(Path("m.pt2"), given) == given[1:]
    assert applicable(Path("m.onnx"), given) == (given[0], given[2], given[3])


# --- resuming ----------------------------------------------------------------------------------


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


def test_interrupted_and_resumed(models, tmp_path):
    """The index says so, nothing is left in between, and what was done is not done again."""
    out = tmp_path / "out"
    (models / "last").mkdir()
    examples.save(examples.slow(), models / "last" / "z.onnx")
    running = start(models, "--output-dir", out)
    wait_for(lambda: list(out.glob("last/.bnfold-*/z.onnx")))
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
    (models / "last").mkdir()
    examples.save(examples.slow(), models / "last" / "z.onnx")
    running = start(models, "--output-dir", out)
    wait_for(lambda: list(out.glob("last/.bnfold-*/z.onnx")))
    running.kill()
    running.communicate()
    wait_for(lambda: not list(out.rglob(".bnfold-*")))
    assert not (out / "last" / "z.onnx").exists()
    examples.save(examples.settled(), models / "last" / "z.onnx")
    again = process(models, "--output-dir", out, "--resume")
    assert "4 of them were done before and have not changed" in again.lines


# --- models that end their process -------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path, monkeypatch) -> Iterator[dict[str, str]]:
    """Processes that models of some names end; none that was there before is used."""
    from bnfold._registry import worker

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    started: list[worker.Worker] = []
    monkeypatch.setattr(worker, "_idle", started)
    yield {"PYTHONPATH": str(tmp_path / "site")}
    for each in started:
        each.close()


def test_a_model_that_ends_its_process_ends_nothing_else(models, planted, tmp_path):
    out = tmp_path / "out"
    for name in ("poison.onnx", "broken-library.onnx"):
        shutil.copy(models / "m.onnx", models / name)
    run = command(models, "--output-dir", out, "--jobs", 2, env=planted)
    told = listed(out)
    assert run.code == 3
    assert (told["poison.onnx"]["status"], told["poison.onnx"]["code"]) == ("killed", 3)
    assert "memory may have run out" in told["poison.onnx"]["message"]
    crashed = told["broken-library.onnx"]
    assert (crashed["status"], crashed["verdict"], crashed["code"]) == ("crashed", None, 2)
    assert "SIGSEGV" in crashed["message"]
    assert told["m.onnx"]["verdict"] == told["deep/x.onnx"]["verdict"] == "pass"
    assert not (out / "poison.onnx").exists() and not list(out.rglob(".bnfold-*"))
    again = process(models, "--output-dir", out, "--resume")  # by processes that live
    assert again.code == 2
    assert "4 of them were done before and have not changed" in again.lines
    assert listed(out)["poison.onnx"]["verdict"] == "pass"


def test_memory_and_time_that_are_not_enough(models, tmp_path):
    out = tmp_path / "out"
    examples.save(examples.endless(), models / "endless.onnx")
    bounded = (models, "--output-dir", out, "--timeout", "2", "--memory", "2GB", "--no-prove")
    run = command(*bounded)
    assert run.code == 3
    told = listed(out)
    assert (told["endless.onnx"]["status"], told["endless.onnx"]["verdict"]) == (
        "done",
        "inconclusive",
    )
    assert told["m.onnx"]["verdict"] == "pass"
    same = command(*bounded, "--resume")
    assert "5 of them were done before and have not changed" in same.lines


def test_what_is_read_ahead_of_the_command_has_bounds_as_well(model, tmp_path, monkeypatch):
    """A result depends on what a disk may take its time to give, and on files that are large."""
    from bnfold._registry import worker

    slow = "import sys, time\nimport bnfold._registry.fingerprint as found\n"
    slow += "found.of_model = lambda path: time.sleep(60)\n"
    monkeypatch.setattr(
        worker,
        "_SERVE",
        f"{worker._SERVE.partition('; from')[0]}\n{slow}"
        "from bnfold._command.warm import serve; serve()",
    )
    monkeypatch.setattr(worker, "_idle", [])
    told = bnfold.run(model, timeout=1)
    assert (told.status, told.code) == ("timeout", 3)
    assert "time is up after 1 s" in told.message


def test_the_process_that_serves_dies_itself(model, tmp_path, monkeypatch):
    """It is a status, and the next model has another one."""
    from bnfold._registry import worker

    class Dying(worker.Worker):
        def ask(self, request):
            self._process.kill()
            self._process.wait()
            return super().ask(request)

    monkeypatch.setattr(worker, "_idle", [])
    monkeypatch.setattr(worker, "Worker", Dying)
    told = bnfold.run(model, tmp_path / "o.onnx", report=tmp_path / "r.json")
    assert (told.status, told.code, told.output) == ("killed", 3, None)
    assert json.loads((tmp_path / "r.json").read_bytes())["status"] == "killed"
    monkeypatch.undo()
    again = bnfold.run(model, tmp_path / "o.onnx", report=tmp_path / "r.json", resume=True)
    assert (again.status, again.verdict) == ("done", "pass")


# --- the unit of work --------------------------------------------------------------------------


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


# --- the index ---------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>'\"&\u202e.onnx"


def test_names_in_the_index_are_names(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (HOSTILE, "javascript:alert(1).onnx", "a%2f#?.onnx"):
        examples.save(examples.settled(), folder / name)
    assert command(folder, "--output-dir", tmp_path / "out").code == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<img" not in page and "\u202e" not in page
    assert 'href="./javascript%3Aalert%281%29.onnx"' in page
    assert 'href="./a%252f%23%3F.onnx"' in page
    assert "http:" not in page and "https:" not in page and " src=" not in page.split("<tbody>")[0]
    assert set(listed(tmp_path / "out")) >= {HOSTILE}


def test_the_index_and_reports_are_what_their_schemas_say(models, tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schemas = {
        name: json.loads((resources.files("bnfold") / "schemas" / f"{name}-1.json").read_text())
        for name in ("index", "run")
    }
    run = command(models, "--output-dir", tmp_path / "out", "--output-format", "json")
    printed = json.loads(run.out)
    assert printed == json.loads((tmp_path / "out" / "index.json").read_bytes())
    jsonschema.Draft202012Validator(schemas["index"]).validate(printed)
    for path in (tmp_path / "out").rglob("*.report.json"):
        jsonschema.Draft202012Validator(schemas["run"]).validate(json.loads(path.read_bytes()))
    for form in ("github", "junit"):
        refused(
            command(models, "--output-dir", tmp_path / "out", "--output-format", form),
            "takes one model at a time",
        )


def test_progress_is_for_a_terminal(models, tmp_path):
    """How many, how long still, and what: on one line that is gone at the end."""
    planted = (
        "import sys\nfrom bnfold._command.terminal import Progress\nProgress._PATIENCE_S = 0.01\n"
        "from bnfold._command.cli import main\nmain(sys.argv[1:], 'bnfold')\n"
    )
    words = (models, "--output-dir", tmp_path / "out", "--no-verify")
    shown = on_terminal(*words, command=(sys.executable, "-c", planted), columns=120)
    assert "0 of 4 models: " in shown.out and "1 not passed, about " in shown.out
    quiet = process(*words)
    assert quiet.err == "" and " left: " not in quiet.out


def test_the_index_is_put_in_place_whole(tmp_path, monkeypatch):
    """Whoever reads it meanwhile reads the one before."""
    index.write(tmp_path, [], {}, True)
    before = (tmp_path / "index.json").read_bytes()

    def ends(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", ends)
    with pytest.raises(KeyboardInterrupt):
        index.write(tmp_path, [], {"other file": 1}, True)
    assert sorted(tree(tmp_path)) == ["index.html", "index.json"]
    assert (tmp_path / "index.json").read_bytes() == before
