"""Proves that two models are the same function, from their weights; see `_relation.proof`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from bnfold._core.preprocessing import Pairs
from bnfold._errors import UsageError, first_line
from bnfold._onnx.files.load import load_model, refuse_names, understood
from bnfold._onnx.files.locations import check_external
from bnfold._onnx.files.sound import refuse_unsound
from bnfold._onnx.front.prepending import prepend
from bnfold._onnx.read.frozen import freeze
from bnfold._onnx.read.order import in_order
from bnfold._pipeline.any_kind import program_of
from bnfold._pipeline.in_memory import as_proto, is_in_memory
from bnfold._pipeline.module_options import ModuleOptions
from bnfold._relation.proof import Proof, prove
from bnfold._system import memory

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from bnfold._judge.settings import Settings
    from bnfold._pipeline.outcome import Progress
    from bnfold._run.input_sets import InputSet

_NO_OPTIONS = ModuleOptions()


@memory.uncollected()
def prove_models(
    first: Any,
    second: Any,
    options: ModuleOptions = _NO_OPTIONS,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    frozen: bool = False,
    follow_links: bool = False,
    trust: bool = False,
    preprocessing: Pairs = (),
) -> Proof:
    """The proof for two models: each of any kind that `bnfold.verify` takes. The first of
    two models of ONNX stands behind preprocessing.

    Weights stay in the files until they are read. ``base_dir`` is the folder of external data of
    models in memory. ``options`` has the example inputs of modules. Raises `UsageError` for a model
    that cannot be read, ``TypeError`` for what is no model.
    """
    found = [_is_of_torch(given) for given in (first, second)]
    if any(found):
        if preprocessing or (all(found) and (base_dir is not None or frozen or follow_links)):
            raise UsageError(
                "base_dir, freeze_initializers, follow_links, preprocessing: these are for models "
                "of ONNX; leave them out"
            )
        from bnfold._aten.proof import prove_programs, prove_with_file

        pair = [
            _exported(program_of(given, trust), options) if of_torch else None
            for given, of_torch in zip((first, second), found, strict=True)
        ]
        one, other = pair
        if one is not None and other is not None:
            return prove_programs(one, other)
        given, program = (second, one) if one is not None else (first, other)
        assert program is not None
        model, folder = _loaded(given, base_dir, frozen, follow_links)
        with understood(model, Path(given) if _is_path(given) else None):
            return prove_with_file(program, model, folder, one is not None)
    options.refuse()
    if options.args is not None:
        raise UsageError("example inputs are for a torch.nn.Module; leave them out")
    pairs = [_loaded(given, base_dir, frozen, follow_links) for given in (first, second)]
    (one, one_dir), (other, other_dir) = pairs
    if preprocessing:
        if one is first:
            one = ModelProto()
            one.CopyFrom(pairs[0][0])
        prepend(one, dict(preprocessing))
    path = Path(second) if _is_path(second) else None
    with understood(other, path):
        return prove(one, other, one_dir, other_dir)


def objection(
    first: Path,
    second: Path,
    verify: bool,
    inputs: list[InputSet] | None,
    settings: Settings,
    progress: Progress,
) -> tuple[str, Proof]:
    """Why a file may not stand for another, "" if it may, and the proof that both are the same.

    It may if that is proved; or else, with ``verify``, if the comparison passes. A proof that no
    comparison can confirm holds; a comparison that fails objects to a proof.
    """
    from bnfold._judge.two_files import compare_files
    from bnfold._judge.verdict import located

    proof = prove_models(first, second, frozen=settings.frozen, follow_links=True)
    if proof.status == "refuted" or (not verify and proof.status != "proved"):
        return f"the result is {proof}", proof
    if not verify:
        return "", proof
    try:
        result = compare_files(first, second, inputs, settings, progress)
    except UsageError as error:
        return f"the result cannot be judged: {first_line(error)}", proof
    if result.status == "pass" or (result.status == "inconclusive" and proof.status == "proved"):
        return "", proof
    where = "; ".join(located(result)) or next(iter(result.notes), "")
    return f"the comparison is {result.status}" + (f": {where}" if where else ""), proof


def _is_of_torch(model: Any) -> bool:
    """Whether it is a module, a program, or the path of one. This does not import PyTorch."""
    if _is_path(model):
        return Path(model).suffix == ".pt2"
    library = sys.modules.get("torch")
    kinds = () if library is None else (library.nn.Module, library.export.ExportedProgram)
    return isinstance(model, kinds)


def _is_path(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike))


def _exported(model: Any, options: ModuleOptions) -> ExportedProgram:
    """The program of a module with its example inputs; a program as it is."""
    from torch import nn

    from bnfold._torch.read.export import export, refuse_pruned

    if not isinstance(model, nn.Module):
        program: ExportedProgram = model
        return program
    refuse_pruned(model)
    example = options.example()
    return export(model, example.args, example.kwargs, example.dynamic_shapes)


def _loaded(
    given: Any, base_dir: str | os.PathLike[str] | None, frozen: bool, follow_links: bool
) -> tuple[ModelProto, Path | None]:
    """A model with its nodes in order, and the folder of its external data."""
    own = None
    if is_in_memory(given):
        given, own = as_proto(given)
        if own is not None:
            check_external(given, own, follow_links=follow_links, missing=True)
    if isinstance(given, ModelProto):
        refuse_names(given)
        refuse_unsound(given)
        model, folder = in_order(given), own if base_dir is None else Path(base_dir)
        if frozen and model is given:
            model = ModelProto()
            model.CopyFrom(given)
    elif _is_path(given):
        path = Path(given)
        model, folder = load_model(path, lean=True, follow_links=follow_links), path.parent
    else:
        kind = type(given).__name__
        raise TypeError(f"a path or a model of ONNX or PyTorch is needed, not a {kind}")
    if frozen:
        freeze(model)
    return model, folder
