"""Gossip: each island has weights of its own and mixes them with a few neighbours'; nothing goes to anybody else.

Lian et al., D-PSGD, arXiv 1705.09056 (here after H local steps: D-SGD); Koloskova, Stich, Jaggi, CHOCO-SGD, arXiv
1902.00340, with a compressing codec; with a Nesterov outer optimizer a method of the kind of NoLoCo, arXiv 2506.10911.

    x_k = a_k - Delta_k;   target_k = x_k + gamma sum_j W_kj (xhat_j - xhat_k);   a_k <- outer(a_k, a_k - target_k)

a_k: island k's own anchor. W: `topology.mixing`. xhat: the weights themselves with Fp32, else `public_copies`, two per
neighbour. Bytes per island and round: d (32 + payload) each way, d neighbours, whatever the number of islands.
A neighbour that is dead, refused or not finite leaves its weight to the diagonal; an island whose own Delta is not
finite mixes its anchor and starts its inner optimizer anew. The global weights are the mean of the islands' anchors
(`sync.consensus`). Memory: see `public_copies`; with Fp32 one vector more.
Raises: SyncError once all other islands are gone.
Deviates: CHOCO's gamma is measured, as its bound is far smaller; NoLoCo's term that pulls islands' weights together is
the mixing here, and momentum runs over both.
Reduces to: FedAvg with uniform weights, up to rounding, for SGD(lr=1) and a topology of all with all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lowcomm.codec import Fp32
from lowcomm.exchange.base import Exchange, ExchangeChoice, ExchangeParts
from lowcomm.exchange.neighbour_exchange import NeighbourExchange
from lowcomm.exchange.public_copies import contraction
from lowcomm.topology import Ring, Topology
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Gossip(ExchangeChoice):
    """Islands mix their weights with neighbours', by a topology."""

    topology: Topology = field(default_factory=Ring)
    """Who the neighbours are."""
    gamma: float | None = None
    """Share of the way to the mixed weights, 0 < gamma <= 1; None: 1 with Fp32, else the square of the codec's
    `contraction`: islands drift apart under a sparse codec with 1."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"

    def build(self, parts: ExchangeParts) -> Exchange:
        gamma = self.gamma
        if gamma is None:
            gamma = 1.0 if isinstance(parts.codec, Fp32) else max(0.001, round(contraction(parts.codec) ** 2, 3))
        return NeighbourExchange(self.topology, gamma, parts)

    def check(self, islands: int) -> None:
        gamma = self.gamma
        ok = gamma is None or 0 < gamma <= 1
        require(ok, "sync.exchange.gamma", gamma, "0 < gamma <= 1, or None", "leave it out: it follows from the codec")
        self.topology.check(islands)
