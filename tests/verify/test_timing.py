"""``--time``: what is told as faster is, and what nobody can measure is told as that."""

from __future__ import annotations

import json
import random

import pytest

from bnfold._judge.timing import Ratio, Timing, not_timed, of_samples
from bnfold._run import stopwatch
from bnfold._run.bounds import UNBOUNDED, Bounds, Exhausted
from bnfold._run.session import EngineError
from bnfold._run.source import Source
from bnfold._run.stopwatch import Sample, interleaved

from ..cli import examples
from ..cli.command import bnfold, refused
from ..graphs import conv, model, op, rand


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A fraction of a second is enough to see that it works."""
    monkeypatch.setattr(stopwatch, "SECONDS", 0.4)


def rounds(faster: float, *, noise: float = 0.02, cpu: float | None = None, seed: int = 0):
    """Drawn samples of a model that is so many times as fast; the machine is slow at times."""
    draw = random.Random(seed)
    found = []
    for _ in range(4):
        samples = []
        for _ in range(40):
            slow = draw.choice([1.0, 1.0, 1.0, 2.5])
            first, second = (slow * draw.gauss(1.0, noise) for _ in range(2))
            used = faster if cpu is None else cpu
            samples.append(Sample(first, second / faster, first, second / used))
        found.append(samples)
    return found


@pytest.mark.parametrize("faster", [1.05, 1.5, 0.8])
def test_a_difference_is_seen_and_its_size(faster):
    timing = of_samples(rounds(faster), 1)
    assert timing.is_measurable
    assert timing.clock.low <= faster <= timing.clock.high
    assert timing.clock.median == pytest.approx(faster, rel=0.01)
    assert timing.pairs == 160
    assert ("slower" in str(timing)) == (faster < 1)


def test_the_times_are_as_far_apart_as_the_ratio():
    """Where every other moment is busy, the median of one model may be of a busy one, and that of
    the other of a quiet one: 0.0427 ms before and 0.0152 ms after would be 1.08 times as fast.
    """
    draw = random.Random(0)
    busy = [(draw.choice([1.0, 3.0]), draw.choice([1.0, 3.0])) for _ in range(41)]
    samples = [Sample(slow * 1.08e-3, other * 1e-3, 1.08, 1.0) for slow, other in busy]
    timing = of_samples([samples], 1)
    assert timing.before / timing.after == pytest.approx(timing.clock.median)
    assert 1.0 <= timing.after <= 3.0


def test_no_difference_is_told_as_none():
    """Of a hundred pairs of equal models hardly one is told to differ."""
    told = [of_samples(rounds(1.0, seed=seed), 1).is_measurable for seed in range(100)]
    assert sum(told) <= 1
    assert "no measurable difference" in str(of_samples(rounds(1.0), 1))


def test_clock_and_processor_have_to_agree():
    assert not of_samples(rounds(1.2, cpu=1.0), 1).is_measurable
    assert not of_samples(rounds(1.0, cpu=1.2), 1).is_measurable
    assert not of_samples(rounds(1.2, cpu=0.8), 1).is_measurable


def test_sessions_that_differ_widen_the_interval():
    """Two sessions of one model may lie in memory otherwise: that is no speed of the model."""
    apart = [*rounds(1.04, noise=0.001)[:3], *rounds(0.99, noise=0.001)[3:]]
    timing = of_samples(apart, 1)
    assert timing.clock.low < 1.0 < timing.clock.high and not timing.is_measurable


def test_a_difference_that_nobody_could_use_is_none():
    assert not of_samples(rounds(1.001, noise=0.00001), 1).is_measurable


def saved(tmp_path, layers: int, name: str):
    """A chain of convolutions, whose time grows with their number."""
    pieces = [
        conv(f"c{k}", f"t{k}" if k else "x", f"t{k + 1}", (16, 16, 3, 3), pads=[1] * 4)
        for k in range(layers)
    ]
    made = model(*pieces, x=(1, 16, 32, 32), y=f"t{layers}")
    return Source(examples.save(made, tmp_path / name))


def test_real_sessions_are_timed(tmp_path):
    one, four = saved(tmp_path, 1, "one.onnx"), saved(tmp_path, 8, "many.onnx")
    feeds = {"x": rand(1, 16, 32, 32)}
    slower = of_samples(interleaved(one, four, feeds, 1, UNBOUNDED), 1)
    assert slower.is_measurable and slower.cpu.high < 0.5 and slower.before < slower.after
    faster = of_samples(interleaved(four, one, feeds, 1, UNBOUNDED), 1)
    assert faster.is_measurable and faster.cpu.low > 2 and faster.before > faster.after
    assert faster.pairs >= 4 * 3


def test_what_does_not_run_or_has_no_time_is_said(tmp_path):
    one = saved(tmp_path, 1, "one.onnx")
    strange = model(op("Relu", "x", "y", strength=2), x=(1, 16, 32, 32))
    other = Source(examples.save(strange, tmp_path / "other.onnx"))
    feeds = {"x": rand(1, 16, 32, 32)}
    with pytest.raises(EngineError):
        interleaved(one, other, feeds, 1, UNBOUNDED)
    with pytest.raises(Exhausted):
        interleaved(one, one, feeds, 1, Bounds(1, deadline=0.0, seconds=1.0))
    assert str(not_timed("time is up")) == "not timed: time is up"


def test_numbers_in_words():
    timing = Timing(12.345, 10.0, Ratio(1.2345, 1.2, 1.26), Ratio(1.2, 1.19, 1.21), 9, 2)
    assert str(timing) == (
        "12.3 ms before, 10.0 ms after: 1.23 times as fast "
        "(1.20 to 1.26; of CPU time 1.19 to 1.21; 2 threads)"
    )


def test_the_command_tells_it_in_every_form(tmp_path):
    path = examples.save(examples.foldable(), tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    run = bnfold(path, "-o", out, "--time", "--report", tmp_path / "r.json")
    (line,) = [line for line in run.lines if line.startswith("  time of a run: ")]
    assert " ms before, " in line and line.endswith("; 1 thread, x [2, 3, 8, 8])")
    timing = json.loads((tmp_path / "r.json").read_text())["verification"]["end_to_end"]["timing"]
    assert timing["pairs"] >= 12 and timing["before"] > 0 and timing["note"] == ""
    run = bnfold(path, "--time", "--threads", "2", "--output-format", "markdown")
    assert any(line.startswith("| time of a run | ") for line in run.lines)
    assert any(line.startswith("| speed | ") and "2 threads, x" in line for line in run.lines)
    told = json.loads(bnfold("verify", path, out, "--time", "--output-format", "json").out)
    assert set(told["timing"]["clock"]) == {"median", "low", "high"}
    plain = json.loads(bnfold("verify", path, out, "--output-format", "json").out)
    assert "timing" not in plain


def test_where_nothing_is_timed(tmp_path):
    path = examples.save(examples.foldable(), tmp_path / "m.onnx")
    other = examples.save(examples.crossing(), tmp_path / "o.onnx")
    for args, words in (
        ((path, "--check"), "--check"),
        ((path, "--no-verify"), "--no-verify"),
        (("verify", path, path, "--prove"), "--prove runs nothing"),
        (("verify", path, tmp_path / "m.pt2"), "not timed"),
    ):
        refused(bnfold(*args, "--time"), words, "--time")
    run = bnfold("verify", path, other, "--time")
    assert run.code != 0
    assert "  time of a run: not timed: the two are not the same function" in run.lines
