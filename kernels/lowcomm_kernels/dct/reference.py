"""Eager torch form of the blockwise DCT; the order of sums is that of `__init__.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.dct.table import SIDE, Tiles, matrix
from lowcomm_kernels.topk import reference as topk_reference
from lowcomm_kernels.topk.layout import Chunks

_HALF = SIDE // 2


def dct(flat: Tensor, tiles: Tiles, coefficients: Tensor) -> bool:
    """Fill `coefficients`; False if an element is not finite."""
    if not bool(torch.isfinite(flat).all()):
        return False
    x = _cut(flat, tiles)
    if tiles.two:
        x = _forward(x, -2)
    coefficients.copy_(_forward(x, -1).reshape(-1)[: tiles.coefficients])
    return True


def idct(coefficients: Tensor, tiles: Tiles, flat: Tensor) -> None:
    padded = torch.nn.functional.pad(coefficients, (0, -coefficients.numel() % (SIDE * SIDE)))
    x = padded.view(-1, SIDE, SIDE)
    if not tiles.two:
        flat.copy_(_inverse(x, -1).reshape(-1)[: tiles.numel])
        return
    x = _inverse(_inverse(x, -2), -1).view(tiles.down, tiles.across, SIDE, SIDE).transpose(1, 2)
    whole = x.reshape(tiles.down * SIDE, tiles.across * SIDE)
    flat.copy_(whole[: tiles.rows, : tiles.columns].reshape(-1))


def dct_topk(flat: Tensor, tiles: Tiles, chunks: Chunks, indices: Tensor, values: Tensor) -> bool:
    """Fill `indices` and `values`; False if an element or a coefficient is not finite."""
    coefficients = torch.empty(tiles.coefficients, device=flat.device)
    return dct(flat, tiles, coefficients) and topk_reference.topk(coefficients, chunks, indices, values)


def _cut(flat: Tensor, tiles: Tiles) -> Tensor:
    """fp32 [tiles, 64, 64], padded with zeros."""
    if not tiles.two:
        return torch.nn.functional.pad(flat, (0, -flat.numel() % (SIDE * SIDE))).view(-1, SIDE, SIDE)
    x = flat.view(tiles.rows, tiles.columns)
    x = torch.nn.functional.pad(x, (0, -tiles.columns % SIDE, 0, -tiles.rows % SIDE))
    return x.view(tiles.down, SIDE, tiles.across, SIDE).transpose(1, 2).reshape(-1, SIDE, SIDE)


def _forward(x: Tensor, axis: int) -> Tensor:
    x = x.movedim(axis, 0)
    back = x.flip(0)
    table = matrix().to(x.device).view(SIDE, SIDE, *[1] * (x.dim() - 1))
    out = torch.empty_like(x)
    for parity, part in ((0, x[:_HALF] + back[:_HALF]), (1, x[:_HALF] - back[:_HALF])):
        total = torch.zeros_like(part)
        for n in range(_HALF):
            total = total + table[parity::2, n] * part[n]
        out[parity::2] = total
    return out.movedim(0, axis)


def _inverse(x: Tensor, axis: int) -> Tensor:
    x = x.movedim(axis, 0)
    table = matrix().to(x.device).view(SIDE, SIDE, *[1] * (x.dim() - 1))
    sums = []
    for parity in (0, 1):
        total = torch.zeros_like(x[:_HALF])
        for f in range(parity, SIDE, 2):
            total = total + table[f, :_HALF] * x[f]
        sums.append(total)
    out = torch.cat((sums[0] + sums[1], (sums[0] - sums[1]).flip(0)))
    return out.movedim(0, axis)
