"""A plan and a verdict print as the command tells them, and show as tables in notebooks."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

import bnfold as api
from bnfold._judge.verdict import Divergence, EndToEnd

from . import examples
from .command import bnfold


class Cells(HTMLParser):
    """The texts of an HTML fragment in which every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def words(lines: list[str]) -> list[list[str]]:
    """The words of each line: a table has other widths with a row more."""
    return [line.split() for line in lines]


@pytest.mark.parametrize("name", ["foldable", "settled", "crossing"])
def test_a_plan_prints_as_the_command_tells_it(name, tmp_path):
    model = getattr(examples, name)()
    told = str(api.plan(model)).splitlines()
    said = bnfold(examples.save(model, tmp_path / "m.onnx"), "--no-verify").lines
    own = ("file size", "verified", "nothing was written", "  bnfold ", "-v lists")
    said = [line for line in said if not any(word in line for word in own)]
    assert words(told) == words(said)


def test_names_in_a_notebook_are_no_html():
    model = examples.foldable()
    for number, node in enumerate(model.graph.node):
        node.name = f"<b>{number}&amp;"
    plan = api.plan(model)
    assert plan.kept and plan.folds
    html = plan._repr_html_()
    texts = set(Cells(html).texts)
    assert "<b>" not in html
    for kept in plan.kept:
        assert {kept.node, kept.op, kept.code, kept.message} <= texts
    assert {"BatchNormalization", "3", "2"} <= texts


def test_a_fold_and_a_kept_map_print_as_one_line():
    plan = api.plan(examples.foldable())
    assert str(plan.folds[0]) == "bn1 → conv1 (absorb behind Conv)"
    kept = replace(plan.kept[0], graph="loop/body")
    assert str(kept) == f"{kept.node} [loop/body]: {kept.message}"
    assert str(replace(plan.folds[0], graph="f")) == "bn1 → conv1 [f] (absorb behind Conv)"


def test_a_verdict_prints_as_the_command_tells_it(tmp_path):
    path, made = examples.save(examples.foldable(), tmp_path / "m.onnx"), tmp_path / "f.onnx"
    bnfold(path, "-o", made, "--no-verify")
    for original in (path, examples.save(examples.crossing(), tmp_path / "other.onnx")):
        said = bnfold("verify", original, made)
        assert str(api.verify(original, made)).splitlines() == said.lines


def test_a_verdict_in_a_notebook():
    found: Any = Divergence("t<0>", "signed", 1.0, 0.1, "", "Conv", ("a", "b"), ("x",))
    checks = api.verify(examples.foldable(), examples.foldable()).checks
    result = EndToEnd("fail", checks, ("note & more",), 0, "", "CPU", divergence=found)
    html = result._repr_html_()
    texts = Cells(html).texts
    assert texts[:2] == ["verification: ", "fail"] and "note & more" in texts
    assert any("t<0>" in text for text in texts) and "<0>" not in html
    for check in checks:
        assert {check.output, check.inputs, check.status, f"{check.tolerance:.2e}"} <= set(texts)
    assert Cells(replace(result, checks=())._repr_html_())
