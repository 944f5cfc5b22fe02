"""``--output-format``: what CI servers read, held to what they take."""

from __future__ import annotations

import json
import os
import re
from xml.etree import ElementTree

import onnx
import pytest

import bnfold as package

from .command import bnfold, refused, tree

COMMAND = re.compile(r"::(error|warning) file=([^,:]*),title=([^,:]*)::(.*)")


def suite(text):
    """The one suite of a JUnit file, whose counts are those of its cases."""
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    (found,) = root
    return counted(found)


def counted(found):
    """A suite, whose counts are those of its cases."""
    cases = found.findall("testcase")
    assert int(found.get("tests")) == len(cases)
    assert int(found.get("failures")) == len(found.findall("testcase/failure"))
    assert int(found.get("skipped")) == len(found.findall("testcase/skipped"))
    assert float(found.get("time")) >= 0
    assert all(case.get("name") and case.get("classname") for case in cases)
    return found


def commands(run):
    """Workflow commands as a runner parses them: level, file, title, message."""
    found = [COMMAND.fullmatch(line) for line in run.lines]
    assert all(found), run.out
    for part in (p for match in found for p in match.groups()[1:]):
        assert not re.search("%(?!25|0D|0A|3A|2C)", part)
    return [match.groups() for match in found]


# --- JSON ---------------------------------------------------------------------------------------


def test_json_is_the_report(model, tmp_path):
    run = bnfold(model, "--output-format", "json", "--report", tmp_path / "r.json")
    assert run.code == 0
    assert json.loads(run.out) == json.loads((tmp_path / "r.json").read_text())


def test_json_of_a_comparison(model, wrong):
    run = bnfold("verify", model, wrong, "--output-format", "json")
    told = json.loads(run.out)
    assert run.code == 1
    assert told["schema"] == "bnfold.comparison/1"
    assert (told["status"], told["bnfold"]) == ("fail", package.__version__)
    assert told["divergence"]["suspects"]
    assert {"output", "inputs", "difference", "tolerance", "ratio", "power"} <= set(
        told["checks"][0]
    )


def test_json_of_names_that_no_terminal_shows(model, tmp_path):
    made = onnx.load(model)
    for node in made.graph.node:
        node.name += "\x85\u200b\U0001f600"
    onnx.save(made, tmp_path / "odd.onnx")
    run = bnfold(tmp_path / "odd.onnx", "--output-format", "json")
    assert any("\x85\u200b" in fold["into"] for fold in json.loads(run.out)["folds"])


# --- JUnit --------------------------------------------------------------------------------------


def test_junit_of_a_fold(model):
    run = bnfold(model, "--output-format", "junit")
    found = suite(run.out)
    assert run.code == 0
    assert int(found.get("failures")) == 0
    kinds = {case.get("classname") for case in found.findall("testcase")}
    assert kinds == {
        *("bnfold.certificate", "bnfold.layer", "bnfold.proof"),
        *("bnfold.output", "bnfold.verification"),
    }


def test_junit_of_what_failed(model, wrong):
    run = bnfold("verify", model, wrong, "--output-format", "junit")
    found = suite(run.out)
    assert run.code == 1
    messages = [failure.get("message") for failure in found.findall("testcase/failure")]
    assert any("tolerance" in message for message in messages)
    assert any("at fault" in message for message in messages)


def test_junit_of_names_that_xml_cannot_write(model, tmp_path):
    made = onnx.load(model)
    for node in made.graph.node:
        node.name += "\x01<&\uffff\U0001f600"
    onnx.save(made, tmp_path / "odd.onnx")
    names = [
        c.get("name") for c in suite(bnfold(tmp_path / "odd.onnx", "--output-format", "junit").out)
    ]
    assert any("\\x01<&\\uffff\U0001f600" in name for name in names)


# --- GitHub -------------------------------------------------------------------------------------


