"""Plan, fold or compare models of any kind: files, protobufs, graphs, modules and programs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto

from bnfold._core.preprocessing import Pairs
from bnfold._core.result import Plan
from bnfold._errors import UsageError
from bnfold._onnx.equalize import EqualizedModel
from bnfold._onnx.files.external import refuse_own_data
from bnfold._onnx.files.load import load_model, refuse_names, understood
from bnfold._onnx.files.locations import check_external
from bnfold._onnx.files.save import pending_file
from bnfold._onnx.files.sound import refuse_unsound
from bnfold._onnx.files.text_forms import written_as
from bnfold._onnx.fold import prepare
from bnfold._onnx.read.frozen import freeze, listed
from bnfold._onnx.read.order import in_order
from bnfold._onnx.write.applied import Rewritten
from bnfold._pipeline.in_memory import as_proto, given_back, is_in_memory
from bnfold._pipeline.measuring import equalized_model
from bnfold._pipeline.module_options import ModuleOptions
from bnfold._pipeline.preprocessed import behind_module, in_front, original_behind
from bnfold._system import paths, scratch

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from bnfold._judge.settings import Settings
    from bnfold._judge.verdict import EndToEnd
    from bnfold._torch.module.fold import PlannedModule

Model = Any
_INSTEAD = {
    "EdgeProgramManager": "; give its exported_program()",
    "GraphProto": "; give the ModelProto around it",
    "OrderedDict": "; a state dict holds weights and no network: give the module",
    "bytearray": "; parse it first: onnx.load_model_from_string(data)",
    "bytes": "; parse it first: onnx.load_model_from_string(data)",
    "dict": "; a state dict holds weights and no network: give the module",
    "list": "; give one model at a time",
    "tuple": "; give one model at a time",
}
"""What to give in place of something else, by its type."""
_OF_ONNX = "base_dir freeze_initializers assume_equal_dims follow_links preprocessing equalize"
_EMPTY = "the model holds no operators: there is nothing to fold"
Folder = str | os.PathLike[str] | None
"""The folder that external data is relative to; for a path, the file's own if None."""


def plan_model(
    model: Model,
    base_dir: Folder,
    options: ModuleOptions,
    frozen: bool = False,
    equal_dims: bool = False,
    follow_links: bool = False,
    depthwise: bool = False,
    preprocessing: Pairs = (),
) -> Plan:
    """The plan for a model, which nothing carries out; see `bnfold.plan`."""
    model, options, preprocessing = behind_module(model, options, preprocessing, True)
    _refuse_for_torch(model, base_dir, frozen, equal_dims, follow_links, preprocessing)
    program = _lowered(model, options)
    if _is_module(model) and program is None:
        return _prepare_module(model, options, depthwise).plan
    if program is None:
        options.refuse()
        if options.args is not None:
            raise UsageError("example inputs are for a torch.nn.Module; leave them out")
    if program is not None or _is_program(model):
        from bnfold._torch.program.fold import PlannedProgram

        return PlannedProgram(program or model, depthwise).plan
    proto, folder = _read(model, base_dir, follow_links)
    if proto is model and (frozen or preprocessing):
        proto = _copied(proto)
    if frozen:
        freeze(proto)
    in_front(proto, preprocessing, False, folder, _path_of(model))
    with understood(proto, _path_of(model)):
        return prepare(proto, folder, equal_dims, depthwise).plan


def fold_model(
    model: Model,
    output: Any,
    base_dir: Folder,
    options: ModuleOptions,
    frozen: bool = False,
    equal_dims: bool = False,
    follow_links: bool = False,
    depthwise: bool = False,
    preprocessing: Pairs = (),
    equalize: bool = False,
) -> Any:
    """A folded model of the same kind, or the path that it was written to; see `bnfold.fold`."""
    model, options, preprocessing = behind_module(model, options, preprocessing, True)
    _refuse_for_torch(model, base_dir, frozen, equal_dims, follow_links, preprocessing, equalize)
    program = _lowered(model, options)
    if program is not None:
        from bnfold._torch.program.fold import PlannedProgram

        return PlannedProgram(program, depthwise).apply().module()
    if _is_module(model):
        from bnfold._torch.module.recipe import Recipe, attach

        ready = _prepare_module(model, options, depthwise)
        recipe = Recipe.of(ready)
        return attach(ready.apply(options.inplace), recipe)
    options.refuse()
    if _is_program(model):
        if output is not None:
            raise UsageError(
                "an exported program gives a program, and no file: "
                "torch.export.save(bnfold.fold(program), 'fused.pt2')"
            )
        from bnfold._torch.program.fold import PlannedProgram

        return PlannedProgram(model, depthwise).apply()
    if output is not None and not isinstance(output, str | os.PathLike):
        raise TypeError(
            f"expected a path to write the folded model to, got {type(output).__name__}; example "
            "inputs are for a torch.nn.Module"
        )
    proto, folder = _read(model, base_dir, follow_links)
    if output is not None:
        paths.check_writable(Path(output))
        written_as(Path(output))
        refuse_own_data(Path(output), proto, folder)
    if proto is model:
        proto = _copied(proto)
    changed = frozen and bool(listed(proto))
    if changed:
        freeze(proto)
    front = in_front(proto, preprocessing, False, folder, _path_of(model))
    with understood(model if isinstance(model, ModelProto) else proto, _path_of(model)):
        planned = prepare(proto, folder, equal_dims, depthwise)
        rewritten = planned.apply()
        done = equalized_model(proto, folder) if equalize else EqualizedModel()
        rewritten.relocated += done.rewritten.relocated
        rewritten.created |= done.rewritten.created
    if output is not None:
        changed = changed or front.changed or bool(planned.plan.folds or done.lost)
        return _write(proto, rewritten, folder, Path(output), _path_of(model), changed)
    return given_back(proto, model, folder) if is_in_memory(model) else proto


