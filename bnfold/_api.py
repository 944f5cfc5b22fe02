"""The Python API: a path, a ModelProto, a Graph of onnx_graphsurgeon or a PyTorch module in, the
same kind out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from onnx import ModelProto

from bnfold._core.result import Plan
from bnfold._pipeline.any_kind import (
    Model,
    ModuleOptions,
    compare_models,
    fold_model,
    plan_model,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from bnfold._judge.verdict import EndToEnd

_M = TypeVar("_M")
_Module = TypeVar("_Module", bound="nn.Module")


def plan(
    model: Model,
    args: tuple[Any, ...] | None = None,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    as_eval: bool = False,
    clone: bool = False,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
) -> Plan:
    """What folding would do to a model, and why each affine operator that stays does.

    ``model`` is a path, a ``ModelProto``, an ``onnx_graphsurgeon.Graph``, a ``torch.nn.Module`` or
    an ``ExportedProgram``; it is not changed. ``base_dir`` is the folder that external data is
    relative to; for a path, the file's own. A module takes example inputs, ``args`` and ``kwargs``,
    and the options of `fold`; a model of ONNX takes ``freeze_initializers`` and
    ``assume_equal_dims``, see there.
    Raises `UsageError` for a model that cannot be read and ``TypeError`` for any other kind.
    """
    options = ModuleOptions(args, kwargs, dynamic_shapes, as_eval, clone)
    return plan_model(model, base_dir, options, freeze_initializers, assume_equal_dims)


@overload
def fold(
    model: str | os.PathLike[str],
    output: None = None,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
) -> ModelProto: ...
@overload
def fold(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
) -> Path: ...
@overload
def fold(
    model: _Module,
    output: tuple[Any, ...] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    as_eval: bool = False,
    clone: bool = False,
    inplace: bool = False,
) -> _Module: ...
@overload
def fold(
    model: _M,
    output: None = None,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
) -> _M: ...
def fold(
    model: Model,
    output: Any = None,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    as_eval: bool = False,
    clone: bool = False,
    inplace: bool = False,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
) -> Any:
    """Fold a model and give back the kind it was given; the input is not changed.

    A ``ModelProto`` gives a new ``ModelProto``, an ``onnx_graphsurgeon.Graph`` a new ``Graph``. A
    path with ``output`` writes that file (whole or not at all, external data beside it) and gives
    its ``Path``; a path alone gives a ``ModelProto``. With ``freeze_initializers`` those that are
    listed as inputs, too, are inputs no longer: nobody overrides them, so they fold as well.
    With ``assume_equal_dims`` sizes of inputs that have one name (``dim_param``) are equal in every
    run: that lets maps cross a Reshape of one tensor by the size of another.

    A ``torch.nn.Module`` in eval mode takes a tuple of example inputs in ``output``'s place, and
    ``kwargs`` and ``dynamic_shapes`` as torch.export does; without them what a symbolic trace can
    tell is folded. It gives a copy of the same class, each folded submodule an ``Identity``; with
    ``inplace`` the module itself. ``as_eval`` folds a module in training mode as if it were in
    eval, and gives it back in eval. A parameter or submodule that the network uses in several
    places is kept as it is, unless ``clone`` lets each place that a fold changes have its own. An
    ``ExportedProgram`` gives a new one; it can express folds that replacing submodules cannot.

    Only ``verify`` checks the result.
    Raises `UsageError` for a model that cannot be read or an output that cannot be written.
    """
    options = ModuleOptions(output, kwargs, dynamic_shapes, as_eval, clone, inplace)
    return fold_model(model, output, base_dir, options, freeze_initializers, assume_equal_dims)


def verify(
    original: Model,
    folded: Model,
    args: tuple[Any, ...] | None = None,
    *,
    inputs: str | os.PathLike[str] | Mapping[str, NDArray[np.generic]] | None = None,
    seed: int = 0,
    draws: Sequence[str] = ("signed", "unsigned", "structured"),
    dims: Mapping[str, int | Sequence[int]] | None = None,
    bisect: bool = False,
    providers: Sequence[str] = ("cpu",),
    power: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    threads: int = 0,
    timeout: float | None = None,
    freeze_initializers: bool = False,
    ops_libraries: Sequence[str | os.PathLike[str]] = (),
    base_dir: str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> EndToEnd:
    """Run both models in onnxruntime, optimizations off, and judge whether they are one function.

    Each may be a path, a ``ModelProto``, an ``onnx_graphsurgeon.Graph``, a ``torch.nn.Module`` or
    an ``ExportedProgram``; what is said up to the last paragraphs is of models of ONNX. ``inputs``
    is an .npz
    file, an .npy file for the only input, a folder of such files, or a mapping from input names to
    arrays. Without it inputs are drawn from ``seed``, one set of each kind in ``draws``: "signed",
    "unsigned", "structured" (marks on a flat ground) and "large". ``dims`` gives free dimensions by
    name a size, or several to take in turn. The tolerance is how far the original itself moves when
    its weights move by their rounding. Where they differ, or with ``bisect`` in any case, the
    result's ``divergence`` says at which tensor that begins.
    The folded model is then run as deployed, optimizations on, on each of ``providers`` ("cpu",
    "cuda", "tensorrt", "openvino", "dml", "coreml"), against the original on the CPU; one that is
    not there makes the verdict inconclusive.
    ``power`` plants an error of 1 % in every folded layer by itself, not in a few groups of them,
    and says in the result's ``power`` which would have been noticed; the verdict is inconclusive
    unless all would. ``rtol`` and ``atol`` replace the measured tolerance by one as of
    ``numpy.allclose``. ``threads`` is how many onnxruntime computes with (0: as many as there are
    cores), ``timeout`` a number of seconds after which the verdict is inconclusive.
    ``freeze_initializers`` takes initializers that are listed as inputs for weights, so that the
    tolerance can be measured.
    ``ops_libraries`` are the paths of libraries of custom operators that onnxruntime registers. At
    operators that it does not know, the comparison is made at what they read and behind what they
    write.
    Two ``torch.nn.Module`` are first run by PyTorch in float64 on the example inputs ``args`` and
    ``kwargs``, then exported and compared like that. Two ``ExportedProgram``, or one and a module,
    are run by PyTorch; programs carry example inputs, and .pt2 files hold programs. All options but
    ``seed`` are for models of ONNX.
    ``verify(module, "model.onnx", (example,))`` says whether a file is what a module or program
    computes. PyTorch runs the module, onnxruntime the file, on the example inputs and on drawn ones
    of their sizes. The tensors of the example go into the file's inputs in their order, and outputs
    are paired by position, whatever their names. In float16 and bfloat16 it passes only if both
    hold the very same weights. ``seed``, ``draws``, ``power``, ``rtol``, ``atol``, ``threads``,
    ``timeout`` and ``ops_libraries`` are for that, too.
    The result's ``status`` is "pass", "fail" or "inconclusive".
    Raises `UsageError` for models or inputs that cannot be read, and for an option that has a value
    that means nothing or is not for such models.
    """
    from bnfold._judge.settings import Settings
    from bnfold._judge.tolerance import Fixed
    from bnfold._run.drawing import WantedInputs
    from bnfold._run.libraries import checked
    from bnfold._run.providers import by_name

    settings = Settings(
        seed=seed,
        wanted=WantedInputs.of(draws, dims or {}),
        bisect=bisect,
        providers=by_name(providers),
        power=power,
        fixed=Fixed.of(rtol, atol),
        threads=threads,
        seconds=timeout,
        frozen=freeze_initializers,
        libraries=checked(os.fspath(path) for path in ops_libraries),
    )
    options = ModuleOptions(args, kwargs)
    return compare_models(original, folded, inputs, settings, base_dir, options)
