"""How a module was folded, without its weights: enough to fold other weights, without a trace."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnfold._errors import UsageError
from bnfold._torch.module.fold import PlannedModule, Traced
from bnfold._torch.module.held_values import RECIPE
from bnfold._torch.module.parameters import stored
from bnfold._torch.module.plain_attributes import changed, common, hidden, snapshot
from bnfold._torch.module.ties import tie
from bnfold._torch.read.export import refuse_wrapped
from bnfold._torch.tensors import deep_copy

_PLAIN = (Tensor, nn.Parameter)
_LINES = 6
"""So many names or differences are told of weights that do not fit."""
_LOADING = (
    *("load_state_dict", "_load_from_state_dict", "set_extra_state"),
    *("__getattr__", "__getattribute__", "__setattr__", "__delattr__"),
)
"""Methods that run when a module loads weights."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """The trace of a module as it was before the fold.

    What a state dict holds are meta tensors in it, which take no memory; ``devices`` says by name
    where they were. Copies of a folded module share the recipe. A module that was pickled has
    none: so it can be loaded where bnfold is not installed. ``common`` is what the code of a module
    that loads by itself shared with all others: such loading, of any module, may change it.
    """

    traced: Traced
    devices: Mapping[str, torch.device]
    common: Sequence[tuple[str, object]] | None

    @classmethod
    def of(cls, planned: PlannedModule) -> Recipe | None:
        """The recipe of a module that nothing has changed yet; None for one without a copy, with
        branches that became one module, or with parameters that plain attributes hold, too.

        The copy that was planned gives up its tensors: nothing can be planned on it any more.
        """
        traced = planned.traced
        if traced.module is planned.module or planned.blocks or planned.aliases.any:
            return None
        shared = common(traced.module) if _loads_by_itself(traced.module) else None
        devices = _emptied(traced.module)
        _forget(traced.program)
        slim = replace(traced, again=None, takers=planned.surgery.takers)
        return cls(slim, devices, shared)

    def refolded(self, state_dict: Mapping[str, Any]) -> nn.Module:
        """The module with other weights, folded. Raises `UsageError` where they do not fit it."""
        before = self.traced
        module = deep_copy(before.module)
        _make_room(module, self.devices)
        plain = snapshot(module)
        unseen = hidden(module) if _loads_by_itself(module) else None
        if unseen is not None:
            raise UsageError(
                f"loading the weights runs the module's own code, which may change {unseen}, and "
                "nobody can look into that: fold the original with the new weights: "
                "bnfold.fold(model, (example,))"
            )
        _load(module, state_dict)
        name = changed(plain, snapshot(module))
        if name is None and self.common is not None:
            name = changed(self.common, common(module))
        if name is not None:
            raise UsageError(
                f"loading the weights changes {name}, which the fold may depend on: fold the "
                "original with the new weights: bnfold.fold(model, (example,))"
            )
        calls = before.calls.moved(_modules(before.module), _modules(module))
        program = _program(before.program, module)
        traced = replace(before, module=module, program=program, calls=calls)
        _, surgery, moves, _ = traced.planned()
        surgery.apply(module, moves)
        tie(module, traced.clones, surgery.called)
        return module

    def __deepcopy__(self, memo: Any) -> Recipe:
        return self

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()


def attach(module: nn.Module, recipe: Recipe | None) -> nn.Module:
    """Give a folded module its recipe, and take from it that of an earlier fold."""
    module.__dict__.pop(RECIPE, None)
    if recipe is not None:
        module.__dict__[RECIPE] = recipe
    return module


def refold(folded: nn.Module, state_dict: Mapping[str, Any]) -> nn.Module:
    """See `bnfold.refold`."""
    recipe = folded.__dict__.get(RECIPE)
    if not isinstance(recipe, Recipe):
        refuse_wrapped(folded)
        raise UsageError(
            f"{type(folded).__name__} does not know how it was folded: bnfold.fold did not make it "
            "in this process, or with merge=True, or it was loaded from a file, or plain "
            "attributes of the original hold its parameters; fold the original with the new "
            "weights: bnfold.fold(model, (example,))"
        )
    made = recipe.refolded(state_dict)
    places = {tensor.device for tensor in (*folded.parameters(), *folded.buffers())}
    return attach(made.to(places.pop()) if len(places) == 1 else made, recipe)


def _emptied(module: nn.Module) -> dict[str, torch.device]:
    """Put meta tensors in the place of those that a state dict holds, and copies in the place of
    others. Gives the devices of the former, by name. A tensor that has several names stays one.
    """
    saved = module.state_dict().keys()
    made: dict[int, Tensor] = {}
    devices: dict[str, torch.device] = {}
    for path, part in module.named_modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                full = f"{path}.{name}" if path else name
                empty = full in saved and type(tensor) in _PLAIN
                if id(tensor) not in made:
                    made[id(tensor)] = _without_values(tensor) if empty else copy.deepcopy(tensor)
                if empty:
                    devices[full] = tensor.device
                held[name] = made[id(tensor)]
    return devices


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty


def _forget(program: ExportedProgram) -> None:
    """Take its tensors from a program that nobody else has."""
    program._example_inputs = None  # Its setter is younger than the oldest PyTorch allowed.
    program.state_dict.clear()
    constants = copy.deepcopy(program.constants)  # One may be a buffer that the fold changes.
    program.constants.update(constants)


def _make_room(module: nn.Module, devices: Mapping[str, torch.device]) -> None:
    """Give all meta tensors of a module memory. One that has several names stays one.

    Nothing but NaN is in it, which shows if a module's own code does not load all it has saved.
    """
    made: dict[int, Tensor] = {}
    for path, part in module.named_modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    device = devices[f"{path}.{name}" if path else name]
                    room = torch.empty_like(tensor, device=device)
                    if room.is_floating_point():
                        room.fill_(torch.nan)
                    if isinstance(tensor, nn.Parameter):
                        room = nn.Parameter(room, tensor.requires_grad)
                    made[id(tensor)] = room
                held[name] = made[id(tensor)]


def _load(module: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load a checkpoint. Raises `UsageError` with the names that do not fit."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"expected a state dict, got {type(state_dict).__name__}")
    try:
        module.load_state_dict(state_dict)
    except Exception as error:  # load_state_dict, or a hook of the module's own.
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        text = "; ".join(_shortened(line) for line in lines[:_LINES] if line)
        text += f" and {len(lines) - _LINES} more" if len(lines) > _LINES else ""
        raise UsageError(
            f"the weights do not fit {type(module).__name__}: {text or error}"
        ) from error


def _shortened(line: str) -> str:
    """A line of PyTorch's with the first of the names that it lists."""
    listed, *rest = line.rsplit(": ", 1)
    names = rest[0].rstrip(".").strip().split(", ") if rest else []
    if len(names) <= _LINES:
        return line
    return f"{listed}: {', '.join(names[:_LINES])} and {len(names) - _LINES} more"


