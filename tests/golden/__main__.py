"""``python -m tests.golden``: which models changed, and how."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path

from . import record
from .models import TORCH, models
from .outcome import Outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PREFIX", help="only models so named")
    parser.add_argument("--text", type=Path, metavar="FOLDER", help="write plans and results here")
    parser.add_argument("--write", action="store_true", help="take what is computed as right")
    parser.add_argument("--says", action="store_true", help="count laws and codes in the file")
    parser.add_argument("--bits", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.bits:
        print(json.dumps(record.bits(sys.stdin.read().splitlines())))
        return 0
    if options.says:
        return _count()
    built = models()
    names = [name for name in built if not options.names or name.startswith(tuple(options.names))]
    recorded, rows = record.load()
    if options.write and not TORCH:
        parser.error("without torch the file would lose its models")
    if options.write and options.names and recorded != record.versions():
        parser.error(f"the file is of {recorded}; write all models to move it to those here")
    found: list[record.Difference] = []
    excused = absent = 0
    for name, made, difference in record.compare(names, built):
        if made is None:
            absent += 1
            continue
        if options.text:
            _write_text(options.text, name, made)
        if difference is not None:
            print(difference, "(another version or file)" if difference.excused else "", flush=True)
            found.append(difference)
            excused += difference.excused
    gone = [] if options.names or not TORCH else sorted(set(rows) - set(built))
    for name in gone:
        print(f"{name}: recorded, but no longer among the models")
    print(f"{len(names)} models, {absent} of them not installed; {len(found)} differ", end="")
    print(f", {excused} of them by another version or file" if excused else "")
    if options.write:
        _take(rows, found, gone)
    return 0 if options.write or (len(found) == excused and not gone) else 1


def _take(rows: dict[str, record.Row], found: list[record.Difference], gone: list[str]) -> None:
    kept = {name: row for name, row in rows.items() if name not in gone}
    kept |= {difference.name: difference.new for difference in found}
    rough = record.unsteady(d.name for d in found if "rounded" not in d.old)
    built = models()
    for name in rough:
        made = record.outcome(built[name]())
        kept[name] = record.row(made, rounded=True)
    record.write(kept)


def _write_text(folder: Path, name: str, made: Outcome) -> None:
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in (("plan", made.plan), ("reasons", made.reasons), ("result", made.text)):
        (folder / f"{file}.txt").write_text(text, encoding="utf-8")


def _count() -> int:
    said = Counter(each for row in record.load()[1].values() for each in row["says"].split("; "))
    for each, count in sorted(said.items()):
        print(f"{count:>5}  {each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
