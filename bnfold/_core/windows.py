"""Where along one axis a linear operator reads, relative to what it writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Output ``o`` sums ``taps`` inputs: those at ``stride·o + start + step·i``, for i from 0.

    Inputs outside ``[0, n)`` count as zero. An input of size n gives
    ``⌊(n + room) / stride⌋ + 1`` outputs. A convolution (ONNX Conv) with pads ``(l, r)``, kernel k
    and dilation d starts at ``−l``, in steps of d, and has room ``l + r − ((k − 1)·d + 1)``.
    """

    start: int = 0
    taps: int = 1
    step: int = 1
    stride: int = 1
    room: int = -1

    @classmethod
    def of(cls, taps: int, step: int, stride: int, pads: tuple[int, int]) -> Window:
        """The window of a convolution's kernel along one axis."""
        extent = (taps - 1) * step + 1
        return cls(-pads[0], taps, step if taps > 1 else 1, stride, sum(pads) - extent)

    @property
    def extent(self) -> int:
        """From the first to the last input read, both counted."""
        return (self.taps - 1) * self.step + 1

    @property
    def pads(self) -> tuple[int, int]:
        """The padding that a convolution with this window has; one that cuts is negative."""
        return -self.start, self.room + self.start + self.extent

    @property
    def is_point(self) -> bool:
        """Whether output o reads input o and no other."""
        return self == Window()

    @property
    def sees_zeros(self) -> bool:
        """Whether some output may read beyond the ends."""
        return any(pad > 0 for pad in self.pads)

    @property
    def is_zero_outside(self) -> bool:
        """Whether outputs that would lie before the first or after the last read no input at all.

        The one before the first reads up to ``−stride + start + extent − 1``, which has to be
        negative. The one after the last, at ``⌊(n + room)/stride⌋ + 1``, reads from
        ``n + room + 1 + start`` on at the least, which has to be n or more.
        """
        return self.start + self.extent <= self.stride and self.start + self.room + 1 >= 0

    def then(self, outer: Window) -> Window:
        """The window of ``outer`` over what this one writes, if nobody sees its ends.

        Tap j of the outer one reads output ``s₂·o + start₂ + step₂·j``, whose tap i reads input
        ``s₁·s₂·o + (start₁ + s₁·start₂) + (step₁·i + s₁·step₂·j)``. As ``⌊(⌊a/s₁⌋ + b)/s₂⌋`` is
        ``⌊(a + s₁·b)/(s₁·s₂)⌋``, the room is ``room₁ + s₁·(1 + room₂)``.
        """
        far = self.stride * outer.step
        step = _common([(self.taps, self.step), (outer.taps, far)])
        reach = (self.taps - 1) * self.step + (outer.taps - 1) * far
        return Window(
            self.start + self.stride * outer.start,
            reach // step + 1,
            step,
            self.stride * outer.stride,
            self.room + self.stride * (1 + outer.room),
        )


def see_zeros(windows: Sequence[Window] | None) -> bool:
    """Whether some output may read beyond the ends; with windows that are not known, it may."""
    return windows is None or any(window.sees_zeros for window in windows)


def aligned(windows: Sequence[Window]) -> Window:
    """The smallest window that reads what each of several with one stride and room reads.

    Its taps are as far apart as the starts and steps of all allow.
    """
    start = min(window.start for window in windows)
    end = max(window.start + window.extent for window in windows)
    gaps = [(2, window.start - start) for window in windows if window.start > start]
    step = _common([*((window.taps, window.step) for window in windows), *gaps])
    first = windows[0]
    return Window(start, (end - start - 1) // step + 1, step, first.stride, first.room)


def _common(spans: Sequence[tuple[int, int]]) -> int:
    """The largest step in which taps of several steps lie; a single tap has none."""
    return math.gcd(*(step for taps, step in spans if taps > 1)) or 1