def test_github_says_nothing_when_all_is_well(model, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    run = bnfold(model, "--output-format", "github", env={"GITHUB_STEP_SUMMARY": str(summary)})
    assert (run.code, run.out, run.err) == (0, "", "")
    text = summary.read_text()
    assert text.startswith("before\n### bnfold: ")
    assert re.search(r"\n\| \w+ \| \d+ \| \d+ \|\n", text)
    assert tables_of(text)


def test_github_marks_the_file_that_is_wrong(model, wrong, tmp_path):
    run = bnfold("verify", model, wrong, "--output-format", "github")
    found = commands(run)
    assert run.code == 1
    ((level, file, title, message),) = found
    assert (level, file) == ("error", str(wrong))
    assert "at fault" in message and re.search(r"and \d+ more, in the summary", message)
    assert title == "bnfold%3A verification failed"


def test_github_escapes_what_it_reads_as_its_own(model, tmp_path):
    made = onnx.load(model)
    for node in made.graph.node:
        node.name += "::warning::a,b%0A\n::error::x"
    odd = tmp_path / "a,b.onnx"
    onnx.save(made, odd)
    found = commands(bnfold(odd, "--check", "--output-format", "github"))
    assert len(found) == 1
    assert found[0][1] == str(odd).replace(",", "%2C")


def test_a_summary_that_cannot_be_written(model, tmp_path):
    env = {"GITHUB_STEP_SUMMARY": str(tmp_path / "no" / "summary.md")}
    run = bnfold(model, "--output-format", "github", env=env)
    assert run.code == 2
    assert "summary" in run.err


# --- --check ------------------------------------------------------------------------------------


def test_check_fails_while_something_is_left_to_fold(model, tmp_path):
    before = tree(tmp_path)
    run = bnfold(model, "--check")
    assert (run.code, run.err) == (1, "")
    assert any(line.startswith("would fold 1 of 3 affine operators") for line in run.lines)
    assert "verif" not in run.out
    assert tree(tmp_path) == before
    assert bnfold(model, "-o", tmp_path / "folded.onnx").code == 0
    run = bnfold(tmp_path / "folded.onnx", "--check")
    assert (run.code, run.lines[0]) == (0, "nothing to fold")


@pytest.mark.parametrize("form", ["json", "junit", "github"])
def test_check_in_every_format(model, settled, form):
    run = bnfold(model, "--check", "--output-format", form)
    assert run.code == 1
    if form == "json":
        assert json.loads(run.out)["folds"]
    elif form == "junit":
        assert int(suite(run.out).get("failures")) == 1
    else:
        assert commands(run)[0][0] == "error"
    assert bnfold(settled, "--check", "--output-format", form).code == 0


@pytest.mark.parametrize(
    "more",
    [("-o", "out.onnx"), ("--in-place",), ("--inputs", "x.npz")],
)
def test_check_goes_with_nothing_that_writes_or_runs(model, more, tmp_path):
    refused(bnfold(model, "--check", *more, cwd=tmp_path), "--check", more[0])


def test_check_of_several_models(model, settled):
    assert bnfold(settled, settled, "--check").code == 0
    run = bnfold(settled, model, "--check")
    assert run.code == 1
    assert run.lines[:3] == [f"{settled}:", "nothing to fold", f"{model}:"]
    found = commands(bnfold(settled, model, "--check", "--output-format", "github"))
    assert [file for _, file, *_ in found] == [str(model)]
    refused(bnfold(model, settled), "one model", str(settled))
    run = bnfold(settled, "missing.onnx", "--check", cwd=model.parent)
    assert run.code == 2
    assert "missing.onnx" in run.err


def tables_of(text):
    """The tables of Markdown in a text: for each the cells of its rows, all of them as many."""
    found = []
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        if rows:
            cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
            assert len({len(row) for row in cells}) == 1, block
            assert rows == block.splitlines()[-len(rows) :]
            found.append([[cell.strip() for cell in row] for row in cells])
    return found


def test_check_of_several_models_in_forms_for_programs(model, settled, tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"bad")
    given = (settled, model, bad)
    run = bnfold(*given, "--check", "--output-format", "json", "--report", tmp_path / "r.json")
    told = json.loads(run.out)
    assert run.code == 2 and told == json.loads((tmp_path / "r.json").read_text())
    assert told["schema"] == "bnfold.check/1"
    assert [one["model"] for one in told["models"]] == list(map(str, given))
    assert [one["status"] for one in told["models"]] == [
        "nothing to fold",
        "left to fold",
        "unreadable",
    ]
    assert [one["error"] is None for one in told["models"]] == [True, True, False]
    alone = json.loads(bnfold(model, "--check", "--output-format", "json").out)
    assert told["models"][1]["report"] == alone
    suites = ElementTree.fromstring(bnfold(*given, "--check", "--output-format", "junit").out)
    assert [one.get("name") for one in suites] == [f"bnfold {path}" for path in given]
    assert [int(one.get("failures")) for one in map(counted, suites)] == [0, 1, 1]


def test_check_of_one_model_with_a_report(model, tmp_path):
    assert bnfold(model, "--check", "--report", tmp_path / "r.json").code == 1
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["schema"] == "bnfold.report/1" and told["output"] is None
    refused(bnfold(model, "--check", "--report", model), "would overwrite", str(model))
    refused(bnfold(model, "--check", "--report", tmp_path / "no" / "r.json"), "cannot write")


@pytest.mark.parametrize("more", [(), ("--prove",)])
def test_a_comparison_with_a_report(more, model, wrong, tmp_path):
    target = tmp_path / "r.json"
    run = bnfold("verify", model, wrong, *more, "--output-format", "json", "--report", target)
    assert run.code == 1
    assert json.loads(run.out) == json.loads(target.read_text())
    refused(bnfold("verify", model, wrong, *more, "--report", wrong), "would overwrite")


def test_github_has_ten_annotations_at_most(model, tmp_path):
    many = []
    for k in range(13):
        many.append(tmp_path / f"m{k}.onnx")
        many[-1].write_bytes(model.read_bytes())
    summary = tmp_path / "summary.md"
    env = {"GITHUB_STEP_SUMMARY": str(summary)}
    run = bnfold(*many, "--check", "--output-format", "github", env=env)
    assert len(run.lines) == 10
    assert [line for line in run.lines[:9] if not COMMAND.fullmatch(line)] == []
    assert run.lines[9] == (
        "::error title=bnfold%3A more models::4 more models are told in the summary of the step"
    )
    assert summary.read_text().count("### bnfold: ") == 13
    assert len(bnfold(*many[:10], "--check", "--output-format", "github").lines) == 10


# --- Markdown -----------------------------------------------------------------------------------


def test_markdown_of_a_fold(model, tmp_path):
    run = bnfold(model, "-o", tmp_path / "out.onnx", "--output-format", "markdown")
    counts, told = tables_of(run.out)
    assert run.lines[0].endswith(": pass") and counts[0] == ["", "before", "after"]
    rows = {name: rest for name, *rest in counts[2:]}
    assert rows["BatchNormalization"] == ["3", "2"] and rows["all operators"] == ["8", "7"]
    assert rows["file size"][0].endswith(" kB")
    rows = dict(told[2:])
    assert rows["inputs"].startswith("x\\: float32\\[") and rows["outputs"].startswith("y\\: ")
    assert rows["folds"] == "folded 1 of 3 affine operators into 1 operator"
    assert rows["stays"] == "2 affine operators: 2 no-linear-operator"
    assert rows["verdict"] == "pass" and rows["certificates"] == "1 of 1 hold"
    assert re.fullmatch(
        r"\S+, where \S+ is allowed \(output y, 3 comparisons\)", rows["largest difference"]
    )


def test_markdown_of_other_runs(model, wrong, settled):
    run = bnfold("verify", model, wrong, "--output-format", "markdown")
    (told,) = tables_of(run.out)
    assert run.code == 1 and dict(told[2:])["verdict"] == "fail"
    run = bnfold("verify", model, wrong, "--prove", "--output-format", "markdown")
    (told,) = tables_of(run.out)
    assert dict(told[2:])["proof"].startswith("refuted at conv1")
    run = bnfold(settled, model, "--check", "--output-format", "markdown")
    assert run.code == 1 and len(tables_of(run.out)) == 3
    assert "verdict" not in run.out
    assert [line.rpartition(": ")[2] for line in run.lines if line.startswith("###")] == [
        "nothing to fold",
        "something is left to fold",
    ]


def test_names_in_markdown_are_no_markup(model, tmp_path):
    made = onnx.load(model)
    hostile = "a|b <script>[x](http://y.z) `c`\n| d | @me"
    made.graph.output[0].name = made.graph.node[-1].output[0] = hostile
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n|m"
    for node in made.graph.node:
        node.name += hostile
    onnx.save(made, tmp_path / "odd.onnx")
    summary = tmp_path / "summary.md"
    env = {"GITHUB_STEP_SUMMARY": str(summary)}
    for form in ("markdown", "github"):
        for more in ((), ("--check",)):
            run = bnfold(tmp_path / "odd.onnx", *more, "--output-format", form, env=env)
            assert run.code == bool(more)
            text = run.out if form == "markdown" else summary.read_text()
            assert tables_of(text)
            assert not re.search(r"(?<!\\)<script|(?<!\\)`|(?<!\\)@me|(?<!\\)\]\(", text)


def test_an_unknown_format(model):
    run = bnfold(model, "--output-format", "yaml")
    assert run.code == 2
    assert "junit" in run.err


@pytest.mark.skipif(os.name == "nt", reason="no file has such a name there")
@pytest.mark.parametrize("form", ["text", "json", "markdown", "junit", "github"])
def test_no_name_is_a_command_of_a_ci_server(form, model, tmp_path):
    """A runner reads what a step prints: ``::`` first in a line, ``##[``, ``##vso[`` anywhere."""
    hostile = "::set-output name=verdict::pass##[add-mask]x##vso[task.setvariable variable=a]b"
    made = onnx.load(model)
    for number, node in enumerate(made.graph.node):
        node.name = f"{hostile}{number}"
    onnx.save(made, tmp_path / f"{hostile[:60]}.onnx")
    words = ("-v",) if form == "text" else ("--output-format", form)
    runs = [bnfold(f"{hostile[:60]}.onnx", *words, cwd=tmp_path)]
    runs += [bnfold(tmp_path, "--check", *words)]
    runs += [bnfold("explain", "::error::x")]
    runs += [bnfold(tmp_path, "--output-dir", tmp_path / "out", *words)]
    for run in runs:
        for line in (run.out + run.err).splitlines():
            begins = line.lstrip().startswith("::")
            assert not begins or (form == "github" and line.startswith("::error file=")), line
            assert begins or not re.search(r"##\w*\[", line), line
    if form == "json":
        assert json.loads(runs[0].out)["folds"][0]["into"].startswith(hostile)
    if form == "junit":
        assert "##vso[" in ElementTree.fromstring(runs[0].out)[0][0].get("name", "")
