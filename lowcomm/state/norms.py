"""The norms of pseudo-gradients that rounds have committed, and whether a new one is far from all of them.

An island is left out where its norm is above `bound` times the largest of three medians: of all islands' norms in the
last ROUNDS committed rounds, of its own in them, of the other islands' now. So a rise that most islands share drops
nobody, nor is an island dropped that has always done more steps than the others.
All islands hear all norms in the roll call and keep the same ones, by fragment, so they decide alike. Costs no byte.
In the first MIN_ROUNDS rounds little is known: an island is left out only where two others or more contribute, and its
norm for each token, too, is above `bound` times theirs in the median; one that does 100 times their steps stays in.
Where a rule of aggregation that withstands so many would have too few contributions left, nobody is left out.
Islands that are alone are not judged, nor is one of two so early: there is nothing to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import median_high

import torch
from torch import Tensor

from lowcomm.types import require

ROW = 16384
"""Elements whose squares are summed at once: torch's own sum over 3e7 equal elements is 1.8 % off on a CPU."""


def l2_norm(tensor: Tensor) -> Tensor:
    """The norm of a tensor of any shape, of its dtype, without a dimension; inf or NaN if any element is."""
    flat = tensor.flatten()
    rows = flat.numel() // ROW
    whole = torch.linalg.vector_norm(flat[: rows * ROW].view(rows, ROW), dim=1)
    rest = torch.linalg.vector_norm(flat[rows * ROW :])
    return torch.linalg.vector_norm(torch.cat((whole, rest[None])))


ROUNDS = 16
MIN_ROUNDS = 3
NORM_BOUND = 10.0
"""Norms of islands that train the same model on different text stay within a factor of 3 of their median."""


def check_bound(bound: float | None, prefix: str = "") -> None:
    """Raise ConfigError for a factor that there is not."""
    ok = bound is None or (math.isfinite(bound) and bound > 1)
    require(ok, f"{prefix}norm_bound", bound, "a finite number above 1, or None for off", f"{NORM_BOUND:g} is usual")


@dataclass(kw_only=True)
class NormHistory:
    """Committed norms of one fragment."""

    bound: float | None
    """None: nobody is judged, and nothing is kept."""
    rounds: list[list[float | None]] = field(default_factory=list)
    """By round, the oldest first, then by island; None: it did not contribute."""

    def add(self, norms: Sequence[float], weights: Sequence[float]) -> None:
        """Keep the norms of a round that is committed."""
        if self.bound is not None:
            row = [n if w != 0 else None for n, w in zip(norms, weights, strict=True)]
            self.rounds = [*self.rounds, row][-ROUNDS:]

    def too_large(self, norms: Sequence[float], tokens: Sequence[float], judged: Collection[int]) -> dict[int, str]:
        """The islands of `judged` whose norm is far above those that are known, with the reason.

        norms, tokens: of this round, by island.
        """
        if self.bound is None or len(norms) < 2:
            return {}
        early = len(self.rounds) < MIN_ROUNDS
        everyone = _median([n for row in self.rounds for n in row])
        found: dict[int, str] = {}
        for k in judged:
            own = _median([row[k] for row in self.rounds if k < len(row)])
            usual = max(everyone, own, _median([norms[j] for j in judged if j != k]))
            others = [(norms[j], tokens[j]) for j in judged if j != k]
            if early and not large_for_its_work(norms[k], tokens[k], others, self.bound):
                continue
            if usual > 0 and norms[k] > self.bound * usual:
                found[k] = (
                    f"the norm of its pseudo-gradient, {norms[k]:.6g}, is above sync.norm_bound = {self.bound:g} times "
                    f"the usual {usual:.6g}"
                )
        return found


def large_for_its_work(norm: float, work: float, others: Sequence[tuple[float, float]], bound: float) -> bool:
    """Whether norm / work is above `bound` times the median of two others or more, (norm, work); work: tokens or inner
    steps."""
    rates = [n / done for n, done in others if done > 0]
    return len(rates) >= 2 and norm > bound * median_high(rates) * work


def _median(norms: Sequence[float | None]) -> float:
    """The larger of the middle two, 0 where there is none."""
    return median_high(known) if (known := [n for n in norms if n is not None]) else 0.0
