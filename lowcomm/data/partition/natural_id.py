"""Clients as they are: every label (a site, an author, a package) is wholly at one client.

With one label per client, clients are the labels in alphabetical order; with more, whole labels go to the client with
the fewest bytes, the largest first. Labels: the source's label_column, or top folders.
Cost: none on the wire.
Raises: ConfigError for fewer labels than clients.
Reduces to: data.sharding = "by_folder", for labels that are top folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowcomm.data.partition.base import Partition, groups_of, too_few
from lowcomm.data.source import Document


@dataclass(frozen=True, kw_only=True)
class NaturalId(Partition):
    """Whole labels."""

    def owners(self, documents: Sequence[Document], islands: int, rng: np.random.Generator) -> np.ndarray:
        groups = groups_of(documents)
        if len(groups) < islands:
            raise too_few(self, f"{len(groups)} labels are fewer than {islands} clients")
        sizes = {label: sum(len(documents[i].text) for i in rows) for label, rows in groups.items()}
        order = sorted(groups) if len(groups) == islands else sorted(groups, key=lambda label: (-sizes[label], label))
        loads = [0] * islands
        owners = np.empty(len(documents), dtype=np.int64)
        for number, label in enumerate(order):
            island = number if len(groups) == islands else loads.index(min(loads))
            loads[island] += sizes[label]
            owners[groups[label]] = island
        return owners
