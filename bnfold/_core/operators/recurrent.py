"""Recurrent operators: LSTM, GRU and the simple RNN."""

from __future__ import annotations

from functools import cached_property

from bnfold._core.channels import ChannelLayout, along_axis
from bnfold._core.operators.record import Operand, Operator
from bnfold._core.parameters import Entrance, Site
from bnfold._core.reasons import Reason
from bnfold._core.stored import Parameter
from bnfold._core.view import InputSide, Receiver
from bnfold._system.records import record


@record(frozen=True, kw_only=True)
class Recurrent(Operator):
    """An LSTM, a GRU or a simple RNN, of one direction or both.

    What it reads enters its gates through ``weights`` and ``biases``: a pair for each direction, or
    one pair that holds all. A weight is ``[…, rows, inputs]`` and its bias ``[…, rows + beyond]``
    with ``beyond = others·rows``: the numbers there belong to the recurrence. The ``inputs`` are on
    ``axis`` of what it reads, its last.

    Law ahead: ``RNN∘A`` has ``W·diag(s)`` and ``b + W·t`` in every direction. Exact always, scale
    and shift alike, where the map varies along ``axis`` or not at all: a step at time k computes
    with ``W·x[k] + b`` and sees nothing else of x, whatever its gates, activations, clip, peepholes
    and lengths are. Nothing pads the sequence with zeros that would go through W.

    There is no law behind: what it puts out is no linear function of its weights.
    """

    weights: tuple[Operand, ...]
    biases: tuple[Operand, ...]
    others: int = 0
    axis: int = 2

    @cached_property
    def offsets(self) -> tuple[Operand, ...]:
        """The biases, where their shapes are the only ones that they can have."""
        pairs = zip(self.weights, self.biases, strict=True)
        return tuple(
            bias.shaped(self._bias_shape(weight.value)) if weight.value is not None else bias
            for weight, bias in pairs
        )

    @property
    def role(self) -> Receiver:
        """It takes in maps of what it reads."""
        weight, bias = _first(self.weights), _first(self.offsets)
        inputs = {one.value.shape[-1] for one in self.weights if one.value is not None}
        sizes = {self.axis: inputs.pop()} if len(inputs) == 1 else {}
        ahead = InputSide(self.data[0], sizes, weight, weight or bias, rank=self.axis + 1)
        return Receiver(ahead)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The pairs of a weight and a bias; a missing bias is made."""
        if _first(self.weights) is not None:
            return ()
        return tuple(map(self._site, self.weights, self.offsets))

    def _site(self, weight: Operand, bias: Operand) -> Site:
        assert weight.value is not None
        shape = weight.value.shape
        rows = ChannelLayout(shape, (*shape[:-1], 1))
        return Site(
            self.label,
            weight.position,
            bias.position,
            {},
            lambda axis: rows,
            lambda axis: shape[:-1],
            weight.value,
            bias.value,
            self._bias_shape(weight.value),
            bias_beyond=self.others * shape[-2],
            dtype=weight.value.dtype,
            entrance=Entrance(along_axis(shape, len(shape) - 1)),
            quantized=weight.quantized,
        )

    def _bias_shape(self, weight: Parameter) -> tuple[int, ...]:
        *directions, rows, _ = weight.shape
        return (*directions, (1 + self.others) * rows)


def _first(operands: tuple[Operand, ...]) -> Reason | None:
    """Why one of some parameters may not change."""
    return next((one.missing for one in operands if one.missing is not None), None)
