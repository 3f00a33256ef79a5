"""Distributed Lion: the sign of a momentum up, the majority or the mean of the signs down.

Liu et al., arXiv 2404.00438; Chen et al., Lion, arXiv 2302.06675.

    u_k = sign(beta1 m_k + (1 - beta1) g_k),   m_k <- beta2 m_k + (1 - beta2) g_k,
    Delta = sign(sum_k u_k) (vote) or sum_k p_k u_k (mean)

g_k: island k's Delta as one flat vector, fp32 [n] (with H = 1 and plain SGD inside, its gradient times the inner rate:
then this is the optimizer, and the outer SGD's rate is Lion's); m_k: the state of the ErrorFeedback around it, which
keeps and checkpoints it (its own beta is not used); u: 8 bits to a byte, no scales; p_k: the islands' weights.
Cost: vote: 64 + ceil(n / 8) B per payload, 2 (n - 1) / n payloads each way for n islands: 1 bit up, 1 bit down. mean:
n - 1 such payloads each way, so that each island forms the mean itself: n - 1 bits down.
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: 0 has the sign +1, one bit can't say more; a tie of votes goes to one island that changes with the round; no
weight decay, which is the inner optimizer's; for the mean the paper's server sends log2(n + 1) bits.
Reduces to: signSGD (with majority vote, arXiv 1810.05291) for beta1 = beta2 = 0 or without ErrorFeedback; Lion for one
island.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.bits import block_count
from lowcomm_kernels.sign import Signs, sign_pack, sign_unpack
from lowcomm_kernels.vote import MAX_PEERS, vote
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.dense import Dense
from lowcomm.codec.sparse import check_finite
from lowcomm.types import PayloadError, require

BLOCK = 4096
ONE = 0x3F80
"""bfloat16 1.0: the scale of every sign."""
PART = 1 << 18
"""Elements worked on at a time, so that temporaries stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class Lion(Dense):
    """Signs of Lion's momentum, 1 bit per parameter; put it in ErrorFeedback, which keeps the momentum."""

    beta1: float = 0.9
    """Share of the momentum in what is sent, 0 <= beta1 < 1."""
    beta2: float = 0.99
    """Decay of the momentum, 0 <= beta2 < 1."""

    codec_id: ClassVar[wire.CodecId] = wire.CodecId.LION

    @property
    def granule(self) -> int:
        return BLOCK

    @property
    def only_sums(self) -> bool:
        return self.exchange == "reduce"

    def body_bytes(self, numel: int) -> int:
        return -(-numel // 8)

    def write(self, x: Tensor, body: Tensor, seed: int, offset: int) -> None:
        scales = torch.empty(block_count(x.numel(), BLOCK), dtype=torch.int16, device=x.device)  # not sent
        sign_pack(x, block=BLOCK, out=Signs(body, scales))

    def write_fed_back(
        self, x: Tensor, error: Tensor, error_out: Tensor, beta: float, body: Tensor, seed: int, offset: int
    ) -> None:
        check_finite(x)
        for start in range(0, x.numel(), PART):
            g, m = x[start : start + PART], error[start : start + PART]
            sent = (m * self.beta1).add_(g * (1 - self.beta1))
            self.write(sent, body[start // 8 : -(-(start + g.numel()) // 8)], seed, offset + start)
            torch.mul(m, self.beta2, out=error_out[start : start + PART])
            error_out[start : start + PART].add_(g * (1 - self.beta2))

    def read(self, body: Tensor, out: Tensor) -> None:
        scales = torch.full((block_count(out.numel(), BLOCK),), ONE, dtype=torch.int16, device=out.device)
        sign_unpack(Signs(body, scales), out.numel(), block=BLOCK, out=out)

    def add(self, body: Tensor, total: Tensor, weight: float) -> None:
        for start in range(0, total.numel(), PART):
            part = total[start : start + PART]
            value = torch.empty_like(part)
            self.read(body[start // 8 : -(-(start + part.numel()) // 8)], value)
            part.add_(value.mul_(weight))

    def merge(self, bodies: Sequence[Tensor], weights: Sequence[float], out: Tensor, body: Tensor, seed: int) -> bool:
        if len(bodies) > MAX_PEERS:
            raise ValueError(f"a vote takes at most {MAX_PEERS} islands, not {len(bodies)}; use exchange='gather'")
        vote(torch.stack(list(bodies)), tie_peer=seed % len(bodies), out=body)
        return True

    def examine(self, body: Tensor, numel: int) -> None:
        if numel % 8 and int(body[-1]) >> numel % 8:
            raise PayloadError("the unused bits of the payload's last byte are not 0")

    def check(self) -> None:
        super().check()
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"codec.{name}", value, "0 <= value < 1", "0.9 and 0.99 are the paper's")
