"""What was done to a model, step by step; the proof checks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field

import numpy as np
from numpy.typing import NDArray

from bnfold._onnx.merge.patch import Patch
from bnfold._onnx.read.inlining import Call
from bnfold._onnx.tensors import Array
from bnfold._onnx.write.constants import Relocated
from bnfold._system.records import record


@record(frozen=True)
class Factor:
    """The map ``scale·x + shift`` along ``axis``.

    Where ``axis`` is None, scale and shift are single numbers or arrays of the tensor's rank.
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    axis: int | None


@record(frozen=True)
class Related:
    """How the old and the new values of a tensor come from the same numbers.

    ``old`` gives the old values, ``new`` the new ones: factors are applied one after the other. An
    old value whose scale is NaN is unknown.
    """

    old: tuple[Factor, ...]
    new: tuple[Factor, ...]


@record(frozen=True)
class Applied:
    """One step as it was carried out.

    ``law`` is "absorb", "compose" or "carry"; "cross" for an operator that maps were carried
    across; "merge" for a ``patch``, which changes the graph from which all later steps start, and
    "equal" for one that drops the map that is equal to ``into``, whose ``patch`` drops others, too:
    it is carried out with the last of them;
    "inline" for ``calls`` of local functions that became nodes before all else: all positions are
    those after it.
    ``into``, ``maps`` and ``chain`` are positions in the node list of the original graph. There
    are no maps if an operator only takes in, or lets pass, maps that were carried to it.
    ``source`` and ``output`` are names in the folded graph. ``source`` is the absorber's output;
    for maps that stand, the input of the first one; for a crossed operator, its main output, but
    for a Cast its input: it is gone where that is the ``output``.
    ``output`` is the tensor that replaces the last output. ``reads`` has what a crossed operator
    reads, in the order that it had; it may have another one. ``related`` tells how the tensors that
    the step reads and writes have changed, by their original names.
    """

    path: str
    law: str
    into: int
    maps: tuple[int, ...]
    chain: tuple[int, ...]
    source: str
    output: str
    reads: tuple[str, ...] = ()
    related: Mapping[str, Related] = field(default_factory=dict)
    patch: Patch | None = None
    calls: frozenset[Call] = frozenset()


@record
class Rewritten:
    """Everything that was done to a model.

    ``applied`` are the steps. ``relocated`` has the changed tensors from external files, and where
    they lay. ``created`` has the names of new tensors. ``made`` are functions that make the values
    of changed tensors, where these are not made yet (`tensors.MADE`). ``marks`` has what the data
    files were when the model was planned, see `tensors.data_marks`.
    """

    applied: list[Applied] = field(default_factory=list)
    relocated: list[Relocated] = field(default_factory=list)
    created: set[str] = field(default_factory=set)
    made: list[Callable[[], Array]] = field(default_factory=list)
    marks: Mapping[str, str] = field(default_factory=dict)
