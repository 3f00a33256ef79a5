"""What the dense codecs share: every element is sent, and a vector may be cut at block bounds and decoded in parts.

A part has the bytes that the whole would have there, so a compressed all-reduce and one payload of the whole agree.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from lowcomm_kernels.errors import NonFiniteError
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.flat import count, device_of, flatten, non_finite, unflatten
from lowcomm.types import Delta, Payload, Round, require


@dataclass(frozen=True, kw_only=True)
class Dense(Codec):
    """Base of the codecs that send every element in a body of fixed size.

    Subclasses give six small functions of a flat vector `x` (fp32 [n]) and its body (uint8 [body_bytes(n)]).
    """

    exchange: Literal["reduce", "gather"] = "reduce"
    """reduce: all-to-all of packed chunks, sum, encode again, all-gather: 2 (n - 1) / n payloads each way (two islands
    gather: the same bytes); gather: n - 1 payloads, one rounding less, and each contribution is seen (robust rules)."""

    linear: ClassVar[bool] = False
    codec_id: ClassVar[wire.CodecId]

    @property
    def granule(self) -> int:
        """Elements: where a vector may be cut (at multiples of it)."""
        return 256

    @property
    def sums_on_the_way(self) -> bool:
        return self.exchange == "reduce"

    @property
    def only_sums(self) -> bool:
        """Whether contributions are combined packed (votes), so that gathering them would give something else."""
        return False

    @abstractmethod
    def body_bytes(self, numel: int) -> int:
        """Size of the body of `numel` elements."""

    @abstractmethod
    def write(self, x: Tensor, body: Tensor, seed: int, offset: int) -> None:
        """Encode `x`, which starts at element `offset` of the vector. Raises NonFiniteError (index within `x`)."""

    @abstractmethod
    def write_fed_back(
        self, x: Tensor, error: Tensor, error_out: Tensor, beta: float, body: Tensor, seed: int, offset: int
    ) -> None:
        """Encode d = x + beta * error; error_out = d - decoded. Raises NonFiniteError."""

    @abstractmethod
    def read(self, body: Tensor, out: Tensor) -> None:
        """out = decoded; `body` has passed `examine`."""

    @abstractmethod
    def add(self, body: Tensor, total: Tensor, weight: float) -> None:
        """total += weight * decoded, product and sum rounded one after the other; `body` has passed `examine`."""

    @abstractmethod
    def examine(self, body: Tensor, numel: int) -> None:
        """Raise PayloadError for a body (of the right size) that `write` can't have made."""

    def sum_bodies(self, bodies: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
        """out = sum_k weights[k] * decoded_k, from zero and in order; bodies have passed `examine`."""
        out.zero_()
        for body, weight in zip(bodies, weights, strict=True):
            self.add(body, out, weight)

    def merge(self, bodies: Sequence[Tensor], weights: Sequence[float], out: Tensor, body: Tensor, seed: int) -> bool:
        """Combine packed contributions straight into `body` without decoding (votes); False: there is no such way.

        out: fp32 scratch of the elements' number.
        """
        return False

    def init(self, like: Delta) -> State:
        return {}

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        flat = flatten(delta)
        data, body = wire.new(self.body_bytes(flat.numel()), flat.device)
        try:
            self.write(flat, body, round.own_seed(), 0)
        except NonFiniteError as error:
            raise non_finite(delta, error.index) from error
        return wire.seal(data, self.codec_id, wire.shapes_hash(delta), round), state

    def encode_fed_back(
        self, delta: Delta, error: Tensor, error_out: Tensor, beta: float, state: State, round: Round
    ) -> tuple[Payload, State]:
        flat = flatten(delta)
        data, body = wire.new(self.body_bytes(flat.numel()), flat.device)
        try:
            self.write_fed_back(flat, error, error_out, beta, body, round.own_seed(), 0)
        except NonFiniteError as failure:
            raise non_finite(delta, failure.index) from failure
        return wire.seal(data, self.codec_id, wire.shapes_hash(delta), round), state

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        body = self._checked(payload, like, round)
        flat = torch.empty(count(like), device=device_of(like))
        self.read(body, flat)
        return unflatten(flat, like)

    def accumulate(self, payload: Payload, weight: float, total: Delta, round: Round | None = None) -> None:
        body = self._checked(payload, total, round)
        flat = flatten(total)
        self.add(body, flat, weight)
        for name, value in unflatten(flat, total).items():
            if value.data_ptr() != total[name].data_ptr():  # `flatten` had to copy
                total[name].copy_(value)

    def check(self) -> None:
        fix = "reduce sends least, gather suits two islands and robust aggregators"
        require(self.exchange in ("reduce", "gather"), "codec.exchange", self.exchange, "reduce or gather", fix)

    def _checked(self, payload: Payload, like: Delta, round: Round | None) -> Tensor:
        numel = count(like)
        body = wire.unpack(payload, self.codec_id, like, round, body_bytes=self.body_bytes(numel))
        self.examine(body, numel)
        return body
