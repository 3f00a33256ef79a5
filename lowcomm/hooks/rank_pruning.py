"""The pruning of LoRA ranks inside a run: who decides, what is said, sent and kept.

An island decides by what it has trained and says its new rank in the roll call, 8 B. Payloads then hold the factors'
rows of that rank, of sizes that all know, and once the round is committed the island goes on with it; one that was left
out keeps the rank that it had. `ranks` is the same list on every island.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowcomm.aggregate.lora.rule import FACTOR, LoraRule, clear_beyond, cut_factor
from lowcomm.hooks.base import Hook
from lowcomm.state.cohort import Cohort, Section
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.replica import Replica
from lowcomm.transport import Transport
from lowcomm.types import Delta, Part

SECTION = "ranks"


class RankPruning(Hook):
    """Keeps each island's rank of now."""

    def __init__(self, rule: LoraRule, replicas: Sequence[Replica], transport: Transport) -> None:
        self.rule, self.replicas, self.transport = rule, replicas, transport
        self.ranks = [rule.rank] * transport.islands if rule.ranks is None else list(rule.ranks)

    @property
    def numbers(self) -> int:
        return 1

    @torch.no_grad()
    def release(self, out: Outgoing) -> None:
        """Say the rank with which each local island goes on after what it has trained; send its rows only."""
        own = [self._next(out, r, k) for r, k in zip(self.replicas, self.transport.local, strict=True)]
        had = [[float(rank)] for rank in self.ranks]
        out.sections[SECTION] = Section(own=[[float(rank)] for rank in own], otherwise=had, refuse=self.refuse)
        out.cut = cut_to_rank

    def refuse(self, island: int, said: Sequence[float]) -> str | None:
        """Why an island can't have the rank that it says: ranks only shrink."""
        ok = 1 <= said[0] <= self.ranks[island]
        return None if ok else f"its rank is {said[0]:g}, it had {self.ranks[island]}"

    def _next(self, out: Outgoing, replica: Replica, island: int) -> int:
        rank, after = self.ranks[island], {name: replica.held[name].detach() for name in out.fragment.names}
        got = out.anchors[0].named
        before = {n: self.rule.local(n, view, island, rank).to(after[n].dtype) for n, view in got.items()}
        return self.rule.next_rank(self.rule.adapters(after, island, rank), self.rule.adapters(before, island, rank))

    @torch.no_grad()
    def before_write(self, out: Outgoing, arrived: Arrived) -> None:
        """Take the cohort's ranks. Moments of rows that are gone would move them again: they go as well."""
        said, weights = arrived.cohort.sections[SECTION], arrived.cohort.weights
        now = [int(new[0]) if w != 0 else old for new, old, w in zip(said, self.ranks, weights, strict=True)]
        for replica, island in zip(self.replicas, self.transport.local, strict=True):
            if now[island] < self.ranks[island]:
                for name, p in replica.params.items():
                    if FACTOR.fullmatch(name) and p in replica.inner.state:
                        forget_rows(name, p, replica.inner.state[p], now[island])
        self.ranks = now

    def note(self, arrived: Arrived) -> str:
        """Every island's rank, and what its link carried of payloads, in island order."""
        others, total = self.transport.islands - 1, sum(arrived.payload_bytes)
        sent = " ".join(f"{others * n:,}" for n in arrived.payload_bytes)
        received = " ".join(f"{total - n:,}" for n in arrived.payload_bytes)
        return f"ranks {' '.join(map(str, self.ranks))}; payload bytes sent {sent}, received {received}"

    def global_part(self) -> Part:
        return {}, {"ranks": self.ranks}

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.ranks = values.get("ranks", self.ranks)


def cut_to_rank(whole: Delta, island: int, cohort: Cohort) -> Delta:
    """What the island sends of a Delta, as views: rows (A) and columns (B) of its rank."""
    rank = int(cohort.sections[SECTION][island][0])
    return {name: cut_factor(name, t, rank) for name, t in whole.items()}


def forget_rows(name: str, p: Tensor, state: dict[str, Any], rank: int) -> None:
    """Zero what lies beyond the rank in moments of the factor's shape; a state in another basis (SOAP) starts anew."""
    moments = [m for m in state.values() if isinstance(m, Tensor) and m.ndim > 0]
    if any(isinstance(value, list) for value in state.values()) or any(m.shape != p.shape for m in moments):
        state.clear()
    else:
        for moment in moments:
            clear_beyond(name, moment, rank)
