"""Where convolutions and pools of PyTorch read."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold._core.windows import Window

Numbers = int | Sequence[int]


def windows(
    taps: Numbers, strides: Numbers, padding: Numbers | str, steps: Numbers
) -> tuple[Window, ...] | None:
    """The window along each axis of space; None where it depends on sizes that may change.

    ``"same"``, for a stride of 1, pads by ``d·(k − 1)`` in all, what is odd at the end.
    """
    rank = max(len(value) if isinstance(value, Sequence) else 1 for value in (taps, strides, steps))
    pads = padding if not isinstance(padding, str) else 0
    each = [_each(value, rank) for value in (taps, strides, steps, pads)]
    if any(value is None for value in each):
        return None
    found = []
    for k, stride, step, pad in zip(*each, strict=True):
        total = step * (k - 1)
        ends = (total // 2, total - total // 2) if padding == "same" else (pad, pad)
        found.append(Window.of(k, step, stride, ends))
    return tuple(found)


def _each(value: Numbers, rank: int) -> list[int] | None:
    """An argument that is one number for all axes, or one for each; None if it is not fixed."""
    numbers = [value] if isinstance(value, int) else list(value)
    if not all(isinstance(number, int) for number in numbers):
        return None
    return numbers * rank if len(numbers) == 1 else numbers
