"""What CI servers are given, read by what reads it there: a JUnit parser and its schema, the rules
of GitHub's runner, a parser of Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from ..graphs import bn, conv, op
from ..graphs import model as model_of
from . import examples
from .command import TOO_LARGE, bnfold

junitparser = pytest.importorskip("junitparser", reason="junitparser is not installed")
markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
xmlschema = pytest.importorskip("xmlschema", reason="xmlschema is not installed")

SCHEMA = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))
NASTY = [
    "50%,%0A%25::error file=x,title=y::z",
    "two\nlines\r\nand\ttabs",
    "a|b||c\\|d\\",
    "*bold* _it_ __b__ ~~gone~~ `code` ``x",
    "[link](http://x.y) ![i](j) <b>&lt;&amp;</b> <!--",
    "$a_1$ $$x$$ # 1. - + = {x} \"q\" 'r'",
    "größe 层 \U0001f600 \u200b \u2028 \x85 \x01 \x1b[31m \uffff",
    " around ",
    "::stop-commands::x",
    "##[error]x",
    "\n::stop-commands::x\n::add-mask::y",
    "\u202egnp.exe \u2066left",
    "see https://x.y or www.x.y, @user, #1",
]
"""Names that mean something to one of the readers."""


def shown(text: str) -> str:
    """One line, with nothing in it that a reader cannot see: as Python writes it in a literal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@pytest.fixture
def nasty(tmp_path):
    """A model with a fold and a map that stays for each name."""
    pieces = []
    for k, name in enumerate(NASTY):
        made = [
            conv(f"conv{k}", "x", f"c{k}", (4, 3, 3, 3)),
            bn(f"bn{k}", f"c{k}", f"b{k}", 4),
            (op("Sigmoid", f"b{k}", f"s{k}"), {}),
            bn(f"last{k}", f"s{k}", f"y{k}", 4),
        ]
        for node, _ in made:
            node.name = f"{node.name} {name}"
        pieces += made
    outputs = " ".join(f"y{k}" for k in range(len(NASTY)))
    return examples.save(model_of(*pieces, y=outputs), tmp_path / "m.onnx")


def as_json(*args: Any) -> Any:
    return json.loads(bnfold(*args, "--output-format", "json").out)


def foldable(fold: Any) -> str:
    """What is said of a fold."""
    return f"{', '.join(fold['nodes'])} → {fold['into']} ({', '.join(fold['laws'])})"


# --- JUnit --------------------------------------------------------------------------------------


def junit(*args: Any, **options: Any) -> tuple[int, Any]:
    """The one suite of a run, valid by the schema, its counts what the parser itself counts."""
    run = bnfold(*args, "--output-format", "junit", **options)
    assert run.err == ""
    SCHEMA.validate(run.out)
    (suite,) = junitparser.JUnitXml.fromstring(run.out.encode())
    told = (suite.tests, suite.failures, suite.errors, suite.skipped)
    assert suite.time > 0
    suite.update_statistics()
    assert told == (suite.tests, suite.failures, suite.errors, suite.skipped)
    return run.code, suite


def writable(text: str) -> str:
    """The text with what XML cannot write as what stands for it."""
    return text.translate(dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0xFFFF], "\ufffd"))


def test_junit_of_all_kinds_of_runs(model, settled, strange, wrong):
    for args, code, failures, skipped in (
        ((model,), 0, 0, 0),
        ((settled,), 0, 0, 0),
        ((model, "--no-verify"), 0, 0, 1),
        ((strange,), 0, 0, 0),
        ((strange, "--no-prove"), 3, 0, 1),
        ((model, "--provider", "cuda"), 3, 0, 1),
        ((model, "--check"), 1, 1, 0),
        ((settled, "--check"), 0, 0, 0),
        (("verify", model, wrong), 1, 5, 0),
        (("verify", strange, strange, "--no-prove"), 3, 0, 1),
    ):
        ended, suite = junit(*args)
        found = (suite.failures, suite.errors, suite.skipped)
        assert (ended, *found) == (code, failures, 0, skipped), args
    ended, suite = junit(model, factor=TOO_LARGE)
    assert (ended, suite.errors) == (1, 0)
    assert {case.classname for case in suite if case.is_failure} == {
        "bnfold.certificate",
        "bnfold.output",
        "bnfold.proof",
        "bnfold.verification",
    }


