"""Shards of text that is in memory: windows in an order of its own for each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lowcomm.data.poisson import Draw, PoissonShard
from lowcomm.data.shard import Shard, State, Windows, check_identity, count, pair
from lowcomm.types import counted


class TextWindows(Windows):
    """Windows of seq_len + 1 tokens of one stream, each starting on the last token of the one before."""

    def __init__(self, stream: np.ndarray, seq_len: int) -> None:
        self._stream, self._seq_len = stream, seq_len
        self.total, self.tokens = window_count(len(stream), seq_len), len(stream)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        return pair(gather(self._stream, indices, self._seq_len))


def window_count(tokens: int, seq_len: int) -> int:
    """Windows of seq_len + 1 tokens, each starting on the last token of the one before."""
    return max(0, (tokens - 1) // seq_len)


def gather(stream: np.ndarray, windows: np.ndarray, seq_len: int) -> np.ndarray:
    """[len(windows), seq_len + 1] tokens of the windows with these indices."""
    return stream[windows[:, None] * seq_len + np.arange(seq_len + 1)]


def evenly(total: int, most: int) -> np.ndarray:
    """Up to `most` different indices below `total`, spread over the whole range."""
    number = min(total, most)
    return np.arange(number) * total // max(number, 1)


class WindowShard(Shard):
    """Every `islands`-th window of the epoch's permutation, from number `part` on.

    All shards of the same windows hold equally many, so islands with equal batches change epoch together;
    the up to `islands - 1` windows left over differ from epoch to epoch.
    """

    def __init__(
        self,
        windows: Windows,
        *,
        seq_len: int,
        batch_size: int,
        part: int,
        parts: int,
        seeds: Sequence[int],
        identity: Mapping[str, int | str],
    ) -> None:
        """`seeds` names the permutation, the epoch is added to them.

        `identity` is what must be equal for a stored position to be valid here.
        """
        self._windows = windows
        self._batch_size = batch_size
        self._part = part
        self._parts = parts
        self._seeds = tuple(seeds)
        self._identity = {
            "kind": "windows",
            **identity,
            "seq_len": seq_len,
        }
        self.windows_per_epoch = windows.total // parts
        self._move(0, 0)
        self._tokens = 0

    def _move(self, epoch: int, position: int) -> None:
        """Only this island's part of the permutation is kept."""
        order = np.random.default_rng([*self._seeds, epoch]).permutation(self._windows.total)
        used = self.windows_per_epoch * self._parts
        self._order = order[:used][self._part :: self._parts].copy()
        self._epoch, self._position = epoch, position

    def by_chance(self, draw: Draw) -> PoissonShard:
        """Batches drawn from the windows of the first epoch instead, of batch_size on average."""
        self._move(0, 0)
        return PoissonShard(self._windows, self._order, batch_size=self._batch_size, draw=draw, identity=self._identity)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        taken: list[np.ndarray] = []
        missing = self._batch_size
        while missing:
            if self._position == self.windows_per_epoch:
                self._move(self._epoch + 1, 0)
            part = self._order[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            taken.append(part)
        inputs, targets = self._windows.batch(np.concatenate(taken))
        self._tokens += counted(targets)
        return inputs, targets

    @property
    def tokens(self) -> int:
        return self._tokens

    def state_dict(self) -> State:
        return {
            **self._identity,
            "epoch": self._epoch,
            "position": self._position,
            "tokens": self._tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_identity(state, self._identity)
        epoch, tokens = count(state, "epoch"), count(state, "tokens")
        self._move(epoch, count(state, "position", self.windows_per_epoch))
        self._tokens = tokens
