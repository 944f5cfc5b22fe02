"""The Python API: a path, a model of ONNX in memory or a PyTorch module in, the same kind out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from onnx import ModelProto

from bnfold._core.preprocessing import Preprocessing, pairs
from bnfold._core.result import Plan
from bnfold._pipeline.any_kind import (
    Model,
    compare_models,
    fold_model,
    plan_model,
    refold_module,
)
from bnfold._pipeline.module_options import ModuleOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from bnfold._judge.verdict import EndToEnd
    from bnfold._relation.proof import Proof
    from bnfold.nn import Preprocessed

OnInputs = Preprocessing | Mapping[str, Preprocessing] | None
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
    merge: bool = False,
    keep: Sequence[str] = (),
    depthwise: bool = False,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
    follow_links: bool = False,
    preprocessing: OnInputs = None,
) -> Plan:
    """What folding would do to a model, and why each affine operator that stays does.

    ``model`` is a path, a ``ModelProto``, an ``onnx_graphsurgeon.Graph``, an ``onnx_ir.Model``, a
    ``torch.onnx.ONNXProgram``, a ``torch.nn.Module`` or an ``ExportedProgram``; it is not changed.
    ``base_dir`` is the folder that external data is relative to; for a path, the file's own. A
    module takes example inputs, ``args`` and ``kwargs``, and the options of `fold`; a model of ONNX
    takes ``freeze_initializers``, ``assume_equal_dims`` and ``preprocessing``, and any takes
    ``depthwise``, see there.
    Raises `UsageError` for a model that cannot be read and ``TypeError`` for any other kind.
    """
    options = ModuleOptions(
        args, kwargs, dynamic_shapes, as_eval, clone, keep=_names(keep), merge=merge
    )
    return plan_model(
        model,
        base_dir,
        options,
        freeze_initializers,
        assume_equal_dims,
        follow_links,
        depthwise,
        pairs(preprocessing),
    )


@overload
def fold(
    model: str | os.PathLike[str],
    output: None = None,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    depthwise: bool = False,
    equalize: bool = False,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
    follow_links: bool = False,
    preprocessing: OnInputs = None,
) -> ModelProto: ...
@overload
def fold(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    depthwise: bool = False,
    equalize: bool = False,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
    follow_links: bool = False,
    preprocessing: OnInputs = None,
) -> Path: ...
@overload
def fold(
    model: nn.Module,
    output: tuple[Any, ...],
    *,
    dynamic_shapes: Any = None,
    as_eval: bool = False,
    clone: bool = False,
    merge: bool = False,
    keep: Sequence[str] = (),
    depthwise: bool = False,
    preprocessing: Preprocessing,
) -> Preprocessed: ...
@overload
def fold(
    model: _Module,
    output: tuple[Any, ...] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    as_eval: bool = False,
    clone: bool = False,
    merge: bool = False,
    inplace: bool = False,
    keep: Sequence[str] = (),
    depthwise: bool = False,
    preprocessing: None = None,
) -> _Module: ...
@overload
def fold(
    model: _M,
    output: None = None,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    depthwise: bool = False,
    equalize: bool = False,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
    follow_links: bool = False,
    preprocessing: OnInputs = None,
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
    merge: bool = False,
    inplace: bool = False,
    keep: Sequence[str] = (),
    depthwise: bool = False,
    equalize: bool = False,
    freeze_initializers: bool = False,
    assume_equal_dims: bool = False,
    follow_links: bool = False,
    preprocessing: OnInputs = None,
) -> Any:
    """Fold a model and give back the kind it was given; the input is not changed.

    A ``ModelProto`` gives a new ``ModelProto``, and so do an ``onnx_graphsurgeon.Graph``, an
    ``onnx_ir.Model`` and a ``torch.onnx.ONNXProgram`` a new one of their kind. A path with
    ``output`` writes that file (whole or not at all, external data beside it) and gives its
    ``Path``; a path alone gives a ``ModelProto``. With ``freeze_initializers`` those that are
    listed as inputs, too, are inputs no longer: nobody overrides them, so they fold as well.
    With ``assume_equal_dims`` sizes of inputs that have one name (``dim_param``) are equal in every
    run: that lets maps cross a Reshape of one tensor by the size of another. With ``follow_links``
    external data is read through links that lead out of the model's folder, and hard links.
    With ``depthwise`` norms that nothing takes in become convolutions with a kernel of 1 and a
    group for each channel, or a Mul and an Add, for runtimes without BatchNormalization; in a
    module, where no convolution can stand, a `bnfold.nn.ScaleShift`. With ``equalize`` a model of
    ONNX has positive scales moved between its layers afterwards, so that the channels of a weight
    have like ranges (Nagel et al. 2019), if it is nearer to itself in int8 so: onnxruntime
    quantizes both and runs them on drawn inputs. `prove` can tell that both are one function.
    With ``preprocessing`` an input of a model of ONNX becomes what a camera gives, and the model
    does the rest: a `Preprocessing` for the only input, or a mapping from the names of inputs to
    such. A module that takes one tensor becomes a `bnfold.nn.Preprocessed` around its copy; its
    example is what the module itself takes.

    A ``torch.nn.Module`` in eval mode takes a tuple of example inputs in ``output``'s place, and
    ``kwargs`` and ``dynamic_shapes`` as torch.export does; without them what a symbolic trace can
    tell is folded. It gives a copy of the same class, each folded submodule an ``Identity``; with
    ``inplace`` the module itself. ``as_eval`` folds a module in training mode as if it were in
    eval, and gives it back in eval. A submodule that is called for several inputs folds where
    all of its calls take in the same. Any other parameter or submodule that the network uses in
    several places is kept as it is, unless ``clone`` lets each place that a fold changes have its
    own. With ``merge`` a submodule that adds up linear branches (RepVGG, MobileOne, ACNet) becomes
    one convolution or linear layer, with a `bnfold.nn.Remainder` around it and what follows the
    sum: it loses its class and its branches.

    The copy computes what the module computes on such inputs when it is called. Tensors on the way
    change, and who gets at them by another way (another method, an argument or a size of input that
    takes another branch, the output of a submodule) gets other values. ``keep`` names submodules
    whose output does not change, parameters and buffers, or operators as the plan names them. A
    ``UserWarning`` names the public methods of the module that see such tensors. An
    ``ExportedProgram`` gives a new one; it can express folds that replacing submodules cannot.

    Only ``verify`` checks the result.
    Raises `UsageError` for a model that cannot be read or an output that cannot be written.
    """
    options = ModuleOptions(
        output, kwargs, dynamic_shapes, as_eval, clone, inplace, _names(keep), merge
    )
    return fold_model(
        model,
        output,
        base_dir,
        options,
        freeze_initializers,
        assume_equal_dims,
        follow_links,
        depthwise,
        pairs(preprocessing),
        equalize,
    )


def refold(folded: _Module, state_dict: Mapping[str, Any]) -> _Module:
    """Fold new weights of the original class as ``folded`` was folded, without another trace.

    ``state_dict`` is a checkpoint of the class as it was before the fold, with all of its norms.
    What folds is decided anew: a scale that has become negative may stop at a Relu. The result is a
    new module on the device of ``folded``, in eval mode; ``folded`` is not changed. It is what
    `fold` would give, with the same options and inputs, for the original with these weights.
    A module knows how it was folded if `fold` or `refold` made it in this process, or if it is a
    copy of such a one.
    Raises `UsageError` for any other module, and for weights that do not fit.
    """
    return refold_module(folded, state_dict)  # type: ignore[return-value]


def _names(keep: Sequence[str]) -> tuple[str, ...]:
    return (keep,) if isinstance(keep, str) else tuple(keep)


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
    follow_links: bool = False,
    ops_libraries: Sequence[str | os.PathLike[str]] = (),
    prove: bool = True,
    base_dir: str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    preprocessing: OnInputs = None,
) -> EndToEnd:
    """Prove two models one function or run them in onnxruntime, optimizations off, and judge that.

    Each may be a path, a ``ModelProto``, an ``onnx_graphsurgeon.Graph``, an ``onnx_ir.Model``, a
    ``torch.onnx.ONNXProgram``, a ``torch.nn.Module`` or an ``ExportedProgram``; what is said up to
    the last paragraphs is of models of ONNX. ``inputs`` is an .npz
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
    ``follow_links`` is as for ``fold``, and ``preprocessing``, too: the folded model is compared
    with the original behind it, operator by operator as it is defined.
    Two models of ONNX are proved first, as by `bnfold.prove`; the result's ``proof`` has what was
    found, None with ``prove=False``. An output that is proved passes even where a run shows little
    of it, or there was none; what is refuted fails. A difference in a run is one all the same.
    ``ops_libraries`` are the paths of libraries of custom operators that onnxruntime registers. At
    operators that it does not know, the comparison is made at what they read and behind what they
    write.
    Two ``torch.nn.Module`` are first run by PyTorch in float64 on the example inputs ``args`` and
    ``kwargs``, then exported and compared like that. Two ``ExportedProgram``, or one and a module,
    are run by PyTorch; programs carry example inputs, and .pt2 files hold programs. Where a run
    leaves the verdict open, the two are proved. All options but ``seed`` are for models of ONNX.
    ``verify(module, "model.onnx", (example,))`` says whether a file is what a module or program
    computes. PyTorch runs the module, onnxruntime the file, on the example inputs and on drawn ones
    of their sizes. The tensors of the example go into the file's inputs in their order, keywords
    into the inputs of their names if there are such, and outputs are paired by position, whatever
    their names. Where a run leaves the verdict open, the two are proved. In float16 and bfloat16 it
    passes only if both hold the same weights but for roundings. ``seed``, ``draws``, ``power``,
    ``rtol``, ``atol``, ``threads``, ``timeout`` and ``ops_libraries`` are for that, too.
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
        follow_links=follow_links,
        libraries=checked(os.fspath(path) for path in ops_libraries),
        prove=prove,
        preprocessing=pairs(preprocessing),
    )
    options = ModuleOptions(args, kwargs)
    return compare_models(original, folded, inputs, settings, base_dir, options)


