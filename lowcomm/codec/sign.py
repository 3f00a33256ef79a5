"""1 bit per element with a scale per block, and a majority vote on the packed bits as an option.

Bernstein et al., signSGD with majority vote, arXiv 1810.05291; Karimireddy et al., error feedback fixes signSGD,
arXiv 1901.09847.

    b_i = [x_i >= 0],  s = mean |x| of the block (bf16),  x_i is decoded as s if b_i else -s
    vote:  b_i = 1 if more than half of the islands' bits are 1, a tie goes to one island that changes with the round;
           s = sum_k p_k s_k

x: the Delta as one flat vector, fp32 [n]; b: `words`, 8 bits to a byte; s: `scales`, bf16 [ceil(n / block)], before the
words in the body; p_k: the islands' weights.
Cost: 64 + ceil(n / 8) + 2 ceil(n / block) B per payload: 0.1329 B per parameter (2 (n - 1) / n payloads each way with
exchange="reduce", n - 1 with "gather", for n islands).
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: a scale per block where the papers have one per tensor or none; each island has one vote, whatever its weight.
Reduces to: the identity on blocks of s and -s, for an s that bf16 holds; the vote of one island is its own payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.bits import BF16_MAX_BITS, block_count, widen
from lowcomm_kernels.fp8 import encode_bf16
from lowcomm_kernels.sign import Signs, delta_sign, sign_accumulate, sign_pack, sign_unpack
from lowcomm_kernels.vote import MAX_PEERS, vote
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.blockwise import check_block, check_scales
from lowcomm.codec.dense import Dense
from lowcomm.types import PayloadError, require


@dataclass(frozen=True, kw_only=True)
class Sign(Dense):
    """Signs in blocks, 0.133 bytes per parameter; use it inside ErrorFeedback only."""

    block: int = 256
    """Elements under one scale, a multiple of 16 from 16 to 4096."""
    vote: bool = False
    """Combine the islands' signs by majority on the packed words instead of by their weighted mean."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.SIGN

    @property
    def granule(self) -> int:
        return self.block

    @property
    def only_sums(self) -> bool:
        return self.vote

    def body_bytes(self, numel: int) -> int:
        return 2 * block_count(numel, self.block) + -(-numel // 8)

    def write(self, x: Tensor, body: Tensor, seed: int, offset: int) -> None:
        sign_pack(x, block=self.block, out=self._split(body, x.numel()))

    def write_fed_back(
        self, x: Tensor, error: Tensor, error_out: Tensor, beta: float, body: Tensor, seed: int, offset: int
    ) -> None:
        signs = self._split(body, x.numel())
        delta_sign(x, None, error, beta=beta, block=self.block, out=signs, error_out=error_out)

    def read(self, body: Tensor, out: Tensor) -> None:
        sign_unpack(self._split(body, out.numel()), out.numel(), block=self.block, out=out)

    def add(self, body: Tensor, total: Tensor, weight: float) -> None:
        sign_accumulate(self._split(body, total.numel()), total, weight, block=self.block)

    def merge(self, bodies: Sequence[Tensor], weights: Sequence[float], out: Tensor, body: Tensor, seed: int) -> bool:
        if not self.vote:
            return False
        if len(bodies) > MAX_PEERS:
            raise ValueError(f"a vote takes at most {MAX_PEERS} islands, not {len(bodies)}; use vote=False")
        parts = [self._split(b, out.numel()) for b in bodies]
        target = self._split(body, out.numel())
        vote(torch.stack([p.words for p in parts]), tie_peer=seed % len(bodies), out=target.words)
        scale = torch.zeros(target.scales.numel(), device=out.device)
        for part, weight in zip(parts, weights, strict=True):
            scale.add_(widen(part.scales).mul_(weight))
        encode_bf16(scale, out=target.scales)
        return True

    def examine(self, body: Tensor, numel: int) -> None:
        words, scales = self._split(body, numel)
        check_scales(scales, BF16_MAX_BITS)
        if numel % 8 and int(words[-1]) >> numel % 8:
            raise PayloadError("the unused bits of the payload's last byte are not 0")

    def _split(self, body: Tensor, numel: int) -> Signs:
        at = 2 * block_count(numel, self.block)
        return Signs(body[at:], body[:at].view(torch.int16))

    def check(self) -> None:
        super().check()
        check_block(self.block)
        together = not (self.vote and self.exchange == "gather")
        fix = "--sync.codec.exchange reduce, or leave out the vote"
        require(together, "codec.vote", self.vote, "False with exchange='gather', where nobody counts votes", fix)
