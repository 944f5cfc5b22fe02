"""Operators that multiply integers which are rounded at run time."""

from __future__ import annotations

from bnfold._core.affine import LAST
from bnfold._core.broadcast import Shape
from bnfold._core.channels import along_axis
from bnfold._core.operators.record import Operand, Operator
from bnfold._core.parameters import Site
from bnfold._core.quantized import Quantized
from bnfold._core.reasons import Reason
from bnfold._core.stored import Parameter
from bnfold._core.view import Absorber, InputSide, Receiver
from bnfold._system.records import record


@record(frozen=True, kw_only=True)
class Quantization(Operator):
    """Data rounded to integers at run time. No map passes that exactly, which ``rounded`` says."""

    rounded: Reason

    @property
    def role(self) -> Receiver:
        """It takes nothing in."""
        return Receiver(InputSide(self.data[0], {}, self.rounded, self.rounded))


@record(frozen=True, kw_only=True)
class Dequantization(Operator):
    """``(q − z)·s`` of integers q that are rounded at run time.

    ``axis`` is that along which s lies, None for one number. ``rounded`` says who rounds.

    Law behind: ``A∘DQ`` has the scale ``s·a``. Always exact for a positive scale a that is uniform,
    or lies along ``axis``. A shift is no integer, so that z cannot take it in. Runtimes ask for
    positive scales.
    """

    scale: Operand
    axis: int | None
    rounded: Reason

    @property
    def role(self) -> Absorber:
        """It takes in positive scales."""
        message = f"the scale of {self.label} would not be positive, as runtimes ask for"
        return Absorber(
            self._channels,
            self.scale.missing,
            self.rounded,
            varying_blocked=self.rounded if self.axis is None else None,
            signed_blocked=Reason("not-carried", self.label, message),
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The scale."""
        value = self.scale.value
        if value is None:
            return ()
        layout = along_axis(value.shape, 0)
        site = Site(
            self.label,
            self.scale.position,
            None,
            self._channels,
            lambda axis: layout,
            lambda axis: layout.along,
            value,
            dtype=value.dtype,
        )
        return (site,)

    @property
    def _channels(self) -> dict[int, int]:
        value = self.scale.value
        return {} if self.axis is None or value is None else {self.axis: value.shape[0]}


@record(frozen=True, kw_only=True)
class Rescaling(Operator):
    """``n·(x·s)``: the sums n of a product of integers, times the scales of both factors, of which
    s is that of a constant weight. Dynamic quantization writes it so.

    ``weight`` has the integers of the weight, ``quantized`` these and s. The channels of what is
    put out are on ``axis`` (None: not known), and on axis ``own`` of the weight.

    Law behind: ``A∘(n·(x·s))`` has the scale ``s·a``. Always exact for a scale a that lies along
    the channels, or is uniform; of any sign, for s is a factor only. A shift needs an Add.
    """

    weight: Parameter
    quantized: Quantized
    axis: int | None
    own: int
    add_blocked: Reason | None = None

    @property
    def role(self) -> Absorber:
        """It takes in scales."""
        return Absorber(self._channels, None, self.add_blocked, bias_free=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The scale of the weight."""
        layout = along_axis(self.weight.shape, self.own)
        site = Site(
            self.label,
            1 - self.data[0],
            None,
            self._channels,
            lambda axis: layout,
            lambda axis: layout.along,
            self.weight,
            dtype=self.quantized.scale.dtype,
            quantized=self.quantized,
        )
        return (site,)

    @property
    def _channels(self) -> dict[int, int]:
        return {} if self.axis is None else {self.axis: self.weight.shape[self.own]}


@record(frozen=True, kw_only=True)
class IntegerProduct(Operator):
    """``n·(x·s) + b``: the sums n of a product of integers, times the scales of both factors, plus
    a bias of floats, all by one operator.

    ``scale`` is s. It has one number for each column of what is put out, which lie on ``axis``; or
    one for all, where ``axis`` is None. ``bias`` is None where the operator has no place for one of
    floats. ``shape`` is that of what is put out, as far as it is known. ``rounded`` is set where
    the operator rounds its data itself: why no map goes ahead of it.

    Law behind: ``A∘(n·(x·s) + b)`` has ``s·a`` and ``b·a + t``. Always exact for a map that lies
    along the columns, or is uniform; of any sign, for s is a factor only. One s for all takes a
    uniform map only. Without a place for b a shift needs an Add.
    """

    scale: Operand
    bias: Operand | None
    axis: int | None
    shape: Shape | None
    rounded: Reason | None = None

    @property
    def role(self) -> Absorber:
        """It takes in maps of what it puts out."""
        ahead = None
        if self.rounded is not None:
            ahead = InputSide(self.data[0], {}, self.rounded, self.rounded)
        blocked = self.bias.missing if self.bias is not None else None
        varying = None
        if self.axis is None:
            message = f"{self.label} has one scale for all that it puts out"
            varying = Reason("quantized-weight", self.label, message)
        return Absorber(
            self._channels,
            blocked,
            blocked,
            bias_free=self.bias is not None,
            ahead=ahead,
            varying_blocked=varying,
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The scales and the bias."""
        assert self.scale.value is not None
        layout = along_axis(self.scale.value.shape, 0)
        site = Site(
            self.label,
            self.scale.position,
            self.bias.position if self.bias is not None else None,
            self._channels,
            lambda axis: layout,
            lambda axis: layout.along,
            self.scale.value,
            self.bias.value if self.bias is not None else None,
            self.scale.value.shape,
            dtype=self.scale.value.dtype,
        )
        return (site,)

    @property
    def output(self) -> Shape | None:
        """See ``shape``."""
        return self.shape

    @property
    def last(self) -> int | None:
        """The number of columns, where the rank is not known."""
        return self._channels.get(LAST)

    @property
    def _channels(self) -> dict[int, int]:
        assert self.scale.value is not None
        return {} if self.axis is None else {self.axis: self.scale.value.shape[0]}
