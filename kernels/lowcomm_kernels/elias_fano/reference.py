"""Eager torch form of the Elias-Fano code; the specification is in `__init__.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from lowcomm_kernels.elias_fano.layout import low_bits, section_bytes
from lowcomm_kernels.topk.layout import Chunks


def encode(indices: Tensor, chunks: Chunks, packed: Tensor) -> int | None:
    """Fill `packed`; the first chunk whose indices are not valid, or None."""
    index_at = byte_at = 0
    for first, count, n, k in chunks.parts():
        rows = indices[index_at : index_at + count * k].to(torch.int64).view(count, k)
        valid = _valid(rows, n)
        if not bool(valid.all()):
            return first + int((~valid).to(torch.uint8).argmax())
        code = _encode_rows(rows, n)
        packed[byte_at : byte_at + code.numel()] = code.reshape(-1)
        index_at, byte_at = index_at + count * k, byte_at + code.numel()
    return None


def decode(packed: Tensor, chunks: Chunks, indices: Tensor) -> int | None:
    """Fill `indices`; the first chunk that is malformed, or None."""
    index_at = byte_at = 0
    for first, count, n, k in chunks.parts():
        size = sum(section_bytes(n, k))
        rows, valid = _decode_rows(packed[byte_at : byte_at + count * size].view(count, size), n, k)
        if not bool(valid.all()):
            return first + int((~valid).to(torch.uint8).argmax())
        indices[index_at : index_at + count * k] = rows.reshape(-1).to(torch.uint16)
        index_at, byte_at = index_at + count * k, byte_at + count * size
    return None


def _valid(rows: Tensor, n: int) -> Tensor:
    """bool [count]: the indices ascend strictly and are below n."""
    return (rows[:, 1:] > rows[:, :-1]).all(dim=1) & (rows[:, -1] < n)


def _encode_rows(rows: Tensor, n: int) -> Tensor:
    count, k = rows.shape
    low, (low_size, upper_size) = low_bits(n, k), section_bytes(n, k)
    bits = torch.zeros(count, 8 * (low_size + upper_size), dtype=torch.uint8, device=rows.device)
    for bit in range(low):
        bits[:, bit : k * low : low] = ((rows >> bit) & 1).to(torch.uint8)
    place = 8 * low_size + (rows >> low) + torch.arange(k, device=rows.device)
    bits.scatter_(1, place, 1)
    weights = 1 << torch.arange(8, device=rows.device)
    return (bits.view(count, -1, 8) * weights).sum(dim=2).to(torch.uint8)


def _decode_rows(code: Tensor, n: int, k: int) -> tuple[Tensor, Tensor]:
    count = code.shape[0]
    low, (low_size, _) = low_bits(n, k), section_bytes(n, k)
    bits = ((code[:, :, None].to(torch.int64) >> torch.arange(8, device=code.device)) & 1).view(count, -1)
    lower, upper = bits[:, : 8 * low_size], bits[:, 8 * low_size :]
    right = upper.sum(dim=1) == k
    upper = torch.where(right[:, None], upper, (torch.arange(upper.shape[1], device=code.device) < k).to(torch.int64))
    place = upper.nonzero()[:, 1].view(count, k)
    rows = (place - torch.arange(k, device=code.device)) << low
    for bit in range(low):
        rows |= lower[:, bit : k * low : low] << bit
    return rows, right & (lower[:, k * low :] == 0).all(dim=1) & _valid(rows, n)
