"""Compares a module or program of PyTorch with another one, or with a file of ONNX."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from bnfold._errors import UsageError
from bnfold._judge.settings import Settings
from bnfold._judge.torch_bench import RUNTIME
from bnfold._judge.verdict import EndToEnd
from bnfold._pipeline.exported_files import compare_with_file
from bnfold._pipeline.modules import compare_in_pytorch, compare_modules
from bnfold._pipeline.proved_in_pytorch import settled_by_proof
from bnfold._torch.module.fold import Example

_Model = nn.Module | ExportedProgram
_CALLED = {
    "equal_dims": "assume_equal_dims",
    "fixed": "rtol, atol",
    "frozen": "freeze_initializers",
    "libraries": "ops_libraries",
    "seconds": "timeout",
    "wanted": "draws, dims",
}
"""What users call options that have another name here."""
_BELIEFS = ("trust", "follow_links")
_WITH_FILES = ("fixed", "libraries", "power", "seconds", "seed", "threads", "wanted")
"""The options for a comparison with a file."""


def compare_pair(
    original: _Model | Path, folded: _Model | Path, example: Example | None, settings: Settings
) -> EndToEnd:
    """The verdict on two models, at least one of them of PyTorch; a path is a file of ONNX.

    A program brings its own example inputs, if no others are given. A file is compared with a
    module or program whichever of the two comes first.

    Raises:
        UsageError: example inputs are missing; or an option is not for such models.
    """
    if isinstance(original, Path):
        original, folded = folded, original
    assert not isinstance(original, Path)
    example = example or _carried(original) or _carried(folded)
    if isinstance(folded, Path):
        _refuse_others(settings, _WITH_FILES)
        if settings.wanted.dims:
            raise UsageError("dims: the example inputs say the sizes; leave it out")
        return compare_with_file(original, folded, _given(example, original), settings)
    _refuse_others(settings, ("seed",))
    found = _run(original, folded, example, settings.seed)
    return settled_by_proof(found, original, folded, example)


def _run(original: _Model, folded: _Model, example: Example | None, seed: int) -> EndToEnd:
    """What a run of two models of PyTorch shows."""
    if isinstance(original, nn.Module) and isinstance(folded, nn.Module):
        return compare_modules(original, folded, _given(example, original), seed)
    programs = isinstance(original, ExportedProgram) and isinstance(folded, ExportedProgram)
    if programs and example is None:
        note = "the program carries no example inputs to run it on"
        return EndToEnd("inconclusive", (), (note,), seed, RUNTIME, "CPU")
    return compare_in_pytorch(original, folded, _given(example, original), seed)


def _carried(model: _Model | Path) -> Example | None:
    """The example inputs that a program carries."""
    if not isinstance(model, ExportedProgram) or model.example_inputs is None:
        return None
    args, kwargs = model.example_inputs
    return Example(tuple(args), kwargs)


def _given(example: Example | None, model: _Model) -> Example:
    if example is not None:
        return example
    what = "a module needs" if isinstance(model, nn.Module) else "the program carries no"
    raise UsageError(
        f"{what} example inputs: bnfold.verify(module, folded, (example,)); it runs on them"
    )


def _refuse_others(settings: Settings, taken: Collection[str]) -> None:
    """Raise `UsageError` if an option is given that is not among those taken."""
    usual = Settings()
    given = [
        _CALLED.get(each.name, each.name)
        for each in fields(settings)
        if each.name not in (*taken, *_BELIEFS)
        and getattr(settings, each.name) != getattr(usual, each.name)
    ]
    if given:
        told = ", ".join(_CALLED.get(name, name) for name in taken)
        raise UsageError(
            f"{', '.join(given)}: not for models of PyTorch, which run on their example inputs; "
            f"of the options of the comparison there {'are' if len(taken) > 1 else 'is'} {told}"
        )
