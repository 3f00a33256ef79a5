"""The orthonormal DCT-II matrix of 64 points and the shapes of blockwise transforms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

SIDE = 64
BLOCK = SIDE * SIDE


@cache
def matrix() -> Tensor:
    """fp32 [64, 64]: row f, column n is `c_f cos(pi (2n + 1) f / 128)`, `c_0 = 1/8`, else `sqrt(1/32)`.

    Columns 32 ... 63 are copies of the first half (negated in odd rows), which the exact identity allows. Entries are
    rounded once from float64; none lies so near a rounding boundary that the libm could matter (a test checks it).
    """
    half = [[exact(f, n) for n in range(SIDE // 2)] for f in range(SIDE)]
    rows = [row + [v if f % 2 == 0 else -v for v in reversed(row)] for f, row in enumerate(half)]
    return torch.tensor(rows, dtype=torch.float32)


def exact(f: int, n: int) -> float:
    scale = 1 / 8 if f == 0 else math.sqrt(1 / 32)
    return scale * math.cos(math.pi * ((2 * n + 1) * f % 256) / 128)


@dataclass(frozen=True)
class Tiles:
    """How a tensor is cut in 64 x 64 tiles. A 1-D tensor is a matrix with 64 columns and a short last row."""

    rows: int
    columns: int
    numel: int
    two: bool
    """Both axes are transformed; else only rows of 64."""

    @property
    def down(self) -> int:
        return -(-self.rows // SIDE)

    @property
    def across(self) -> int:
        return -(-self.columns // SIDE)

    @property
    def coefficients(self) -> int:
        return self.down * self.across * BLOCK if self.two else self.rows * SIDE


def tiles_of(shape: tuple[int, ...]) -> Tiles:
    """Tiles of a 1-D or 2-D shape.

    Raises:
        ValueError: another number of dimensions.
    """
    if len(shape) == 1:
        return Tiles(-(-shape[0] // SIDE), SIDE, shape[0], two=False)
    if len(shape) == 2:
        return Tiles(shape[0], shape[1], shape[0] * shape[1], two=True)
    raise ValueError(f"shape={shape}: expected 1 or 2 dimensions; reshape to (shape[0], -1)")
