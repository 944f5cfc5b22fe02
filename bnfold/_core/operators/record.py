"""What every record of an operator says, and the records of those with no parameters and no law.

A reader translates a node of its framework into one record, which knows no framework. All that
folding asks of the operator follows from the record: its role, the sites of its parameters, and the
shape of what it puts out. What merging asks follows in `_merge.steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Generic, ParamSpec

from bnfold._core.affine import Vector
from bnfold._core.broadcast import Shape
from bnfold._core.parameters import Reading, Site
from bnfold._core.quantized import Quantized
from bnfold._core.reasons import Reason, Refusal
from bnfold._core.stored import Parameter
from bnfold._core.view import OPAQUE, Absorber, Barrier, Carrier, InputSide, Role
from bnfold._system.records import record


@record(frozen=True)
class Operand:
    """A parameter of an operator: the input that it is, and its constant.

    ``missing`` says why there is none that may change. With neither the operator goes without it.
    ``quantized`` is set where it is stored as integers. ``unmerged`` says why it becomes no part of
    another constant, though it may take maps in: it is stored as integers, or as a sparse tensor.
    """

    position: int
    value: Parameter | None = None
    missing: Reason | None = None
    quantized: Quantized | None = None
    unmerged: Reason | None = None

    @property
    def stored(self) -> Parameter | None:
        """The constant, None where the operator goes without.

        Raises `Refusal` where it may not change or become part of another one.
        """
        reason = self.missing or self.unmerged
        if reason is not None:
            raise Refusal(reason)
        return self.value

    def shaped(self, shape: tuple[int, ...]) -> Operand:
        """The same where it is of the one shape that its operator allows; else none to change."""
        if self.value is None or self.value.shape == shape:
            return self
        return replace(self, value=None, missing=unusual(self.value))


def unusual(parameter: Parameter) -> Reason:
    """Why a parameter is none that its operator can have."""
    what = f"{parameter.name} has a shape that its operator does not allow: {parameter.shape}"
    return Reason("not-per-channel", parameter.name, what)


@record(frozen=True, kw_only=True)
class Operator:
    """What a node is. By itself: an operator of which nothing more is known, and nothing passes.

    ``data`` are the numbers of the inputs that it computes with and that are no parameters, in the
    order of its law. ``like`` is the shape that it reads, as far as that is known, where it puts
    out the same; ``tail`` is the size of the last axis of that where the rank is not known.
    """

    label: str = ""
    data: tuple[int, ...] = (0,)
    like: Shape | None = None
    tail: int | None = None

    @property
    def role(self) -> Role:
        """What it is to maps that meet it."""
        return OPAQUE

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where its parameters take maps in."""
        return ()

    @property
    def output(self) -> Shape | None:
        """The shape of what it puts out, as far as the record tells."""
        return self.like

    @property
    def last(self) -> int | None:
        """The size of the last axis of what it puts out, where the record tells no rank."""
        return self.tail

    @property
    def deviation(self) -> Vector | None:
        """``√(var + ε)`` of a BatchNorm, per channel."""
        return None

    def closed(self) -> Operator:
        """The same operator where, for a reason outside of it, no map may cross it."""
        return self

    def reading(self) -> Reading:
        """All that planning asks of it."""
        return Reading(self.role, self.sites, self.output, self.deviation)


UNKNOWN = Operator()


@record(frozen=True, kw_only=True)
class Passing(Operator):
    """What it reads is what it puts out: Identity, Dropout in inference.

    Law: ``f(A(x)) = A(f(x))`` for every map A on any axis, scale and shift alike.
    """

    @property
    def role(self) -> Role:
        """It carries maps."""
        return Carrier(self.data[0])

    def closed(self) -> Operator:
        """Nothing is known of it any more."""
        return UNKNOWN


@record(frozen=True, kw_only=True)
class Unfixed(Operator):
    """An affine operator that is no fixed per-channel map, and why."""

    reason: Reason

    @property
    def role(self) -> Role:
        """It stays, for its reason."""
        return Barrier(self.reason)


@record(frozen=True, kw_only=True)
class Unweighted(Operator):
    """An operator that would take maps in, but for a weight that may not change, and why.

    ``merges``: whether with that weight it would be a step of a linear function. ``ahead``: whether
    maps of what it reads stay for that reason, too.
    """

    reason: Reason
    merges: bool = False
    ahead: bool = False

    @property
    def role(self) -> Role:
        """It takes nothing in, for its reason."""
        side = InputSide(self.data[0], {}, self.reason, self.reason) if self.ahead else None
        return Absorber({}, self.reason, self.reason, ahead=side)


def unfixed(reason: Reason) -> Operator:
    """An affine operator that is no fixed map."""
    return Unfixed(reason=reason)


def unweighted(reason: Reason) -> Operator:
    """An operator that takes nothing in, and is no step of a linear function in any case."""
    return Unweighted(reason=reason)


def unmerged(reason: Reason) -> Operator:
    """A linear operator that takes nothing in."""
    return Unweighted(reason=reason, merges=True)


def unknown(reason: Reason) -> Operator:
    """An operator of which nothing is known."""
    return UNKNOWN


Given = ParamSpec("Given")


@record(frozen=True)
class Row(Generic[Given]):
    """How a type of operator is translated: ``read`` makes its record, from what a framework gives;
    ``refused`` is what it is where something that its reading needs is refused.
    """

    read: Callable[Given, Operator]
    refused: Callable[[Reason], Operator] = unknown

    def translate(self, *given: Given.args, **named: Given.kwargs) -> Operator:
        """The record of an operator."""
        try:
            return self.read(*given, **named)
        except Refusal as no:
            return self.refused(no.reason)