def _loads_by_itself(module: nn.Module) -> bool:
    """Whether code runs that is not PyTorch's when a module loads weights."""
    for part in module.modules():
        spaces = [vars(part), *(vars(kind) for kind in type(part).__mro__ if not _is_torch(kind))]
        hooks = (*part._load_state_dict_pre_hooks.values(),)
        hooks += (*part._load_state_dict_post_hooks.values(),)
        tensors = (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if (
            any(name in space for space in spaces for name in _LOADING)
            or not all(_is_torch(getattr(hook, "hook", hook)) for hook in hooks)
            or not all(_is_torch(type(tensor)) for tensor in tensors)
        ):
            return True
    return False


def _is_torch(code: object) -> bool:
    home = str(getattr(code, "__module__", "")).partition(".")[0]
    return home == "torch" or code is object


def _modules(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.named_modules(remove_duplicate=False))


def _stored(program: ExportedProgram) -> list[str]:
    """The names of the parameters and buffers that the state dict of a program holds."""
    signature = program.graph_signature
    apart = set(signature.non_persistent_buffers)
    return [*signature.parameters, *(name for name in signature.buffers if name not in apart)]


def _program(program: ExportedProgram, module: nn.Module) -> ExportedProgram:
    """The same program with the tensors of a module in place of its own."""
    tensors = stored(module)
    return ExportedProgram(
        program.graph_module,
        program.graph,
        program.graph_signature,
        {name: tensors[name] for name in _stored(program)},
        program.range_constraints,
        program.module_call_graph,
        None,
        {name: copy.deepcopy(value) for name, value in program.constants.items()},
        verifiers=program.verifiers,
    )
