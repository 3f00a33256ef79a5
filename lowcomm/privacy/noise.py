"""Clipping and Gaussian noise, shared by the mechanisms.

The noise is drawn in fp64 with numpy's Philox from 128 bits, on the CPU, and added in fp32: the same bits on every
device. Attacks on the last bits of floating-point noise (Mironov, CCS 2012) are not defended against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MARGIN = 1 - 2.0**-20
"""Clipped vectors are this much shorter, so that rounding does not bring them above the bound again."""


def norm(tensors: Sequence[Tensor]) -> float:
    """L2 norm over all tensors, summed in fp64."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2 for t in tensors))


def clip_to(tensors: Sequence[Tensor], clip: float) -> bool:
    """Scale the tensors in place so that their common norm is at most `clip`; whether it was already."""
    size = norm(tensors)
    if size <= clip:
        return True
    for t in tensors:
        t.mul_(clip / size * _MARGIN)
    return False


def add_noise(tensors: Sequence[Tensor], std: float, seed: int) -> None:
    """Add N(0, std^2) to every element, in place; nothing is drawn for std = 0."""
    if std == 0:
        return
    generator = generator_of(seed)
    for t in tensors:
        drawn = torch.from_numpy(generator.standard_normal(t.numel()) * std)
        t.add_(drawn.to(t.dtype).view(t.shape).to(t.device))


def generator_of(seed: int) -> np.random.Generator:
    """The stream of these 128 bits."""
    return np.random.Generator(np.random.Philox(key=seed))
