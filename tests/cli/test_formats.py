"""``--output-format``: what CI servers read, held to what they take."""

from __future__ import annotations

import json
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
    cases = found.findall("testcase")
    assert int(found.get("tests")) == len(cases)
    assert int(found.get("failures")) == len(found.findall("testcase/failure"))
    assert int(found.get("skipped")) == len(found.findall("testcase/skipped"))
    assert float(found.get("time")) > 0
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
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in tables)


def test_github_marks_the_file_that_is_wrong(model, wrong, tmp_path):
    run = bnfold("verify", model, wrong, "--output-format", "github")
    found = commands(run)
    assert run.code == 1
    assert {level for level, *_ in found} == {"error"}
    assert {file for _, file, *_ in found} == {str(wrong)}
    assert any("at fault" in message for *_, message in found)


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
    assert any(line.startswith("can fold 1 map") for line in run.lines)
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
    [("-o", "out.onnx"), ("--in-place",), ("--inputs", "x.npz"), ("--report", "r.json")],
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
    refused(bnfold(model, settled, "--check", "--output-format", "junit"), "one model")
    refused(bnfold(model, settled), "one model", str(settled))
    run = bnfold(settled, "missing.onnx", "--check", cwd=model.parent)
    assert run.code == 2
    assert "missing.onnx" in run.err


def test_an_unknown_format(model):
    run = bnfold(model, "--output-format", "yaml")
    assert run.code == 2
    assert "junit" in run.err
