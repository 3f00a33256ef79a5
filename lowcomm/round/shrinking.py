"""Ranks of LoRA factors that shrink inside a run: who decides, what is told, sent and kept.

An island decides by what it has trained (`decide`) and says its new rank in the roll call, 8 B. Payloads then hold the
factors' rows of that rank (`part`), of sizes that all know, and once the round is committed the island goes on with it
(`adopt`); one that was left out keeps the rank that it had. `LocalSGD.ranks` is the same list on every island.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregator
from lowcomm.aggregate.lora.rule import FACTOR, LoraRule, clear_beyond, cut_factor
from lowcomm.codec.base import Codec
from lowcomm.round.roll_call import RollCall
from lowcomm.types import Delta, Round

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


def first_ranks(aggregator: Aggregator, islands: int) -> list[int]:
    """Rank of each island at the start; empty where ranks stay as they are."""
    if not (isinstance(aggregator, LoraRule) and aggregator.shrinks):
        return []
    return [aggregator.rank] * islands if aggregator.ranks is None else list(aggregator.ranks)


def rank_now(sync: LocalSGD, island: int) -> int | None:
    """The island's rank; None: the rule's own for it."""
    return sync.ranks[island] if sync.ranks else None


@torch.no_grad()
def decide(sync: LocalSGD, index: int) -> list[int]:
    """The rank with which each local island goes on after what it has trained; empty where ranks stay."""
    rule, fragment = sync.aggregator, sync.fragments[index]
    if not (sync.ranks and isinstance(rule, LoraRule)):
        return []
    found: list[int] = []
    for replica, island in zip(sync.replicas, sync.transport.local, strict=True):
        rank, after = sync.ranks[island], {name: replica.held[name].detach() for name in fragment.names}
        got = fragment.views(fragment.weights)
        before = {name: rule.local(name, view, island, rank).to(after[name].dtype) for name, view in got.items()}
        found.append(rule.next_rank(rule.adapters(after, island, rank), rule.adapters(before, island, rank)))
    return found


def part(roll: RollCall, whole: Delta, island: int) -> Delta:
    """What the island sends of a Delta, as views: rows (A) and columns (B) of its rank, where ranks shrink."""
    return {n: cut_factor(n, t, roll.ranks[island]) for n, t in whole.items()} if roll.ranks else whole


def sizes_bytes(codec: Codec, like: Delta, roll: RollCall, round: Round) -> list[int]:
    """Size of each island's payload, which a codec of fixed size gives by its shapes; 0 of one that sends nothing."""
    by_rank: dict[int, int] = {}
    for island, rank in enumerate(roll.ranks):
        if roll.weights[island] != 0 and rank not in by_rank:
            zeros = {name: torch.zeros_like(t) for name, t in part(roll, like, island).items()}
            by_rank[rank] = codec.encode(zeros, codec.init(zeros), round)[0].nbytes
    return [by_rank[r] if w != 0 else 0 for r, w in zip(roll.ranks, roll.weights, strict=True)]


@torch.no_grad()
def adopt(sync: LocalSGD, roll: RollCall) -> None:
    """The ranks of a committed round. Moments of rows that are gone would move them again: they go as well."""
    if not roll.ranks:
        return
    now = [new if w != 0 else old for new, old, w in zip(roll.ranks, sync.ranks, roll.weights, strict=True)]
    for replica, island in zip(sync.replicas, sync.transport.local, strict=True):
        if now[island] < sync.ranks[island]:
            for name, p in replica.params.items():
                if FACTOR.fullmatch(name) and p in replica.inner.state:
                    _forget(name, p, replica.inner.state[p], now[island])
    sync.ranks = now


def told_ranks(sync: LocalSGD, payload_bytes: Sequence[int]) -> str:
    """One line for the log: every island's rank, and what its link carried of payloads, in island order."""
    others, total = sync.transport.islands - 1, sum(payload_bytes)
    sent = " ".join(f"{others * n:,}" for n in payload_bytes)
    received = " ".join(f"{total - n:,}" for n in payload_bytes)
    return f"ranks {' '.join(map(str, sync.ranks))}; payload bytes sent {sent}, received {received}"


def _forget(name: str, p: Tensor, state: dict[str, Any], rank: int) -> None:
    """Zeros beyond the rank, in moments of the factor's shape; a state in another basis (SOAP) starts anew."""
    moments = [m for m in state.values() if isinstance(m, Tensor) and m.ndim > 0]
    if any(isinstance(value, list) for value in state.values()) or any(m.shape != p.shape for m in moments):
        state.clear()
    else:
        for moment in moments:
            clear_beyond(name, moment, rank)
