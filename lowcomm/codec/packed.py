"""A codec with an entropy stage behind it, which packs its bytes where the link is slow enough: `Int8() | Zstd()`.

No paper of its own; the stages name theirs.

    body -> stage(body) if it is shorter and `stage.pays`, else body

Body: 8 bytes, the number of bytes before packing, bit 63 set if they were packed; the header of the first codec's own
payload, which is checked again after unpacking; then the bytes. State: that of the first.
Cost: 72 B + what the first codec's body packs to, never more than 72 B over its own payload; n - 1 payloads each way
for n islands; sizes are exchanged first, 8 B.
Raises: as the parts; PayloadError for a length beyond what these shapes can need, before anything is unpacked.
Deviates: no paper.
Reduces to: its first codec, always: a stage loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.codec import wire
from lowcomm.codec.base import Codec, State
from lowcomm.codec.flat import count
from lowcomm.codec.sparse import as_type
from lowcomm.codec.stage import Stage
from lowcomm.types import Delta, Payload, PayloadError, Round, require

PACKED = 1 << 63
HEAD_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Packed(Codec):
    """A codec whose payloads an entropy stage packs; write it with `|`."""

    first: Codec
    """What makes the payload."""
    stage: Stage
    """What packs its bytes, without loss."""

    linear: ClassVar[bool] = False
    fixed_size: ClassVar[bool] = False

    @property
    def sets_threads(self) -> bool:
        return self.first.sets_threads

    def init(self, like: Delta) -> State:
        return self.first.init(like)

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        inner, after = self.first.encode(delta, state, round)
        head, raw = inner.data[: wire.HEADER_BYTES], inner.data[wire.HEADER_BYTES :]
        plain = raw.cpu().numpy().tobytes()
        small = self.stage.pack(plain) if self.stage.pays(plain, round.link_bytes_per_s) else plain
        packed = len(small) < len(plain)
        number = len(plain) - PACKED if packed else len(plain)  # bit 63 is the sign
        size = torch.tensor([number], dtype=torch.int64).view(torch.uint8)
        rest = torch.frombuffer(bytearray(small), dtype=torch.uint8) if packed else raw
        body = torch.cat([size.to(raw.device), head, rest.to(raw.device)])
        return wire.pack(self.stage.codec_id, delta, round, body), after

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        body = wire.unpack(payload, self.stage.codec_id, like, round)
        return self.first.decode(Payload(data=self._unpacked(body, most_bytes(like))), like, round)

    def check(self) -> None:
        self.first.check()
        self.stage.check()
        single = not isinstance(self.first, Packed)
        require(single, "codec.first", self.first, "a codec without an entropy stage", "one stage at the end")

    def _unpacked(self, body: Tensor, most: int) -> Tensor:
        """The first codec's payload; `most`: bytes of its body, at most. Raises PayloadError."""
        at = HEAD_BYTES + wire.HEADER_BYTES
        if body.numel() < at:
            raise PayloadError(f"the payload's body has {body.numel()} bytes, its lengths and header need {at}")
        number = int(as_type(body[:HEAD_BYTES], torch.int64))
        head, rest = body[HEAD_BYTES:at], body[at:]
        size = number + PACKED if number < 0 else number
        if size > most:
            raise PayloadError(f"the payload says that it unpacks to {size} bytes, at most {most} are possible")
        if number >= 0:
            return torch.cat([head, rest])
        raw = self.stage.unpack(bytes(rest.cpu().numpy()), size)
        plain = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        return torch.cat([head, plain.to(body.device)])


def most_bytes(like: Delta) -> int:
    """A body longer than this is no codec's: what is packed may not claim more."""
    return 8 * count(like) + 1024 * len(like) + 65536
