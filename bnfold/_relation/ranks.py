"""Ranks that shape inference does not know, but operators tell.

Behind an If whose branches put out several ranks, and behind operators of other domains, inference
knows nothing. Operators that go number by number keep the rank, and others say it.
"""

from __future__ import annotations

from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, type_of
from bnfold._relation.side import Side, attributes

_KEEPING = frozenset(
    (
        *("Abs", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "CumSum"),
        *("Dropout", "Elu", "Erf", "Exp", "Floor", "GlobalAveragePool", "GlobalMaxPool"),
        *("HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization"),
        *("LeakyRelu", "Log", "LogSoftmax", "MaxPool", "Neg", "Not", "Pad", "Reciprocal", "Relu"),
        *("Resize", "Round", "Selu", "Sigmoid", "Sin", "Slice", "Softmax", "Softplus", "Sqrt"),
        *("Tanh", "Tile", "Trilu"),
    )
)
"""Operators whose output has as many axes as their first input."""
_WIDENING = frozenset(
    ("Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mul", "Or", "Pow", "Sub")
)
"""Operators that broadcast what they read."""
_RECURRENT = {"GRU": (4, 3), "LSTM": (4, 3, 3), "RNN": (4, 3)}


def note(side: Side, scope: Scope, node: NodeProto) -> None:
    """Note the ranks of what a node puts out, where nothing else tells them."""
    kind = type_of(node)
    if kind in _RECURRENT:
        for name, count in zip(node.output, _RECURRENT[kind], strict=False):
            _tell(side, scope, name, count)
        return
    if not node.output or not node.output[0] or side.rank(scope, node.output[0]) is not None:
        return
    given = attributes(node)
    rank: int | None = None
    if kind == "Transpose" and "perm" in given:
        rank = len(given["perm"])
        side.note_rank(scope, node.input[0], rank)
    elif kind in _KEEPING or (kind.startswith("Reduce") and given.get("keepdims", 1) == 1):
        rank = side.rank(scope, node.input[0])
    elif kind == "Concat":
        known = (side.rank(scope, name) for name in node.input[:])
        rank = next((each for each in known if each is not None), None)
    elif kind in _WIDENING:
        ranks = [side.rank(scope, name) for name in node.input[:]]
        told = [each for each in ranks if each is not None]
        rank = max(told) if len(told) == len(ranks) and told else None
    if rank is not None:
        _tell(side, scope, node.output[0], rank)


def _tell(side: Side, scope: Scope, name: str, rank: int) -> None:
    if name:
        side.ranks.setdefault((scope.path, name), rank)
