"""Modules that stand in a folded network where no module of PyTorch can."""

from __future__ import annotations

from torch import nn

__all__ = ["Remainder"]


class Remainder(nn.Sequential):
    """What a module still does when its norm is gone: its activation, its dropout, one by one.

    `bnfold.fold` puts it where one module was both, as timm's ``BatchNormAct2d`` is. With
    ``merge=True`` it also stands where branches were added up: the convolution that they have
    become, and what followed the sum. It takes and gives one tensor. Submodules keep their names,
    and plain attributes (``num_features``) stay. It can be pickled, copied, exported and scripted.
    """
