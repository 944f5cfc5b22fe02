"""Many models with one command: what is found, what is written, the index."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

import bnfold
import bnfold.registry
from bnfold import UsageError
from bnfold._registry import index, places

from ..graphs import assert_same
from . import examples
from .command import bnfold as command
from .command import on_terminal, process, refused, tree
from .registries import found, listed

# --- what is written --------------------------------------------------------------------------


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


# --- what is found ----------------------------------------------------------------------------


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
    # A file is no folder that a wildcard leads into.
    for pattern in ("models/*/**/x.onnx", "models/**/**/x.onnx", "models/*/x.onnx"):
        registry = bnfold.registry.find(pattern, out)
        assert found(registry) == ["deep/x.onnx"] and not registry.refused, pattern
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


def test_several_at_once_that_are_not_compared(models, tmp_path):
    """Each had got a part of the cores for its comparison, and none has one."""
    run = command(models, "--output-dir", tmp_path / "out", "--no-verify", "--jobs", "2")
    assert run.code == 2 and run.lines[1] == "4 models: 1 error, 2 skipped, 1 unchanged"
    refused(
        command(models, "--output-dir", tmp_path / "o", "--no-verify", "--threads", "2"),
        "nothing is compared with --no-verify",
    )


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


# --- the index --------------------------------------------------------------------------------

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


def test_many_models_in_the_forms_of_ci_servers(models, tmp_path):
    """One table, a suite and at most one annotation for each; a name stays a name."""
    (models / "a|b`[x](y).onnx").write_bytes(b"no model")
    table = command(models, "--output-dir", "a", "--output-format", "markdown", cwd=tmp_path)
    assert table.lines[0].startswith("### bnfold: 5 models: ")
    assert r"| a\|b\`\[x\](y).onnx | error | – | – | 0 | 0 |" in table.out
    assert any(re.match(r"\| m.onnx \| pass \| 8 → 7 \|", line) for line in table.lines)
    verdicts = [line.split(" | ")[1] for line in table.lines[4:]]
    assert verdicts[:2] == ["error", "error"] and "error" not in verdicts[2:]
    summary = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    words = (models, "--output-format")
    told = command(*words, "github", "--output-dir", "b", cwd=tmp_path, env=summary)
    assert [line.partition(",")[0] for line in told.lines] == [
        "::error file=models/a|b`[x](y).onnx",
        f"::error file={Path('models', 'deep', 'broken.onnx')}",
    ]
    assert (tmp_path / "summary.md").read_text("utf-8").strip() == table.out.strip()
    suites = ElementTree.fromstring(command(*words, "junit", "--output-dir", tmp_path / "a").out)
    assert [suite.get("failures") for suite in suites] == ["1", "1", "0", "0", "0"]


def test_each_model_has_a_page_that_the_index_leads_to(models, tmp_path):
    pytest.importorskip("fast_sugiyama", reason="pages need bnfold[report]")
    out = tmp_path / "out"
    command(models, "--output-dir", out, "--pages")
    done = [name for name, entry in listed(out).items() if entry["status"] == "done"]
    assert len(done) == 3
    for name, entry in listed(out).items():
        assert entry["page"] == (f"{name}.report.html" if name in done else None)
    for name in done:
        page = (out / f"{name}.report.html").read_text("utf-8")
        assert f"{name} -o " in page and "--report" not in page  # what a user would type
        assert f'href="./{name}.report.html">page<' in (out / "index.html").read_text("utf-8")
    (out / "m.onnx.report.html").unlink()
    again = command(models, "--output-dir", out, "--pages", "--resume")
    assert (out / "m.onnx.report.html").exists() and "3 of them were done before" in again.out
    command(models, "--output-dir", out, "--resume")
    assert all(entry["page"] is None for entry in listed(out).values())
    refused(command(models, "--output-dir", out, "--html", "p.html"), "say --pages")
    refused(command(models / "m.onnx", "--pages"), "without --output-dir")


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
