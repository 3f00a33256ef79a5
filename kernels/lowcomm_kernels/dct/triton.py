"""Triton form of the blockwise DCT: one program for each 64 x 64 tile, products with `tl.dot` in fp32."""

from __future__ import annotations

# Triton's language is not typed as Python is.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from lowcomm_kernels.dct.table import BLOCK, Tiles, matrix
from lowcomm_kernels.topk.select_triton import INFINITY, magnitude_keys, select

_WARPS = 8  # four spill
_SELECT_WARPS = 16
"""With the choice of the largest in the same program, eight spill on sm_100 in Triton 3.7."""


@triton.jit
def _tile(rows, columns, numel, across):
    """Offsets and mask [64, 64] of this program's tile."""
    t = tl.program_id(0).to(tl.int64)
    i = (t // across) * 64 + tl.arange(0, 64)[:, None]
    j = (t % across) * 64 + tl.arange(0, 64)[None, :]
    place = i * columns + j
    return place, (i < rows) & (j < columns) & (place < numel)


@triton.jit
def _transform(x, table, TWO: tl.constexpr):  # noqa: N803
    """table @ x @ table.T, or x @ table.T alone. The product stays in a loop: two in a row spill."""
    line = tl.arange(0, 64)
    d = tl.load(table + line[:, None] * 64 + line[None, :])
    turns = 2
    if not TWO:
        x = tl.trans(x)
        turns = 1
    for _ in range(turns):
        x = tl.trans(tl.dot(d, x, input_precision="ieee"))
    return tl.reshape(x, (4096,))


@triton.jit
def _dct_kernel(x, table, out, bad, rows, columns, numel, across, total, TWO: tl.constexpr):  # noqa: N803
    t = tl.program_id(0).to(tl.int64)
    place, inside = _tile(rows, columns, numel, across)
    v = tl.load(x + place, mask=inside, other=0.0)
    top = tl.max(tl.reshape(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, (4096,)), axis=0)
    tl.store(bad + t, (top >= INFINITY).to(tl.int32))
    z = _transform(v, table, TWO)
    at = t * 4096 + tl.arange(0, 4096)
    tl.store(out + at, z, mask=at < total)


@triton.jit
def _dct_topk_kernel(x, table, indices, values, bad, rows, columns, numel, across, k):
    t = tl.program_id(0).to(tl.int64)
    place, inside = _tile(rows, columns, numel, across)
    v = tl.load(x + place, mask=inside, other=0.0)
    first = tl.max(tl.reshape(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, (4096,)), axis=0)
    z = _transform(v, table, True)
    lane = tl.arange(0, 4096)
    take, slot, top = select(magnitude_keys(z, lane >= 0), k, 4096)
    tl.store(indices + t * k + slot, lane.to(tl.uint16), mask=take)
    tl.store(values + t * k + slot, z, mask=take)
    tl.store(bad + t, (tl.maximum(top, first) >= INFINITY).to(tl.int32))


@triton.jit
def _idct_kernel(z, table, out, rows, columns, numel, across, total, TWO: tl.constexpr):  # noqa: N803
    t = tl.program_id(0).to(tl.int64)
    at = t * 4096 + tl.arange(0, 4096)
    v = tl.reshape(tl.load(z + at, mask=at < total, other=0.0), (64, 64))
    x = tl.reshape(_transform(v, table, TWO), (64, 64))
    place, inside = _tile(rows, columns, numel, across)
    tl.store(out + place, x, mask=inside)


def dct(flat: Tensor, tiles: Tiles, coefficients: Tensor) -> bool:
    """Fill `coefficients`; False if an element is not finite."""
    count = tiles.down * tiles.across
    bad = torch.zeros(count, dtype=torch.int32, device=flat.device)
    if count:
        shape = (tiles.rows, tiles.columns, tiles.numel, tiles.across, tiles.coefficients)
        _dct_kernel[(count,)](flat, matrix().to(flat.device), coefficients, bad, *shape, tiles.two, num_warps=_WARPS)
    return not bool(bad.any())


def idct(coefficients: Tensor, tiles: Tiles, flat: Tensor) -> None:
    count = tiles.down * tiles.across
    if count:
        shape = (tiles.rows, tiles.columns, tiles.numel, tiles.across, tiles.coefficients)
        turned = matrix().T.contiguous().to(flat.device)
        _idct_kernel[(count,)](coefficients, turned, flat, *shape, tiles.two, num_warps=_WARPS)


def dct_topk(flat: Tensor, tiles: Tiles, k: int, indices: Tensor, values: Tensor) -> bool:
    """Fill `indices` and `values`; False if an element or a coefficient is not finite."""
    count = tiles.coefficients // BLOCK
    bad = torch.zeros(count, dtype=torch.int32, device=flat.device)
    if count:
        shape = (tiles.rows, tiles.columns, tiles.numel, tiles.across)
        table = matrix().to(flat.device)
        _dct_topk_kernel[(count,)](flat, table, indices, values, bad, *shape, k, num_warps=_SELECT_WARPS)
    return not bool(bad.any())
