"""The exchange of MoDeST: a sample's models to aggregators, their mean to the next sample.

The method, its equation and its limits stand in `modest`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowcomm.exchange.agreement import maximum
from lowcomm.exchange.base import Exchange, ExchangeParts
from lowcomm.exchange.worker import carry_out
from lowcomm.state.cohort import Cohort
from lowcomm.state.outgoing import Arrived, Outgoing, Pending
from lowcomm.state.report import Health
from lowcomm.topology import Churn
from lowcomm.transport.base import KEPT
from lowcomm.types import Part, Payload, PayloadError, Round, TransportError

NOTHING = torch.empty(0, dtype=torch.uint8)
PREFIX = "modest"


class SampledExchange(Exchange):
    """Two hops per round, among the islands that were drawn for them."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"
    hears_all: ClassVar[bool] = False
    stands_for_all: ClassVar[Literal["first", "mean"]] = "mean"

    def __init__(self, parts: ExchangeParts, *, sample: int, aggregators: int, fraction: float, churn: Churn) -> None:
        self.parts, self.churn = parts, churn
        self.sample, self.aggregators, self.fraction = sample, aggregators, fraction
        self.gone: frozenset[int] = frozenset()
        """Islands that are dead, as all have agreed."""
        self.holder: int | None = None
        """Whose weights are the newest, as all know."""

    def order(self, round_index: int) -> list[int]:
        """The islands that are there in a round, in the order in which they are drawn."""
        lost = self.churn.lost(round_index) | self.gone | frozenset(self.churn.relays)
        return [k for k in _drawn(self.parts.seed, round_index, self.parts.transport.islands) if k not in lost]

    def rests(self, island: int, step: int) -> bool:
        return island not in self.order(step // self.parts.every)[: self.sample]

    def absent(self) -> frozenset[int]:
        everybody = frozenset(range(self.parts.transport.islands))
        return frozenset() if self.holder is None else everybody - {self.holder}

    def unfinished(self, step: int) -> bool:
        return step % self.parts.every != 0  # those that rested have trained nothing

    def start(self, out: Outgoing) -> Pending:
        pending = Pending()
        carry_out(pending, lambda at: self._exchange(out, at))
        return pending

    def _exchange(self, out: Outgoing, pending: Pending) -> Arrived:
        transport, index = self.parts.transport, out.round.index
        before, missing = list(transport.sent_bytes), len(transport.lost)
        trained = self.order(index)[: self.sample]
        self.gone = self._agree()
        pending.called = time.perf_counter()
        if len(transport.lost) > missing and self.leaving():
            raise TransportError(f"islands {sorted(transport.lost)} have stopped, as this one is about to. {KEPT}")
        trained = [k for k in trained if k not in self.gone]
        now, following = set(self.order(index)), self.order(index + 1)
        takers = [k for k in following if k in now][: self.aggregators] or sorted(now)[: self.aggregators]
        models, unusable = self._weights(out), dict[int, str]()
        pending.cohort = self._cohort(out, trained, unusable)
        dropped = self._collect(out, models, trained, takers, unusable)
        dropped |= self._hand_on(out, models, takers, following[: self.sample])
        self.holder = takers[0]
        lost = self.churn.lost(index)
        for local, k in enumerate(transport.local):
            if k not in lost:
                out.anchors[local].weights.copy_(models[local])
                out.anchors[local].version += 1
        pending.cohort = self._cohort(out, trained, unusable)
        pending.sent_bytes = [now - then for now, then in zip(transport.sent_bytes, before, strict=True)]
        note = f"sample {trained}, aggregators {takers}, next sample {following[: self.sample]}"
        return Arrived(
            cohort=self._cohort(out, trained, {**unusable, **dropped}),
            updates=[],
            states=out.states,
            notes=(note,),
            adopters=tuple(i for i, k in enumerate(transport.local) if k not in lost),
            health=Health(components=1, spectral_gap=1.0, there=len(now)),
        )

    def _agree(self) -> frozenset[int]:
        """Islands whose process is gone, as all that are left know."""
        transport = self.parts.transport
        transport.gather_present([torch.zeros(1, dtype=torch.uint8) for _ in transport.local])
        lost = torch.tensor([k in transport.lost for k in range(transport.islands)], dtype=torch.uint8)
        gone = maximum(transport, [lost] * len(transport.local))
        return frozenset(k for k in range(transport.islands) if gone[k])

    def _weights(self, out: Outgoing) -> list[Tensor]:
        """Of each local island: what it trained; its anchor if it did not, or if that is not finite."""
        found: list[Tensor] = []
        for anchor, delta, norm in zip(out.anchors, out.deltas, out.norms, strict=True):
            found.append(anchor.weights - delta if math.isfinite(norm) else anchor.weights.clone())
        return found

    def _collect(
        self,
        out: Outgoing,
        models: list[Tensor],
        trained: Sequence[int],
        takers: Sequence[int],
        unusable: dict[int, str],
    ) -> dict[int, str]:
        """Hop one: the mean of the sample takes the place of each local aggregator's model."""
        transport, dropped = self.parts.transport, dict[int, str]()
        for local, k in enumerate(transport.local):
            if k in trained and not math.isfinite(out.norms[local]):
                unusable[k] = f"its pseudo-gradient is not finite (norm {out.norms[local]})"
        came = self._cross(out, models, trained, takers, unusable)
        for local, taker in enumerate(transport.local):
            if taker not in takers:
                continue
            heard = list[Tensor]()
            for k in trained:  # in the order of the draw, so that all aggregators have the same bits
                if k != taker:
                    model = self._decoded(out, came[local][k], k, dropped)
                else:
                    model = None if taker in unusable else models[local]
                heard += [] if model is None else [model]
            if len(heard) >= max(1, math.ceil(self.fraction * min(self.sample, len(trained)) - 1e-9)):
                models[local] = torch.stack(heard).mean(dim=0)
        return dropped

    def _hand_on(
        self, out: Outgoing, models: list[Tensor], takers: Sequence[int], following: Sequence[int]
    ) -> dict[int, str]:
        """Hop two: the first aggregator's mean that comes takes the place of what the next sample has."""
        dropped = dict[int, str]()
        came = self._cross(out, models, takers, following, {})
        for local, k in enumerate(self.parts.transport.local):
            if k not in following or k in takers:
                continue
            for taker in takers:
                model = self._decoded(out, came[local][taker], taker, dropped)
                if model is not None:
                    models[local] = model
                    break
        return dropped

    def _cross(
        self, out: Outgoing, models: Sequence[Tensor], senders: Collection[int], takers: Collection[int],
        silent: Mapping[int, str],
    ) -> list[list[Tensor | None]]:  # fmt: skip
        """Each sender's model to each taker: by local island, what came of whom. Bytes that can't be used are zeros."""
        transport, rows = self.parts.transport, list[list[Tensor]]()
        islands, size = range(transport.islands), 0
        encoded = [self._encoded(out, m, k) for m, k in zip(models, transport.local, strict=True)]
        size = encoded[0].numel()
        for k, row in zip(transport.local, encoded, strict=True):
            said = torch.zeros_like(row) if k in silent else row
            rows.append([said if k in senders and j in takers and j != k else NOTHING for j in islands])
        if not any(k in senders or k in takers for k in transport.local):
            return [[None] * transport.islands for _ in transport.local]
        coming = [[size if j in senders and k in takers and j != k else 0 for j in islands] for k in transport.local]
        return transport.swap_present(rows, coming)

    def _encoded(self, out: Outgoing, model: Tensor, sender: int) -> Tensor:
        named, at = out.fragment.views(model), self._from(out, sender)
        return self.parts.codec.encode(named, {}, at)[0].data.cpu()

    def _decoded(self, out: Outgoing, row: Tensor | None, sender: int, dropped: dict[int, str]) -> Tensor | None:
        """Flat, of the fragment's size; None, and the reason in `dropped`, where there is nothing to be used."""
        if row is None:
            dropped[sender] = "its process is gone"
            return None
        flat = torch.zeros(out.fragment.size, device=out.fragment.device)
        like = out.fragment.views(flat)
        payload = Payload(data=row.to(out.fragment.device))
        try:
            for name, value in self.parts.codec.decode(payload, like, self._from(out, sender)).items():
                like[name].copy_(value)
        except PayloadError as error:
            dropped[sender] = str(error)
            return None
        return flat

    def _from(self, out: Outgoing, sender: int) -> Round:
        return dataclasses.replace(out.round, island=sender)

    def _cohort(self, out: Outgoing, trained: Sequence[int], dropped: Mapping[int, str]) -> Cohort:
        """The sample, of equal weights, less those that are known to be left out here."""
        transport = self.parts.transport
        used = [k for k in trained if k not in dropped]
        norms, tokens = [0.0] * transport.islands, [0.0] * transport.islands
        for k, norm, count in zip(transport.local, out.norms, out.unsynced, strict=True):
            norms[k], tokens[k] = norm, count
        weights = [1 / len(used) if k in used else 0.0 for k in range(transport.islands)]
        return Cohort(weights=weights, tokens=tokens, dropped=dict(dropped), norms=norms)

    def global_part(self) -> Part:
        return {}, {PREFIX: {"gone": sorted(self.gone), "holder": self.holder}}

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """A run that goes on has all of its islands again."""
        self.gone, self.holder = frozenset(), values[PREFIX]["holder"]


@lru_cache(maxsize=8)
def _drawn(seed: int, round_index: int, islands: int) -> list[int]:
    """All islands by hash(seed, round, island)."""
    texts = [f"lowcomm sample {seed} {round_index} {k}".encode() for k in range(islands)]
    tickets = [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
    return sorted(range(islands), key=lambda k: (tickets[k], k))
