"""Two files side by side: the proof, and the run that it leaves to be made.

What is proved takes few runs (`second_opinion`). All else is compared by the stages of
`end_to_end`, which are imported only then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from bnfold._judge import by_proof
from bnfold._judge.second_opinion import second_opinion
from bnfold._judge.settings import Settings
from bnfold._judge.verdict import EndToEnd
from bnfold._onnx.files.external import external_files, runnable, size_on_disk, unchanged
from bnfold._onnx.files.load import in_binary, load_model
from bnfold._onnx.read.frozen import freeze, listed
from bnfold._run.bounds import Bounds
from bnfold._run.drawing import refuse_inapplicable
from bnfold._run.draws import ways_to_draw
from bnfold._run.input_sets import InputSet
from bnfold._run.ports import renamed
from bnfold._run.source import Edit, Parsed, Source


def compare_files(
    original: Path,
    folded: Path,
    inputs: Sequence[InputSet] | None,
    settings: Settings,
    progress: Callable[[str], None] = lambda step: None,
) -> EndToEnd:
    """Judge whether two files are the same function, on given inputs or drawn ones.

    The original is taken behind the preprocessing of the settings. Raises
    `UsageError` for models or inputs that cannot be read.
    """
    links = settings.follow_links
    opened = in_binary(original, links)
    if settings.preprocessing:
        from bnfold._onnx.front.prepending import behind

        opened = behind(original, settings.preprocessing, links)
    with opened as first, in_binary(folded, links) as second:
        return _compare_binaries(original, first, second, inputs, settings, progress)


def _compare_binaries(
    name: Path,
    original: Path,
    folded: Path,
    inputs: Sequence[InputSet] | None,
    settings: Settings,
    progress: Callable[[str], None],
) -> EndToEnd:
    """See `compare_files`; ``name`` is what users call the original."""
    other, right_edits = _read(folded, settings)
    model, left_edits = _read(original, settings)
    refuse_inapplicable(model, inputs, settings.wanted)
    ours, theirs = external_files(model), external_files(other)
    bounds = Bounds.beginning(settings.threads, settings.seconds, settings.libraries)
    with unchanged(original, ours), unchanged(folded, theirs):
        progress("proving")
        size = size_on_disk(original, model) + size_on_disk(folded, other)
        sides = (model, original.parent), (other, folded.parent)
        proof = by_proof.proof_of(*sides, size, settings, bounds)
        by_position, draws = renamed(model, other), ways_to_draw(model, other, settings.seed)
        one, two = Parsed(model), Parsed(other)
        del model, other, sides
        with runnable(original, ours) as left, runnable(folded, theirs) as right:
            if by_position is None and draws == [None]:
                first = Source(left, parsed=one, edits=left_edits)
                second = Source(right, parsed=two, edits=right_edits)
                seen = second_opinion(first, second, inputs, settings, bounds, progress, proof)
                if seen is not None:
                    return seen
                one, two = (Parsed(_read(path, settings)[0]) for path in (original, folded))
            from bnfold._judge.all_ways import Files, compared_all_ways

            edits = left_edits, right_edits
            files = Files(name, (one, two), (original, folded), (left, right), edits)
            return compared_all_ways(
                files, by_position, draws, inputs, settings, bounds, progress, proof
            )


def _read(path: Path, settings: Settings) -> tuple[onnx.ModelProto, tuple[Edit, ...]]:
    """A model, and the edits that make of its file what it is.

    Initializers that are listed as inputs are taken for fixed, if a user said so.
    """
    model = load_model(path, lean=True, follow_links=settings.follow_links)
    if not settings.frozen or not listed(model):
        return model, ()
    freeze(model)
    return model, (freeze,)
