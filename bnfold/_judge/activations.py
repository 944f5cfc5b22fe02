"""The values of inner tensors when the original runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._judge.settings import Settings
from bnfold._run.bounds import Bounds
from bnfold._run.drawing import InputSource, UndrawableError
from bnfold._run.input_sets import InputSet, named, refuse_unfit
from bnfold._run.session import EngineError, OnnxRuntime
from bnfold._run.source import Source, Tap

# How many tensors are held in memory at once.
_AT_ONCE = 64


class Activations:
    """The original on its first input set, drawn or given."""

    def __init__(
        self, path: Path, inputs: Sequence[InputSet] | None, settings: Settings, bounds: Bounds
    ) -> None:
        self._source = Source(path)
        self._inputs = inputs
        self._settings = settings
        self._bounds = bounds

    def numbers(self, names: Collection[str]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the name and the array of each tensor of the main graph that is asked for.

        A few arrays are held in memory at a time. Nothing is yielded where the model does not run.

        Raises:
            UsageError: given inputs do not fit the model.
            Exhausted: time is up, or memory has run out.
        """
        model = self._source.proto()
        asked = {value.name for value in model.graph.input}
        written = {name for node in model.graph.node for name in node.output if name}
        tapped = [name for name in names if name in written]
        outputs = {value.name for value in model.graph.output}
        taps = tuple(Tap(name, name) for name in tapped if name not in outputs)
        proposals: Iterator[InputSet]
        try:
            source = Source(self._source.path, taps)
            engine = OnnxRuntime(source.content(), source.folder, bounds=self._bounds)
            if self._inputs is not None:
                given = named(self._inputs[0], engine.inputs)
                refuse_unfit(given, engine.inputs)
                proposals = iter([given])
            else:
                proposals = InputSource(model, self._settings.seed, self._settings.wanted).first()
        except (EngineError, UndrawableError):
            return
        del model
        groups = [tapped[at : at + _AT_ONCE] for at in range(0, len(tapped), _AT_ONCE)] or [[]]
        for proposal in proposals:
            try:
                first = engine.fetch(groups[0], proposal.feeds)
            except EngineError:
                continue
            yield from ((name, proposal.feeds[name]) for name in names if name in asked)
            rest = ((group, engine.fetch(group, proposal.feeds)) for group in groups[1:])
            for group, arrays in chain([(groups[0], first)], rest):
                pairs = zip(group, arrays, strict=True)
                yield from ((name, array) for name, array in pairs if isinstance(array, np.ndarray))
            return
