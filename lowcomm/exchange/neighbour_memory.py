"""The memory of gossip: the last weights of each neighbour, for rounds in which it says nothing.

    mem_kj <- what j said last, in round r;   in a round t > r without a word of it island k mixes mem_kj with the
    weight W_kj (an edge that rests by the topology), or W_kj decay^(t - r) (a neighbour that is lost, or a link to it)

Memory: one fp32 vector per neighbour that an island ever heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lowcomm.types import Part

PREFIX = "gossip_memory"


class NeighbourMemory:
    """By fragment, local island and neighbour: weights (flat, fp32) and the round in which they were heard."""

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        """Share of a lost neighbour's weight that is left after each round; None: it is forgotten at once."""
        self._kept: dict[tuple[int, int, int], tuple[Tensor, int]] = {}

    def keep(self, edge: tuple[int, int, int], weights: Tensor, round_index: int) -> None:
        """Remember."""
        self._kept[edge] = (weights, round_index)

    def recall(self, edge: tuple[int, int, int], round_index: int, lost: bool) -> tuple[Tensor, float] | None:
        """What a neighbour said last, and the share of its weight that this counts. None: nothing, or forgotten."""
        if edge not in self._kept or (lost and self.decay is None):
            return None
        weights, heard = self._kept[edge]
        return weights, self.decay ** (round_index - heard) if lost and self.decay is not None else 1.0

    def island_part(self, local: int) -> Part:
        """For the checkpoint."""
        mine = {(index, j): kept for (index, island, j), kept in self._kept.items() if island == local}
        tensors = {f"{PREFIX}.{index}.{j}": weights for (index, j), (weights, _) in mine.items()}
        return tensors, {PREFIX: {f"{index}.{j}": heard for (index, j), (_, heard) in mine.items()}}

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `island_part` gave, and nothing else."""
        for edge in [e for e in self._kept if e[1] == local]:
            del self._kept[edge]
        for key, heard in values.get(PREFIX, {}).items():
            index, j = (int(x) for x in key.split("."))
            self._kept[index, local, j] = (torch.clone(tensors[f"{PREFIX}.{key}"]), heard)
