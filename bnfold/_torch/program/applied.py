"""What was done to a program, step by step; the proof checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.export import ExportedProgram

from bnfold._merge.stored import Load
from bnfold._plan.relation import Relation


@dataclass(frozen=True)
class AppliedStep:
    """One step as it was carried out.

    ``law`` is "absorb", "compose" or "carry"; "cross" for an operator that maps were carried
    across; "merge" for linear operators that became one. ``into`` and ``maps`` are what users call
    the operators. ``outputs`` are names of nodes in the program before: the values that the step
    changes. ``nodes`` are the names of the operators that computed these. For a merge it is empty:
    these are all operators between the outputs and tensors that both programs have.
    """

    law: str
    into: str
    maps: tuple[str, ...]
    nodes: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Applied:
    """A program before and after some steps.

    ``standing`` has for names of nodes before the names of the nodes that take their place after.
    ``related`` says how tensors have changed, by their names before. ``exact`` has by name the
    float64 values of parameters that the program before holds rounded. ``exact_after`` has the same
    for the program after.
    """

    before: ExportedProgram
    after: ExportedProgram
    steps: tuple[AppliedStep, ...]
    standing: Mapping[str, str]
    related: Mapping[str, Relation] = field(default_factory=dict)
    exact: Mapping[str, Load] = field(default_factory=dict)
    exact_after: Mapping[str, Load] = field(default_factory=dict)
