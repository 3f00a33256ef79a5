"""Blockwise orthonormal DCT-II, 64 x 64 for matrices and 64 for vectors, alone or with the top-k of each block.

DeMo (Peng, Quesnelle, Kingma, arXiv 2411.19870) sends the largest coefficients of each block. Edges are padded with
zeros. The coefficients of a matrix are blocks of 4096 in row-major order, so `topk` with chunk 4096 works per block.

Reference and numba agree bit for bit: first axis 0, then axis 1 (the inverse too), and along an axis

    even rows of the matrix times `x[n] + x[63 - n]`, odd rows times `x[n] - x[63 - n]`, n = 0 ... 31,

summed from zero and n = 0 on, each product and each sum rounded to fp32. Triton multiplies by the whole matrix in fp32
("ieee"), in the order of the hardware: each coefficient is within `2e-6 * norm(block)` of the others. So islands that
transform sums back on different kinds of device would drift apart: use one kind, or path="reference" everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.dct import reference
from lowcomm_kernels.dct.table import BLOCK, tiles_of
from lowcomm_kernels.dispatch import Path, check_flat, choose_path, output, use_threads
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.topk import Chunks, Kept, first_nonfinite


def coefficient_count(shape: tuple[int, ...]) -> int:
    """Coefficients of a tensor of this shape (1-D or 2-D): whole blocks of 4096, or whole rows of 64."""
    return tiles_of(shape).coefficients


def dct(x: Tensor, *, path: Path | None = None, out: Tensor | None = None) -> Tensor:
    """fp32 [coefficient_count(x.shape)] of a contiguous fp32 vector or matrix. Least traffic: 8 bytes per element.

    Raises:
        NonFiniteError: `x` holds NaN or infinity.
        ValueError: wrong dtype, more than two dimensions, not contiguous.
    """
    tiles = tiles_of(tuple(x.shape))
    flat = _flat(x)
    coefficients = output("out", out, tiles.coefficients, torch.float32, x.device)
    chosen = choose_path(x.device, path)
    if chosen == "numba":
        from lowcomm_kernels.dct import numba

        use_threads()
        ok = numba.dct(flat, tiles, coefficients)
    elif chosen == "triton":
        from lowcomm_kernels.dct import triton

        ok = triton.dct(flat, tiles, coefficients)
    else:
        ok = reference.dct(flat, tiles, coefficients)
    if not ok:
        raise NonFiniteError(first_nonfinite(flat))
    return coefficients


def idct(
    coefficients: Tensor, shape: tuple[int, ...], *, path: Path | None = None, out: Tensor | None = None
) -> Tensor:
    """The fp32 tensor of `shape` whose coefficients these are; what falls in the padding is cut off.

    Raises:
        ValueError: wrong shape or dtype.
    """
    tiles = tiles_of(tuple(shape))
    check_flat("coefficients", coefficients, torch.float32, tiles.coefficients)
    flat = output("out", out if out is None else _flat(out), tiles.numel, torch.float32, coefficients.device)
    chosen = choose_path(coefficients.device, path)
    if chosen == "numba":
        from lowcomm_kernels.dct import numba

        use_threads()
        numba.idct(coefficients, tiles, flat)
    elif chosen == "triton":
        from lowcomm_kernels.dct import triton

        triton.idct(coefficients, tiles, flat)
    else:
        reference.idct(coefficients, tiles, flat)
    return flat.view(shape)


def dct_topk(x: Tensor, *, k: int = 64, path: Path | None = None, out: Kept | None = None) -> Kept:
    """The k largest coefficients of each 64 x 64 block of a matrix: `Kept` over `Chunks(coefficients, 4096, k)`.

    The coefficients never reach memory (numba, Triton). Least traffic: 4 + 6 rho bytes per element, rho = k / 4096.

    Raises:
        NonFiniteError: `x` holds NaN or infinity.
        ValueError: not a contiguous fp32 matrix, or its coefficients overflow fp32.
    """
    if x.dim() != 2:
        raise ValueError(f"x.dim()={x.dim()}: expected a matrix; use dct and topk for vectors")
    tiles = tiles_of(tuple(x.shape))
    flat, chunks = _flat(x), Chunks(tiles.coefficients, BLOCK, k)
    indices = output("indices", out and out.indices, chunks.kept, torch.uint16, x.device)
    values = output("values", out and out.values, chunks.kept, torch.float32, x.device)
    chosen = choose_path(x.device, path)
    if chosen == "numba":
        from lowcomm_kernels.dct import numba

        use_threads()
        ok = numba.dct_topk(flat, tiles, k, indices, values)
    elif chosen == "triton":
        from lowcomm_kernels.dct import triton

        ok = triton.dct_topk(flat, tiles, k, indices, values)
    else:
        ok = reference.dct_topk(flat, tiles, chunks, indices, values)
    if not ok:
        if bool(torch.isfinite(flat).all()):
            raise ValueError("x: its coefficients overflow fp32; scale it down")
        raise NonFiniteError(first_nonfinite(flat))
    return Kept(indices, values)


def _flat(x: Tensor) -> Tensor:
    if x.dtype != torch.float32 or not x.is_contiguous():
        raise ValueError(f"x: got {x.dtype} with strides {x.stride()}; expected contiguous torch.float32")
    return x.view(-1)
