"""Whether two programs of PyTorch are the same function, from their weights alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx.inliner
from onnx import ModelProto
from torch.export import ExportedProgram

from bnfold._aten.reading import Reader, Unread, functional
from bnfold._onnx.read.scopes import opset_of
from bnfold._relation.lowering import lowered
from bnfold._relation.proof import Proof, prove_sides
from bnfold._relation.side import Side


def prove_programs(
    first: ExportedProgram,
    second: ExportedProgram,
    watch: Callable[[], None] = lambda: None,
    halves_are_exact: bool = False,
) -> Proof:
    """Prove that two programs compute the same, up to the rounding of stored weights.

    Inputs and outputs correspond by position; how a caller gives and gets them (the nesting of
    lists and dicts, their keys) is the same. The second takes all sizes that the first takes.
    Nothing is run, but for operators on constants. ``watch`` is called at every operator; it may
    raise `Stopped`. With ``halves_are_exact`` weights in float16 and bfloat16 are the same to the
    digits of float32, and nothing is refuted.
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
    proof = _proved(one.writer.side(), other.writer.side(), watch, halves_are_exact)
    return proof.unsure if halves_are_exact else proof


def prove_with_file(
    program: ExportedProgram,
    model: ModelProto,
    folder: Path | None,
    is_first: bool,
    watch: Callable[[], None] = lambda: None,
    halves_are_exact: bool = False,
) -> Proof:
    """The same of a program and a model of ONNX, with its nodes in order.

    ``is_first`` says that the program is the first of the two. Inputs and outputs correspond by
    position; what of the program's is no tensor, the model cannot have. Weights that PyTorch
    computes it rounds at every step, and so they refute nothing. Raises `UsageError` for weights of
    the model that cannot be read.
    """
    try:
        (program,) = functional([program])
        reader = Reader(program)
        reader.read()
    except Unread as error:
        return Proof("not proved", error.at, str(error))
    if reader.told or reader.writer.checks:
        return Proof("not proved", "", "the program takes, gives or checks what is no tensor")
    names = [name for name, _, _ in reader.ports]
    stored = {tensor.name for tensor in model.graph.initializer}
    others = [value.name for value in model.graph.input if value.name not in stored]
    if names != others and sorted(names) == sorted(others):
        return Proof("not proved", others[0], "the inputs have another order in the other model")
    plain = onnx.inliner.inline_local_functions(model) if model.functions else model
    lower, _ = lowered(plain, reader.writer.model)
    own, other = reader.writer.side(opset_of(model.opset_import)), Side.of(lower, folder)
    sides = (own, other) if is_first else (other, own)
    proof = _proved(*sides, watch, halves_are_exact)
    return proof.unsure if reader.has_computed or halves_are_exact else proof


def _proved(one: Side, other: Side, watch: Callable[[], None], halves_are_exact: bool) -> Proof:
    one.halves_are_exact = other.halves_are_exact = halves_are_exact
    return prove_sides(one, other, watch)


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
