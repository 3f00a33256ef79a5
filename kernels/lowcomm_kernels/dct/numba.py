"""numba form of the blockwise DCT; the order of sums is that of `__init__.py`."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from lowcomm_kernels.dct.table import Tiles, matrix
from lowcomm_kernels.topk.select_numba import INFINITY, load_keys, scratch, select

_ABS = np.int32(0x7FFFFFFF)


@njit(cache=True, fastmath=False, error_model="numpy")
def _add_eight(total, f, part):
    """total += f @ part in the order of rows; fp32 [64], [8], [8, 64]. Eight at once keeps sums in registers."""
    a, b, c, d, e, g, h, k = f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]
    for j in range(64):
        s = total[j] + a * part[0, j]
        s += b * part[1, j]
        s += c * part[2, j]
        s += d * part[3, j]
        s += e * part[4, j]
        s += g * part[5, j]
        s += h * part[6, j]
        s += k * part[7, j]
        total[j] = s


@njit(cache=True, fastmath=False, error_model="numpy")
def _forward(table, x, halves, out):
    """out = table @ x along axis 0; all fp32 [64, 64]."""
    for n in range(32):
        for j in range(64):
            halves[n, j] = x[n, j] + x[63 - n, j]
            halves[32 + n, j] = x[n, j] - x[63 - n, j]
    out[:] = 0
    for f in range(64):
        for n in range(0, 32, 8):
            at = 32 * (f & 1) + n
            _add_eight(out[f], table[f, n : n + 8], halves[at : at + 8])


@njit(cache=True, fastmath=False, error_model="numpy")
def _inverse(turned, x, halves, out):
    """out = transposed matrix @ x along axis 0; `turned[n]` is column n of the matrix, even rows first. Destroys x."""
    for f in range(32):
        halves[f] = x[2 * f]
        halves[32 + f] = x[2 * f + 1]
    x[:] = 0
    for n in range(32):
        for f in range(0, 64, 8):
            _add_eight(x[n + (f & 32)], turned[n, f : f + 8], halves[f : f + 8])
    for n in range(32):
        for j in range(64):
            out[n, j] = x[n, j] + x[32 + n, j]
            out[63 - n, j] = x[n, j] - x[32 + n, j]


@njit(cache=True, fastmath=False, error_model="numpy")
def _load(flat, columns, top, left, height, width, tile):
    """Copy to the tile, pad with zeros; True if an element is not finite."""
    tile[:] = 0
    bad = False
    for i in range(height):
        # The last row of a vector may be short.
        start = (top + i) * columns + left
        part = flat[start : start + width]
        bits = part.view(np.int32)
        row = tile[i]
        for j in range(part.size):
            row[j] = part[j]
            bad |= bits[j] & _ABS >= INFINITY
    return bad


@njit(cache=True, fastmath=False, error_model="numpy")
def _transpose(a, b):
    for i in range(64):
        for j in range(64):
            b[j, i] = a[i, j]


@njit(cache=True, fastmath=False, error_model="numpy")
def _transform(table, tile, other, halves, two):
    """The coefficients of `tile`, in place."""
    if not two:
        _transpose(tile, other)
        tile[:] = other
    # One call in a loop, not two: the compiler inlines each, and it is most of the compile time.
    for _ in range(2 if two else 1):
        _forward(table, tile, halves, other)
        _transpose(other, tile)


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _dct(flat, table, rows, columns, across, two, coefficients, bad):
    for t in prange(bad.size):
        tiles3 = np.empty((3, 64, 64), np.float32)
        tile, other, halves = tiles3[0], tiles3[1], tiles3[2]
        top, left = t // across * 64, t % across * 64
        height, width = min(64, rows - top), min(64, columns - left)
        bad[t] = _load(flat, columns, top, left, height, width, tile)
        _transform(table, tile, other, halves, two)
        out = coefficients[t * 4096 : (t + 1) * 4096]
        out[:] = tile.reshape(4096)[: out.size]


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _dct_topk(flat, table, rows, columns, across, k, indices, values, bad):
    for t in prange(bad.size):
        tiles3 = np.empty((3, 64, 64), np.float32)
        tile, other, halves = tiles3[0], tiles3[1], tiles3[2]
        room = scratch(4096, k)
        top, left = t // across * 64, t % across * 64
        height, width = min(64, rows - top), min(64, columns - left)
        bad[t] = _load(flat, columns, top, left, height, width, tile)
        _transform(table, tile, other, halves, True)
        line = tile.reshape(4096)
        load_keys(line, room[0])
        chosen = indices[t * k : (t + 1) * k]
        if select(4096, k, room, chosen) >= INFINITY:
            bad[t] = True
            continue
        for i in range(k):
            values[t * k + i] = line[chosen[i]]


@njit(parallel=True, cache=True, fastmath=False, error_model="numpy")
def _idct(coefficients, turned, rows, columns, across, tiles, two, flat):
    for t in prange(tiles):
        tiles3 = np.empty((3, 64, 64), np.float32)
        tile, other, halves = tiles3[0], tiles3[1], tiles3[2]
        tile[:] = 0
        part = coefficients[t * 4096 : (t + 1) * 4096]
        tile.reshape(4096)[: part.size] = part
        if not two:
            _transpose(tile, other)
            tile[:] = other
        for _ in range(2 if two else 1):
            _inverse(turned, tile, halves, other)
            _transpose(other, tile)
        top, left = t // across * 64, t % across * 64
        for i in range(min(64, rows - top)):
            start = (top + i) * columns + left
            row = flat[start : start + min(64, columns - left)]
            row[:] = tile[i, : row.size]


def dct(flat: Tensor, tiles: Tiles, coefficients: Tensor) -> bool:
    """Fill `coefficients`; False if an element is not finite."""
    bad = np.zeros(tiles.down * tiles.across, np.bool_)
    shape = (tiles.rows, tiles.columns, tiles.across, tiles.two)
    _dct(flat.numpy(), matrix().numpy(), *shape, coefficients.numpy(), bad)
    return not bad.any()


def idct(coefficients: Tensor, tiles: Tiles, flat: Tensor) -> None:
    shape = (tiles.rows, tiles.columns, tiles.across, tiles.down * tiles.across, tiles.two)
    table = matrix().numpy()
    turned = np.ascontiguousarray(np.concatenate((table[0::2], table[1::2])).T)
    _idct(coefficients.numpy(), turned, *shape, flat.numpy())


def dct_topk(flat: Tensor, tiles: Tiles, k: int, indices: Tensor, values: Tensor) -> bool:
    """Fill `indices` and `values`; False if an element or a coefficient is not finite."""
    bad = np.zeros(tiles.down * tiles.across, np.bool_)
    shape = (tiles.rows, tiles.columns, tiles.across, k)
    _dct_topk(flat.numpy(), matrix().numpy(), *shape, indices.numpy(), values.numpy(), bad)
    return not bad.any()
