"""The message of gossip from an island to a neighbour: 32 bytes, then its payloads, of one size each.

    offset  bytes  field (little-endian)
         0      8  1 if the payloads can be used, 0 if its sender's pseudo-gradient is not finite: zeros follow
         8      8  L2 norm of the sender's pseudo-gradient, fp64
        16      8  digest of what the receiver knows of the sender, which a payload adds to
        24      8  digest of what the sender knows of the receiver

The digests are xxh3-128 cut to 8 bytes, zeros where no copies are kept. A message has the same size whatever it says,
so that its receiver always knows how many bytes to wait for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.types import Payload

HEAD = struct.Struct("<Qd8s8s")
NO_COPY = bytes(8)


@dataclass(frozen=True, kw_only=True)
class NeighbourMessage:
    """What one island says to one neighbour in a round."""

    usable: bool
    norm: float
    payloads: tuple[Payload, ...]
    """One for each vector that the rule sends."""
    sent: bytes = NO_COPY
    """Digest of the sender's copy of what the receiver knows of it."""
    heard: bytes = NO_COPY
    """Digest of what the sender knows of the receiver."""

    def row(self) -> Tensor:
        """As it crosses: uint8, 1-D, on the CPU."""
        head = HEAD.pack(int(self.usable), self.norm, self.sent, self.heard)
        return torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), *(p.data.cpu() for p in self.payloads)])

    @classmethod
    def of(cls, row: Tensor, device: torch.device, payloads: int = 1) -> NeighbourMessage:
        """The message that came as `row`; its payloads, so many of one size, on `device`, not yet checked."""
        usable, norm, sent, heard = HEAD.unpack_from(bytes(row[: HEAD.size].numpy()))
        parts = row[HEAD.size :].to(device).view(payloads, -1)
        return cls(
            usable=usable == 1, norm=norm, payloads=tuple(Payload(data=p) for p in parts), sent=sent, heard=heard
        )

    def agrees(self, own: NeighbourMessage) -> bool:
        """Whether both islands hold the same two copies, as this message and the one that went the other way say."""
        return self.sent == own.heard and self.heard == own.sent
