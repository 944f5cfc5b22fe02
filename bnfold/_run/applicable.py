"""Whether the inputs and sizes that a user asks for are of the model: told before any work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import onnx

from bnfold._run.drawing import InputSource, UndrawableError, WantedInputs
from bnfold._run.input_sets import InputSet, named, refuse_unfit
from bnfold._run.session import port_of_proto


def refuse_inapplicable(
    model: onnx.ModelProto, inputs: Sequence[InputSet] | None, wanted: WantedInputs
) -> None:
    """Raise `UsageError` unless given inputs, or sizes to draw, fit the inputs of a model.

    Whether the model runs on them is seen later.
    """
    if inputs is None:
        with suppress(UndrawableError):
            InputSource(model, 0, wanted)
        return
    given = {tensor.name for tensor in model.graph.initializer}
    given.update(tensor.values.name for tensor in model.graph.sparse_initializer)
    ports = tuple(port_of_proto(v) for v in model.graph.input if v.name not in given)
    for each in inputs:
        refuse_unfit(named(each, ports), ports)
