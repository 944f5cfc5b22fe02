"""Two files compared in full, by each way in which their ports and random numbers may be paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bnfold._judge.end_to_end import compare
from bnfold._judge.half_weights import seen_in_weights
from bnfold._judge.other_pairings import drawing_alike, other_pairings, paired_otherwise
from bnfold._judge.settings import Settings
from bnfold._judge.verdict import EndToEnd
from bnfold._onnx.files.load import understood
from bnfold._relation.proof import Proof
from bnfold._run.bounds import Bounds
from bnfold._run.draws import FixedDraws
from bnfold._run.hoist import hoist
from bnfold._run.input_sets import InputSet
from bnfold._run.perturbable import find_weights, plantable_weights, stores_anew
from bnfold._run.ports import Renamed, renamed_by_type
from bnfold._run.source import Edit, Parsed, Source


class Files(NamedTuple):
    """Two files, the original first: as they were read, where they lie, and what runs.

    ``name`` is what users call the original. ``edits`` make of each file what its model is.
    """

    name: Path
    models: tuple[Parsed, Parsed]
    paths: tuple[Path, Path]
    runnable: tuple[Path, Path]
    edits: tuple[tuple[Edit, ...], tuple[Edit, ...]]


def compared_all_ways(
    files: Files,
    by_position: Renamed | None,
    draws: Sequence[FixedDraws | None],
    inputs: Sequence[InputSet] | None,
    settings: Settings,
    bounds: Bounds,
    progress: Callable[[str], None],
    proof: Proof | None,
) -> EndToEnd:
    """The verdict of `compare` on two files, which are taken from ``files`` and changed.

    ``by_position`` pairs ports of other names as their order tells. ``draws`` are the ways in which
    both may draw the same random numbers. Raises `UsageError` for a model that is not valid.
    """
    model, other = (each.take() for each in files.models)
    assert model is not None
    assert other is not None
    by_type = renamed_by_type(model, other) if by_position is None else None
    with understood(model, files.name):
        hoisted = hoist(model)
        anew = stores_anew(model, other, (files.paths[0].parent, files.paths[1].parent))
        weights = find_weights(model, files.paths[0].parent, as_stored=anew)
        touched = plantable_weights(model, weights)
    left_edits, right_edits = files.edits
    first = Source(files.runnable[0], parsed=Parsed(model), hoisted=hoisted, edits=left_edits)
    second = Source(files.runnable[1], parsed=Parsed(other), edits=right_edits)
    paths = files.runnable
    del model, other

    def sources(pairing: Renamed | None, draws: FixedDraws | None) -> tuple[Source, Source]:
        named = [pairing] if pairing is not None else []
        alike = (FixedDraws(draws.seed), draws) if draws is not None else ()
        return (
            replace(first, edits=(*left_edits, *alike[:1])),
            replace(second, edits=(*right_edits, *named, *alike[1:])),
        )

    def judged(pairing: Renamed | None, draws: FixedDraws | None) -> EndToEnd:
        return compare(
            *sources(pairing, draws),
            parameters=weights.values,
            touched=touched,
            inputs=inputs,
            settings=settings,
            bounds=bounds,
            progress=progress,
            notes=[each.told() for each in (pairing, draws) if each is not None],
            proof=proof if pairing is by_position else None,
        )

    result, chosen = drawing_alike(partial(judged, by_position), draws)
    if result.status != "fail":
        return seen_in_weights(result, paths, (left_edits, right_edits), bounds)
    allowed, known = by_position or by_type, by_position is not None
    if allowed is None:
        return result
    others = partial(
        other_pairings, sources(None, chosen), allowed, known, inputs, settings, bounds
    )
    return paired_otherwise(result, others, lambda other: judged(other, chosen))
