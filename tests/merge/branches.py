"""Branches and rows of convolutions for the laws of merging."""

from __future__ import annotations

from typing import Any

import bnfold

from ..graphs import (
    conv,
    fold,
    model,
    op,
)

X = (2, 4, 6, 7)
SAME = {"pads": [1, 1, 1, 1]}


def two(first: Any, second: Any, kind: str = "Add", **options: Any) -> Any:
    """Two branches on x, given as shape and attributes, added up."""
    branches = [
        conv(name, "x", f"{name}y", shape, **attributes)
        for name, (shape, attributes) in zip("ab", (first, second))
    ]
    options.setdefault("x", X)
    return model(*branches, op(kind, "ay by", "y"), **options)


def attributes(made: Any) -> dict[str, Any]:
    (node,) = (n for n in made.graph.node if n.op_type == "Conv")
    return {a.name: list(a.ints) or a.i for a in node.attribute}


def unmerged(made: Any, *expected: str, runtime: bool = True) -> None:
    """Nothing merges, and the reasons given are these."""
    plan = bnfold.plan(made)
    assert not [f for f in plan.folds if "merge" in f.laws[0]], plan.folds
    assert [k.code for k in plan.kept] == list(expected), plan.kept
    fold(made, runtime=runtime)
