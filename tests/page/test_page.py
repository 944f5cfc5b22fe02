"""What is on a page, read from the data that it holds: no browser is needed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold._report.page.grouping import MOST, grouped
from bnfold._report.page.layout import laid_out
from bnfold._report.page.writing import _SCRIPTS

from ..cli.command import bnfold as run
from ..graphs import bn, const, conv, model, op, rand, subgraph

pytest.importorskip("fast_sugiyama", reason="pages need bnfold[report]")

HOSTILE = "</script><script>document.title='broken'</script><!-- \u2028 \u202e & \x1b[31m"


def document(page: Path) -> dict[str, Any]:
    """The data in a page."""
    text = page.read_text("utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(data)


def saved(made: onnx.ModelProto, path: Path) -> Path:
    onnx.save(made, path)
    return path


def foldable() -> onnx.ModelProto:
    """A BatchNormalization behind a Conv, one past a Relu that stays, and a merge of two Conv."""
    return model(
        conv("/a/conv/Conv", "x", "c", (4, 3, 3, 3), pads=[1, 1, 1, 1]),
        bn("/a/norm/BatchNormalization", "c", "n", 4),
        op("Relu", "n", "r", name="/a/act/Relu"),
        bn("/b/norm/BatchNormalization", "r", "m", 4),
        op("Tanh", "m", "y", name="/b/Tanh"),
        x=[1, 3, 8, 8],
    )


def nodes_of(told: dict[str, Any], **wanted: Any) -> list[int]:
    found = [
        {"op": told["ops"][node[0]], "name": node[1], "side": node[2], "at": k}
        for k, node in enumerate(told["nodes"])
    ]
    return [each["at"] for each in found if all(each[k] == v for k, v in wanted.items())]


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    source = saved(foldable(), tmp_path / "m.onnx")
    ran = run(source, "-o", tmp_path / "f.onnx", "--html", tmp_path / "r.html")
    assert ran.code in (0, 3), ran
    assert f"wrote {tmp_path / 'r.html'}" in ran.out
    return document(tmp_path / "r.html")


def test_a_fold_is_linked_to_the_operator_that_took_it_in(told: dict[str, Any]) -> None:
    (gone,) = nodes_of(told, name="/a/norm/BatchNormalization")
    (into,) = nodes_of(told, name="/a/conv/Conv")
    (fold,) = [fold for fold in told["folds"] if gone in fold["gone"]]
    assert (fold["into"], fold["laws"], fold["state"]) == (into, ["absorb behind Conv"], "holds")
    assert told["nodes"][gone][2] == 1 and told["nodes"][into][2] == 3
    assert told["proof"]["status"] == "proved"
    assert into in [node for _, _, node in told["proof"]["layers"]]


def test_the_numbers_of_channels_are_those_of_the_weights(
    told: dict[str, Any], tmp_path: Path
) -> None:
    before, after = (onnx.load(tmp_path / name) for name in ("m.onnx", "f.onnx"))
    stored = [
        {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer}
        for m in (before, after)
    ]
    gamma, beta, mean, var = (
        stored[0][name].astype(np.float64) for name in before.graph.node[1].input[1:]
    )
    epsilon = next((a.f for a in before.graph.node[1].attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(var + epsilon)
    (into,) = nodes_of(told, name="/a/conv/Conv")
    table = told["tables"][str(into)]
    weights = [s[m.graph.node[0].input[1]] for s, m in zip(stored, (before, after))]
    bias = stored[1][after.graph.node[0].input[2]]
    assert table["count"] == table["seen"] == 4
    for k, *row in table["rows"]:
        own = [scale[k], beta[k] - mean[k] * scale[k], *(np.abs(w[k]).max() for w in weights)]
        assert row[:4] == pytest.approx(own, rel=1e-3)
        assert row[5] == pytest.approx(bias[k], rel=1e-3)
        assert 0 <= row[6] <= 1
    columns = list(zip(*(row[1:] for row in table["rows"])))
    for spread, column in zip(table["spread"], columns, strict=True):
        ends = min(column), float(np.median(column)), max(column)
        assert spread == pytest.approx(ends, rel=1e-3)


def test_a_map_along_another_axis_of_the_same_size_is_not_shown_by_channel(tmp_path: Path) -> None:
    made = model(
        (op("MatMul", "x w", "y", name="stack"), {"w": rand(4, 5, 4)}),
        const("Mul", "y", "z", rand(4, 1, 1)),
        x=[4, 3, 5],
        y="z",
    )
    page = bnfold.report(saved(made, tmp_path / "m.onnx"), tmp_path / "r.html")
    told = document(page)
    (layer,) = nodes_of(told, op="MatMul")
    assert [fold["into"] for fold in told["folds"]] == [layer]
    assert all(row[1] is row[7] is None for row in told["tables"][str(layer)]["rows"])


def test_operators_that_merge_are_linked_by_their_names(tmp_path: Path) -> None:
    """The one that is left may stand where another one stood."""
    made = model(
        conv("one", "x", "a", (4, 3, 3, 3), pads=[1, 1, 1, 1]),
        conv("two", "x", "b", (4, 3, 1, 1)),
        op("Add", "a b", "s", name="sum"),
        bn("norm", "s", "y", 4),
        x=[1, 3, 8, 8],
    )
    told = document(bnfold.report(saved(made, tmp_path / "m.onnx"), tmp_path / "r.html"))
    merge, fold = told["folds"]
    name = [node[1] for node in told["nodes"]]
    assert merge["kind"] == "merge" and fold["kind"] == "fold"
    for each in (merge, fold):
        assert [name[at] for at in each["gone"]] == each["names"]
        assert name[each["into"]] == each["target"] == "one"


@pytest.mark.parametrize("more", [{}, {"beta": 0.5}, {"alpha": 2.0}])
@pytest.mark.parametrize("shape", [(), (1, 4), (4,)])
def test_a_distance_is_told_only_where_the_formula_is_whole(
    tmp_path: Path, shape: tuple[int, ...], more: dict[str, float]
) -> None:
    made = model(
        (op("Gemm", "x w c", "g", name="fc", **more), {"w": rand(3, 4), "c": rand(*shape)}),
        bn("norm", "g", "y", 4),
        x=[2, 3],
    )
    told = document(bnfold.report(saved(made, tmp_path / "m.onnx"), tmp_path / "r.html"))
    (layer,) = nodes_of(told, op="Gemm")
    far = [row[7] for row in told["tables"][str(layer)]["rows"]]
    whole = shape != () and not more
    assert [each is not None and each <= 1 for each in far] == [whole] * 4


def test_a_kept_map_has_its_reason_and_the_operator_that_stopped_it(tmp_path: Path) -> None:
    made = model(
        const("Add", "x", "s", rand(1, 3, 1, 1), name="/shift"),
        conv("/conv", "s", "y", (4, 3, 3, 3), pads=[1, 1, 1, 1]),
        x=[1, 3, 8, 8],
    )
    page = bnfold.report(saved(made, tmp_path / "m.onnx"), tmp_path / "r.html")
    told = document(page)
    (kept,) = (each for each in told["kept"] if each["kind"] == "map")
    shift, stop = nodes_of(told, op="Add") + nodes_of(told, op="Conv")
    assert (kept["node"], kept["at"], kept["code"]) == (shift, stop, "zero-padding")
    assert kept["advice"]


def test_no_name_leaves_the_block_of_data(tmp_path: Path) -> None:
    made = foldable()
    for node in made.graph.node:
        node.name += HOSTILE
    made.graph.input[0].name = made.graph.node[0].input[0] = HOSTILE
    page = bnfold.report(saved(made, tmp_path / "m.onnx"), tmp_path / "r.html")
    text = page.read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "\u2028" not in text and "\u202e" not in text and "\x1b" not in text
    names = [node[1] for node in document(page)["nodes"]]
    assert any("<script>document.title" in name and r"\u202e" in name for name in names)


def test_the_policy_forbids_all_but_the_own_style_and_script(
    told: dict[str, Any], tmp_path: Path
) -> None:
    text = (tmp_path / "r.html").read_text("utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules.keys() == {
        *("default-src", "script-src", "style-src", "base-uri", "form-action")
    }
    assert "unsafe" not in policy and "http" not in policy
    shown = text.replace(json.dumps(told), "").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\((?!#)", shown)


def test_a_comparison_marks_what_differs(tmp_path: Path) -> None:
    made = foldable()
    first = saved(made, tmp_path / "a.onnx")
    made.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(made.graph.initializer[0]) * np.float32(1.1),
            made.graph.initializer[0].name,
        )
    )
    second = saved(made, tmp_path / "b.onnx")
    ran = run("verify", first, second, "--html", tmp_path / "r.html")
    told = document(tmp_path / "r.html")
    assert ran.code == 1 and told["head"]["status"] == "fail"
    (layer,) = nodes_of(told, op="Conv")
    assert told["changed"] == [layer] and told["divergence"]["at"] == layer
    spread = told["checks"][0]["spread"]
    assert spread[0] + sum(spread[2]) == 4 * 8 * 8
    ran = run("verify", first, second, "--prove", "--html", tmp_path / "p.html")
    told = document(tmp_path / "p.html")
    assert ran.code == 1 and told["proof"]["status"] == "refuted"
    assert told["folds"] == [] and told["tables"] == {}  # no operator is gone
    assert told["proof"]["node"] == layer


def test_a_comparison_tells_what_may_have_been_folded(told: dict[str, Any], tmp_path: Path) -> None:
    """By bnfold's plan for the first file, as far as the second one can come of it."""
    folded = onnx.load(tmp_path / "f.onnx")
    weight = next(t for t in folded.graph.initializer if t.name == folded.graph.node[0].input[1])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[2] *= 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    wrong = saved(folded, tmp_path / "w.onnx")
    for path, far in ((tmp_path / "f.onnx", []), (wrong, [2])):
        run("verify", tmp_path / "m.onnx", path, "--prove", "--html", tmp_path / "v.html")
        seen = document(tmp_path / "v.html")
        (fold,) = seen["folds"]
        assert (fold["names"], fold["state"]) == (["/a/norm/BatchNormalization"], "")
        rows = seen["tables"][str(fold["into"])]["rows"]
        assert [row[0] for row in rows if row[7] > 1] == far


