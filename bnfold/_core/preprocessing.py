"""What is done with an input ahead of a network: type, layout, order of channels, normalization.

The input is what a camera gives. In this order it becomes what the network takes:

1. its numbers are converted to the type of the network;
2. its axes are put in the network's order;
3. its channels are put in the network's order;
4. ``x`` becomes ``(x·scale − mean) / std``. Lists of means and deviations follow the network's
   order of channels, not the camera's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnfold._errors import UsageError

WORDS = {
    "mean": "mean",
    "std": "std",
    "scale": "scale",
    "channels": "channels",
    "layout": "layout",
    "type": "dtype",
}
"""The words of options and configurations, and the attributes that they give."""
DTYPES = ("uint8", "int8", "uint16", "int16", "float16", "float32", "float64")
"""The types that a camera may give."""
_RGB = "rgb"
_LARGEST = 500.0
"""Above this a network gets numbers as none is trained with."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done with an input before the network reads it; see the module.

    Attributes:
        mean: one number for all channels, or one for each, in the network's order.
        std: likewise; no number is 0.
        scale: what the input is multiplied with first.
        channels: the order of the input's channels, such as "bgr" for a network that takes RGB.
            "rgb:bgr" names both: the input's first, then the network's.
        layout: the order of the input's axes, such as "nhwc". The network has the channels behind
            the batch, unless it is named as well: "nhwc:nhwc".
        dtype: the type of the input's numbers, such as "uint8". A type of NumPy or PyTorch does.

    Raises:
        UsageError: a value means nothing.
    """

    mean: Any = 0.0
    std: Any = 1.0
    scale: Any = 1.0
    channels: str = ""
    layout: str = ""
    dtype: Any = ""
    means: tuple[float, ...] = field(init=False, repr=False)
    stds: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_to = object.__setattr__
        set_to(self, "means", _numbers("mean", self.mean))
        set_to(self, "stds", _numbers("std", self.std))
        (scale,) = _numbers("scale", self.scale, 1)
        set_to(self, "scale", scale)
        if scale == 0:
            raise UsageError("scale is 0: it would leave nothing of the input")
        if 0 in self.stds:
            raise UsageError(f"std {_told(self.stds)} holds a 0, and nothing is divided by 0")
        counts = {len(each) for each in (self.means, self.stds)} - {1}
        if len(counts) > 1:
            raise UsageError(
                f"mean has {len(self.means)} numbers and std {len(self.stds)}: give one number for "
                "all channels, or one for each"
            )
        set_to(self, "channels", _text("channels", self.channels))
        set_to(self, "layout", _text("layout", self.layout))
        set_to(self, "dtype", _dtype(self.dtype))
        self.orders()
        if self.layout:
            self.layouts()
        count = len(self.orders()[0])
        if counts and count and count not in counts:
            raise UsageError(
                f"channels {self.channels} are {count}, and mean or std has {counts.pop()} numbers"
            )

    @property
    def is_nothing(self) -> bool:
        """Whether the input stays as it is."""
        plain = not (self.channels or self.layout or self.dtype)
        return plain and not self.is_affine

    @property
    def is_affine(self) -> bool:
        """Whether numbers are scaled or shifted."""
        return self.scale != 1 or any(self.means) or any(std != 1 for std in self.stds)

    @property
    def count(self) -> int | None:
        """How many channels there are, as far as that is said."""
        counts = {len(self.means), len(self.stds), len(self.orders()[0])} - {0, 1}
        return next(iter(counts), None)

    def orders(self) -> tuple[str, str]:
        """The order of channels of the input and of the network; empty where none is given."""
        if not self.channels:
            return "", ""
        given, _, own = self.channels.partition(":")
        if not own and sorted(given) == sorted(_RGB):
            own = _RGB
        if not own:
            raise UsageError(
                f"channels {self.channels}: say which order the network takes, too, GIVEN:NETWORK, "
                f"such as {given}:{given}"
            )
        _permutation("channels", given, own)
        return given, own

    def indices(self) -> tuple[int, ...]:
        """For each channel of the network its place among those of the input."""
        given, own = self.orders()
        return tuple(given.index(letter) for letter in own)

    def layouts(self) -> tuple[str, str]:
        """The order of axes of the input and of the network."""
        given, _, own = self.layout.partition(":")
        if given.count("c") != 1:
            raise UsageError(
                f"layout {self.layout}: one letter has to be c, for the channels, as in nhwc"
            )
        if not own:
            rest = given.replace("c", "")
            own = f"nc{rest[1:]}" if rest.startswith("n") else f"c{rest}"
        _permutation("layout", given, own)
        return given, own

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are valid JSON, by the names of the attributes."""
        return {
            "mean": list(self.means),
            "std": list(self.stds),
            "scale": self.scale,
            "channels": self.channels,
            "layout": self.layout,
            "dtype": self.dtype,
        }


