"""Sixteen architectures as plain torch modules, complete but narrow, by family and by name.

Their weights are drawn from a fixed seed. As in training, every BatchNorm gets the mean and
variance of its input over a batch; γ, β, LayerScales and gains are random, scales of either sign.
"""

from networks._export import exported
from networks._registry import ARCHITECTURES, SEED, Architecture, make
from networks._weights import calibrate, signal

__all__ = ["ARCHITECTURES", "SEED", "Architecture", "calibrate", "exported", "make", "signal"]