def compare_models(
    original: Model,
    folded: Model,
    inputs: str | os.PathLike[str] | Mapping[str, Any] | None,
    settings: Settings,
    base_dir: Folder,
    options: ModuleOptions,
) -> EndToEnd:
    """The verdict on whether two models are the same function; see `bnfold.verify`."""
    from bnfold._judge.two_files import compare_files
    from bnfold._run.input_sets import InputSet, load_inputs

    original, folded = (program_of(model, settings.trust) for model in (original, folded))
    if any(_is_module(model) or _is_program(model) for model in (original, folded)):
        from bnfold._pipeline.torch_pairs import compare_pair

        original, options, settings = original_behind(original, options, settings)
        if inputs is not None:
            raise UsageError(
                "inputs: a model of PyTorch runs on its example inputs; give them as a tuple, "
                "(example,)"
            )
        given = options.args is not None or bool(options.kwargs)
        example = options.example() if given else None
        links = settings.follow_links
        with (
            _as_file(original, base_dir, links) as first,
            _as_file(folded, base_dir, links) as second,
        ):
            return compare_pair(first, second, example, settings)
    options.refuse()
    if options.args is not None:
        raise UsageError("example inputs are for a torch.nn.Module; give inputs={name: array}")
    if inputs is None:
        sets = None
    elif isinstance(inputs, Mapping):
        for name, array in inputs.items():
            if not isinstance(array, np.ndarray):
                raise TypeError(f"inputs[{name!r}] is {type(array).__name__}, not a NumPy array")
        sets = [InputSet("given", dict(inputs))]
    elif isinstance(inputs, str | os.PathLike):
        sets = load_inputs(Path(inputs))
    else:
        raise TypeError(
            "expected a mapping from input names to arrays, or the path of an .npz file, an .npy "
            f"file or a folder of such files, for inputs, got {type(inputs).__name__}"
        )
    links = settings.follow_links
    with (
        _on_disk(original, base_dir, links) as first,
        _on_disk(folded, base_dir, links) as second,
    ):
        return compare_files(first, second, sets, settings)


def _refuse_for_torch(model: Model, *given: Any) -> None:
    """Raise `UsageError` if one of the options that are for ONNX is given for another model."""
    for name, asked in zip(_OF_ONNX.split(), given, strict=False):
        if asked not in (None, False, ()) and (_is_module(model) or _is_program(model)):
            raise UsageError(f"{name}: this is for models of ONNX; leave it out")


def _copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def refold_module(folded: Any, state_dict: Mapping[str, Any]) -> nn.Module:
    """A folded module with other weights; see `bnfold.refold`."""
    if not _is_module(folded):
        raise TypeError(f"expected a module that bnfold.fold gave, got {type(folded).__name__}")
    from bnfold._torch.module.recipe import refold

    return refold(folded, state_dict)


def _prepare_module(
    model: nn.Module, options: ModuleOptions, depthwise: bool = False
) -> PlannedModule:
    """The plan for a module, ready to be carried out."""
    from bnfold._torch.module.copying import copied
    from bnfold._torch.module.fold import Example, prepare_module

    if options.as_eval and model.training:
        model = (model if options.inplace else copied(model)).eval()
    if options.args is None and not options.kwargs:
        from bnfold._torch.module.trace import made_up

        example = Example(made_up(model), {}, made_up=True)
    else:
        example = options.example()
    planned = prepare_module(model, example, options.clone, options.keep, options.merge, depthwise)
    if planned.other_ways:
        warnings.warn(_other_ways(type(model).__name__, planned.other_ways), stacklevel=4)
    return planned


