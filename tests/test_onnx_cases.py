"""ONNX's own backend suite: every case is planned and folded, and computes what it did.

The suite has models that no drawn network has: each operator with all its attributes, sequences,
strings, optional values, bodies, training. The oracle is the suite's own expected outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from onnx.backend.test import data as data_folder
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

import bnfold

from .graphs import run

FOLDERS = ("simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class Case:
    """A model, and for each set of inputs by position the outputs that the suite expects."""

    name: str
    model: ModelProto
    sets: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


def stored(path: Path, proto: onnx.TypeProto) -> Any:
    kind = proto.WhichOneof("value")
    if kind == "sequence_type":
        message: Any = onnx.SequenceProto()
        reads = numpy_helper.to_list
    elif kind == "optional_type":
        message, reads = onnx.OptionalProto(), numpy_helper.to_optional
    else:
        message, reads = onnx.TensorProto(), numpy_helper.to_array
    message.ParseFromString(path.read_bytes())
    return reads(message)


def from_folder(folder: Path) -> Case:
    model = onnx.load(folder / "model.onnx")
    given = {i.name for i in model.graph.initializer}
    inputs = [i.type for i in model.graph.input if i.name not in given]
    outputs = [o.type for o in model.graph.output]
    sets = []
    for one in sorted(folder.glob("test_data_set_*")):
        sets.append(
            tuple(
                [stored(one / f"{what}_{n}.pb", t) for n, t in enumerate(types)]
                for what, types in (("input", inputs), ("output", outputs))
            )
        )
    return Case(folder.name, model, sets, 1e-3, 1e-7)


@cache
def cases() -> list[Case]:
    root = Path(next(iter(data_folder.__path__)))
    found = [
        Case(case.name, case.model, list(case.data_sets or []), case.rtol, case.atol)
        for case in collect_testcases(None)
        if case.model is not None
    ]
    for kind in FOLDERS:
        found += [from_folder(path.parent) for path in sorted((root / kind).glob("*/model.onnx"))]
    return found


def runners(model: ModelProto) -> Iterator[Any]:
    """What can run a model: onnxruntime without optimizations, and ONNX's reference."""
    yield lambda feeds: run(model, feeds)
    yield lambda feeds: ReferenceEvaluator(model).run(None, feeds)


def answers(model: ModelProto, number: int, feeds: dict[str, Any]) -> list[Any] | None:
    """The outputs by one of the runners; None if it cannot run the model."""
    compute = list(runners(model))[number]
    try:
        return list(compute(feeds))
    except Exception:
        return None


def off(found: Any, wanted: Any, case: Case) -> bool:
    """Whether an output is further from the expected one than the suite allows."""
    if isinstance(wanted, list | tuple):
        return len(found) != len(wanted) or any(
            off(f, w, case) for f, w in zip(found, wanted, strict=True)
        )
    if wanted is None or found is None:
        return found is not wanted
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.shape != wanted.shape:
        return True
    if wanted.dtype.kind in "OSU":
        return found.tolist() != wanted.tolist()
    kinds = (np.complex128, np.complex128) if wanted.dtype.kind == "c" else (np.float64,) * 2
    found, wanted = (v.astype(k) for v, k in zip((found, wanted), kinds, strict=True))
    return not np.allclose(found, wanted, case.rtol, case.atol, equal_nan=True)


def difference(case: Case) -> tuple[str | None, int]:
    """What a fold has changed of a case, None if nothing; and how many runs were compared."""
    before = case.model.SerializeToString()
    bnfold.plan(case.model)
    folded = bnfold.fold(case.model)
    if case.model.SerializeToString() != before:
        return "the model itself was changed", 0
    if folded.SerializeToString() == before:
        return None, 0
    given = {i.name for i in case.model.graph.initializer}
    names = [i.name for i in case.model.graph.input if i.name not in given]
    compared = 0
    for inputs, wanted in case.sets:
        feeds = {name: v for name, v in zip(names, inputs, strict=False) if v is not None}
        for number in range(2):
            old, new = answers(case.model, number, feeds), answers(folded, number, feeds)
            if old is None:
                continue
            if new is None:
                return "the folded model does not run", compared
            pairs = list(zip(old, new, wanted, strict=True))
            compared += any(not off(o, w, case) for o, _, w in pairs)
            if any(off(n, w, case) and not off(o, w, case) for o, n, w in pairs):
                return f"outputs differ ({('onnxruntime', 'onnx.reference')[number]})", compared
    return None if compared else "it was folded, and neither runner computes it", compared


@pytest.mark.slow
def test_every_case_folds_and_computes_what_it_did():
    found = cases()
    assert len(found) > 1000
    wrong, compared = {}, 0
    for case in found:
        try:
            why, runs = difference(case)
        except Exception as error:
            why, runs = f"{type(error).__name__}: {error}", 0
        compared += runs
        if why is not None:
            wrong[case.name] = why
    assert not wrong
    assert compared > 40  # Few cases have anything to fold.
