"""Sequences of one length, by index: what shards of text in memory take their batches from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor


class Windows(ABC):
    """Sequences of one length that can be taken in any order."""

    total: int
    """How many there are."""
    tokens: int
    """Tokens that they are cut from."""

    @abstractmethod
    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """int64 (inputs, targets) [len(indices), seq_len] of the windows with these indices."""
