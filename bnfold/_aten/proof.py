"""Whether two programs of PyTorch are the same function, from their weights alone."""

from __future__ import annotations

from torch.export import ExportedProgram

from bnfold._aten.reading import Reader, Unread, functional
from bnfold._relation.proof import Proof, prove_sides


def prove_programs(first: ExportedProgram, second: ExportedProgram) -> Proof:
    """Prove that two programs compute the same, up to the rounding of stored weights.

    Inputs and outputs correspond by position; how a caller gives and gets them (the nesting of
    lists and dicts, their keys) is the same. The second takes all sizes that the first takes.
    Nothing is run, but for operators on constants.
    """
    try:
        readers = [Reader(program) for program in functional([first, second])]
        for reader in readers:
            reader.read()
    except Unread as error:
        return Proof("not proved", error.at, str(error))
    one, other = readers
    why = _unlike(one, other)
    if why:
        return Proof("not proved", *why)
    return prove_sides(one.writer.side(), other.writer.side())


def _unlike(one: Reader, other: Reader) -> tuple[str, str] | None:
    """Where the two are called in other ways, and how; None if they are called alike."""
    specs = [reader.program.call_spec for reader in (one, other)]
    if specs[0].in_spec != specs[1].in_spec:
        return "", "the two take their inputs in other ways"
    if specs[0].out_spec != specs[1].out_spec:
        return "", "the two give their outputs in other ways"
    if one.told != other.told or len(one.ports) != len(other.ports):
        return "", "the two take or give other values that are no tensors"
    for (_, *wanted), (name, *found) in zip(one.ports, other.ports, strict=True):
        if wanted != found:
            return name, "this input has another type or shape in the other program"
    if not other.sizes.has(one.sizes):
        return "", "the second program does not take all sizes that the first takes"
    if one.writer.checks != other.writer.checks:
        return "", "the two check their data in other ways"
    return None
