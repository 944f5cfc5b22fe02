"""Deep copies of modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from bnfold._errors import UsageError
from bnfold._torch.tensors import deep_copy

_PLAIN = (dict, list, set)


def copied(module: nn.Module, shared: bool = False) -> nn.Module:
    """A deep copy of a module. With ``shared`` the copy has the module's own tensors.

    Tensors that hooks compute, and results that it keeps, are copied as values. Raises `UsageError`
    for a module that cannot be copied.
    """
    memo: dict[int, object] = _empty(module)
    if shared:
        memo |= {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    try:
        with _detached(module):
            return deep_copy(module, memo)
    except Exception as error:  # Whatever a member's own copying raises.
        raise UsageError(
            f"{type(module).__name__} cannot be copied ({error}): pass inplace=True to fold it "
            "where it is"
        ) from error


def _empty(module: nn.Module) -> dict[int, object]:
    """New containers in the place of the empty ones of a module, by their ids.

    Every module has a dozen, for hooks and the like, and copying them one by one takes most of the
    time.
    """
    made: dict[int, object] = {}
    for part in module.modules():
        for value in part.__dict__.values():
            kind = type(value)
            plain = kind in _PLAIN or (kind is OrderedDict and not value.__dict__)
            if plain and not value:
                made[id(value)] = kind()
    return made


@contextmanager
def _detached(module: nn.Module) -> Iterator[None]:
    """Detach, while the context is open, tensors with a history that modules keep as attributes:
    the weights that old-style norm hooks and pruning compute, and results kept for later.
    """
    changed: list[tuple[nn.Module, str, Tensor]] = []
    for part in module.modules():
        for name, value in part.__dict__.items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                changed.append((part, name, value))
    for part, name, value in changed:
        part.__dict__[name] = value.detach()
    try:
        yield
    finally:
        for part, name, value in changed:
            part.__dict__[name] = value
