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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

Rows = Sequence[Sequence[float]]
"""Weights by island: `rows[k][j]` is what island k takes of island j."""


@dataclass(frozen=True, kw_only=True)
class Topology(ABC):
    """A frozen dataclass. Neighbours follow from the round and the run's seed: all islands agree without talking."""

    varies: ClassVar[bool] = False
    """Whether neighbours change from round to round."""
    remembers: ClassVar[bool] = False
    """Whether weights also go to islands that are no neighbours in a round, whose last weights are then taken."""

    @abstractmethod
    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        """Those with whom `island` exchanges, ascending, without itself; j is one of k's whenever k is one of j's."""

    def weights(self, round_index: int, islands: int, seed: int) -> list[list[float]]:
        """The mixing weights W of a round: rows and columns sum to 1. Here Metropolis'."""
        return metropolis([self.neighbours(round_index, k, islands, seed) for k in range(islands)])

    def check(self, islands: int) -> None:  # noqa: B027 - most have nothing to check
        """Raise ConfigError for a setting out of range, or one that does not fit the number of islands."""


def metropolis(near: Sequence[Sequence[int]]) -> list[list[float]]:
    """Metropolis weights of a graph, given by the neighbours of each island."""
    rows: list[list[float]] = []
    for k, mine in enumerate(near):
        row = [0.0] * len(near)
        for j in mine:
            row[j] = 1 / (1 + max(len(mine), len(near[j])))
        row[k] = 1.0 - sum(row)
        rows.append(row)
    return rows


@lru_cache(maxsize=8)
def mixing(topology: Topology, round_index: int, islands: int, seed: int) -> list[list[float]]:
    """The weights of a round, by island; not to be changed."""
    return topology.weights(round_index, islands, seed)


def spectral_gap(
    topology: Topology, islands: int, seed: int, rounds: int = 64, rows_of: Callable[[int], Rows] | None = None
) -> float:
    """The gap, from the mean over the first `rounds` rounds where the topology varies: 0 to 1.

    rows_of: the weights of a round among fewer islands (some are lost); None: the topology's.
    """
    squares: torch.Tensor | None = None
    count = rounds if topology.varies else 1
    for index in range(count):
        rows = mixing(topology, index, islands, seed) if rows_of is None else rows_of(index)
        weights = torch.tensor(rows, dtype=torch.float64)
        squares = weights.T @ weights / count if squares is None else squares + weights.T @ weights / count
    assert squares is not None
    largest = float(torch.linalg.eigvalsh(squares - 1 / len(squares))[-1])
    return 1 - max(0.0, largest) ** 0.5
