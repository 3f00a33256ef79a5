"""The exchange of gossip: one message with each neighbour of a round, and every local island's update from what came.

The method, its equation and its limits stand in `gossip`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowcomm.codec import Fp32
from lowcomm.exchange.base import Exchange, ExchangeParts
from lowcomm.exchange.neighbour_message import NeighbourMessage
from lowcomm.exchange.public_copies import PublicCopies
from lowcomm.exchange.worker import carry_out
from lowcomm.state.cohort import Cohort
from lowcomm.state.norms import l2_norm
from lowcomm.state.outgoing import Arrived, Outgoing, Pending
from lowcomm.topology import Topology, mixing, spectral_gap
from lowcomm.transport.base import KEPT
from lowcomm.types import Part, Payload, PayloadError, Round, TransportError


@dataclass(kw_only=True)
class Side:
    """One local island's part of a round."""

    weights: Tensor
    """x_k, flat, of the fragment's size."""
    messages: dict[int, NeighbourMessage]
    """To each neighbour."""
    unusable: str | None


class NeighbourExchange(Exchange):
    """Swaps one message with each neighbour and makes each local island's update of it."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"
    hears_all: ClassVar[bool] = False
    stands_for_all: ClassVar[Literal["first", "mean"]] = "mean"

    def __init__(self, topology: Topology, gamma: float, parts: ExchangeParts) -> None:
        self.topology, self.gamma, self.parts = topology, gamma, parts
        self.copies = None if isinstance(parts.codec, Fp32) else PublicCopies(parts.anchors)

    def start(self, out: Outgoing) -> Pending:
        pending = Pending()
        carry_out(pending, lambda at: self._exchange(out, at))
        return pending

    def _exchange(self, out: Outgoing, pending: Pending) -> Arrived:
        transport, parts = self.parts.transport, self.parts
        matrix = mixing(self.topology, out.round.index, transport.islands, parts.seed)
        sides = [self._leave(out, i, _neighbours(matrix, k)) for i, k in enumerate(transport.local)]
        lost = {k: side.unusable for k, side in zip(transport.local, sides, strict=True) if side.unusable}
        norms = [0.0] * transport.islands
        for k, norm in zip(transport.local, out.norms, strict=True):
            norms[k] = norm
        first = matrix[transport.local[0]]
        pending.cohort = self._cohort(out, first, range(transport.islands), lost, norms)
        before, pending.called, missing = list(transport.sent_bytes), time.perf_counter(), len(transport.lost)
        nothing = torch.empty(0, dtype=torch.uint8)
        rows = [{j: message.row() for j, message in side.messages.items()} for side in sides]
        everyone = [[row.get(j, nothing) for j in range(transport.islands)] for row in rows]
        came = transport.swap_present(everyone, [[row.numel() for row in mine] for mine in everyone])
        if len(transport.lost) > missing and self.leaving():
            raise TransportError(f"islands {sorted(transport.lost)} have stopped, as this one is about to. {KEPT}")
        dropped, notes, heard = dict(lost), list[str](), set[int]()
        if out.round.index == 0:
            gap = spectral_gap(self.topology, transport.islands, parts.seed)
            notes.append(f"{self.topology} of {transport.islands} islands has a spectral gap of {gap:.3g}")
        for i, side in enumerate(sides):
            far = self._mix(out, i, side, came[i], matrix[transport.local[i]], dropped, norms)
            if i == 0 and far:
                heard = far.keys()
                told = ", ".join(f"{distance:.4g} from island {j}" for j, distance in far.items())
                notes.append(f"island {transport.local[0]} was {told}")
        pending.sent_bytes = [now - then for now, then in zip(transport.sent_bytes, before, strict=True)]
        updates = [(anchor, out.deltas[anchor.local[0]]) for anchor in out.anchors]
        cohort = self._cohort(out, first, heard, dropped, norms)
        return Arrived(cohort=cohort, updates=updates, states=out.states, notes=tuple(notes))

    def _leave(self, out: Outgoing, local: int, neighbours: Sequence[int]) -> Side:
        """The messages of a local island; where it has nothing to send, its weights are its anchor's."""
        norm, anchor, index = out.norms[local], out.anchors[local], out.index
        if self.copies is not None:
            for j in neighbours:
                self.copies.meet((index, local, j))
        weights, why = anchor.weights - out.deltas[local], None
        payloads: dict[int, Payload] = {}
        try:
            if not math.isfinite(norm):
                raise PayloadError(f"its pseudo-gradient is not finite (norm {norm})")
            payloads = {j: self._encode(out, self._news(index, local, j, weights), local) for j in neighbours}
        except PayloadError as error:
            weights, why = anchor.weights.clone(), str(error)
            out.deltas[local].zero_()
            silence = self._encode(out, torch.zeros_like(weights), local).data.zero_()
            payloads = {j: Payload(data=silence) for j in neighbours}
        messages: dict[int, NeighbourMessage] = {}
        for j, payload in payloads.items():
            messages[j] = NeighbourMessage(usable=why is None, norm=norm, payload=payload)
            if self.copies is not None:
                sent, heard = self.copies.digests((index, local, j))
                messages[j] = dataclasses.replace(messages[j], sent=sent, heard=heard)
        return Side(weights=weights, messages=messages, unusable=why)

    def _mix(
        self,
        out: Outgoing,
        local: int,
        side: Side,
        came: Sequence[Tensor | None],
        row: list[float],
        dropped: dict[int, str],
        norms: list[float],
    ) -> dict[int, float]:
        """Turn a local island's Delta into its update; its distance from each neighbour that it heard."""
        far: dict[int, float] = {}
        for j, own in side.messages.items():
            arrived = came[j]
            if arrived is None:
                dropped[j] = "its process is gone"
                continue
            try:
                theirs = NeighbourMessage.of(arrived, side.weights.device)
                norms[j] = theirs.norm
                difference = self._difference(out, local, j, side, own, theirs)
            except PayloadError as error:
                dropped[j] = str(error)
                continue
            far[j] = float(l2_norm(difference))
            out.deltas[local].sub_(difference, alpha=row[j] * self.gamma)
        return far

    def _difference(
        self, out: Outgoing, local: int, j: int, side: Side, own: NeighbourMessage, theirs: NeighbourMessage
    ) -> Tensor:
        """xhat_j - xhat_k, flat. Raises PayloadError where the neighbour can't be heard; copies are as it has them."""
        me, edge = self.parts.transport.local[local], (out.index, local, j)
        if not theirs.agrees(own):
            if self.copies is not None:
                self.copies.reset(edge)
            raise PayloadError(f"islands {me} and {j} know each other differently: their copies begin anew")
        copies = self.copies
        if copies is not None and own.usable:
            copies.sent[edge].add_(self._decode(out, own.payload, me))
        if not theirs.usable:
            raise PayloadError("its pseudo-gradient is not finite")
        news = self._decode(out, theirs.payload, j)
        if copies is None:
            return news.sub_(side.weights)
        copies.heard[edge].add_(news)
        return copies.heard[edge] - (copies.sent[edge] if own.usable else side.weights)

    def _news(self, index: int, local: int, j: int, weights: Tensor) -> Tensor:
        """What neighbour j does not know of these weights: all of them where no copies are kept."""
        return weights if self.copies is None else weights - self.copies.sent[index, local, j]

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

    def _cohort(
        self, out: Outgoing, row: list[float], heard: Collection[int], dropped: Mapping[int, str], norms: list[float]
    ) -> Cohort:
        """As the first local island sees it: its row of W, and norms of 0 of islands that are not heard here."""
        transport, me = self.parts.transport, self.parts.transport.local[0]
        tokens, weights = [0.0] * transport.islands, [w if j in heard else 0.0 for j, w in enumerate(row)]
        weights[me] = 1.0 - sum(w for j, w in enumerate(weights) if j != me)
        for k, count in zip(transport.local, out.unsynced, strict=True):
            tokens[k] = count
        return Cohort(weights=weights, tokens=tokens, dropped=dict(dropped), norms=list(norms))

    def global_part(self) -> Part:
        return ({}, {}) if self.copies is None else self.copies.global_part()

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if self.copies is not None:
            self.copies.load_global(tensors)

    def island_part(self, local: int) -> Part:
        return ({}, {}) if self.copies is None else self.copies.island_part(local)

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if self.copies is not None:
            self.copies.load_island(local, tensors)


def _neighbours(matrix: list[list[float]], island: int) -> list[int]:
    return [j for j, w in enumerate(matrix[island]) if j != island and w != 0]