def prove(
    original: Model,
    folded: Model,
    args: tuple[Any, ...] | None = None,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    freeze_initializers: bool = False,
    follow_links: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Proof:
    """Whether two models are the same function, from their weights alone: nothing is run.

    Each is of any kind that `verify` takes, also the path of a .pt2 file. Both are walked side by
    side. Affine operators and layers with weights are brought together in float64; every weight of
    one has to be what rounding explains of the other. The result's ``status`` is "proved",
    "refuted" (``at`` and ``why`` say which weights cannot be right) or "not proved" (where the walk
    ended). It is about real numbers: what a runtime rounds or gets wrong between operators is for
    `verify`. ``base_dir`` is the folder of external data of models in memory;
    ``freeze_initializers`` and ``follow_links`` are as for `verify`. Modules are exported with the
    example inputs ``args`` and ``kwargs``; the proof is for the sizes of these, unless
    ``dynamic_shapes`` lets some vary, as ``torch.export`` has them. Inputs and outputs of a model
    of PyTorch correspond to another model's by their positions.
    Raises `UsageError` for a model that cannot be read, ``TypeError`` for what is none.
    """
    from bnfold._pipeline.proving import prove_models

    return prove_models(
        original,
        folded,
        ModuleOptions(args, kwargs, dynamic_shapes),
        base_dir=base_dir,
        frozen=freeze_initializers,
        follow_links=follow_links,
    )
