"""bfloat16: the upper half of fp32, 2 B per element.

Kalamkar et al., A study of BFLOAT16, arXiv 1905.12322.

    x_i is decoded as bf16(x_i): 8 bits of precision, ties to even, saturated at the largest finite value

x: the Delta as one flat vector, fp32 [n]; body: int16 [n]. Cost: 64 + 2 n B per payload (2 (n - 1) / n payloads each
way with exchange="reduce", n - 1 with "gather", for n islands). Relative error at most 2**-9.
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that holds them; ConfigError.
Deviates: saturates instead of overflowing.
Reduces to: the identity on values that bf16 holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.fp8 import decode_bf16, encode_bf16
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.dense import Dense
from lowcomm.types import PayloadError

CHUNK = 1 << 18
"""Elements decoded at a time: the scratch stays in the cache."""


@dataclass(frozen=True, kw_only=True)
class BF16(Dense):
    """bfloat16 values, 2 bytes per parameter."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.BF16

    def body_bytes(self, numel: int) -> int:
        return 2 * numel

    def write(self, x: Tensor, body: Tensor, seed: int, offset: int) -> None:
        encode_bf16(x, out=body.view(torch.int16))

    def write_fed_back(
        self, x: Tensor, error: Tensor, error_out: Tensor, beta: float, body: Tensor, seed: int, offset: int
    ) -> None:
        torch.mul(error, beta, out=error_out)
        error_out.add_(x)
        self.write(error_out, body, seed, offset)
        self.add(body, error_out, -1.0)

    def read(self, body: Tensor, out: Tensor) -> None:
        decode_bf16(body.view(torch.int16), out=out)

    def add(self, body: Tensor, total: Tensor, weight: float) -> None:
        scratch = torch.empty(min(CHUNK, total.numel()), device=total.device)
        for start in range(0, total.numel(), CHUNK):
            part = total[start : start + CHUNK]
            value = scratch[: part.numel()]
            self.read(body[2 * start : 2 * (start + part.numel())], value)
            part.add_(value.mul_(weight))

    def examine(self, body: Tensor, numel: int) -> None:
        for start in range(0, body.numel(), CHUNK):
            if bool(((body[start : start + CHUNK].view(torch.int16) & 0x7F80) == 0x7F80).any()):
                raise PayloadError("the payload holds NaN or infinity")
