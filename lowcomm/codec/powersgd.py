"""PowerSGD: each matrix as a product of two thin ones, found by one power step from the last round's.

Vogels, Karimireddy, Jaggi, arXiv 1905.13727; rank that follows the spectrum: DiLoCoX, arXiv 2506.21263.

    P = orth(M Q_{t-1}),   Q_t = M^T P,   M is decoded as P Q_t^T
    r_t = ceil(mean over the last c rounds of r'_t),   r' = the number of directions that hold the share `energy`

M: a matrix of the Delta, fp32 [m, n] (tensors of more dimensions as matrices of their first); P: [m, r]; Q: [n, r],
kept as the warm start (`q.NAME` in the state, its largest entry 1, at the full rank, so that a spectrum that widens
again is seen); r: `rank`; c: `window`. Both factors in `bits`. Vectors, and matrices that would not get smaller, go as
bfloat16 (fp32 with bits=32).
With `energy`, the bits of a round are halved (not under 4) once its ranks sum to half of the full ones or less. The
state's `schedule` (int64 [rounds, 3]: round, sum of ranks, bits) records it, `ranks` the last c effective ranks.
Cost: 64 + 2 (T + 1) + r (m + n) bits / 8 summed over T matrices + 2 B for each other element, and 2 B per 256 numbers
with 8 or 4 bits; n - 1 payloads each way for n islands. With `energy` the size varies and is exchanged first.
Raises: PayloadError for NaN or infinity, naming the tensor, for factors that overflow, and for a payload that it can't
have made; ConfigError.
Deviates: the paper sums P over the workers between the two products, which takes two exchanges; here each island sends
both of its own factors once, and the mean has rank up to n r. DiLoCoX also changes H, which is the schedule's.
Reduces to: the identity for a rank that makes no matrix smaller, with bits=32; and, within rounding, on matrices whose
own rank is at most `rank`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from lowcomm_kernels.errors import NonFiniteError
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.bf16 import BF16
from lowcomm.codec.dense import Dense
from lowcomm.codec.flat import count, device_of, first_non_finite, flatten, non_finite, unflatten
from lowcomm.codec.int4 import Int4
from lowcomm.codec.int8 import Int8
from lowcomm.codec.low_rank import effective_rank, power_step, product
from lowcomm.codec.sparse import as_type, check_finite
from lowcomm.types import Delta, Payload, PayloadError, Round, require

CODERS: dict[int, Dense] = {16: BF16(), 8: Int8(), 4: Int4()}


@dataclass(frozen=True, kw_only=True)
class PowerSGD(Codec):
    """Low-rank factors with a warm start; use it inside ErrorFeedback."""

    rank: int = 4
    """Columns of each factor, at most."""
    bits: Literal[32, 16, 8, 4] = 16
    """Bits per number of the factors, at most."""
    energy: float | None = None
    """Share of the spectrum's squared norm that the ranks must hold, 0 < energy <= 1; None: the rank is fixed."""
    window: int = 5
    """Rounds over which effective ranks are averaged."""

    linear: ClassVar[bool] = False

    @property
    def fixed_size(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Not if the rank follows the spectrum."""
        return self.energy is None

    @property
    def sets_threads(self) -> bool:
        return True

    def note(self, state: State) -> str | None:
        if self.energy is None or not len(state["schedule"]):
            return None
        _, ranks, bits = state["schedule"][-1].tolist()
        return f"ranks {ranks} in all, {bits} bits"

    def init(self, like: Delta) -> State:
        shapes = self.matrices(like)
        generator = torch.Generator().manual_seed(0x505753)  # the same start on every island
        start = {
            f"q.{name}": torch.randn(n, self._full(m, n), generator=generator).to(device_of(like))
            for name, (m, n) in shapes.items()
        }
        if self.energy is None:
            return start
        ranks = torch.tensor([[self._full(m, n) for m, n in shapes.values()]], dtype=torch.int64)
        return {**start, "ranks": ranks.repeat(self.window, 1), "schedule": torch.zeros(0, 3, dtype=torch.int64)}

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        try:
            check_finite(flatten(delta))
        except NonFiniteError as error:
            raise non_finite(delta, error.index) from error
        shapes, after, steps, found = self.matrices(delta), dict(state), dict[str, tuple[Tensor, Tensor]](), list[int]()
        for name, shape in shapes.items():
            p, q, strength = power_step(delta[name].reshape(shape), state[f"q.{name}"])
            steps[name] = p, q
            if bool(strength.any()):  # zeros are no start for the next round
                after[f"q.{name}"] = q / q.abs().amax()  # its size is of no use, and the next product could overflow
            found.append(effective_rank(strength, 1.0 if self.energy is None else self.energy))
        ranks, bits = [self._full(m, n) for m, n in shapes.values()], int(self.bits)
        if self.energy is not None:
            ranks, bits = self._adapt(state, found, ranks)
            row = torch.tensor([[round.index, sum(ranks), bits]], dtype=torch.int64)
            after["schedule"] = torch.cat([state["schedule"], row])
            after["ranks"] = torch.cat([state["ranks"][1:], torch.tensor([found], dtype=torch.int64)])
        pairs = zip(steps.values(), ranks, strict=True)
        thin = [t[:, :r].reshape(-1) for (p, q), r in pairs for t in (p, q)]
        rest = [d.reshape(-1) for name, d in delta.items() if name not in shapes]
        head = torch.tensor([bits, *ranks], dtype=torch.int16).view(torch.uint8).to(device_of(delta))
        body = torch.cat([head, _write(thin, bits, head.device), _write(rest, max(bits, 16), head.device)])
        return wire.pack(wire.CodecId.POWER_SGD, delta, round, body), after

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        body = wire.unpack(payload, wire.CodecId.POWER_SGD, like, round)
        shapes = self.matrices(like)
        at = 2 * (len(shapes) + 1)
        bits, ranks = self._examine_head(body[:at], shapes)
        sizes = [size * r for (m, n), r in zip(shapes.values(), ranks, strict=True) for size in (m, n)]
        rest = count(like) - sum(m * n for m, n in shapes.values())
        middle = at + _bytes(sum(sizes), bits)
        size = middle + _bytes(rest, max(bits, 16))
        if body.numel() != size:
            raise PayloadError(f"the payload's body has {body.numel()} bytes, expected {size}")
        factors = list(_read(body[at:middle], sum(sizes), bits).split(sizes))
        vector = _read(body[middle:], rest, max(bits, 16))
        flat = torch.empty(count(like), device=device_of(like))
        parts, turn = unflatten(flat, like), iter(zip(factors[::2], factors[1::2], ranks, strict=True))
        for name, part in parts.items():
            if name in shapes:
                p, q, r = next(turn)
                product(p.view(-1, r), q.view(-1, r), part.view(shapes[name]))
            else:
                part.view(-1).copy_(vector[: part.numel()])
                vector = vector[part.numel() :]
        if first_non_finite(flat) is not None:
            raise PayloadError("the payload's factors are NaN, infinite or overflow fp32")
        return unflatten(flat, like)

    def check(self) -> None:
        require(self.rank >= 1, "codec.rank", self.rank, "1 or more", "4 suits most models")
        require(self.bits in (32, 16, 8, 4), "codec.bits", self.bits, "32, 16, 8 or 4", "16 is safe")
        ok = self.energy is None or 0 < self.energy <= 1
        require(ok, "codec.energy", self.energy, "0 < energy <= 1, or None", "0.95, or leave it out")
        require(1 <= self.window <= 1000, "codec.window", self.window, "1 to 1000 rounds", "5 is usual")

    def matrices(self, like: Delta) -> dict[str, tuple[int, int]]:
        """Shapes of the tensors that are sent as factors, by name: those that get smaller."""
        shapes = dict[str, tuple[int, int]]()
        for name, d in like.items():
            if d.dim() < 2 or d.numel() == 0:
                continue
            m, n = d.shape[0], d.numel() // d.shape[0]
            if self._full(m, n) * (m + n) < m * n:
                shapes[name] = (m, n)
        return shapes

    def _full(self, m: int, n: int) -> int:
        return min(self.rank, m, n, 0x7FFF)

    def _adapt(self, state: State, found: list[int], full: list[int]) -> tuple[list[int], int]:
        """Ranks and bits of this round, from the effective ranks of this and the last ones."""
        past = state["ranks"][1:].sum(dim=0).tolist()
        ranks = [math.ceil((p + f) / self.window) for p, f in zip(past, found, strict=True)]
        low = bool(full) and 2 * sum(ranks) <= sum(full)
        return ranks, max(4, self.bits // 2) if low else self.bits

    def _examine_head(self, head: Tensor, shapes: dict[str, tuple[int, int]]) -> tuple[int, list[int]]:
        if head.numel() != 2 * (len(shapes) + 1):
            raise PayloadError(
                f"the payload's body has {head.numel()} bytes, its ranks alone need {2 * len(shapes) + 2}"
            )
        bits, *ranks = as_type(head, torch.int16).tolist()
        adaptive = self.energy is not None
        if bits != self.bits and not (adaptive and bits == max(4, self.bits // 2)):
            raise PayloadError(f"the payload has factors of {bits} bits, expected {self.bits}")
        for r, (m, n) in zip(ranks, shapes.values(), strict=True):
            if not (1 <= r <= self._full(m, n) if adaptive else r == self._full(m, n)):
                raise PayloadError(f"the payload has a factor of rank {r}, expected {self._full(m, n)}")
        return bits, ranks


def _bytes(numel: int, bits: int) -> int:
    return 4 * numel if bits == 32 else CODERS[bits].body_bytes(numel)


def _write(parts: list[Tensor], bits: int, device: torch.device) -> Tensor:
    x = torch.cat(parts) if parts else torch.empty(0, device=device)
    if bits == 32:
        return x.view(torch.uint8)
    body = torch.empty(_bytes(x.numel(), bits), dtype=torch.uint8, device=device)
    CODERS[bits].write(x, body, 0, 0)
    return body


def _read(raw: Tensor, numel: int, bits: int) -> Tensor:
    """fp32 [numel]; NaN and infinity only with 32 bits. Raises PayloadError."""
    body = raw if raw.storage_offset() % 8 == 0 else raw.clone()
    if bits == 32:
        return body.view(torch.float32)
    CODERS[bits].examine(body, numel)
    out = torch.empty(numel, device=body.device)
    CODERS[bits].read(body, out)
    return out
