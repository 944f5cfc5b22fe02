"""Operators that multiply integers which are rounded at run time."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold._core.channels import along_axis
from bnfold._core.operators.record import Operand, Operator
from bnfold._core.parameters import Site
from bnfold._core.reasons import Reason
from bnfold._core.view import Absorber


@dataclass(frozen=True, kw_only=True)
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
