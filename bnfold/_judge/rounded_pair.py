"""Two files that round data to integers: cut at their quantizers, or stirred ahead of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bnfold._judge.bench import Pair, Trial
from bnfold._judge.difference import step
from bnfold._run.input_sets import InputSet
from bnfold._run.quantizers import Quantizer, cut, noise_of, quantizers, read_names, stirred
from bnfold._run.session import Engine, EngineError
from bnfold._run.source import Source, Tap

STIRS = 2
"""How often what quantizers read is moved, to see how far steps move the outputs."""
_WITHIN = 0.25
"""How far it is moved at most, in steps: so far that in an eighth of all places it is rounded to
another integer."""
_LARGEST = 1 << 26
"""How many rounded numbers are compared at once. Each takes some twenty bytes meanwhile."""
Load = Callable[[Source], Engine]


def common_quantizers(pair: Pair) -> tuple[Quantizer, ...]:
    """The quantizers that two files have in common."""
    return quantizers(pair.original.proto(), pair.folded.proto()).common


def cut_pair(
    pair: Pair, found: Sequence[Quantizer], trials: Sequence[Trial], load: Load
) -> tuple[Pair, list[InputSet]] | None:
    """The two files in parts, and the input sets with the integers of the original.

    As many input sets are taken as memory allows. None where there is none, for the first one is
    too large or the original does not put its integers out.
    """
    names = [name for one in found for name in one.outputs if name]
    sets = []
    try:
        for given in _with_tensors(pair.original, names, trials, load):
            sets.append(given)
            if sum(each.feeds[name].size for each in sets for name in names) > _LARGEST:
                sets.pop()
                break
    except EngineError:
        return None
    if not sets:
        return None
    types = {name: sets[0].feeds[name].dtype for name in names}
    ours, theirs = (
        replace(side, taps=(), parsed=None, edits=(*side.edits, cut(found, own, types)))
        for side, own in ((pair.original, True), (pair.folded, False))
    )
    read = read_names(ours.proto())
    weights = {name: array for name, array in pair.weights.items() if name in read}
    touched = [name for name in pair.touched if name in read]
    return Pair(ours, theirs, weights, touched), sets


def round_elsewhere(pair: Pair) -> bool:
    """Whether one of the files rounds data at other places than both do."""
    return quantizers(pair.original.proto(), pair.folded.proto()).others


def moved_by_steps(
    source: Source, trials: Sequence[Trial], load: Load, seed: int
) -> Mapping[tuple[int, int], float]:
    """How far each output moves, by the numbers of input set and output, when what quantizers read
    moves by a part of a step. Empty where nothing is rounded, or where it does not run so.
    """
    model = source.proto()
    found = quantizers(model, model).common
    rng = np.random.default_rng([seed, 3])
    moved: dict[tuple[int, int], float] = {}
    try:
        if not found:
            return {}
        sets = list(_with_tensors(source, [one.data for one in found], trials, load))
        taken = [one for one in found if sets[0].feeds[one.data].dtype == np.float32]
        engine = load(replace(source, parsed=None, edits=(*source.edits, stirred(taken))))
        for index, (trial, values) in enumerate(zip(trials, sets, strict=True)):
            for _ in range(STIRS):
                feeds = dict(trial.inputs.feeds)
                for one in taken:
                    data = values.feeds[one.data]
                    noise = rng.uniform(-_WITHIN, _WITHIN, data.shape) * one.steps(data)
                    feeds[noise_of(one)] = noise.astype(np.float32)
                pairs = zip(trial.original, engine.run(feeds), strict=True)
                for output, (left, right) in enumerate(pairs):
                    gap, at = step(left, right), (index, output)
                    moved[at] = max(moved.get(at, 0.0), np.inf if gap is None else gap)
    except EngineError:
        return {}
    return moved


def _with_tensors(
    source: Source, names: Sequence[str], trials: Sequence[Trial], load: Load
) -> Iterator[InputSet]:
    """Yield the input sets, each with some tensors of a main graph. Raises `EngineError`."""
    ports = {value.name for value in source.proto().graph.input}
    inner = [name for name in dict.fromkeys(names) if name not in ports]
    taps = tuple(Tap(name, f"{name}/tapped") for name in inner)
    tapped = load(replace(source, taps=taps, parsed=None, alone=True)) if inner else None
    for trial in trials:
        found = tapped.run(trial.inputs.feeds) if tapped is not None else []
        values = dict(zip(inner, found, strict=True))
        yield InputSet(trial.inputs.label, {**trial.inputs.feeds, **values})
