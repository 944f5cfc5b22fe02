"""Proves that two files are the same function, from their weights; see `_relation.proof`."""

from __future__ import annotations

import os
from pathlib import Path

from onnx import ModelProto

from bnfold._core.preprocessing import Pairs
from bnfold._errors import UsageError
from bnfold._onnx.files.load import load_model, refuse_names, understood
from bnfold._onnx.files.sound import refuse_unsound
from bnfold._onnx.front.prepending import prepend
from bnfold._onnx.read.frozen import freeze
from bnfold._onnx.read.order import in_order
from bnfold._relation.proof import Proof, prove

Given = str | os.PathLike[str] | ModelProto


def prove_models(
    first: Given,
    second: Given,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    frozen: bool = False,
    follow_links: bool = False,
    preprocessing: Pairs = (),
) -> Proof:
    """The proof for two models, each a path or a ``ModelProto``; the first behind preprocessing.

    Weights stay in the files until they are read. ``base_dir`` is the folder of external data of
    models in memory. Raises `UsageError` for a model that cannot be read, ``TypeError`` for what is
    no model.
    """
    pairs = [_loaded(given, base_dir, frozen, follow_links) for given in (first, second)]
    (one, one_dir), (other, other_dir) = pairs
    if preprocessing:
        if one is first:
            one = ModelProto()
            one.CopyFrom(pairs[0][0])
        prepend(one, dict(preprocessing))
    path = Path(second) if not isinstance(second, ModelProto) else None
    with understood(other, path):
        return prove(one, other, one_dir, other_dir)


def _loaded(
    given: Given, base_dir: str | os.PathLike[str] | None, frozen: bool, follow_links: bool
) -> tuple[ModelProto, Path | None]:
    """A model with its nodes in order, and the folder of its external data."""
    if isinstance(given, ModelProto):
        refuse_names(given)
        refuse_unsound(given)
        model, folder = in_order(given), None if base_dir is None else Path(base_dir)
        if frozen and model is given:
            model = ModelProto()
            model.CopyFrom(given)
    elif isinstance(given, (str, os.PathLike)):
        path = Path(given)
        if path.suffix == ".pt2":
            raise UsageError(
                f"{path} is a program of PyTorch: a proof is for files of ONNX; leave out --prove, "
                "or export it first"
            )
        model, folder = load_model(path, lean=True, follow_links=follow_links), path.parent
    else:
        raise TypeError(f"a path or a ModelProto is needed, not a {type(given).__name__}")
    if frozen:
        freeze(model)
    return model, folder
