"""One island's endless stream of batches, and the windows of text that it takes them from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowcomm.types import CheckpointError

State = dict[str, Any]
"""JSON-able position of a shard: ints, strings, None, and lists and dicts of them."""


class Shard(ABC):
    """Batches of one island, epoch after epoch; the position is exact and can be stored at any batch."""

    @abstractmethod
    def next_batch(self) -> tuple[Tensor, Tensor]:
        """int64 (inputs, targets), each [batch_size, seq_len]; targets are the inputs one token later, or IGNORED."""

    def prepare(self, batches: int) -> None:  # noqa: B027  # what is in memory is ready
        """Read what the next `batches` need, so that they cannot fail; raises DataError, and is then as it was."""

    @property
    def skipped(self) -> int:
        """Rows that were left out while training as they could not be used."""
        return 0

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens handed out so far."""

    @abstractmethod
    def state_dict(self) -> State:
        """The position, JSON-able: the next batch after loading it is the next batch now."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError for a malformed state or one of other data; the shard is then unchanged."""


def pair(windows: np.ndarray) -> tuple[Tensor, Tensor]:
    """(inputs, targets), int64 and contiguous, of windows [batch, seq_len + 1]."""
    tokens = torch.from_numpy(windows.astype(np.int64))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def check_identity(state: Mapping[str, Any], identity: Mapping[str, int | str]) -> None:
    """Raises CheckpointError if the state was made by other data or settings."""
    for name, value in identity.items():
        if name not in state or state[name] != value:
            raise CheckpointError(
                f"data position: {name} is {state.get(name)!r} in the checkpoint and {value!r} in this run; "
                "legal: equal; fix: resume with the data settings and text of the first run"
            )


def count(state: Mapping[str, Any], name: str, most: int | None = None) -> int:
    """A counter of the state; raises CheckpointError unless it is an int from 0 to `most`."""
    value = state.get(name)
    if type(value) is not int or value < 0 or (most is not None and value > most):
        raise CheckpointError(
            f"data position: {name} is {value!r}; legal: an int from 0 to {most if most is not None else 'any'}; "
            "fix: use an earlier checkpoint"
        )
    return value


class Windows(ABC):
    """Sequences of one length that can be taken in any order."""

    total: int
    """How many there are."""
    tokens: int
    """Tokens that they are cut from."""

    @abstractmethod
    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """int64 (inputs, targets) [len(indices), seq_len] of the windows with these indices."""
