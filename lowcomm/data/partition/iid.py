"""Rows at random, equally many for each client: the case that others are compared with.

    owner(i) = rank of i in a random order, modulo n

n: islands. Cost: none on the wire.
Raises: ConfigError for fewer than two rows per client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowcomm.data.partition.base import Partition, too_few
from lowcomm.data.source import Document


@dataclass(frozen=True, kw_only=True)
class Iid(Partition):
    """Every client has the same distribution, and as many rows up to one."""

    def owners(self, documents: Sequence[Document], islands: int, rng: np.random.Generator) -> np.ndarray:
        if len(documents) < 2 * islands:
            raise too_few(self, f"{len(documents)} rows are fewer than two for each of {islands} clients")
        owners = np.empty(len(documents), dtype=np.int64)
        owners[rng.permutation(len(documents))] = np.arange(len(documents)) % islands
        return owners
