"""All entries with |x| >= bound: as many as there are, so the size varies. CPU only (a GPU caller should use top-k)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm_kernels.dispatch import Path, check_flat, choose_path, use_threads
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.topk.values_reference import magnitude_bits

_INFINITY = 0x7F800000


@dataclass(frozen=True)
class Ragged:
    """`counts` int32 [chunks]; `indices` uint16 and `values` fp32 [sum of counts]; indices ascend in each chunk."""

    counts: Tensor
    indices: Tensor
    values: Tensor


def threshold(x: Tensor, bound: float, *, chunk: int = 4096, path: Path | None = None) -> Ragged:
    """The entries of `x` (fp32 [N]) of magnitude at least `bound` (rounded to fp32; 0 keeps all).

    Raises:
        NonFiniteError: `x` holds NaN or infinity.
        ValueError: wrong shape or dtype, bound negative or not finite, chunk outside [1, 65536], path="triton".
    """
    check_flat("x", x, torch.float32)
    least = torch.tensor(bound, dtype=torch.float32)
    if not (torch.isfinite(least) and least >= 0):
        raise ValueError(f"bound={bound}: expected a finite bound >= 0")
    if not 1 <= chunk <= 65536:
        raise ValueError(f"chunk={chunk}: expected 1 <= chunk <= 65536")
    chosen = choose_path(x.device, path)
    if chosen == "triton":
        raise ValueError("path=triton: threshold runs on the CPU; move the tensor or use topk")
    least_bits = int(magnitude_bits(least.reshape(1)))
    if chosen == "numba":
        from lowcomm_kernels.topk import threshold_numba

        use_threads()
        return Ragged(*threshold_numba.threshold(x, least_bits, chunk))
    keys = magnitude_bits(x)
    if keys.numel() and int(keys.max()) >= _INFINITY:
        raise NonFiniteError(int((keys >= _INFINITY).to(torch.uint8).argmax()))
    places = (keys >= least_bits).nonzero().reshape(-1)
    counts = torch.bincount(places // chunk, minlength=-(-x.numel() // chunk)).to(torch.int32)
    return Ragged(counts, (places % chunk).to(torch.uint16), x[places])
