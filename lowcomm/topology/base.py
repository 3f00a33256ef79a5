"""The neighbours of a round, and the mixing weights that follow from them.

Xiao and Boyd, Fast linear iterations for distributed averaging (2004), the Metropolis weights; Koloskova et al.,
arXiv 2003.10422, for topologies that change.

    W_kj = 1 / (1 + max(d_k, d_j)) for neighbours, W_kk = 1 - sum_j W_kj        symmetric, rows and columns sum to 1
    gap  = 1 - sqrt(lambda_max(mean_t W_t'W_t - J)),  J = 11'/n                 0: some islands never hear of others

d_k: number of neighbours of island k. A round of mixing multiplies the distance to the islands' mean by 1 - gap or less
(on average over rounds, in the root of the mean square).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True, kw_only=True)
class Topology(ABC):
    """A frozen dataclass. Neighbours follow from the round and the run's seed: all islands agree without talking."""

    varies: ClassVar[bool] = False
    """Whether neighbours change from round to round."""

    @abstractmethod
    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        """Those with whom `island` exchanges, ascending, without itself; j is one of k's whenever k is one of j's."""

    def check(self, islands: int) -> None:  # noqa: B027 - most have nothing to check
        """Raise ConfigError for a setting out of range, or one that does not fit the number of islands."""


def mixing(topology: Topology, round_index: int, islands: int, seed: int) -> list[list[float]]:
    """The Metropolis weights W of a round, by island: symmetric, each row sums to 1."""
    near = [topology.neighbours(round_index, k, islands, seed) for k in range(islands)]
    rows: list[list[float]] = []
    for k, mine in enumerate(near):
        row = [0.0] * islands
        for j in mine:
            row[j] = 1 / (1 + max(len(mine), len(near[j])))
        row[k] = 1.0 - sum(row)
        rows.append(row)
    return rows


def spectral_gap(topology: Topology, islands: int, seed: int, rounds: int = 64) -> float:
    """The gap, from the mean over the first `rounds` rounds where the topology varies: 0 to 1."""
    squares = torch.zeros(islands, islands, dtype=torch.float64)
    count = rounds if topology.varies else 1
    for index in range(count):
        weights = torch.tensor(mixing(topology, index, islands, seed), dtype=torch.float64)
        squares += weights.T @ weights / count
    largest = float(torch.linalg.eigvalsh(squares - 1 / islands)[-1])
    return 1 - max(0.0, largest) ** 0.5
