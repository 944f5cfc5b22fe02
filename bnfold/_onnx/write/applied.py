"""What was done to a model, step by step, for who checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bnfold._onnx.merge.patch import Patch
from bnfold._onnx.write.edits import Relocated


@dataclass(frozen=True)
class Factor:
    """The map ``scale·x + shift`` along ``axis``.

    Where ``axis`` is None, scale and shift are single numbers or arrays of the tensor's rank.
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    axis: int | None


@dataclass(frozen=True)
class Related:
    """How the old and the new values of a tensor come from the same numbers.

    Each comes by factors that are applied one after the other. Nothing is known of old values whose
    scale is NaN.
    """

    old: tuple[Factor, ...]
    new: tuple[Factor, ...]


@dataclass(frozen=True)
class Applied:
    """One step as it was carried out, for whoever checks it.

    ``law`` is "absorb", "compose" or "carry"; "cross" for an operator that maps were carried
    across; "merge" for a ``patch``, which changes the graph that all later steps start from.
    ``into``, ``maps`` and ``chain`` are positions in the node list of the original graph. An
    operator has no maps where it takes in, or lets pass, what was carried to it.
    ``source`` and ``output`` are names in the folded graph. ``source`` is what the absorber puts
    out; for maps that stand, what the first of them reads; for an operator that is crossed, its
    main output. ``output`` is what now stands for the last output. ``related`` tells how the
    values of the tensors that the step reads and puts out have changed, by their original names.
    """

    path: str
    law: str
    into: int
    maps: tuple[int, ...]
    chain: tuple[int, ...]
    source: str
    output: str
    related: Mapping[str, Related] = field(default_factory=dict)
    patch: Patch | None = None


@dataclass
class Rewritten:
    """Everything that was done to a model.

    ``applied`` are the steps, ``relocated`` the changed tensors that lay in external files and
    where, ``created`` the names of new tensors.
    """

    applied: list[Applied] = field(default_factory=list)
    relocated: list[Relocated] = field(default_factory=list)
    created: set[str] = field(default_factory=set)
