"""Plans, reasons and results are those of ``golden.json``.

It catches what no test of one law does: a change that is meant to change nothing, and changes an
order, a text or a last bit somewhere. ``--slow`` takes all models, as does the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ..cli.command import bnfold
from . import record
from .models import EIGHTHS, SOURCES, THIRDS, TORCH, TORCH_SOURCES, models, source

BUILT = models()
HOW = "python -m tests.golden --text FOLDER writes them out; --write takes them as right"


def marked(sources: Sequence[str]) -> list[Any]:
    """Some models that tests store are malformed."""
    return [
        pytest.param(which, marks=pytest.mark.malformed) if which == "stored" else which
        for which in sources
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", marked(SOURCES))
def test_models_fold_as_they_did(which):
    part = slice(None)
    for few, step in ((THIRDS, 3), (EIGHTHS, 8)):
        if which in few:
            part = slice(few.index(which) % step, None, step)
    check(which, part)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", marked((*THIRDS, *EIGHTHS)))
def test_all_models_fold_as_they_did(which):
    check(which, slice(None))


def check(which: str, part: slice) -> None:
    if which in TORCH_SOURCES and not TORCH:
        pytest.skip("torch is not installed")
    names = [name for name in BUILT if source(name) == which][part]
    assert names
    outcomes = list(record.compare(names, BUILT))
    found = [difference for _, _, difference in outcomes if difference is not None]
    changed = [str(difference) for difference in found if not difference.excused]
    assert not changed, "\n".join([f"{len(changed)} models changed; {HOW}", *changed[:20]])
    if found:
        pytest.skip(f"{len(found)} differ under other versions or files: {found[0].name}, …")
    if all(made is None for _, made, _ in outcomes):
        pytest.skip("the package is not installed")


def test_every_model_is_recorded_and_every_record_is_of_a_model():
    recorded = set(record.load()[1])
    if not TORCH:
        recorded = {name for name in recorded if source(name) not in TORCH_SOURCES}
    assert set(BUILT) == recorded
    assert {source(name) for name in BUILT} <= set(SOURCES)


def test_every_reason_is_among_them():
    """A net with a hole as large as a whole reason would not hold that reason's text."""
    known = [line for line in bnfold("explain").out.splitlines() if not line.startswith(" ")]
    rows = record.load()[1].values()
    said = {each.rpartition(":")[2] for row in rows for each in row["says"].split("; ")}
    assert known
    assert set(known) <= said
