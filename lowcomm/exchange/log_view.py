"""What an island that follows a log trains from, where that is not simply the version that its fold has come to.

    anchor = version of the log - sum(own contributions that no version holds yet)       ("own")

The fold needs the version itself. It is kept beside the anchor while the two differ, and put in its place to be folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lowcomm.exchange.fold import Fold
from lowcomm.types import Part


class LogView:
    """Of one local island. own: whether it trains on from its own contributions before a version holds them."""

    def __init__(self, fold: Fold, island: int, *, own: bool) -> None:
        self.fold, self.anchor, self.island, self.own = fold, fold.anchor, island, own
        self.version = 0
        """That the anchor was taken from."""
        self.whole: Tensor | None = None
        """Weights of the fold's version (flat, fp32) where the anchor holds others."""
        self.pending: dict[int, Tensor] = {}
        """Own Deltas that no version holds, by sequence number: flat, fp32."""

    def departed(self, sequence: int, delta: Tensor) -> None:
        """A Delta was appended to the log."""
        if self.own:
            self.pending[sequence] = delta.clone()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Fold, and leave the anchor as it is: the next Delta is still taken from it."""
        base = self.anchor.weights.clone()
        self._restore()
        try:
            yield
        finally:
            if self.anchor.version != self.version or self.pending:
                self.whole = self.anchor.weights.clone()
            self.anchor.weights.copy_(base)

    @contextmanager
    def adopting(self) -> Iterator[None]:
        """Fold, and go on from where it comes to."""
        self._restore()
        yield
        self.version = self.anchor.version
        waits, seen = self.fold.room.sequences(self.island), self.fold.seen[self.island]
        self.pending = {n: flat for n, flat in self.pending.items() if n > seen or n in waits}
        if self.pending:
            self.whole = self.anchor.weights.clone()
            for flat in self.pending.values():
                self.anchor.weights.sub_(flat)

    def _restore(self) -> None:
        if self.whole is not None:
            self.anchor.weights.copy_(self.whole)
            self.whole = None

    def part(self) -> Part:
        """For the checkpoint."""
        numel = self.anchor.fragment.numel
        tensors = {f"buffered.pending.{n}": flat[:numel] for n, flat in self.pending.items()}
        if self.whole is not None:
            tensors["buffered.whole"] = self.whole[:numel]
        return tensors, {"version": self.version, "pending": list(self.pending), "whole": self.whole is not None}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `part` gave."""
        self.version = values["version"]
        self.whole = self._flat(tensors["buffered.whole"]) if values["whole"] else None
        self.pending = {n: self._flat(tensors[f"buffered.pending.{n}"]) for n in values["pending"]}

    def _flat(self, saved: Tensor) -> Tensor:
        flat = self.anchor.weights.new_zeros(self.anchor.fragment.size)
        flat[: self.anchor.fragment.numel].copy_(saved)
        return flat
