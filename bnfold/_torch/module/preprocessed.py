"""Puts a module behind the preprocessing of its input, as a module around it.

The normalization is a BatchNorm with the mean as its running mean and ``scale / std`` as its
weight: so it goes into the first layer, or stays, by the same laws as any other norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnfold._core.preprocessing import Preprocessing
from bnfold._errors import UsageError
from bnfold._torch.module.copying import copied
from bnfold._torch.read.export import export
from bnfold.nn import Preprocessed

_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_LAYERS = {"conv1d": 3, "conv2d": 4, "conv3d": 5, "linear": 2}
"""Operators that read channels along axis 1 where the input has so many axes. A convolution of one
picture without a batch reads them along axis 0, whatever sizes agree."""


def behind(
    module: nn.Module, example: Tensor, wanted: Preprocessing, reorder: bool
) -> tuple[Preprocessed, Tensor, tuple[int, ...] | None]:
    """A module behind preprocessing, a picture for it, and the axes of the picture in its order.

    ``example`` is what the module takes. With ``reorder`` the order of channels goes into the
    weights of the layers that read the input, in a copy of the module; where others read it, too,
    it is an ``index_select``. Raises `UsageError` where the input does not fit.
    """
    given, own = _layouts(wanted, example)
    channels = example.shape[1]
    if wanted.count not in (None, channels):
        raise UsageError(
            f"the example has {channels} channels along axis 1, not {wanted.count}: preprocessing "
            "of modules takes channels there"
        )
    if not example.is_floating_point() and (wanted.is_affine or wanted.dtype):
        raise UsageError(f"the module takes {example.dtype}: only floats are preprocessed")
    perm = None if given == own else tuple(map(given.index, own))
    indices = wanted.indices()
    order = None if indices == tuple(range(len(indices))) else indices
    network, back = module, None
    if order is not None and reorder:
        back = sorted(range(channels), key=order.__getitem__)
        reordered = _reordered(module, example, back)
        if reordered is not None:
            network, order = reordered, None
        else:
            back = None
    kind = getattr(torch, wanted.dtype) if wanted.dtype else example.dtype
    made = Preprocessed(
        network,
        _norm(wanted, example, back),
        example.dtype if kind != example.dtype else None,
        perm,
        order,
    )
    made.normalization.eval()
    made.training = module.training
    return made, _picture(example, wanted, kind, tuple(map(own.index, given))), perm


def _layouts(wanted: Preprocessing, example: Tensor) -> tuple[str, str]:
    """The order of axes of the input and of the module, which has channels along axis 1."""
    letters = "nc" + "wxyz"[: max(example.dim() - 2, 0)]
    given, own = wanted.layouts() if wanted.layout else (letters, letters)
    if example.dim() not in _NORMS or len(own) != example.dim() or own.index("c") != 1:
        raise UsageError(
            f"the example has {example.dim()} axes: preprocessing of modules takes a batch, with "
            "channels along axis 1"
        )
    return given, own


def _norm(wanted: Preprocessing, example: Tensor, back: Sequence[int] | None) -> nn.Module:
    """The normalization as a BatchNorm without an epsilon; ``back`` orders its channels."""
    if not wanted.is_affine:
        return nn.Identity()
    channels = example.shape[1]
    norm: nn.Module = _NORMS[example.dim()](channels, eps=0.0)
    norm = norm.to(device=example.device, dtype=torch.float64)

    def along(numbers: Sequence[float]) -> Tensor:
        values = list(numbers) * (channels // len(numbers))
        ordered = values if back is None else [values[k] for k in back]
        return torch.tensor(ordered, dtype=torch.float64, device=example.device)

    with torch.no_grad():
        norm.get_buffer("running_mean").copy_(along(wanted.means) / wanted.scale)
        norm.get_parameter("weight").copy_(wanted.scale / along(wanted.stds))
    norm.to(example.dtype).requires_grad_(False)
    return norm


def _picture(
    example: Tensor, wanted: Preprocessing, kind: torch.dtype, axes: tuple[int, ...]
) -> Tensor:
    """A picture of the size of the example; its numbers are drawn, from a fixed seed."""
    source = torch.Generator().manual_seed(0)
    shape = [example.shape[axis] for axis in axes]
    if kind.is_floating_point:
        middle = wanted.means[0] / wanted.scale
        spread = abs(wanted.stds[0] / wanted.scale)
        drawn: Tensor = torch.randn(shape, generator=source) * spread + middle
        return drawn.to(example.device, kind)
    limits = torch.iinfo(kind)
    top = min(limits.max, 255) + 1
    low = max(limits.min, -128)
    whole = torch.randint(low, top, shape, generator=source, dtype=torch.int32)
    return whole.to(example.device, kind)


def _reordered(module: nn.Module, example: Tensor, back: Sequence[int]) -> nn.Module | None:
    """A copy of a module whose first layers have their input channels in another order.

    None where something else reads the input, or somebody else their weights.
    """
    program = export(module, (example,), None, None)
    names = _first_weights(program, example.dim())
    if not names:
        return None
    copy = copied(module)
    held = dict(copy.named_parameters(remove_duplicate=False))
    for name in names:
        weight = held.get(name)
        alike = sum(other is weight for other in held.values())
        if type(weight) is not nn.Parameter or alike != 1 or weight.shape[1] != len(back):
            return None
    with torch.no_grad():
        for name in names:
            held[name].copy_(held[name][:, list(back)].clone())
    return copy


def _first_weights(program: ExportedProgram, rank: int) -> list[str]:
    """The names of the weights of all that reads the input; none where one is no such layer."""
    signature = program.graph_signature
    parameters: Mapping[str, str] = signature.inputs_to_parameters
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    (start,) = (nodes[str(name)] for name in signature.user_inputs if str(name) in nodes)
    found = []
    for user in start.users:
        kind = getattr(user.target, "_opname", "")
        weight = user.args[1] if len(user.args) > 1 else None
        groups = user.args[6] if kind.startswith("conv") and len(user.args) > 6 else 1
        right = _LAYERS.get(kind) == rank and groups == 1
        if not right or user.args[0] is not start or weight is None:
            return []
        name = parameters.get(getattr(weight, "name", ""))
        if name is None or len(weight.users) != 1:
            return []
        found.append(name)
    return found


def picture_shapes(given: Any, perm: tuple[int, ...] | None) -> Any:
    """The sizes of an example that may vary, as ``dynamic_shapes`` has them, for its picture.

    Raises `UsageError` for a form that does not say which axis is which.
    """
    if given is None or perm is None:
        return given
    one = next(iter(given.values() if isinstance(given, Mapping) else given), None)
    if one is None:
        return given
    if isinstance(one, Mapping):
        moved: Any = {perm[axis]: size for axis, size in one.items()}
    elif isinstance(one, (list, tuple)) and len(one) == len(perm):
        moved = [None] * len(perm)
        for axis, size in enumerate(one):
            moved[perm[axis]] = size
    else:
        raise UsageError("dynamic_shapes: give the input's as a mapping from axes to sizes")
    return (moved,)
