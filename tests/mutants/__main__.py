"""Plants the bugs that are named, or all; see `tests.mutants`."""

import sys

from . import MUTANTS
from .planting import main

main(MUTANTS, sys.argv[1:])
