"""The drawn models of other tests, drawn from a seed instead of by Hypothesis.

What Hypothesis draws depends on its version. So each module that draws is loaded a second time,
with a stand-in for ``hypothesis.strategies`` that knows the few strategies that those modules use
and takes every choice from a ``random.Random``. No internals of Hypothesis are touched.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

Strategy = Callable[[random.Random], Any]
TESTS = Path(__file__).parents[1]


class Refused(Exception):
    """A drawn case does not fit, and the next one is to be taken."""


def _sampled_from(values: Any) -> Strategy:
    choices = tuple(values)
    return lambda source: source.choice(choices)


def _integers(least: int, most: int) -> Strategy:
    return lambda source: source.randint(least, most)


def _booleans() -> Strategy:
    return lambda source: source.random() < 0.5


def _tuples(*parts: Strategy) -> Strategy:
    return lambda source: tuple(part(source) for part in parts)


def _lists(part: Strategy, *, min_size: int = 0, max_size: int) -> Strategy:
    return lambda source: [part(source) for _ in range(source.randint(min_size, max_size))]


def _permutations(values: Any) -> Strategy:
    return lambda source: source.sample(list(values), len(values))


def _composite(function: Callable[..., Any]) -> Callable[..., Strategy]:
    def made(*args: Any, **options: Any) -> Strategy:
        return lambda source: function(lambda part: part(source), *args, **options)

    return made


def _assume(condition: Any) -> bool:
    if not condition:
        raise Refused
    return True


STRATEGIES = SimpleNamespace(
    booleans=_booleans,
    composite=_composite,
    integers=_integers,
    lists=_lists,
    permutations=_permutations,
    sampled_from=_sampled_from,
    tuples=_tuples,
)


def _undecorated(*_: Any, **__: Any) -> Callable[[Any], Any]:
    return lambda test: test


@contextmanager
def _stand_in() -> Iterator[None]:
    import hypothesis
    import hypothesis.strategies

    with (
        mock.patch.object(hypothesis, "strategies", STRATEGIES),
        mock.patch.object(hypothesis, "given", _undecorated),
        mock.patch.object(hypothesis, "settings", _undecorated),
        mock.patch.object(hypothesis, "assume", _assume),
    ):
        yield


@cache
def seeded(name: str) -> ModuleType:
    """A second copy of the module ``tests.NAME`` whose strategies draw from a ``random.Random``."""
    from .. import searches  # noqa: F401  (its settings are made before the stand-in is there)

    *rooms, last = name.split(".")
    full = ".".join(["tests", *rooms, f"_seeded_{last}"])
    spec = importlib.util.spec_from_file_location(full, TESTS.joinpath(*rooms, f"{last}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    with _stand_in():
        spec.loader.exec_module(module)
    return module


def draw(strategy: Strategy, seed: int) -> Any:
    """The case of a seed: the first that is not refused."""
    source = random.Random(seed)
    while True:
        try:
            return strategy(source)
        except Refused:
            continue
