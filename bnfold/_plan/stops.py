"""What stops a map on its way, and why it stays in the end, both ways considered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bnfold._core.reasons import Reason

_TOLD = ("no-gain", "not-carried", "zero-padding")
_NAMED = 3


@dataclass(frozen=True)
class Stop:
    """Why a trip failed; ``through`` are the types of the operators crossed on the way there."""

    reason: Reason
    through: tuple[str, ...] = ()


def explained(reason: Reason, stops: Mapping[bool, Stop]) -> Reason:
    """A reason with what stopped the map backward (``stops[False]``) and forward (``True``).

    Zero padding ahead is what a user asks about most, so it comes first; otherwise what stopped the
    map on its way back does.
    """
    back, forth = stops.get(False), stops.get(True)
    main = reason
    if back is not None and (back.through or back.reason.code in _TOLD):
        text = _told(back, "carried back through") if back.through else back.reason.message
        main = Reason(back.reason.code, back.reason.at, text)
    if forth is None:
        return main
    text = _told(forth, "carried forward through")
    if forth.reason.code == "zero-padding" and main.code != "zero-padding":
        return Reason(forth.reason.code, forth.reason.at, f"{text}; backward, {main.message}")
    return Reason(main.code, main.at, f"{main.message}; forward, {text}", main.cause)


def _told(stop: Stop, carried: str) -> str:
    if not stop.through:
        return stop.reason.message
    names = list(stop.through)
    if len(names) > _NAMED:
        names = [*names[: _NAMED - 1], f"{len(names) - _NAMED + 1} more"]
    through = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    at, message = stop.reason.at, stop.reason.message
    where = message if message.startswith(at) else f"{at}: {message}"
    return f"{carried} {through}, stopped at {where}"
