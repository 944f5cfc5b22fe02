"""Two files whose ports, or whose random numbers, may belong together in several ways.

Of renamed ports of one type and shape only position tells which is which. Where the two differ by
that, another order may explain it: then they are not said to differ. Both run once on the same
inputs, and outputs that come near belong together. Of random numbers of one kind it is all the same
which is which, if there is a way by which the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import onnx

from bnfold._judge.difference import is_float
from bnfold._judge.settings import Settings
from bnfold._judge.verdict import EndToEnd
from bnfold._run.bounds import Bounds, Exhausted
from bnfold._run.drawing import InputSource, UndrawableError
from bnfold._run.draws import FixedDraws
from bnfold._run.input_sets import InputSet
from bnfold._run.ports import Renamed, matched, may_be, ways_of_inputs
from bnfold._run.session import EngineError, OnnxRuntime
from bnfold._run.source import Source

MOST = 24
"""So many ways to pair inputs are tried."""
_TRIED = 3
"""So many pairings by which outputs come near are compared."""
_NEAR = 1e-2
"""How near outputs come that may belong together, relative to the largest number."""


class TooManyError(Exception):
    """There are more ways to pair the inputs than are tried."""


def drawing_alike(
    judged: Callable[[FixedDraws | None], EndToEnd],
    ways: Sequence[FixedDraws | None],
) -> tuple[EndToEnd, FixedDraws | None]:
    """The verdict by the first way to draw by which two files do not differ, and that way; by the
    first of all where they differ by each.
    """
    results = []
    for way in ways:
        results.append((judged(way), way))
        if results[-1][0].status != "fail":
            return results[-1]
    return results[0]


def paired_otherwise(
    result: EndToEnd,
    others: Callable[[], Iterator[Renamed]],
    judged: Callable[[Renamed], EndToEnd],
) -> EndToEnd:
    """The verdict on two files that differ if they are paired by position, or cannot be paired so.

    It is inconclusive in two cases: another pairing shows no difference, or there are more ways to
    pair them than are tried.
    """
    by_position = "names differ; paired by position the two differ"
    advice = "give both the same names"
    try:
        for other in islice(others(), _TRIED):
            seen = judged(other)
            if seen.status != "fail":
                said = "agree" if seen.status == "pass" else "may agree"
                note = (
                    f"{by_position}, but they {said} in another order ({other.listed()}): {advice}"
                )
                others_told = [told for told in seen.notes if told != other.told()]
                return replace(seen, status="inconclusive", notes=(note, *others_told))
    except TooManyError:
        note = f"{by_position}, and there are more than {MOST} other ways to pair inputs: {advice}"
        return replace(result, status="inconclusive", notes=(*result.notes, note))
    except (Exhausted, MemoryError) as error:
        why = str(error) or "out of memory"
        note = f"{by_position}, and other ways to pair them were not all tried ({why}): {advice}"
        return replace(result, status="inconclusive", notes=(*result.notes, note))
    return result


def other_pairings(
    sides: tuple[Source, Source],
    pairing: Renamed,
    known: bool,
    inputs: Sequence[InputSet] | None,
    settings: Settings,
    bounds: Bounds,
) -> Iterator[Renamed]:
    """Yield pairings of two files by which their outputs come near.

    ``sides`` are the two as they run, without a pairing. ``pairing`` is one that their types allow;
    if the verdict by it is ``known``, it is left out. What does not run yields none.

    Raises:
        TooManyError: it has tried so many ways as it does, and there are more.
    """
    original, folded = (side.proto() for side in sides)
    ways = list(islice(ways_of_inputs(pairing, original, folded), MOST + 1))
    candidates = may_be(pairing, original, folded)
    if known and len(ways) == 1 and all(len(names) == 1 for names in candidates.values()):
        return
    try:
        first, second = (OnnxRuntime(s.content(), s.folder, bounds=bounds) for s in sides)
        feeds, wanted = _run_original(first, original, inputs, settings)
    except EngineError:
        return
    names = [port.name for port in first.outputs]
    expected = dict(zip(names, wanted, strict=True))
    for way in ways[:MOST]:
        try:
            renamed = {way_back: feeds[name] for way_back, name in way.items()}
            kept = {port.name: feeds[port.name] for port in second.inputs if port.name not in way}
            found = second.run({**renamed, **kept})
        except EngineError:
            continue
        made = dict(zip((port.name for port in second.outputs), found, strict=True))
        outputs = _matched(made, expected, candidates)
        other = None if outputs is None else replace(pairing, inputs=way, outputs=outputs)
        if other is not None and not (known and other == pairing):
            yield other
    if len(ways) > MOST:
        raise TooManyError


def _run_original(
    engine: OnnxRuntime,
    model: onnx.ModelProto,
    inputs: Sequence[InputSet] | None,
    settings: Settings,
) -> tuple[Mapping[str, Any], list[Any]]:
    """The first inputs that the original runs on, and its outputs. Raises `EngineError`."""
    if inputs:
        return inputs[0].feeds, engine.run(inputs[0].feeds)
    reason = EngineError("no inputs")
    try:
        for proposal in InputSource(model, settings.seed, settings.wanted).first():
            try:
                return proposal.feeds, engine.run(proposal.feeds)
            except EngineError as error:
                reason = error
    except UndrawableError as error:
        reason = EngineError(str(error))
    raise reason


def _matched(
    made: Mapping[str, Any], expected: Mapping[str, Any], candidates: Mapping[str, Collection[str]]
) -> dict[str, str] | None:
    """Which output is which by its values, each one of its candidates; None if one is none.

    Where several come near, the nearest counts.
    """
    near: dict[str, list[str]] = {}
    for old, names in candidates.items():
        apart = {new: _apart(made[old], expected[new]) for new in names}
        near[old] = sorted((n for n, by in apart.items() if by <= _NEAR), key=apart.__getitem__)
    found = matched(near)
    return None if found is None else {old: new for old, new in found.items() if new != old}


def _apart(one: Any, other: Any) -> float:
    """How far two outputs are apart, relative to the largest number; ∞ where they are not alike.

    Of whole numbers it is how many differ.
    """
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return 0.0 if type(one) is type(other) else np.inf
    if one.shape != other.shape or one.dtype != other.dtype:
        return np.inf
    if not is_float(one):
        return float((one != other).mean()) if one.size else 0.0
    wide, wanted = one.astype(np.float64), other.astype(np.float64)
    known = np.isfinite(wanted)
    if not (np.isfinite(wide) == known).all():
        return np.inf
    largest = float(np.abs(wanted[known]).max(initial=0.0))
    apart = float(np.abs(wide - wanted)[known].max(initial=0.0))
    return apart / largest if largest else np.inf if apart else 0.0
