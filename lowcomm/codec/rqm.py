"""RQM: randomised quantisation whose own randomness gives differential privacy.

Youn, Hu, Ziani, Abernethy, arXiv 2306.11913. The accountant is `lowcomm.privacy.RqmAccountant`.

    B_i = -X + 2 i X / (m - 1),  X = c + margin c;   each inner level is kept with probability q, the outer two always;
    Z = the kept level below x with probability (b - x) / (b - a), else the kept level b above (a: the one below)

x: the Delta as one flat vector, fp32 [n], clipped to [-c, c] (`clip`) per element; m: `levels`; q: `keep`. The kept
level below is a geometric number of levels down, cut off at the outer one, the one above likewise; so one pass draws
two geometric gaps and one coin per element (Philox, one counter each) instead of m coins.
Body: the i, 1, 2, 4 or 8 bits each. Cost: 64 + n log2(m) / 8 B per payload, n - 1 payloads each way for n islands.
Raises: PayloadError for NaN or infinity, naming the tensor, and for a payload that it can't have made; ConfigError.
Deviates: coins of 32 bits, so that probabilities are off by up to 2**-32. The paper adds the i of many clients under
secure aggregation; here each payload is seen, and the accountant counts it so (local privacy).
WARNING: the coins follow from the run's seed, as all randomness does. The guarantee holds against those who do not know
it: draw it at random, and keep it from whoever may read the payloads.
Reduces to: stochastic rounding to m levels for keep = 1; the coin between the outer two for keep = 0; its mean is the
clipped Delta for every keep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from lowcomm_kernels.errors import NonFiniteError
from lowcomm_kernels.philox import philox4x32
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.flat import count, device_of, flatten, non_finite, unflatten
from lowcomm.codec.sparse import check_finite
from lowcomm.types import Delta, Payload, PayloadError, Round, require

PART = 1 << 16
"""Elements drawn at a time, a multiple of 8."""


@dataclass(frozen=True, kw_only=True)
class Rqm(Codec):
    """Randomised quantisation with a privacy guarantee, log2(levels) bits per parameter."""

    clip: float = 0.001
    """c: elements are clipped to [-clip, clip]; it must not be chosen by looking at the private data."""
    margin: float = 1.0
    """How far the levels reach beyond the clip, as a fraction of it, 0 or more: more is more private, and noisier."""
    levels: int = 16
    """m: 2, 4, 16 or 256."""
    keep: float = 0.5
    """q: probability that an inner level is kept, 0 to 1; less is more private and noisier."""

    linear: ClassVar[bool] = False

    def init(self, like: Delta) -> State:
        return {}

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        flat = flatten(delta)
        try:
            check_finite(flat)
        except NonFiniteError as error:
            raise non_finite(delta, error.index) from error
        data, body = wire.new(self._bytes(flat.numel()), flat.device)
        for start in range(0, flat.numel(), PART):
            part = flat[start : start + PART]
            codes = self.draw(part, round.own_seed(), start)
            at = start * self._bits // 8
            packed = _pack(codes, self._bits)
            body[at : at + packed.numel()] = packed
        return wire.seal(data, wire.CodecId.RQM, wire.shapes_hash(delta), round), state

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        numel = count(like)
        body = wire.unpack(payload, wire.CodecId.RQM, like, round, body_bytes=self._bytes(numel))
        flat, table = torch.empty(numel, device=device_of(like)), self.values().to(body.device)
        for start in range(0, numel, PART):
            part = flat[start : start + PART]
            raw = body[start * self._bits // 8 :][: self._bytes(part.numel())]
            codes = _unpack(raw, self._bits)
            if bool(codes[part.numel() :].any()):
                raise PayloadError("the unused bits of the payload's last byte are not 0")
            part.copy_(table[codes[: part.numel()].long()])
        return unflatten(flat, like)

    def draw(self, x: Tensor, seed: int, offset: int) -> Tensor:
        """uint8 [n]: level numbers of `x` (fp32 [n]), which starts at element `offset` of its vector."""
        top = self.levels - 1
        place = x.double().clamp(-self.clip, self.clip).div(self.clip * (1 + self.margin)).add(1).mul(top / 2)
        below = place.floor().clamp(max=top - 1)
        counters = torch.arange(offset, offset + x.numel(), device=x.device)
        down, up, coin, _ = philox4x32(counters, seed)
        low = (below - self._gaps(down)).clamp(min=0)
        high = (below + 1 + self._gaps(up)).clamp(max=top)
        chance = (place - low) / (high - low)
        return torch.where((coin.double() + 0.5) / 2**32 < chance, high, low).to(torch.uint8)

    def values(self) -> Tensor:
        """fp32 [levels]: what each level number is decoded as."""
        top, reach = self.levels - 1, self.clip * (1 + self.margin)
        return torch.tensor([reach * (2 * i - top) / top for i in range(self.levels)], dtype=torch.float32)

    def check(self) -> None:
        ok = math.isfinite(self.clip) and 0 < self.clip <= 1e30
        require(ok, "codec.clip", self.clip, "above 0, at most 1e30", "the size of a large element, known beforehand")
        require(0 <= self.margin <= 1000, "codec.margin", self.margin, "0 to 1000", "1 doubles the range")
        require(self.levels in (2, 4, 16, 256), "codec.levels", self.levels, "2, 4, 16 or 256", "16 is the paper's")
        require(0 <= self.keep <= 1, "codec.keep", self.keep, "0 to 1", "0.5 is usual")

    @property
    def _bits(self) -> int:
        return self.levels.bit_length() - 1

    def _bytes(self, numel: int) -> int:
        return -(-numel * self._bits // 8)

    def _gaps(self, words: Tensor) -> Tensor:
        """How many levels in a row are not kept: at least g with probability (1 - keep)**g."""
        bounds, chance = list[int](), 1.0
        for _ in range(self.levels - 1):
            chance *= 1 - self.keep
            bounds.append(round(chance * 2**32))
        table = torch.tensor(sorted(bounds), dtype=torch.int64, device=words.device)
        return len(bounds) - torch.searchsorted(table, words, right=True)


def _pack(codes: Tensor, bits: int) -> Tensor:
    per = 8 // bits
    rows = torch.nn.functional.pad(codes, (0, -codes.numel() % per)).view(-1, per)
    packed = torch.zeros(rows.shape[0], dtype=torch.uint8, device=codes.device)
    for i in range(per):
        packed |= rows[:, i] << (i * bits)
    return packed


def _unpack(packed: Tensor, bits: int) -> Tensor:
    per, mask = 8 // bits, (1 << bits) - 1
    return torch.stack([(packed >> (i * bits)) & mask for i in range(per)], dim=1).reshape(-1)
