"""Blockwise DCT on the CPU: numba against the eager reference bit for bit, and both against float64."""

from __future__ import annotations

import math

import pytest
import torch
from lowcomm_kernels.dct import coefficient_count, dct, dct_topk, idct
from lowcomm_kernels.dct.table import exact, matrix
from lowcomm_kernels.dispatch import Path
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.topk import Chunks, topk

SHAPES = [(0,), (1,), (63,), (64,), (4100,), (8192,), (0, 5), (1, 1), (64, 64), (130, 70), (7, 300)]


def data(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape and (not a.numel() or torch.equal(a.view(torch.int32), b.view(torch.int32)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_and_inverse(shape: tuple[int, ...]) -> None:
    x = data(shape)
    count = coefficient_count(shape)
    expected = dct(x, path="reference")
    same(expected, dct(x, path="numba", out=torch.full((count,), math.nan)))
    back = idct(expected, shape, path="reference")
    same(back, idct(expected, shape, path="numba", out=torch.full((x.numel(),), math.nan)))
    torch.testing.assert_close(back, x, rtol=0, atol=4e-6)
    assert math.isclose(float(expected.norm()), float(x.norm()), rel_tol=1e-6, abs_tol=1e-12)


def test_matrix_is_the_cosine_and_orthonormal() -> None:
    d = matrix().double()
    f, n = torch.arange(64.0, dtype=torch.float64)[:, None], torch.arange(64.0, dtype=torch.float64)
    cosine = torch.cos(math.pi * (2 * n + 1) * f / 128) * math.sqrt(1 / 32)
    cosine[0] = 1 / 8
    torch.testing.assert_close(d, cosine, rtol=0, atol=2e-8)
    torch.testing.assert_close(d @ d.T, torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-7)


def test_no_entry_depends_on_the_libm() -> None:
    """The float64 value is far (some 10**6 of its own rounding errors) from where its fp32 rounding would change."""
    for f in range(1, 64):
        for n in range(32):
            value = exact(f, n)
            rounded = torch.tensor(value, dtype=torch.float32)
            step = float(torch.nextafter(rounded, torch.tensor(9.0)) - rounded)
            assert abs(abs(value - float(rounded)) / step - 0.5) > 1e-6


def test_one_block_is_the_definition() -> None:
    x = data((64, 64))
    d = matrix().double()
    torch.testing.assert_close(dct(x).view(64, 64).double(), d @ x.double() @ d.T, rtol=0, atol=3e-6)
    torch.testing.assert_close(dct(x.view(-1)).view(64, 64).double(), x.double() @ d.T, rtol=0, atol=3e-6)


def test_blocks_are_row_major() -> None:
    x = torch.zeros(100, 130)
    x[70, 65] = 1.0  # second row of tiles, second of three columns
    energy = dct(x).view(6, 4096).pow(2).sum(dim=1)
    assert energy.nonzero().reshape(-1).tolist() == [4]


@pytest.mark.parametrize("shape", [(64, 64), (130, 70), (0, 5)], ids=str)
def test_fused_topk_is_topk_of_the_transform(shape: tuple[int, int]) -> None:
    x = data(shape)
    coefficients = dct(x, path="reference")
    expected = topk(coefficients, Chunks(coefficients.numel(), 4096, 50), path="reference")
    for path in ("reference", "numba"):
        found = dct_topk(x, k=50, path=path)
        assert torch.equal(found.indices, expected.indices)
        same(found.values, expected.values)


@pytest.mark.parametrize("path", ["reference", "numba"])
def test_bad_input_is_named(path: Path) -> None:
    x = data((70, 70))
    x[66, 3] = math.nan
    for call in (dct, dct_topk):
        with pytest.raises(NonFiniteError) as caught:
            call(x, path=path)
        assert caught.value.index == 66 * 70 + 3
    with pytest.raises(ValueError, match="overflow"):
        dct_topk(torch.full((64, 64), 1e38), path=path)
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        dct(torch.zeros(2, 2, 2), path=path)
    with pytest.raises(ValueError, match="contiguous"):
        dct(torch.zeros(4, 6).T, path=path)
