"""Shards whose batches are drawn by chance: each of an island's windows with the same probability in every step.

    P(i in batch_t) = q = batch_size / windows, independent for all i and t

Batches vary in size; an empty one, of shape [0, seq_len], is legal. An island keeps the same windows all the time,
those of the first epoch of the shard that it is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from lowcomm.data.shard import Shard, State, Windows, check_identity, count
from lowcomm.types import counted

Draw = Callable[[int], np.random.Generator]
"""The stream of draw number t: whoever does not know it does not know who is in batch t."""


class PoissonShard(Shard):
    """Batch t is what draw t picks: the position is the number of draws."""

    def __init__(
        self, windows: Windows, own: np.ndarray, *, batch_size: int, draw: Draw, identity: Mapping[str, int | str]
    ) -> None:
        """own: the island's windows, `batch_size` of them or more."""
        self._windows, self._own, self._draw = windows, own, draw
        self.chance = batch_size / len(own)
        """q."""
        self._identity = {**identity, "kind": "poisson", "batch_size": batch_size}
        self._draws, self._tokens = 0, 0

    def next_batch(self) -> tuple[Tensor, Tensor]:
        drawn = self._draw(self._draws).random(len(self._own)) < self.chance
        self._draws += 1
        inputs, targets = self._windows.batch(self._own[drawn])
        self._tokens += counted(targets)
        return inputs, targets

    @property
    def tokens(self) -> int:
        return self._tokens

    def state_dict(self) -> State:
        return {**self._identity, "draws": self._draws, "tokens": self._tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_identity(state, self._identity)
        self._draws, self._tokens = count(state, "draws"), count(state, "tokens")
