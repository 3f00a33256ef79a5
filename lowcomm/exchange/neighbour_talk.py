"""One message with each neighbour: what a local island says, and how far what came is from it.

With the codec Fp32 a message holds the vectors themselves; with another one what the public copies lack.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowcomm.codec import Fp32
from lowcomm.exchange.base import ExchangeParts
from lowcomm.exchange.neighbour_message import NeighbourMessage
from lowcomm.exchange.public_copies import PublicCopies
from lowcomm.mixing import Place, Rule
from lowcomm.state.outgoing import Outgoing
from lowcomm.types import Payload, PayloadError, Round

NOTHING = torch.empty(0, dtype=torch.uint8)


@dataclass(kw_only=True)
class Side:
    """One local island's part of a step of mixing."""

    local: int
    place: Place
    said: tuple[Tensor, ...]
    """The vectors of its message."""
    messages: dict[int, NeighbourMessage] = field(default_factory=dict)
    """To each neighbour."""
    unusable: str | None = None
    """Why there are only zeros in them."""

    def rows(self, islands: int) -> list[Tensor]:
        """Bytes to each island; the same message is made into bytes once."""
        made: dict[int, Tensor] = {}
        rows = [NOTHING] * islands
        for j, message in self.messages.items():
            if id(message) not in made:
                made[id(message)] = message.row()
            rows[j] = made[id(message)]
        return rows


class Talk:
    """Encodes and decodes the messages of this process's islands."""

    def __init__(self, rule: Rule, parts: ExchangeParts) -> None:
        self.rule, self.parts = rule, parts
        self.copies = None if isinstance(parts.codec, Fp32) else PublicCopies(parts.anchors)

    def say(self, out: Outgoing, place: Place, local: int, neighbours: Sequence[int], norm: float) -> Side:
        """The messages of a local island; where it has nothing to send, its weights are its anchor's."""
        if self.copies is not None:
            for j in neighbours:
                self.copies.meet((out.index, local, j))
        try:
            if not math.isfinite(norm):
                raise PayloadError(f"its pseudo-gradient is not finite (norm {norm})")
            side = Side(local=local, place=place, said=self.rule.say(place))
            payloads = self._payloads(out, side, neighbours)
        except PayloadError as error:
            place.delta.zero_()
            side = Side(local=local, place=place, said=self.rule.say(place), unusable=str(error))
            zeros = torch.zeros_like(place.anchor)
            silence = Payload(data=self._encode(out, zeros, local).data.zero_())
            payloads = dict.fromkeys(neighbours, (silence,) * len(side.said))
        whole: dict[int, NeighbourMessage] = {}
        for j, payload in payloads.items():
            if id(payload) not in whole:
                whole[id(payload)] = NeighbourMessage(usable=side.unusable is None, norm=norm, payloads=payload)
            message = whole[id(payload)]
            if self.copies is not None:
                sent, heard = self.copies.digests((out.index, local, j))
                message = dataclasses.replace(message, sent=sent, heard=heard)
            side.messages[j] = message
        return side

    def _payloads(self, out: Outgoing, side: Side, neighbours: Sequence[int]) -> dict[int, tuple[Payload, ...]]:
        """To each neighbour: the same for all without copies, else what it does not know yet."""
        copies, local = self.copies, side.local
        if copies is None:
            same = tuple(self._encode(out, v, local) for v in side.said) if neighbours else ()
            return dict.fromkeys(neighbours, same)
        (vector,) = side.said
        return {j: (self._encode(out, vector - copies.sent[out.index, local, j], local),) for j in neighbours}

    def differences(self, out: Outgoing, side: Side, j: int, came: Tensor) -> tuple[tuple[Tensor, ...], float]:
        """Neighbour j's vectors minus this island's, and the norm of its pseudo-gradient.

        Raises PayloadError where the neighbour can't be heard; copies are as it has them.
        """
        own, copies = side.messages[j], self.copies
        theirs = NeighbourMessage.of(came, side.place.anchor.device, len(own.payloads))
        me, edge = self.parts.transport.local[side.local], (out.index, side.local, j)
        if not theirs.agrees(own):
            if copies is not None:
                copies.reset(edge)
            raise PayloadError(f"islands {me} and {j} know each other differently: their copies begin anew")
        if copies is not None and own.usable:
            copies.sent[edge].add_(self._decode(out, own.payloads[0], me))
        if not theirs.usable:
            raise PayloadError("its pseudo-gradient is not finite")
        news = [self._decode(out, payload, j) for payload in theirs.payloads]
        if copies is None:
            return tuple(n.sub_(v) for n, v in zip(news, side.said, strict=True)), theirs.norm
        copies.heard[edge].add_(news[0])
        known = copies.sent[edge] if own.usable else side.said[0]
        return (copies.heard[edge] - known,), theirs.norm

    def _encode(self, out: Outgoing, flat: Tensor, local: int) -> Payload:
        codec, named = self.parts.codec.at(out.round), out.fragment.views(flat)
        return codec.encode(named, codec.init(named), self._from(out, self.parts.transport.local[local]))[0]

    def _decode(self, out: Outgoing, payload: Payload, sender: int) -> Tensor:
        """Flat, of the fragment's size. Raises PayloadError."""
        flat = torch.zeros(out.fragment.size, device=payload.data.device)
        like = out.fragment.views(flat)
        for name, value in self.parts.codec.at(out.round).decode(payload, like, self._from(out, sender)).items():
            like[name].copy_(value)
        return flat

    def _from(self, out: Outgoing, sender: int) -> Round:
        return dataclasses.replace(out.round, island=sender)
