"""What int8, int4 and 2-bit share: codes of some bits under one bf16 scale per block.

Body: scales (bf16, 2 B per block), then codes, as `lowcomm_kernels.quantise` specifies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from lowcomm_kernels.bits import LEVELS, SCALE_CAPS, block_count, packed_bytes
from lowcomm_kernels.dequantise import dequantise, dequantise_accumulate
from lowcomm_kernels.quantise import Quantised, delta_quantise, quantise
from lowcomm_kernels.reduce_quantised import reduce_to_float
from torch import Tensor

from lowcomm.codec.dense import Dense
from lowcomm.types import PayloadError, require

CHUNK = 1 << 20
"""Bytes looked at together, so that temporaries stay in the cache."""


def check_block(block: int) -> None:
    """Raise ConfigError for a block that the kernels can't take."""
    ok = block % 16 == 0 and 16 <= block <= 4096
    require(ok, "codec.block", block, "a multiple of 16 from 16 to 4096", "256 suits most tensors")


def check_scales(scales: Tensor, cap: int) -> None:
    """Raise PayloadError unless each scale (int16, the bits of bf16) is 0 or a normal number up to `cap`.

    Above `cap` the largest level would overflow; subnormal ones, which no encoder makes, differ between devices.
    """
    bits = scales.to(torch.int32) & 0xFFFF  # unsigned: one comparison then also catches the sign, NaN and infinity
    if bool(((bits > cap) | ((bits < 0x80) & (bits != 0))).any()):
        raise PayloadError("a scale of the payload is NaN, infinite, negative, subnormal or too large")


def zero_blocks(codes: Tensor, scales: Tensor, block_bytes: int) -> list[Tensor]:
    """The codes (uint8) of the blocks whose scale is 0; `block_bytes` per block, the last may be short."""
    empty = scales == 0
    full = codes.numel() // block_bytes
    found = [codes[: full * block_bytes].view(full, block_bytes)[empty[:full]].reshape(-1)]
    if full < scales.numel() and bool(empty[-1]):
        found.append(codes[full * block_bytes :])
    return found


@dataclass(frozen=True, kw_only=True)
class Blockwise(Dense):
    """Base of Int8, Int4 and TwoBit."""

    block: int = 256
    """Elements under one scale, a multiple of 16 from 16 to 4096."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """stochastic: the mean over many rounds is exact; each island draws its own noise from the round's seed."""

    bits: ClassVar[int]

    @property
    def granule(self) -> int:
        return self.block

    def body_bytes(self, numel: int) -> int:
        return 2 * block_count(numel, self.block) + packed_bytes(numel, self.bits)

    def write(self, x: Tensor, body: Tensor, seed: int, offset: int) -> None:
        quantise(
            x, bits=self.bits, block=self.block, rounding=self.rounding, seed=seed, offset=offset,
            out=self._split(body, x.numel()),
        )  # fmt: skip

    def write_fed_back(
        self, x: Tensor, error: Tensor, error_out: Tensor, beta: float, body: Tensor, seed: int, offset: int
    ) -> None:
        delta_quantise(
            x, None, error, beta=beta, bits=self.bits, block=self.block, rounding=self.rounding, seed=seed,
            offset=offset, out=self._split(body, x.numel()), error_out=error_out,
        )  # fmt: skip

    def read(self, body: Tensor, out: Tensor) -> None:
        dequantise(self._split(body, out.numel()), out.numel(), bits=self.bits, block=self.block, out=out)

    def add(self, body: Tensor, total: Tensor, weight: float) -> None:
        dequantise_accumulate(self._split(body, total.numel()), total, weight, bits=self.bits, block=self.block)

    def sum_bodies(self, bodies: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
        parts = [self._split(body, out.numel()) for body in bodies]
        codes, scales = torch.stack([p.codes for p in parts]), torch.stack([p.scales for p in parts])
        shares = torch.tensor(list(weights), dtype=torch.float32, device=out.device)
        reduce_to_float(codes, scales, shares, out.numel(), bits=self.bits, block=self.block, out=out)

    def examine(self, body: Tensor, numel: int) -> None:
        codes, scales = self._split(body, numel)
        check_scales(scales, SCALE_CAPS[LEVELS[self.bits]])
        for start in range(0, codes.numel(), CHUNK):
            if self._outside(codes[start : start + CHUNK]):
                raise PayloadError(f"a {self.bits}-bit code of the payload is outside the codebook")
        used = numel * self.bits % 8
        if used and int(codes[-1]) >> used:
            raise PayloadError("the unused bits of the payload's last byte are not 0")
        for found in zero_blocks(codes, scales, self.block * self.bits // 8):
            if self._impossible_zeros(found):
                raise PayloadError("a block of the payload has scale 0 but codes that are not those of zeros")

    def _outside(self, codes: Tensor) -> bool:
        """Whether one of these bytes holds a code that is never written."""
        return False

    def _impossible_zeros(self, codes: Tensor) -> bool:
        """Whether these bytes, of blocks of zeros, hold anything but code 0."""
        return bool(codes.any())

    def _split(self, body: Tensor, numel: int) -> Quantised:
        at = 2 * block_count(numel, self.block)
        return Quantised(body[at:], body[:at].view(torch.int16))

    def check(self) -> None:
        super().check()
        check_block(self.block)
        ok = self.rounding in ("nearest", "stochastic")
        require(ok, "codec.rounding", self.rounding, "nearest or stochastic", "nearest with error feedback")
