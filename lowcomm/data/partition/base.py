"""What every partition is, and what several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lowcomm.data.errors import bad
from lowcomm.data.source import Document
from lowcomm.types import ConfigError

TRIES = 100
"""Draws before a random partition is given up because a client would have too few rows."""


@dataclass(frozen=True, kw_only=True)
class Partition(ABC):
    """Frozen dataclasses. Documents are those of the whole corpus, held-out ones included."""

    def check(self, islands: int) -> None:  # noqa: B027  # nothing to check is a good default
        """Raises ConfigError for a field out of range; reads no text."""

    @abstractmethod
    def owners(self, documents: Sequence[Document], islands: int, rng: np.random.Generator) -> np.ndarray:
        """int64 [documents]: the island of each. Raises ConfigError where it cannot be done."""


def groups_of(documents: Sequence[Document]) -> dict[str, np.ndarray]:
    """Indices of the documents of each label, labels in alphabetical order."""
    found: dict[str, list[int]] = {}
    for i, document in enumerate(documents):
        found.setdefault(document.group, []).append(i)
    return {label: np.array(found[label], dtype=np.int64) for label in sorted(found)}


def drawn(draw: Callable[[], np.ndarray], islands: int, min_rows: int, partition: Partition) -> np.ndarray:
    """The first of up to TRIES draws in which every island has `min_rows` documents; raises ConfigError without one."""
    best = 0
    for _ in range(TRIES):
        owners = draw()
        least = int(np.bincount(owners, minlength=islands).min())
        if least >= min_rows:
            return owners
        best = max(best, least)
    raise too_few(partition, f"in {TRIES} draws some client has at most {best} of {min_rows} rows (min_rows)")


def too_few(partition: Partition, why: str) -> ConfigError:
    """The error of a partition that would leave a client without rows."""
    return bad(
        "partition", partition, "a partition that gives every client rows", f"{why}: fewer islands, or more text"
    )


def cut(order: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    """`order` in consecutive parts of these shares, which sum to 1; rounded so that every entry is in one part."""
    ends = np.round(np.cumsum(shares)[:-1] * len(order)).astype(np.int64)
    return np.split(order, ends)


def check_positive(name: str, value: float, fix: str) -> None:
    """Raises ConfigError unless 0 < value <= 1e6."""
    if not 0 < value <= 1e6:
        raise bad(f"partition.{name}", value, "above 0, at most 1e6", fix)


def check_min_rows(min_rows: int) -> None:
    """Two are one to learn from and one to hold out."""
    if min_rows < 2:
        raise bad("partition.min_rows", min_rows, "2 or more, one of them to hold out", "use 2")
