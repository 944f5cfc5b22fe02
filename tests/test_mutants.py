"""The table of planted bugs has not rotted; that each is noticed is seen by running it."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS
from .mutants.planting import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_bug_changes_stands_in_its_file_once(mutant):
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    compile(mutant.planted(text), str(mutant.path), "exec")
    for test in mutant.tests.split():
        file, *_ = test.split("::")
        assert (ROOT / file).is_file()


def test_every_bug_has_a_name_of_its_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
