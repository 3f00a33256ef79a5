"""Network lasso: neighbours become equal or stay apart, so that islands fall into clusters, by ADMM over the edges.

Hallac, Leskovec, Boyd, Network Lasso: Clustering and Optimization in Large Graphs, arXiv 1507.00280.

    minimise  sum_k f_k(x_k) + lam sum_{kj in E} ||x_k - x_j||                 (no square)
    x_k <- H inner steps on  f_k + rho / 2 sum_j ||x - z_kj + u_kj||^2         (its gradient is added to theirs)
    th = max(1 - lam / (rho ||x_k + u_kj - x_j - u_jk||), 1/2)
    z_kj = th (x_k + u_kj) + (1 - th) (x_j + u_jk);   u_kj <- u_kj + x_k - z_kj

x_k: `place.anchor - place.delta`; the norm is over a whole fragment. Nothing is averaged: weights meet by the pull
alone. Every edge has weight 1, whatever the topology's. One vector per message, x_k, in fp32: u_jk follows at both ends
from what both know.
State: u_kj, u_jk of each neighbour and the sum of z_kj - u_kj: 2 d + 1 vectors, d neighbours.
Raises: ConfigError for lam or rho out of range.
Deviates: x_k is H inner steps, not a minimum; a round in which only one end hears the other leaves their u apart. With
AdamW inside, whose steps have one size, a large lam winds the u up and islands part: begin with 0.05, or with SGD.
Reduces to: local training with FedProx(mu=rho d) for lam = 0, up to rounding; consensus ADMM for lam to infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.mixing.base import Heard, Place, Rule
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class NetworkLasso(Rule):
    """Pull towards each neighbour, of a strength that does not fall with the distance."""

    lam: float = 0.05
    """lam: what an edge between islands that differ costs (loss per unit of distance), 0 or more."""
    rho: float = 0.1
    """rho: strength of the pull of one edge inside a round (loss per squared distance), above 0."""

    pulls: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def say(self, place: Place) -> tuple[Tensor, ...]:
        return (place.anchor - place.delta,)

    def mix(self, place: Place, heard: Sequence[Heard]) -> None:
        own, state = place.anchor - place.delta, place.state
        for one in heard:
            theirs = own + one.differences[0]
            mine_u, their_u = (
                state.setdefault(f"{key}.{one.island}", torch.zeros_like(own)) for key in ("u", "other_u")
            )
            mine, other = own + mine_u, theirs + their_u
            apart = float(torch.linalg.vector_norm(mine - other))
            share = max(1 - self.lam / (self.rho * apart), 0.5) if apart > 0 else 0.5
            z, other_z = torch.lerp(other, mine, share), torch.lerp(mine, other, share)
            mine_u.add_(own - z)
            their_u.add_(theirs - other_z)
            state[f"goal.{one.island}"] = z - mine_u
        goals = [state[key] for key in sorted(state) if key.startswith("goal.")]
        if goals:
            state["goal_sum"], state["edges"] = torch.stack(goals).sum(dim=0), torch.tensor([float(len(goals))])

    def force(self, state: dict[str, Tensor]) -> tuple[float, float, Tensor] | None:
        if "goal_sum" not in state:
            return None
        return self.rho, float(state["edges"]), state["goal_sum"]

    def check(self) -> None:
        name = "sync.exchange.rule"
        ok = math.isfinite(self.lam) and self.lam >= 0
        require(ok, f"{name}.lam", self.lam, "a finite number, 0 or more", "0.05; 0 leaves islands alone")
        require(0 < self.rho < math.inf, f"{name}.rho", self.rho, "a finite number above 0", "0.1")
