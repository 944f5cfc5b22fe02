"""What was done to a program, step by step, for who checks it."""

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
    the operators. ``outputs`` are names of nodes in the program as it was: the values that the step
    is about. ``nodes`` are the operators that gave them, by name; of a merge they are not told:
    there it is whatever lies between the outputs and tensors that both programs have.
    """

    law: str
    into: str
    maps: tuple[str, ...]
    nodes: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Applied:
    """A program before and after some steps.

    ``standing`` names for nodes before those that stand for them after. ``related`` says how the
    values of tensors have changed, by their names before. ``exact`` gives parameters of the program
    before in float64, by name, where it holds them rounded, ``exact_after`` those of the other.
    """

    before: ExportedProgram
    after: ExportedProgram
    steps: tuple[AppliedStep, ...]
    standing: Mapping[str, str]
    related: Mapping[str, Relation] = field(default_factory=dict)
    exact: Mapping[str, Load] = field(default_factory=dict)
    exact_after: Mapping[str, Load] = field(default_factory=dict)
