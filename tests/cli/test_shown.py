"""A plan and a verdict print as the command tells them, and show as tables in notebooks."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

import bnfold as api
from bnfold._core import sketch
from bnfold._judge.verdict import Divergence, EndToEnd

from ..graphs import conv, model, op
from . import examples
from .command import bnfold

SVG = "{http://www.w3.org/2000/svg}"


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
    made = getattr(examples, name)()
    told = str(api.plan(made)).splitlines()
    said = bnfold(examples.save(made, tmp_path / "m.onnx"), "--no-verify").lines
    own = ("file size", "verified", "nothing was written", "  bnfold ", "says what helps")
    said = [line for line in said if not any(word in line for word in own)]
    assert words(told) == words(said)


def test_names_in_a_notebook_are_no_html():
    made = examples.foldable()
    for number, node in enumerate(made.graph.node):
        node.name = f"<b>{number}&amp;"
    plan = api.plan(made)
    assert plan.kept and plan.folds
    html = plan._repr_html_()
    texts = set(Cells(html).texts)
    assert "<b>" not in html
    for kept in plan.kept:
        assert {kept.node, kept.op, kept.code, kept.message} <= texts
    assert {"BatchNormalization", "3", "2"} <= texts


def drawn(html: str) -> ElementTree.Element:
    """The picture in what a notebook shows."""
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def rectangles(picture: ElementTree.Element, colour: str) -> list[float]:
    found = [one for one in picture.iter(f"{SVG}rect") if one.get("fill") == colour]
    return [float(one.get("y", "")) for one in found if one.get("height") == "22.0"]


def test_a_plan_in_a_notebook_has_a_picture_of_before_and_after():
    """What is gone is in one row, what took it in and what stays in both."""
    plan = api.plan(examples.foldable())
    picture = drawn(plan._repr_html_())
    gone, into, kept = (rectangles(picture, sketch._COLOURS[k]) for k in ("gone", "into", "kept"))
    assert (len(gone), len(into), len(kept)) == (1, 2, 4) and len({*into}) == len({*kept}) == 2
    titles = [title.text for title in picture.iter(f"{SVG}title")]
    assert "BatchNormalization bn1 → conv1 (absorb behind Conv)" in titles
    assert len(titles) == len(plan.order) == 8
    assert len([*picture.iter(f"{SVG}path")]) == 1  # one arc
    said = [text.text for text in picture.iter(f"{SVG}text")]
    assert said == ["before 8", "after 7", "1 gone", "1 took it in", "2 stay, with a reason"]


def test_operators_that_merge_are_in_the_picture():
    made = model(
        conv("one", "x", "a", (4, 3, 3, 3), pads=[1, 1, 1, 1]),
        conv("two", "x", "b", (4, 3, 1, 1)),
        op("Add", "a b", "y", name="sum"),
        x=[1, 3, 8, 8],
    )
    picture = drawn(api.plan(made)._repr_html_())
    gone = {title.text for title in picture.iter(f"{SVG}title") if "→ one" in str(title.text)}
    assert gone == {"two → one (merge in parallel)", "sum → one (merge in parallel)"}


def test_a_picture_has_a_bounded_size_and_no_name_leaves_it():
    hostile = "</svg><script>document.title=1</script>\u202e\x00&" + "x" * 500
    cells = [("gone" if k % 3 else "into", f"{k}{hostile}") for k in range(10_000)]
    arcs = [(k, k - 1) for k in range(1, 10_000)]
    html = sketch.before_and_after(cells, arcs, (10_000, 3_334))
    assert len(html) < 100_000 and len(drawn(html))
    html = sketch.before_and_after(cells[:160], arcs[:159], (160, 54))
    assert "<script" not in html and "\u202e" not in html and "\x00" not in html
    assert len(html) < 100_000 and len([*drawn(html).iter(f"{SVG}title")]) == 160
    html = sketch.bars([(hostile, 1e9, "fail")] * 12, [3.0] * 10_000)
    assert len(html) < 100_000 and "<script" not in html
    assert max(float(one.get("width", "")) for one in drawn(html).iter(f"{SVG}rect")) <= 300


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
    shown = [str(text.text) for text in drawn(html).iter(f"{SVG}text")]
    assert {text.split(": ")[1] for text in shown} == {f"y on {c.inputs} inputs" for c in checks}
    for check in checks:
        assert {check.output, check.inputs, check.status, f"{check.tolerance:.2e}"} <= set(texts)
    assert Cells(replace(result, checks=())._repr_html_())