def test_the_worst_channels_are_shown_of_many(tmp_path: Path, monkeypatch: Any) -> None:
    """Those of a wrong layer, wherever they stand; of weights too large to hold, the first ones."""
    made = model(conv("conv", "x", "c", (64, 3, 3, 3)), bn("norm", "c", "y", 64), x=[1, 3, 8, 8])
    source = saved(made, tmp_path / "m.onnx")
    bnfold.fold(source, tmp_path / "f.onnx")
    folded = onnx.load(tmp_path / "f.onnx")
    weight = next(t for t in folded.graph.initializer if t.name == folded.graph.node[0].input[1])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[[61, 40]] *= np.float32([[[[1.5]]], [[[1.1]]]])
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    wrong = saved(folded, tmp_path / "w.onnx")

    def shown() -> dict[str, Any]:
        bnfold.report(source, tmp_path / "r.html", folded=wrong)
        (table,) = document(tmp_path / "r.html")["tables"].values()
        return table

    table = shown()
    assert (table["count"], table["seen"], len(table["rows"])) == (64, 64, 16)
    assert [row[0] for row in table["rows"][:2]] == [61, 40]
    assert table["spread"][6][2] == table["rows"][0][7] > table["spread"][6][1]
    monkeypatch.setattr("bnfold._report.page.witness._HELD", 64)
    table = shown()
    assert (table["seen"], sorted(row[0] for row in table["rows"])) == (16, list(range(16)))


