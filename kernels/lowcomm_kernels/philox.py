"""Philox-4x32-10 (Salmon et al., SC 2011): random bits from (seed, element offset), the same bits on every path.

Element `e` takes 16 bits. Counter `e // 8` gives four words; element `e` has word `(e % 8) // 2`, low half if
`e` is even. The counter fills words 0 (low) and 1 (high) of the Philox counter; words 2 and 3 are zero.
The key is the 64-bit seed, low word first.

`philox_numba.py` and `philox_triton.py` hold the fast forms, so that importing this file needs neither.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIER_A = 0xD2511F53
MULTIPLIER_B = 0xCD9E8D57
KEY_A = 0x9E3779B9
KEY_B = 0xBB67AE85
ROUNDS = 10
PER_COUNTER = 8
"""Elements served by one counter; offsets must be a multiple of it."""
_LOW = 0xFFFFFFFF


def signed_seed(seed: int) -> int:
    """The 64 bits of `seed` (0 <= seed < 2**64) as a signed integer, the form that kernels take."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed={seed}: expected 0 <= seed < 2**64; use seed % 2**64")
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def check_offset(offset: int) -> None:
    """Raise ValueError unless the element offset is a multiple of 8 in [0, 2**62)."""
    if offset % PER_COUNTER or not 0 <= offset < 1 << 62:
        raise ValueError(f"offset={offset}: expected a multiple of {PER_COUNTER} in [0, 2**62); round it up")


def philox4x32(counter: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words (int64 tensors in [0, 2**32)) for each 64-bit counter (int64 tensor)."""
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    c0, c1 = counter & _LOW, (counter >> 32) & _LOW
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(ROUNDS):
        # int64 products wrap, which keeps all 64 bits; the mask after the shift drops the sign's copies.
        a, b = c0 * MULTIPLIER_A, c2 * MULTIPLIER_B
        c0, c1 = ((b >> 32) & _LOW) ^ c1 ^ k0, b & _LOW
        c2, c3 = ((a >> 32) & _LOW) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + KEY_A) & _LOW, (k1 + KEY_B) & _LOW
    return c0, c1, c2, c3


def random16(offset: int, numel: int, seed: int, device: torch.device | None = None) -> Tensor:
    """16 random bits for each of the elements `offset ... offset + numel - 1`: int64 tensor in [0, 65536)."""
    check_offset(offset)
    first = offset // PER_COUNTER
    counters = torch.arange(first, first + -(-numel // PER_COUNTER), dtype=torch.int64, device=device)
    words = torch.stack(philox4x32(counters, seed), dim=1)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=2)
    return halves.reshape(-1)[:numel]