def test_junit_says_what_json_says(model, wrong):
    told = as_json("verify", model, wrong)
    _, suite = junit("verify", model, wrong)
    cases = {case.name: case for case in suite}
    for check in told["checks"]:
        case = cases[f"{check['output']} on {check['inputs']} inputs"]
        (failure,) = case.result
        assert f"difference {check['difference']:.2e}" in failure.message
        assert failure.text == failure.message
        assert failure.type == "output"
    assert told["divergence"]["tensor"] in cases["first difference"].result[0].message


def junit_text(model: Path) -> str:
    return bnfold(model, "--check", "--output-format", "junit").out


def test_junit_of_names_that_mean_something(nasty):
    folds = as_json(nasty, "--check")["folds"]
    code, suite = junit(nasty, "--check")
    assert code == 1
    assert not any(line.startswith(("::", "##")) for line in junit_text(nasty).splitlines())
    assert [case.name for case in suite] == [writable(shown(", ".join(f["nodes"]))) for f in folds]
    assert len(folds) == len(NASTY)
    for case, fold in zip(suite, folds):
        (failure,) = case.result
        assert failure.message == failure.text == writable(shown(foldable(fold)))


# --- GitHub: annotations ------------------------------------------------------------------------


def unescaped(text: str, extra: str = "") -> str:
    """As the runner reads it: what is escaped is put back, the percent sign last."""
    for character in f"\r\n{extra}%":
        text = text.replace(f"%{ord(character):02X}", character)
    return text


def annotation(line: str) -> tuple[str, dict[str, str], str]:
    """One workflow command, read by the rules that GitHub documents for them and its runner
    follows: ``::name key=value,key=value::message``.
    """
    assert line.startswith("::")
    head, _, message = line[2:].partition("::")
    name, _, listed = head.partition(" ")
    pairs = (pair.partition("=") for pair in listed.strip().split(",") if pair)
    return name, {key: unescaped(value, ":,") for key, _, value in pairs}, unescaped(message)


def annotations(run: Any) -> list[tuple[str, dict[str, str], str]]:
    return [annotation(line) for line in run.out.split("\n")[:-1]]


def test_annotations_of_names_that_mean_something(nasty, tmp_path):
    folder = tmp_path / "a,b:c%2C=d"
    folder.mkdir()
    model = nasty.rename(folder / nasty.name)
    folds = as_json(model, "--check")["folds"]
    run = bnfold(model, "--check", "--output-format", "github")
    assert len(folds) == len(NASTY)
    ((name, properties, message),) = annotations(run)
    title = f"bnfold: {len(folds)} affine operators are left to fold"
    assert (name, properties) == ("error", {"file": str(model), "title": title})
    assert message.startswith(f"would fold {len(folds)} of ")


@pytest.mark.parametrize("name", ["a,b::error::%0A", "c\n::warning::d", "e\u202ef"])
def test_an_annotation_of_an_output_that_means_something(name, model, wrong):
    """What a name holds stays within the message of the one annotation."""
    for path in (model, wrong):
        made = onnx.load(path)
        for node in made.graph.node:
            node.name += name
        made.graph.output[0].name = made.graph.node[-1].output[0] = f"y{name}"
        onnx.save(made, path)
    run = bnfold("verify", model, wrong, "--output-format", "github")
    ((level, properties, message),) = annotations(run)
    assert (run.code, level, properties) == (
        1,
        "error",
        {"file": str(wrong), "title": "bnfold: verification failed"},
    )
    assert shown(f"conv1{name}") in message


def test_annotations_are_what_junit_calls_failures_and_skipped(model, wrong, strange):
    unproved = ("verify", strange, strange, "--no-prove")
    for args in (("verify", model, wrong), unproved, (model, "--no-verify")):
        _, suite = junit(*args)
        wanted = {
            case.name: (case.is_failure, result.message) for case in suite for result in case.result
        }
        ((level, properties, message),) = annotations(bnfold(*args, "--output-format", "github"))
        assert level == ("error" if any(bad for bad, _ in wanted.values()) else "warning")
        if len(wanted) == 1:
            ((name, (_, text)),) = wanted.items()
            assert (properties["title"], message) == (f"bnfold: {name}", text)
        else:
            told, _, more = message.rpartition("; and ")
            assert told in [f"{name}: {text}" for name, (_, text) in wanted.items()]
            assert more == f"{len(wanted) - 1} more, in the summary of the step"