def test_bodies_are_groups(tmp_path: Path) -> None:
    body = subgraph(op("Abs", "x", "b", name="inner"), op("Exp", "b", "y"), y="y")
    other = subgraph(op("Neg", "x", "y", name="other"), y="y")
    made = model(
        op("ReduceMax", "x", "top", keepdims=0),
        (op("Greater", "top zero", "flag"), {"zero": np.float32(0)}),
        op("If", "flag", "y", name="choice", then_branch=body, else_branch=other),
        x=[1, 4],
    )
    page = bnfold.report(saved(made, tmp_path / "m.onnx"), tmp_path / "r.html")
    told = document(page)
    inside = {
        told["nodes"][child][1]: group[0]
        for group in told["groups"]
        for child in group[2]
        if child >= 0
    }
    assert inside["inner"] == "choice.then_branch"


@pytest.mark.parametrize("count", [41, 500, 10_000])
def test_no_group_holds_more_than_can_be_seen(count: int) -> None:
    edges = [(k, k + 1) for k in range(count - 1)]
    groups = grouped([()] * count, edges)
    assert max(len(group.children) for group in groups) <= MOST
    held = sorted(child for group in groups for child in group.children if child >= 0)
    assert held == list(range(count))


def test_names_that_tell_only_the_type_make_no_groups() -> None:
    edges = [(k, k + 1) for k in range(19)]
    groups = grouped([("conv",) if k % 2 else ("norm",) for k in range(20)], edges)
    assert [group.children for group in groups] == [list(range(20))]
    blocks = grouped([("one",)] * 10 + [("two",)] * 10, edges)
    assert [group.name for group in blocks] == ["", "one", "two"]


