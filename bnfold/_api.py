"""The Python API: a path, a ModelProto, a Graph of onnx_graphsurgeon or a PyTorch module in, the
same kind out.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from onnx import ModelProto

from bnfold._core.result import Plan
from bnfold._errors import UsageError
from bnfold._onnx.files.external import refuse_own_data
from bnfold._onnx.files.load import load_model, understood
from bnfold._onnx.files.save import pending_file
from bnfold._onnx.fold import prepare
from bnfold._onnx.write.applied import Rewritten
from bnfold._system import paths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from bnfold._judge.verdict import EndToEnd
    from bnfold._torch.module.fold import Example, PlannedModule

Model = Any
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
) -> Plan:
    """What folding would do to a model, and why each affine operator that stays does.

    ``model`` is a path, a ``ModelProto``, an ``onnx_graphsurgeon.Graph``, a ``torch.nn.Module`` or
    an ``ExportedProgram``; it is not changed. ``base_dir`` is the folder that external data is
    relative to; for a path, the file's own. A module takes example inputs, ``args`` and ``kwargs``,
    and the options of `fold`.
    Raises `UsageError` for a model that cannot be read and ``TypeError`` for any other kind.
    """
    if _is_module(model):
        ready = _prepare_module(model, args, kwargs, dynamic_shapes, as_eval, clone, inplace=False)
        return ready.plan
    if _is_program(model):
        from bnfold._torch.program.fold import PlannedProgram

        return PlannedProgram(model).plan
    proto, folder = _read(model, base_dir)
    with understood(proto, _path(model)):
        return prepare(proto, folder).plan


@overload
def fold(
    model: str | os.PathLike[str],
    output: None = None,
    *,
    base_dir: str | os.PathLike[str] | None = None,
) -> ModelProto: ...
@overload
def fold(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base_dir: str | os.PathLike[str] | None = None,
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
    model: _M, output: None = None, *, base_dir: str | os.PathLike[str] | None = None
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
) -> Any:
    """Fold a model and give back the kind it was given; the input is not changed.

    A ``ModelProto`` gives a new ``ModelProto``, an ``onnx_graphsurgeon.Graph`` a new ``Graph``. A
    path with ``output`` writes that file (whole or not at all, external data beside it) and gives
    its ``Path``; a path alone gives a ``ModelProto``.

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
    if _is_module(model):
        ready = _prepare_module(model, output, kwargs, dynamic_shapes, as_eval, clone, inplace)
        return ready.apply(inplace)
    if _is_program(model):
        from bnfold._torch.program.fold import PlannedProgram

        return PlannedProgram(model).apply()
    proto, folder = _read(model, base_dir)
    if output is not None:
        paths.check_writable(Path(output))
        refuse_own_data(Path(output), proto, folder)
    if proto is model:
        proto = ModelProto()
        proto.CopyFrom(model)
    with understood(model if isinstance(model, ModelProto) else proto, _path(model)):
        planned = prepare(proto, folder)
        rewritten = planned.apply()
    if output is not None:
        source = None if planned.plan.folds else _path(model)
        return _write(proto, rewritten, folder, Path(output), source)
    if _is_graphsurgeon(model):
        import onnx_graphsurgeon

        return onnx_graphsurgeon.import_onnx(proto)
    return proto


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
    base_dir: str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> EndToEnd:
    """Run both models in onnxruntime, optimizations off, and judge whether they are one function.

    Each may be a path, a ``ModelProto`` or an ``onnx_graphsurgeon.Graph``. ``inputs`` is an .npz
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
    Two ``torch.nn.Module`` are first run by PyTorch in float64 on the example inputs ``args`` and
    ``kwargs``, then exported and compared like that. Two ``ExportedProgram`` are run by PyTorch on
    the inputs that the original carries. All options but ``seed`` are for models of ONNX.
    The result's ``status`` is "pass", "fail" or "inconclusive".
    Raises `UsageError` for models or inputs that cannot be read, and for an option that has a value
    that means nothing or is not for such models.
    """
    from bnfold._judge.settings import Settings
    from bnfold._judge.tolerance import Fixed
    from bnfold._pipeline.comparing import compare_files
    from bnfold._run.drawing import Wanted
    from bnfold._run.given import InputSet, load_inputs
    from bnfold._run.providers import by_name

    settings = Settings(
        seed=seed,
        wanted=Wanted.of(draws, dims or {}),
        bisect=bisect,
        providers=by_name(providers),
        power=power,
        fixed=Fixed.of(rtol, atol),
        threads=threads,
        seconds=timeout,
    )
    modules = _is_module(original) and _is_module(folded)
    if modules or (_is_program(original) and _is_program(folded)):
        if inputs is not None or settings != Settings(seed):
            raise UsageError(
                "of the options of the comparison only seed is for models of PyTorch, which run on "
                "their example inputs"
            )
        from bnfold._pipeline.modules import compare_modules, compare_programs

        if modules:
            return compare_modules(original, folded, _example(args, kwargs, None), seed)
        return compare_programs(original, folded, seed)
    if inputs is None:
        sets = None
    elif isinstance(inputs, Mapping):
        sets = [InputSet("given", dict(inputs))]
    else:
        sets = load_inputs(Path(inputs))
    with _on_disk(original, base_dir) as first, _on_disk(folded, base_dir) as second:
        return compare_files(first, second, sets, settings)


