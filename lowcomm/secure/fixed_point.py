"""Weighted pseudo-gradients as integers modulo 2^bits, whose sum can't overflow."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lowcomm.types import PayloadError


def dtype_of(bits: int) -> np.dtype:
    """The unsigned integers of so many bits, little endian."""
    return np.dtype(f"<u{bits // 8}")


def to_fixed(delta: Tensor, weight: float, limit: float, bits: int) -> np.ndarray:
    """round(weight * delta * 2^(bits - 2) / limit) mod 2^bits. delta: fp32, 1-D; entries are cut to +- limit.

    With weights that sum to 1 the sum over the islands stays below 2^(bits - 2) and half a unit per island.
    Raises PayloadError for NaN or infinity.
    """
    values = delta.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise PayloadError("the pseudo-gradient has an entry that is not finite")
    scaled = np.rint(np.clip(values, -limit, limit) * (weight * _scale(limit, bits)))
    return scaled.astype(np.int64).view(np.uint64).astype(dtype_of(bits))


def from_fixed(total: np.ndarray, factor: float, limit: float, bits: int) -> np.ndarray:
    """factor * limit / 2^(bits - 2) times a sum, read as signed; fp32."""
    signed = total.view(np.dtype(f"<i{bits // 8}")).astype(np.float64)
    return (signed * (factor / _scale(limit, bits))).astype(np.float32)


def _scale(limit: float, bits: int) -> float:
    return 2.0 ** (bits - 2) / limit