# --- GitHub: the summary ------------------------------------------------------------------------

Table = list[list[str]]
CELLS = ("tr", "th", "td")


def markdown(text: str) -> tuple[list[str], list[Table]]:
    """The headings of a document and its tables, cell by cell, as text that a reader sees.

    Nothing but text may come of a name: no emphasis, no link, no code, no HTML.
    """
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    headings: list[str] = []
    tables: list[Table] = []
    within = ""
    for token in parser.parse(text):
        if token.type in ("heading_open", "th_open", "td_open"):
            within = token.type
        elif token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline":
            assert {part.type for part in token.children} <= {"text", "text_special"}, token.content
            plain = "".join(part.content for part in token.children)
            (headings if within == "heading_open" else tables[-1][-1]).append(plain)
        else:
            assert token.type.partition("_")[0] in ("heading", "table", "thead", "tbody", *CELLS)
    return headings, tables


def cell(text: str) -> str:
    """A cell has one line; Markdown has no way to write what is no character."""
    return " ".join(shown(text).split())


def summaries(tmp_path: Path, *args: Any) -> tuple[list[str], list[Table]]:
    target = tmp_path / "summary.md"
    target.unlink(missing_ok=True)
    bnfold(*args, "--output-format", "github", env={"GITHUB_STEP_SUMMARY": str(target)})
    return markdown(target.read_text(encoding="utf-8"))


def of_plan(told: Any) -> Iterator[Table]:
    before, after = told["operators"]["before"], told["operators"]["after"]
    changed = [op for op in sorted({*before, *after}) if before.get(op) != after.get(op)]
    rows = [[op, str(before.get(op, 0)), str(after.get(op, 0))] for op in changed]
    total = ["all operators", *(str(sum(each.values())) for each in (before, after))]
    yield [["", "before", "after"], *rows, total]
    kept = [[cell(k["node"]), k["code"], cell(k["message"])] for k in told["kept"]]
    yield [["stays", "reason", ""], *kept]


def test_the_summary_is_tables_of_what_json_says(nasty, tmp_path):
    told = as_json(nasty, "--check")
    headings, tables = summaries(tmp_path, nasty, "--check")
    what = [[cell(", ".join(f["nodes"])), "fail", cell(foldable(f))] for f in told["folds"]]
    assert len(told["kept"]) == len(what) == len(NASTY)
    assert headings == [f"bnfold: {nasty}: something is left to fold"]
    counts, about, *others = tables
    assert counts[-1][0] == "file size"
    assert [counts[:-1], *others] == [*of_plan(told), [["check", "result", ""], *what]]
    made = onnx.load(nasty).graph
    for label, ports in (("inputs", made.input), ("outputs", made.output)):
        said = dict(about[1:])[label]
        listed = [cell(f"{one.name}: float32[") for one in ports][:8]
        assert all(name in said for name in listed)


def test_the_summary_of_a_comparison(model, wrong, tmp_path):
    _, suite = junit("verify", model, wrong, "--no-prove")
    headings, (about, table) = summaries(tmp_path, "verify", model, wrong, "--no-prove")
    assert headings == [f"bnfold: {model} and {wrong}: fail"]
    assert dict(about[1:])["verdict"] == "fail"
    assert table == [
        ["check", "result", ""],
        *([case.name, "fail", cell(case.result[0].message)] for case in suite),
    ]


def test_summaries_of_several_models_stand_one_after_the_other(model, settled, tmp_path):
    headings, tables = summaries(tmp_path, settled, model, "--check")
    assert headings == [
        f"bnfold: {settled}: nothing to fold",
        f"bnfold: {model}: something is left to fold",
    ]
    assert len(tables) == 6


def test_a_path_that_means_something(model, tmp_path):
    odd = tmp_path / "*a*_b_`c`[d](e)|f$g$<i> #"
    odd.write_bytes(onnx.load(model).SerializeToString())
    headings, tables = summaries(tmp_path, odd, "--check")
    assert headings == [f"bnfold: {odd}: something is left to fold"]
    assert len(tables) == 4
