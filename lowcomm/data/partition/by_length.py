"""Clients of short and of long texts: rows sorted by their bytes, cut into equally many.

    client k has the rows of rank k N / n to (k + 1) N / n - 1 by length

N: rows; n: islands. Island 0 has the shortest. Cost: none on the wire.
Raises: ConfigError for fewer than two rows per client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowcomm.data.partition.base import Partition, too_few
from lowcomm.data.source import Document


@dataclass(frozen=True, kw_only=True)
class ByLength(Partition):
    """Length skew."""

    def owners(self, documents: Sequence[Document], islands: int, rng: np.random.Generator) -> np.ndarray:
        if len(documents) < 2 * islands:
            raise too_few(self, f"{len(documents)} rows are fewer than two for each of {islands} clients")
        order = np.argsort([len(d.text) for d in documents], kind="stable")
        owners = np.empty(len(documents), dtype=np.int64)
        for island, part in enumerate(np.array_split(order, islands)):
            owners[part] = island
        return owners
