"""Recurrent operators of ATen: lstm, gru, rnn_tanh, rnn_relu.

Each computes ``x·W_ihᵀ + b_ih`` of what it reads before anything else (PyTorch, "LSTM"). So do
LSTM, GRU and RNN of ONNX. How PyTorch orders gates, layers, states and outputs is text, so that one
of these is none of ONNX; all weights but the first product's have to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bnfold._aten.call import Call, Made
from bnfold._aten.writer import Array, Like
from bnfold._onnx.read.constants import Constant

_KINDS = {"gru": "GRU", "lstm": "LSTM", "rnn_relu": "RNN", "rnn_tanh": "RNN"}
_GATES = {"gru": 3, "lstm": 4, "rnn_relu": 1, "rnn_tanh": 1}


def recurrent(call: Call) -> Made:
    """A recurrent operator on data of three axes that drops nothing, without a projection."""
    data, held, states = call.value("input"), call.given.get("params"), call.given.get("hx")
    both, layers = call.given.get("bidirectional"), call.given.get("num_layers")
    has_biases, first = call.given.get("has_biases"), call.given.get("batch_first")
    if data is None or call.like_of(data).rank != 3 or not isinstance(held, (list, tuple)):
        return None  # Of packed sequences, and of one sequence.
    if not (type(both) is type(has_biases) is type(first) is bool and type(layers) is int):
        return None
    if call.given.get("train") is not False and call.given.get("dropout") != 0:
        return None
    ways, each = 2 if both else 1, 4 if has_biases else 2
    if len(held) != layers * ways * each:
        return None
    names = [call.names.get(part) for part in held]
    stored = [call.writer.constant(name) for name in names if name is not None]
    known = [one for one in stored if one is not None and one.is_float]
    given = states if isinstance(states, (list, tuple)) else [states]
    starts = [call.names.get(part) for part in given if part is not None]
    if len(known) < len(held) or None in starts:
        return None
    own, rest = known[: ways * each], names[ways * each :]
    rows = own[0].shape[0]
    if rows != _GATES[call.kind] * own[1].shape[1]:
        return None
    ahead, behind = (_stacked(call, own[k::each]) for k in (0, 1))
    if has_biases:
        bias, inner = _side_by_side(call, own[2::each], own[3::each]), _stacked(call, own[3::each])
    else:
        like = Like(call.like.kind, (ways, 2 * rows))
        kind = own[0].dtype
        bias = call.writer.held("no bias", like, lambda: np.zeros((ways, 2 * rows), kind))
        thin = Like(call.like.kind, (ways, rows))
        inner = call.writer.held("no bias", thin, lambda: np.zeros((ways, rows), kind))
    start = [name or "" for name in (*starts, None)][:2]
    inputs = [data, ahead, behind, bias, "", *start, "", inner, *(name or "" for name in rest)]
    told = repr((call.kind, both, first, layers))
    return call.writer.several(_KINDS[call.kind], inputs, call.likes, told=told)


def _stacked(call: Call, parts: Sequence[Constant]) -> str:
    """The weights of both directions as one."""
    like = Like(parts[0].data_type, (len(parts), *parts[0].shape))

    def load() -> Array:
        return np.stack([part.load() for part in parts])

    return call.writer.held(parts[0].name, like, load)


def _side_by_side(call: Call, ones: Sequence[Constant], others: Sequence[Constant]) -> str:
    """Two biases of each direction in a row."""
    like = Like(ones[0].data_type, (len(ones), 2 * ones[0].shape[0]))

    def load() -> Array:
        rows = zip(ones, others, strict=True)
        return np.stack([np.concatenate([a.load(), b.load()]) for a, b in rows])

    return call.writer.held(ones[0].name, like, load)


RULES: dict[str, Callable[[Call], Made]] = dict.fromkeys(_KINDS, recurrent)
"""By the name of the operator."""
