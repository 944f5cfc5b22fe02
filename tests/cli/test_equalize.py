"""``--equalize``: the file that is written is equalized and proved, or is the folded one."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold._pipeline.measuring import Measured
from bnfold._plan import equalizing

from ..carry.holding import same
from ..graphs import bn, conv, feeds, op
from ..graphs import model as build
from ..page.test_page import document
from . import examples
from .command import bnfold as run


@pytest.fixture
def pair():
    """Two layers of uneven channels, with a norm between: what is small here is large there."""
    made = build(
        conv("first", "x", "a", (4, 3, 3, 3)),
        bn("norm", "a", "n", 4),
        op("Relu", "n", "r"),
        conv("second", "r", "y", (5, 4, 3, 3)),
    )
    powers = np.array([1e-2, 1, 1e2, 3], np.float32)
    factors = {"first.w": powers.reshape(4, 1, 1, 1), "second.w": 1 / powers.reshape(1, 4, 1, 1)}
    for held in made.graph.initializer:
        if held.name in factors:
            weight = numpy_helper.to_array(held) * factors[held.name]
            held.CopyFrom(numpy_helper.from_array(weight, held.name))
    return made


@pytest.fixture
def file(pair, tmp_path):
    return examples.save(pair, tmp_path / "m.onnx")


def unevenness(made: onnx.ModelProto) -> float:
    """How far the largest weights of the channels of the first layer are apart."""
    held = next(t for t in made.graph.initializer if t.dims[:2] == [4, 3])
    rows = np.abs(numpy_helper.to_array(held)).reshape(4, -1).max(axis=1)
    return float(rows.max() / rows.min())


def test_a_page_shows_the_equalized_weights(file, tmp_path):
    pytest.importorskip("fast_sugiyama", reason="pages need bnfold[report]")
    for words, altered in (((), []), (("--equalize",), ["first", "second"])):
        assert run(file, *words, "--html", tmp_path / "r.html").code == 0
        told = document(tmp_path / "r.html")
        assert sorted(told["nodes"][at][1] for at in told["altered"]) == altered
        assert [line.split()[0] for line in told["extras"]] == ["equalized", "proved:"] * bool(
            words
        )


def test_the_file_is_equalized_and_proved(pair, file, tmp_path):
    plain, even = tmp_path / "plain.onnx", tmp_path / "even.onnx"
    assert run(file, "-o", plain).code == 0
    report = tmp_path / "report.json"
    done = run(file, "-o", even, "--equalize", "--report", report)
    assert done.code == 0
    assert any(line.startswith("equalized 2 layers: ") for line in done.lines)
    assert any(line.startswith("proved: 2 of 2 layers agree") for line in done.lines)
    told = json.loads(report.read_text())["equalization"]
    assert told["applied"]
    assert [layer["at"] for layer in told["layers"]] == ["first", "second"]
    assert told["proof"] == "proved"
    assert told["int8_error"]["after"] < 0.9 * told["int8_error"]["before"]
    made = onnx.load(even)
    assert unevenness(made) < unevenness(onnx.load(plain)) / 4
    same(pair, made, feeds(pair))


def test_an_error_behind_it_is_told_as_it_is(file, tmp_path, monkeypatch):
    """Where int8 gains nothing, too: the model is not to blame for a full disk."""

    def commit(_):
        raise bnfold.UsageError("no space left")

    monkeypatch.setattr("bnfold._pipeline.equalizing.measured", lambda *_: Measured(why="no gain"))
    monkeypatch.setattr("bnfold._onnx.files.save.PendingFile.commit", commit)
    done = run(file, "-o", tmp_path / "even.onnx", "--equalize")
    assert done.code == 2
    assert done.err.strip() == "error: no space left"


def test_external_data_stay_external(pair, tmp_path):
    file = tmp_path / "m.onnx"
    external = onnx.ModelProto()
    external.CopyFrom(pair)
    onnx.save(external, file, save_as_external_data=True, location="w.bin", size_threshold=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(file, "-o", tmp_path / "even.onnx", "--equalize").code == 0
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    same(pair, onnx.load(tmp_path / "even.onnx"), feeds(pair))
    assert run(file, "--in-place", "--equalize").code == 0
    same(pair, onnx.load(file), feeds(pair))


def test_in_place_where_nothing_folds(pair, file):
    """Nothing folds the second time, and nothing more is gained: the file stays byte for byte."""
    assert run(file, "--in-place", "--equalize").code == 0
    once = file.read_bytes()
    again = run(file, "--in-place", "--equalize")
    assert again.code == 0
    assert any(line.startswith("not equalized: ") for line in again.lines)
    assert file.read_bytes() == once


def wrong_scales(monkeypatch):
    """Readers take a scale that is not the one their channels were written with."""
    right = equalizing.Layer.map

    def wrong(layer, side, scales, power=1):
        map_ = right(layer, side, scales, power)
        if power == 1:
            return map_
        return equalizing.AffineMap.of(map_.scale * 1.01, map_.shift, map_.axis)

    monkeypatch.setattr(equalizing.Layer, "map", wrong)


@pytest.mark.parametrize("verified", [True, False])
def test_another_function_is_not_written(pair, file, tmp_path, monkeypatch, verified):
    wrong_scales(monkeypatch)
    more = () if verified else ("--no-verify",)
    done = run(file, "-o", tmp_path / "even.onnx", "--equalize", *more)
    why = "the comparison is fail: " if verified else "the result is "
    assert any(line.startswith(f"not equalized: {why}") for line in done.lines)
    run(file, "-o", tmp_path / "plain.onnx", *more)
    assert (tmp_path / "even.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_what_is_not_proved_is_compared(pair, file, tmp_path, monkeypatch):
    """The proof may fail to see what is true; a comparison that passes is evidence, too."""
    from bnfold._relation.proof import Proof

    monkeypatch.setattr(
        "bnfold._pipeline.proving.prove_models", lambda *_, **__: Proof("not proved", "x", "why")
    )
    done = run(file, "-o", tmp_path / "even.onnx", "--equalize")
    assert any(line.startswith("equalized 2 layers: ") for line in done.lines)
    wrong_scales(monkeypatch)
    done = run(file, "-o", tmp_path / "even.onnx", "--equalize")
    assert any("not equalized: the comparison is fail" in line for line in done.lines)
    done = run(file, "-o", tmp_path / "even.onnx", "--equalize", "--no-verify")
    assert any(line.startswith("not equalized: the result is ") for line in done.lines)


def test_python(pair, file, tmp_path):
    made = bnfold.fold(pair, equalize=True)
    same(pair, made, feeds(pair))
    assert unevenness(made) < unevenness(bnfold.fold(pair)) / 4
    written = bnfold.fold(file, tmp_path / "even.onnx", equalize=True)
    assert onnx.load(written) == made
    external = onnx.ModelProto()
    external.CopyFrom(pair)
    onnx.save(external, file, save_as_external_data=True, location="w.bin", size_threshold=0)
    written = bnfold.fold(file, tmp_path / "again.onnx", equalize=True)
    same(pair, onnx.load(written), feeds(pair))


def test_where_int8_is_no_nearer_nothing_changes(pair, file, tmp_path, monkeypatch):
    """Alike ranges are no aim of their own: what counts is measured, and told."""
    told = iter([0.04, 0.04, 0.07] * 2 + [0.05, 0.05, 0.05])
    monkeypatch.setattr("bnfold._run.int8.int8_error", lambda *_: next(told))
    done = run(file, "-o", tmp_path / "even.onnx", "--equalize")
    told = "on some inputs int8 would be farther from it: off by 7.00%, and by 5.00% as it is"
    assert any(told in line for line in done.lines)
    run(file, "-o", tmp_path / "plain.onnx")
    assert (tmp_path / "even.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
    told = iter([0.049] * 6 + [0.05] * 3)
    assert bnfold.fold(pair, equalize=True) == bnfold.fold(pair)
    for after, said in ((0.049, "hardly"), (0.05, "not")):
        told = iter([after] * 6 + [0.05] * 3)
        done = run(file, "--equalize", "--no-verify")
        why = f"int8 would {said} be nearer to it: off by {after:.2%}, and by 5.00% as it is"
        assert any(why in line for line in done.lines)


def test_where_int8_cannot_be_measured_nothing_changes(tmp_path):
    made = build(conv("first", "x", "a", (4, 3, 3, 3)), op("Strange", "a", "y", domain="own"),
                 domains={"own": 1})  # fmt: skip
    file = examples.save(made, tmp_path / "m.onnx")
    done = run(file, "-o", tmp_path / "even.onnx", "--equalize")
    assert any(line.startswith("not equalized: ") for line in done.lines)
    assert (tmp_path / "even.onnx").read_bytes() == file.read_bytes()


def test_only_for_onnx(tmp_path):
    (tmp_path / "m.pt2").write_bytes(b"")
    done = run(tmp_path / "m.pt2", "--equalize")
    assert done.code == 2
    assert "only files of ONNX are equalized" in done.err


def test_no_check(file):
    assert run(file, "--check", "--equalize").code == 2
