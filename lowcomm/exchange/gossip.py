"""Gossip: each island has weights of its own and mixes them with a few neighbours'; nothing goes to anybody else.

Lian et al., D-PSGD, arXiv 1705.09056 (here after H local steps: D-SGD); Koloskova, Stich, Jaggi, CHOCO-SGD, arXiv
1902.00340, with a compressing codec; several steps of mixing per round as in DFedSAM-MGS (Shi et al., arXiv
2302.04083), whose local objective is `local.SharpnessAware`.

    x_k = a_k - Delta_k;   Q times: x_k <- x_k + gamma sum_j W_kj (xhat_j - xhat_k);   a_k <- outer(a_k, a_k - x_k)

a_k: island k's own anchor. W: the topology's weights. xhat: the weights themselves with Fp32, else `public_copies`, two
per neighbour. That is `PlainMixing`; the other files of `lowcomm/mixing` put other rules in its place.
Bytes per island and round: Q d (32 + payload) each way, d neighbours, whatever the number of islands.
A neighbour that is dead, refused or not finite leaves its weight to the diagonal, or to what it said last (`memory`);
an island whose own Delta is not finite mixes its anchor and starts its inner optimizer anew. The global weights are the
mean of the islands' anchors (`sync.consensus`): at the end that is the single global merge of Kong et al., arXiv
2507.06542, and with the schedule `LateMerge` gossip itself comes late, too. Memory: see `public_copies` and
`neighbour_memory`; with Fp32 one vector more.
Raises: SyncError once all other islands are gone; ConfigError for a graph that is not connected or weights that are not
doubly stochastic.
Deviates: CHOCO's gamma is measured, as its bound is far smaller.
Reduces to: FedAvg with uniform weights, up to rounding, for SGD(lr=1) and a topology of all with all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lowcomm.codec import Fp32
from lowcomm.exchange.base import Exchange, ExchangeChoice, ExchangeParts
from lowcomm.exchange.neighbour_exchange import NeighbourExchange
from lowcomm.exchange.neighbour_memory import NeighbourMemory
from lowcomm.exchange.network import Network
from lowcomm.exchange.public_copies import contraction
from lowcomm.mixing import PlainMixing, Rule
from lowcomm.topology import Churn, Ring, Topology, check_graph
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Gossip(ExchangeChoice):
    """Islands mix their weights with neighbours', by a topology."""

    topology: Topology = field(default_factory=Ring)
    """Who the neighbours are."""
    gamma: float | None = None
    """Share of the way to the mixed weights, 0 < gamma <= 1; None: 1 with Fp32, else the square of the codec's
    `contraction`: islands drift apart under a sparse codec with 1."""
    rule: Rule = field(default_factory=PlainMixing)
    """How weights and what came of neighbours become the next weights."""
    steps: int = 1
    """Q: exchanges with neighbours per round, 1 to 64; a topology that varies goes on to its next graph in each."""
    memory: float | None = None
    """Share of a lost neighbour's weight that its last weights keep after each round, 0 < memory <= 1 (0.9 is usual);
    None: it is forgotten at once."""
    churn: Churn | None = None
    """Islands and links that are lost, and when they are back, to see what a run makes of it; None: none."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"
    lockstep: ClassVar[bool] = True

    def build(self, parts: ExchangeParts) -> Exchange:
        gamma = self.gamma
        if gamma is None:
            gamma = 1.0 if isinstance(parts.codec, Fp32) else max(0.001, round(contraction(parts.codec) ** 2, 3))
        remembers = self.topology.remembers or self.memory is not None
        return NeighbourExchange(
            Network(self.topology, self.churn, parts.transport.islands, parts.seed), gamma, parts,
            rule=self.rule, steps=self.steps, memory=NeighbourMemory(self.memory) if remembers else None,
        )  # fmt: skip

    def check(self, islands: int) -> None:
        gamma, memory = self.gamma, self.memory
        ok = gamma is None or 0 < gamma <= 1
        require(ok, "sync.exchange.gamma", gamma, "0 < gamma <= 1, or None", "leave it out: it follows from the codec")
        require(1 <= self.steps <= 64, "sync.exchange.steps", self.steps, "1 to 64", "1, or 4 to mix better")
        ok = memory is None or 0 < memory <= 1
        require(ok, "sync.exchange.memory", memory, "0 < memory <= 1, or None", "0.9 is usual, None forgets")
        self.rule.check()
        check_graph(self.topology, islands)
        if self.churn is not None:
            self.churn.check(islands)
