"""Translate one operator of an exported program into the record of what it is."""

from __future__ import annotations

from torch.fx import Node

from bnfold._core.operators.record import UNKNOWN, Operator
from bnfold._torch.read import affine, crossed, linear, rearranged
from bnfold._torch.read.context import Context, TorchRow
from bnfold._torch.read.nodes import arguments, kind_of

ROWS: dict[str, TorchRow] = {**affine.ROWS, **crossed.ROWS, **linear.ROWS, **rearranged.ROWS}


def translate(context: Context, node: Node) -> Operator:
    """The record of a node; of operators that are not PyTorch's own nothing is known."""
    row = ROWS.get(kind_of(node))
    aten = getattr(node.target, "namespace", "") == "aten"
    if row is None or not aten or getattr(node.target, "_schema", None) is None:
        return UNKNOWN
    return row.translate(context, node, arguments(node))
