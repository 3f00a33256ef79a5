"""Clients that know few labels: exactly k of them each.

McMahan et al., FedAvg, arXiv 1602.05629 (their shards of two digits per client).

    client c has the labels pi(c k), ..., pi(c k + k - 1) (indices modulo L), the rows of a label in equal parts

k: `labels_per_client`; L: labels; pi: a random order of them. Every label and every row is used.
Cost: none on the wire.
Raises: ConfigError for k above L, for k n below L (labels would be left out), and for clients without rows.
Deviates: labels are dealt in turn, where the paper deals shards of equal size at random.
Reduces to: every client has part of every label, for k = L.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowcomm.data.errors import bad
from lowcomm.data.partition.base import Partition, groups_of, too_few
from lowcomm.data.source import Document


@dataclass(frozen=True, kw_only=True)
class Pathological(Partition):
    """k labels per client."""

    labels_per_client: int = 2
    """Number of labels of each client."""

    def check(self, islands: int) -> None:
        if self.labels_per_client < 1:
            raise bad("partition.labels_per_client", self.labels_per_client, "1 or more", "2 is usual")

    def owners(self, documents: Sequence[Document], islands: int, rng: np.random.Generator) -> np.ndarray:
        groups, k = groups_of(documents), self.labels_per_client
        if not k <= len(groups) <= k * islands:
            least = -(-len(groups) // islands)
            legal = f"{least} to {len(groups)}, as {islands} clients share {len(groups)} labels"
            raise bad("partition.labels_per_client", k, legal, f"pass {least}, or change the number of islands")
        order = rng.permutation(np.array(sorted(groups), dtype=object)).tolist()
        holders: dict[str, list[int]] = {label: [] for label in order}
        for slot in range(k * islands):
            holders[order[slot % len(order)]].append(slot // k)
        owners = np.empty(len(documents), dtype=np.int64)
        for label, rows in groups.items():
            for island, part in zip(
                holders[label], np.array_split(rng.permutation(rows), len(holders[label])), strict=True
            ):
                owners[part] = island
        if np.bincount(owners, minlength=islands).min() < 2:
            raise too_few(self, "some client has fewer than two rows")
        return owners
