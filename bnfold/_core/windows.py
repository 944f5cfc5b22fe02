"""Which inputs along one axis each output of a linear operator reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bnfold._system.records import record


@record(frozen=True)
class Window:
    """Output ``o`` sums ``taps`` inputs: those at ``stride·o + start + dilation·i``, for i from 0.

    Inputs outside ``[0, n)`` count as zero. An input of size n gives
    ``⌊(n + room) / stride⌋ + 1`` outputs. A convolution (ONNX Conv) with pads ``(l, r)``, kernel k
    and dilation d starts at ``−l``. It has room ``l + r − ((k − 1)·d + 1)``.
    """

    start: int = 0
    taps: int = 1
    dilation: int = 1
    stride: int = 1
    room: int = -1

    @classmethod
    def of(cls, taps: int, dilation: int, stride: int, pads: tuple[int, int]) -> Window:
        """The window of a convolution's kernel along one axis."""
        extent = (taps - 1) * dilation + 1
        return cls(-pads[0], taps, dilation if taps > 1 else 1, stride, sum(pads) - extent)

    @property
    def extent(self) -> int:
        """How many inputs lie between the first and the last input read, both counted."""
        return (self.taps - 1) * self.dilation + 1

    @property
    def pads(self) -> tuple[int, int]:
        """The two pads of a convolution with this window; a negative pad cuts inputs off."""
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
        """Whether further outputs, before the first or after the last, would read no input.

        The output before the first would read up to ``−stride + start + extent − 1``. This must
        be negative. The output after the last has the number ``⌊(n + room)/stride⌋ + 1``. It would
        read from ``n + room + 1 + start`` on, or from later. This must be n or more.
        """
        return self.start + self.extent <= self.stride and self.start + self.room + 1 >= 0

    def then(self, outer: Window) -> Window:
        """This window and then ``outer`` as one window; exact if ``outer`` reads no padding.

        Write s for a stride and d for a dilation. Tap j of ``outer`` reads output
        ``s₂·o + start₂ + d₂·j`` of this window. Tap i of this window then reads input
        ``s₁·s₂·o + (start₁ + s₁·start₂) + (d₁·i + s₁·d₂·j)``. As ``⌊(⌊a/s₁⌋ + b)/s₂⌋`` is
        ``⌊(a + s₁·b)/(s₁·s₂)⌋``, the room is ``room₁ + s₁·(1 + room₂)``.
        """
        far = self.stride * outer.dilation
        dilation = _common([(self.taps, self.dilation), (outer.taps, far)])
        reach = (self.taps - 1) * self.dilation + (outer.taps - 1) * far
        return Window(
            self.start + self.stride * outer.start,
            reach // dilation + 1,
            dilation,
            self.stride * outer.stride,
            self.room + self.stride * (1 + outer.room),
        )


def see_zeros(windows: Sequence[Window] | None) -> bool:
    """Whether some output may read beyond the ends. Unknown windows (None) may."""
    return windows is None or any(window.sees_zeros for window in windows)


def aligned(windows: Sequence[Window]) -> Window:
    """The smallest window that reads every input that one of the given windows reads.

    All given windows have the same stride and the same room. The dilation of the result is the
    largest that meets every start and every tap: starts 0 and 2 with dilation 4 give dilation 2.
    """
    start = min(window.start for window in windows)
    end = max(window.start + window.extent for window in windows)
    gaps = [(2, window.start - start) for window in windows if window.start > start]
    dilation = _common([*((window.taps, window.dilation) for window in windows), *gaps])
    first = windows[0]
    return Window(start, (end - start - 1) // dilation + 1, dilation, first.stride, first.room)


def _common(spans: Sequence[tuple[int, int]]) -> int:
    """The largest dilation that meets all taps; each span is a number of taps and their dilation.

    A span of one tap has no dilation and does not count. Without any other the result is 1.
    """
    return math.gcd(*(dilation for taps, dilation in spans if taps > 1)) or 1