def _prepare_module(
    model: nn.Module,
    args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    as_eval: bool,
    clone: bool,
    inplace: bool,
) -> PlannedModule:
    from bnfold._torch.module.fold import Example, copied, prepare_module

    if as_eval and model.training:
        model = (model if inplace else copied(model)).eval()
    if args is None and not kwargs:
        from bnfold._torch.module.trace import made_up

        return prepare_module(model, Example(made_up(model), {}, made_up=True), clone)
    return prepare_module(model, _example(args, kwargs, dynamic_shapes), clone)


def _example(
    args: tuple[Any, ...] | None, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> Example:
    from bnfold._torch.module.fold import Example

    if args is None and not kwargs:
        raise UsageError("a module needs example inputs: bnfold.fold(module, (example,))")
    if args is not None and not isinstance(args, tuple):
        raise UsageError("give the module's example inputs as a tuple: (example,)")
    return Example(args or (), kwargs or {}, dynamic_shapes)


def _is_module(model: Model) -> bool:
    """Whether a model is a module of PyTorch, which is not imported to find out."""
    library = sys.modules.get("torch")
    return library is not None and isinstance(model, library.nn.Module)


def _is_program(model: Model) -> bool:
    """Whether a model is an exported program of PyTorch, which is not imported to find out."""
    library = sys.modules.get("torch")
    return library is not None and isinstance(model, library.export.ExportedProgram)


def _read(model: Model, base_dir: str | os.PathLike[str] | None) -> tuple[ModelProto, Path | None]:
    """The protobuf of a model of any kind, and the folder of its external data."""
    folder = Path(base_dir) if base_dir is not None else None
    path = _path(model)
    if path is not None:
        return load_model(path), folder or path.parent
    if _is_graphsurgeon(model):
        import onnx_graphsurgeon

        return onnx_graphsurgeon.export_onnx(model), folder
    if not isinstance(model, ModelProto):
        raise TypeError(
            "expected a path, an onnx.ModelProto, an onnx_graphsurgeon.Graph or a torch.nn.Module, "
            f"got {type(model).__name__}"
        )
    if not model.graph.node:
        raise UsageError("the model holds no operators: there is nothing to fold")
    return model, folder


def _path(model: Model) -> Path | None:
    return Path(model) if isinstance(model, str | os.PathLike) else None


def _is_graphsurgeon(model: Model) -> bool:
    """Whether a model is a Graph of onnx_graphsurgeon, which is not imported to find out."""
    library = sys.modules.get("onnx_graphsurgeon")
    return library is not None and isinstance(model, library.Graph)


def _write(
    model: ModelProto,
    rewritten: Rewritten,
    base_dir: Path | None,
    output: Path,
    source: Path | None = None,
) -> Path:
    with pending_file(
        model, rewritten, base_dir=base_dir, destination=output, source=source
    ) as draft:
        draft.commit()
    return output


@contextmanager
def _on_disk(model: Model, base_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The model as a file: its own, or a temporary one."""
    path = _path(model)
    if path is not None:
        yield path
        return
    proto, folder = _read(model, base_dir)
    with tempfile.TemporaryDirectory(prefix="bnfold-") as scratch:
        copy = ModelProto()
        copy.CopyFrom(proto)
        yield _write(copy, Rewritten(), folder, Path(scratch) / "model.onnx")
