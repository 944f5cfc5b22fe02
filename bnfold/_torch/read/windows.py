"""The windows that convolutions and pools of PyTorch read."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold._core.windows import Window

Numbers = int | Sequence[int]


def windows(
    taps: Numbers, strides: Numbers, padding: Numbers | str, dilations: Numbers
) -> tuple[Window, ...] | None:
    """The window along each axis of space; None where it depends on sizes that may change.

    ``"same"`` asks for a stride of 1 and pads by ``d·(k − 1)`` in all. Where that is odd, the end
    gets one more than the beginning: 3 in all are 1 ahead and 2 behind.
    """
    rank = max(
        len(value) if isinstance(value, Sequence) else 1 for value in (taps, strides, dilations)
    )
    pads = padding if not isinstance(padding, str) else 0
    each = [_each(value, rank) for value in (taps, strides, dilations, pads)]
    if any(value is None for value in each):
        return None
    found = []
    for k, stride, dilation, pad in zip(*each, strict=True):
        total = dilation * (k - 1)
        ends = (total // 2, total - total // 2) if padding == "same" else (pad, pad)
        found.append(Window.of(k, dilation, stride, ends))
    return tuple(found)


def _each(value: Numbers, rank: int) -> list[int] | None:
    """The numbers for each axis, from one number for all axes or from one for each.

    None where a number is not fixed.
    """
    numbers = [value] if isinstance(value, int) else list(value)
    if not all(isinstance(number, int) for number in numbers):
        return None
    return numbers * rank if len(numbers) == 1 else numbers
