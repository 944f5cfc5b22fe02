"""Judges a folded file that is not in place yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold._core.preprocessing import Preprocessing
from bnfold._judge.settings import Settings
from bnfold._onnx.files.external import runnable, size_on_disk
from bnfold._onnx.files.load import load_model, understood
from bnfold._onnx.files.save import PendingFile
from bnfold._onnx.fold import FoldedWeights
from bnfold._onnx.front.prepending import prepend
from bnfold._onnx.read.frozen import freeze, listed
from bnfold._pipeline.outcome import Progress, RunStatus, Verdict
from bnfold._system.records import record

if TYPE_CHECKING:
    from onnx import ModelProto

    from bnfold._judge.verdict import EndToEnd
    from bnfold._onnx.write.applied import Applied
    from bnfold._relation.proof import Proof
    from bnfold._run.bounds import Bounds
    from bnfold._run.input_sets import InputSet


@record(frozen=True)
class FoldedFile:
    """A folded file that is not in place yet, and all that is needed to judge it.

    ``started`` is the model from which the fold started, if that is not the original. ``owed`` is
    preprocessing that the folded file does no longer.
    """

    original: Path
    data: frozenset[str]
    draft: PendingFile
    weights: FoldedWeights
    inputs: list[InputSet] | None
    settings: Settings
    progress: Progress
    started: Path | None = None
    owed: Mapping[str, Preprocessing] = field(default_factory=dict)

    def judge(self, applied: Sequence[Applied]) -> Verdict:
        """The verdict: a proof and certificates from the files on disk, then a run of both.

        What is proved is not probed on numbers besides.
        """
        from bnfold._judge import by_proof
        from bnfold._judge.activations import Activations
        from bnfold._judge.end_to_end import compare
        from bnfold._judge.other_pairings import drawing_alike
        from bnfold._judge.power import RestingFold
        from bnfold._proof.certificate import certify
        from bnfold._run.bounds import Bounds
        from bnfold._run.draws import FixedDraws, ways_to_draw
        from bnfold._run.hoist import hoist
        from bnfold._run.perturbable import find_weights, plantable_weights
        from bnfold._run.session import hush
        from bnfold._run.source import Parsed, Source

        hush()
        with (
            runnable(self.original, self.data) as original,
            runnable(self.draft.path, self.draft.data) as folded,
        ):
            bounds = Bounds.beginning(
                self.settings.threads, self.settings.seconds, self.settings.libraries
            )
            before = load_model(self.original, lean=True, follow_links=True)
            after = load_model(self.draft.path, lean=True, follow_links=True)
            edits = (freeze,) if self.settings.frozen and listed(before) else ()
            for edit in edits:
                edit(before)
            self.progress("proving")
            proof = self._proof(before, after, bounds)
            self.progress("certifying every fold")
            start, path = before, original
            if self.started is not None:
                path = self.started
                start = load_model(path, lean=True, follow_links=True)
            numbers = Activations(path, self.inputs, self.settings, bounds).numbers
            with understood(start, self.original):
                certificates = certify(
                    start,
                    after,
                    applied,
                    path.parent if self.started is not None else self.original.parent,
                    self.draft.path.parent,
                    None if by_proof.is_proved(proof) else numbers,
                    bounds,
                )
            resting = [
                RestingFold(certificate.into, certificate.layers)
                for certificate in certificates
                if certificate.unchecked is not None
            ]
            values: Mapping[str, Any] = self.weights.values
            touched: Collection[str] = self.weights.touched
            hoisted = False
            if not values:  # the planner knows no weights of bodies, and all may be there
                hoisted = hoist(before)
                found = find_weights(before, self.original.parent)
                values, touched = found.values, plantable_weights(before, found)
            ways = ways_to_draw(before, after, self.settings.seed)
            left = Source(original, parsed=Parsed(before), hoisted=hoisted)
            owed = (partial(prepend, wanted=self.owed),) if self.owed else ()
            right = Source(folded, parsed=Parsed(after))
            del before, after

            def judged(draws: FixedDraws | None) -> EndToEnd:
                alike = (FixedDraws(draws.seed), draws) if draws is not None else ()
                return compare(
                    replace(left, edits=(*edits, *alike[:1])),
                    replace(right, edits=(*owed, *alike[1:])),
                    parameters=values,
                    touched=touched,
                    inputs=self.inputs,
                    settings=self.settings,
                    bounds=bounds,
                    certified=all(certificate.holds for certificate in certificates),
                    resting=resting,
                    progress=self.progress,
                    notes=[draws.told()] if draws else (),
                    proof=proof,
                )

            end_to_end, _ = drawing_alike(judged, ways)
        wrong = any(certificate.fails for certificate in certificates)
        status: RunStatus = "fail" if wrong else end_to_end.status
        return Verdict(status, certificates, end_to_end)

    def _proof(self, before: ModelProto, after: ModelProto, bounds: Bounds) -> Proof | None:
        """What the weights of both files prove, if a proof is asked for."""
        from bnfold._judge import by_proof

        size = size_on_disk(self.original, before) + size_on_disk(self.draft.path, after)
        if self.owed:
            after = load_model(self.draft.path, lean=True, follow_links=True)
            prepend(after, wanted=self.owed)
        sides = (before, self.original.parent), (after, self.draft.path.parent)
        return by_proof.proof_of(*sides, size, self.settings, bounds)