def _other_ways(name: str, methods: Mapping[str, Sequence[str]]) -> str:
    """The warning about methods that see what a fold changes."""
    keep = sorted({each for names in methods.values() for each in names})
    return (
        f"forward of {name} stays the same function, but {', '.join(methods)} would see tensors "
        f"that the fold changes; if you call any of it on the folded module, pass keep={keep!r}"
    )


def _lowered(model: Any, options: ModuleOptions) -> ExportedProgram | None:
    """The program that a graph module of operators (``program.module()``) is; else None.

    It holds for the sizes that the graph holds for. Without example inputs they are of the sizes
    that the graph was made with.
    """
    if "torch.fx" not in sys.modules:
        return None
    from torch.fx import GraphModule

    from bnfold._torch.read.export import export
    from bnfold._torch.read.lowered import inputs_of, is_lowered, varying_sizes

    if not isinstance(model, GraphModule) or not is_lowered(model):
        return None
    options.refuse_for_lowered()
    options.check_args()
    args, kwargs = inputs_of(model, options.args, options.kwargs)
    shapes = options.dynamic_shapes
    shapes = varying_sizes(model, (args, kwargs)) if shapes is None else shapes
    return export(model, args, kwargs, shapes, given=True)


def program_of(model: Model, trust: bool) -> Model:
    """The program of a .pt2 file, or one of ATen in place of one in another dialect; any other
    model as it is.
    """
    if _is_program(model):
        from bnfold._torch.program.dialects import in_aten

        return in_aten(model)
    path = _path_of(model)
    if path is None or path.suffix != ".pt2":
        return model
    with needs_pytorch():
        from bnfold._torch.program.fold import load
    return load(path, trust)


@contextmanager
def needs_pytorch() -> Iterator[None]:
    """Raise `UsageError` where a .pt2 file is to be read and PyTorch is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torch":
            raise
        raise UsageError("a .pt2 file takes PyTorch: pip install 'bnfold[torch]'") from error


def _is_module(model: Model) -> bool:
    """Whether a model is a PyTorch module. This does not import PyTorch."""
    library = sys.modules.get("torch")
    return library is not None and isinstance(model, library.nn.Module)


def _is_program(model: Model) -> bool:
    """Whether a model is an exported program of PyTorch. This does not import PyTorch."""
    library = sys.modules.get("torch")
    return library is not None and isinstance(model, library.export.ExportedProgram)


def _read(
    model: Model, base_dir: str | os.PathLike[str] | None, follow_links: bool = False
) -> tuple[ModelProto, Path | None]:
    """The protobuf of a model of any kind, and the folder of its external data."""
    folder = Path(base_dir) if base_dir is not None else None
    path = _path_of(model)
    if path is not None:
        return load_model(path, base_dir=folder, follow_links=follow_links), folder or path.parent
    proto, own = as_proto(model) if is_in_memory(model) else (model, None)
    if not isinstance(proto, ModelProto):
        kind = type(model).__name__
        raise TypeError(
            "expected a path, an onnx.ModelProto, an onnx_graphsurgeon.Graph, an onnx_ir.Model, a "
            "torch.onnx.ONNXProgram, a torch.nn.Module or an ExportedProgram, got "
            f"{kind}{_INSTEAD.get(kind, '')}"
        )
    if not proto.graph.node:
        raise UsageError(_EMPTY)
    refuse_names(proto)
    refuse_unsound(proto)
    folder = folder or own
    if folder is not None:
        check_external(proto, folder, follow_links=follow_links, missing=True)
    return in_order(proto), folder


def _path_of(model: Model) -> Path | None:
    return Path(model) if isinstance(model, str | os.PathLike) else None


def _write(
    model: ModelProto,
    rewritten: Rewritten,
    base_dir: Path | None,
    output: Path,
    original: Path | None = None,
    changed: bool = True,
) -> Path:
    with pending_file(
        model,
        rewritten,
        base_dir=base_dir,
        destination=output,
        source=None if changed else original,
        original=original,
    ) as draft:
        draft.commit()
    return output


@contextmanager
def _as_file(model: Model, base_dir: Folder, follow_links: bool) -> Iterator[Model]:
    """Yield a model of PyTorch as it is, and the path of any other model."""
    if _is_module(model) or _is_program(model):
        yield model
        return
    with _on_disk(model, base_dir, follow_links) as path:
        yield path


@contextmanager
def _on_disk(
    model: Model, base_dir: str | os.PathLike[str] | None, follow_links: bool = False
) -> Iterator[Path]:
    """Yield the path of the model's file: its own, or a temporary one."""
    path = _path_of(model)
    if path is not None:
        yield path
        return
    proto, folder = _read(model, base_dir, follow_links)
    with scratch.beside(None) as temporary:
        yield _write(_copied(proto), Rewritten(), folder, temporary / "model.onnx")