Pairs = tuple[tuple[str, Preprocessing], ...]
"""Preprocessing by the names of inputs; "" is the only one."""


def pairs(given: Any) -> Pairs:
    """Preprocessing by the names of inputs; "" is the only one. ``TypeError`` for anything else."""
    named = {} if given is None else {"": given} if isinstance(given, Preprocessing) else given
    if not isinstance(named, Mapping) or not all(
        isinstance(name, str) and isinstance(each, Preprocessing) for name, each in named.items()
    ):
        raise TypeError(
            "preprocessing is a bnfold.Preprocessing, or a mapping from names of inputs to such, "
            f"not {given!r}"
        )
    return tuple((name, each) for name, each in named.items() if not each.is_nothing)


def doubtful(wanted: Preprocessing) -> str:
    """What looks like numbers in two units; "" where nothing does. The input is of 8 bits."""
    if wanted.dtype != "uint8":
        return ""
    top = 255 * abs(wanted.scale)
    if any(abs(mean) > top for mean in wanted.means):
        return (
            f"mean {_told(wanted.means)} lies outside of 0 to {top:.4g}, which is what the scale "
            "makes of 8 bits: is it in the units before the scale?"
        )
    largest = max(top / abs(std) for std in wanted.stds)
    if largest > _LARGEST:
        return (
            f"the network gets numbers up to {largest:.4g}: is std {_told(wanted.stds)} in the "
            "units before the scale, or a scale such as 1/255 left out?"
        )
    return ""


def _told(numbers: Iterable[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _numbers(name: str, given: Any, most: int | None = None) -> tuple[float, ...]:
    """The finite numbers of a value: one, or a list of them."""
    listed = given.tolist() if hasattr(given, "tolist") else given
    values = listed if isinstance(listed, (list, tuple)) else [listed]
    if not values or (most is not None and len(values) > most):
        raise UsageError(f"{name} has {len(values)} numbers; give one{' or more' * (not most)}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"{name}: {value!r} is no number")
        if not math.isfinite(value):
            raise UsageError(f"{name} holds {value}: give finite numbers")
    return tuple(float(value) for value in values)


def _text(name: str, given: Any) -> str:
    if not isinstance(given, str):
        raise UsageError(f"{name}: give letters, such as nhwc or bgr, not {given!r}")
    return given.strip().lower()


def _dtype(given: Any) -> str:
    """The name of a type that is given as text, or as NumPy or PyTorch has it."""
    name = getattr(given, "__name__", None) if isinstance(given, type) else None
    word = str(name or given or "").removeprefix("torch.").strip().lower()
    if word and word not in DTYPES:
        raise UsageError(f"type {word}: an input may be of {', '.join(DTYPES)}")
    return word


def _permutation(name: str, given: str, own: str) -> None:
    """Raise `UsageError` unless both hold the same letters, each once."""
    distinct = len(set(given)) == len(given) and given.isalpha()
    if not distinct or sorted(given) != sorted(own):
        raise UsageError(
            f"{name} {given}:{own}: both have to hold the same letters, each of them once"
        )
