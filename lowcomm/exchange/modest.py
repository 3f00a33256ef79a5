"""MoDeST: samples train, and who brings them together moves on in every round: FedAvg without a server.

de Vos et al., Decentralized Learning Made Practical with Client Sampling, arXiv 2302.13837.

    order(t) = the live islands by hash(seed, t, island)
    sample of round t:  S_t = the first s of order(t);      its aggregators:  A_t = the first a of order(t + 1)
    end of round t:     S_t -> A_t: weights;   A_t: their mean, if sf s of them came;   A_t -> S_(t+1): the mean

s, a, sf: `sample`, `aggregators`, `fraction`. Islands that are not in S_t rest in round t. Each keeps the newest model
that it has; the global weights are those of the first aggregator of the last round.
Bytes: a sampled island sends a models, an aggregator s; nobody else sends any. Besides, in every round, 4 n (n - 1)
bytes or less of everybody: who is alive.
An island that dies is left out from the next round on; with a > 1 a round survives its aggregators. With too few models
an aggregator hands on the newest that it has.
Raises: ConfigError for numbers that do not fit the islands, a codec other than Fp32, an outer optimizer other than
SGD(lr=1); SyncError once all other islands are gone.
Deviates: who is alive is agreed by a few bytes of each to each in every round (`agreement`), where the paper gossips a
registry and pings: all wait for the slowest there, but for no dead one. Models weigh alike, as in the paper.
Reduces to: FedAvg with uniform weights and an aggregator that moves, for s = n and a = 1, while nobody dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.exchange.base import Exchange, ExchangeChoice, ExchangeParts
from lowcomm.exchange.sampled_exchange import SampledExchange
from lowcomm.topology import Churn
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Modest(ExchangeChoice):
    """A sample of islands trains in each round; aggregators follow from the same draw."""

    sample: int = 4
    """s: islands that train in a round, 1 to islands."""
    aggregators: int = 2
    """a: islands that take the mean in a round, 1 to islands; more than one outlive each other."""
    fraction: float = 0.4
    """sf: share of the sample whose models an aggregator needs, above 0, to 1."""
    churn: Churn | None = None
    """Islands that are lost, and when they are back, to see what a run makes of it; None: none. Links are not cut."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"

    def build(self, parts: ExchangeParts) -> Exchange:
        return SampledExchange(
            parts, sample=self.sample, aggregators=self.aggregators, fraction=self.fraction, churn=self.churn or Churn()
        )

    def check(self, islands: int) -> None:
        name, fix = "sync.exchange", "a smaller number, or more --islands"
        require(1 <= self.sample <= islands, f"{name}.sample", self.sample, f"1 to {islands}, the islands", fix)
        most = self.aggregators
        require(1 <= most <= islands, f"{name}.aggregators", most, f"1 to {islands}, the islands", fix)
        require(0 < self.fraction <= 1, f"{name}.fraction", self.fraction, "above 0, to 1", "0.4, or 1 for all")
        if self.churn is not None:
            self.churn.check(islands)
            cut = next((loss.links for loss in self.churn.losses if loss.links), ())
            require(
                not cut, f"{name}.churn", cut, "no links: everybody may be everybody's aggregator", "leave them out"
            )