def test_data_stand_above_who_reads_them() -> None:
    edges = [(0, 1), (1, 2), (0, 2), (2, 4), (0, 4), (7, 8)]
    level = laid_out(list(range(9)), edges)
    assert all(level.places[a][0] < level.places[b][0] for a, b in edges)
    assert len(set(level.places)) == 9  # none on top of another
    routes = {(a, b): way for a, b, way in level.routes}
    assert [layer for layer, _ in routes[0, 4]] == list(range(1, level.places[4][0]))


def test_the_script_has_types() -> None:
    """A name that is misspelled in a branch that no test takes is an error to the checker."""
    checker = shutil.which("tsc")
    if checker is None:
        pytest.skip("needs TypeScript's tsc, to check the script of a page")
    folder = Path(bnfold.__file__).parent / "_report" / "page" / "assets"
    scripts = [folder / name for name in _SCRIPTS]
    flags = "--noEmit --allowJs --checkJs --strict --target es2022 --lib es2022,dom,dom.iterable"
    done = subprocess.run([checker, *flags.split(), *scripts], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


def test_a_page_takes_the_place_of_no_file_of_the_run(tmp_path: Path) -> None:
    source = saved(foldable(), tmp_path / "m.onnx")
    before = source.read_bytes()
    for other in (source, tmp_path / "o.onnx"):
        ran = run(source, "-o", tmp_path / "o.onnx", "--html", other)
        assert ran.code == 2 and "overwrite" in ran.err
        assert source.read_bytes() == before and not (tmp_path / "o.onnx").exists()
    ran = run(source, "--html", tmp_path / "none" / "r.html")
    assert ran.code == 2 and list(tmp_path.iterdir()) == [source]
    with pytest.raises(bnfold.UsageError, match="overwrite"):
        bnfold.report(source, source)


def test_a_page_takes_the_place_of_no_weights(tmp_path: Path) -> None:
    """Weights may lie in files of their own, of the model and of what is written."""
    source = tmp_path / "m.onnx"
    onnx.save(foldable(), source, save_as_external_data=True, location="w.bin", size_threshold=64)
    weights = (tmp_path / "w.bin").read_bytes()
    ran = run(source, "-o", tmp_path / "o" / "f.onnx", "--html", tmp_path / "w.bin")
    assert ran.code == 2
    (tmp_path / "o").mkdir()
    for args in ((source, "-o", tmp_path / "o" / "f.onnx"), (source,), ("verify", source, source)):
        ran = run(*args, "--html", tmp_path / "w.bin")
        assert ran.code == 2 and "own weights" in ran.err
        assert (tmp_path / "w.bin").read_bytes() == weights
        assert not list((tmp_path / "o").iterdir())
    assert run(source, "-o", tmp_path / "o" / "f.onnx").code == 0
    (data,) = (path for path in (tmp_path / "o").iterdir() if path.name != "f.onnx")
    for path in (tmp_path / "o").iterdir():
        path.unlink()
    ran = run(source, "-o", tmp_path / "o" / "f.onnx", "--html", data)
    assert ran.code == 2 and "own weights" in ran.err and not list((tmp_path / "o").iterdir())


def test_the_summary_of_a_step_says_where_the_page_is(
    tmp_path: Path,
) -> None:
    source = saved(foldable(), tmp_path / "m.onnx")
    summary = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    run(source, "--html", "r.html", "--output-format", "github", cwd=tmp_path, env=summary)
    assert (tmp_path / "summary.md").read_text().count("r.html") == 1
    assert document(tmp_path / "r.html")["kind"] == "fold"


def test_a_wrong_fold_is_shown_and_not_written(tmp_path: Path) -> None:
    source = saved(foldable(), tmp_path / "m.onnx")
    ran = run(source, "-o", tmp_path / "o.onnx", "--html", tmp_path / "r.html", factor=1.01)
    told = document(tmp_path / "r.html")
    assert ran.code == 1 and told["head"]["status"] == "fail"
    assert told["head"]["output"] is None and not (tmp_path / "o.onnx").exists()
    assert {fold["state"] for fold in told["folds"]} >= {"fails"}


def test_what_cannot_be_drawn_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(foldable(), tmp_path / "m.onnx")
    with pytest.raises(bnfold.UsageError, match=r"\.pt2"):
        bnfold.report(tmp_path / "m.pt2", tmp_path / "r.html")
    with pytest.raises(TypeError, match="path"):
        bnfold.report(foldable(), tmp_path / "r.html")  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "fast_sugiyama", None)
    ran = run(source, "-o", tmp_path / "o.onnx", "--html", tmp_path / "r.html")
    assert ran.code == 2 and "pip install 'bnfold[report]'" in ran.err
    assert not (tmp_path / "o.onnx").exists()
