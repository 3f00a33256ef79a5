"""EDiT's penalty: an island with a Delta unusual for it is left out, small Deltas weigh more, the mean is cut.

Cheng et al., EDiT: A Local-SGD-Based Efficient Distributed Training Method for Large Language Models, arXiv 2412.07210.

    n_k = ||D_k||,   z_k = (n_k - m_k) / s_k;   left out: z_k > Z;   m_k, s_k^2: moving mean and variance of n_k
    p_k = exp(-b n_k) / sum_j exp(-b n_j) over those left,   D = sum_k p_k D_k,   D <- D min(1, phi / ||D||)
    m <- m + a (n - m),   s^2 <- (1 - a) (s^2 + a (n - m)^2)

Z: `spike`, b: `sharpness`, phi: `radius`, a: `decay`. The first `warmup_rounds` only fill m and s. If all are left out,
D = 0: every island goes back to the anchor. An island that was left out keeps its m and s. The table, m and s are fp64
and alike on all islands and ranks.
Shapes and dtypes: as in `gram.py`; three fp64 numbers of state per island. Bytes: (K - 1) payloads each way per island.
Raises: ConfigError for fewer than 2 islands or a setting out of range.
Deviates: per fragment, not per layer in the forward pass; a and the warm-up count rounds. The spread is a moving one.
Reduces to: the uniform mean for Z = phi = None, b = 0, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregate, Context
from lowcomm.aggregate.gram import GramRule, by_table
from lowcomm.types import Contribution, require

SMALLEST = 1e-12
"""Spread below which norms count as all alike: none of them is a spike."""


@dataclass(frozen=True, kw_only=True)
class EDiT(GramRule):
    """A gate against spikes, weights by norm, and a bound on the mean."""

    spike: float | None = 3.0
    """Z: standard deviations above its usual norm at which an island is left out; None: never."""
    sharpness: float = 1.0
    """b: how much less a larger Delta weighs, per unit of its norm; 0: all weigh the same."""
    radius: float | None = 10.0
    """phi: L2 norm to which the mean is cut; None: never."""
    decay: float = 0.02
    """a: share of the newest norm in the moving mean and variance."""
    warmup_rounds: int = 20
    """Rounds in which nobody is left out."""

    picks: ClassVar[bool] = False

    @property
    def fewest(self) -> int:
        return 1

    def check_islands(self, islands: int) -> None:
        legal = f"EDiT needs 2 islands, there are {islands}"
        require(islands >= 2, "sync.aggregator", "EDiT", legal, "start 2, or Mean")

    def check(self) -> None:
        super().check()
        for name in ("spike", "radius"):
            value = getattr(self, name)
            ok = value is None or value > 0
            require(ok, f"sync.aggregator.{name}", value, "above 0, or None for off", "leave it out")
        sharp, decay, warm = self.sharpness, self.decay, self.warmup_rounds
        ok = 0 <= sharp < math.inf
        require(ok, "sync.aggregator.sharpness", sharp, "a finite number, 0 or more", "1 is the paper's")
        require(0 < decay < 1, "sync.aggregator.decay", decay, "0 < decay < 1", "0.02 is the paper's")
        require(warm >= 1, "sync.aggregator.warmup_rounds", warm, "1 or more", "20 is usual")

    def coefficients(self, gram: Tensor, weights: Sequence[float]) -> list[float]:
        return self._weighed(gram.tolist(), weights, [False] * len(weights))

    def combine(self, contributions: Sequence[Contribution], context: Context) -> Aggregate:
        usual = _known(context, 1 + max(c.island for c in contributions))
        heard, norms = [c.island for c in contributions], list[float]()
        out = list[bool]()

        def choose(gram: Tensor, weights: Sequence[float]) -> list[float]:
            table = gram.tolist()
            norms.extend(math.sqrt(max(0.0, row[i])) for i, row in enumerate(table))
            out.extend(self._spikes(usual[k], n) for k, n in zip(heard, norms, strict=True))
            # all out: the mean of none is made by hand below
            return self._weighed(table, weights, [gone and not all(out) for gone in out])

        made = by_table(self, type(self).__name__, choose, contributions, context)
        for k, n, gone in zip(heard, norms, out, strict=True):
            if not gone:
                usual[k] = self._updated(usual[k], n)
        notes = tuple(f"EDiT: island {k} was left out: norm {n:.4g} is a spike" for k, n, o in
                      zip(heard, norms, out, strict=True) if o)  # fmt: skip
        state = {"usual": torch.tensor(usual, dtype=torch.float64)}
        if all(out):
            zero = {name: torch.zeros_like(t) for name, t in made.delta.items()}
            return Aggregate(delta=zero, notes=(*notes, "EDiT: nobody is left, the round is rolled back"), state=state)
        return replace(made, notes=(*made.notes, *notes), state=state)

    def _spikes(self, usual: Sequence[float], norm: float) -> bool:
        mean, variance, count = usual
        spread = math.sqrt(variance)
        if self.spike is None or count < self.warmup_rounds or spread <= SMALLEST:
            return False
        return (norm - mean) / spread > self.spike

    def _updated(self, usual: Sequence[float], norm: float) -> list[float]:
        mean, variance, count = usual
        share = max(self.decay, 1 / (count + 1))  # the first ones count alike, or the first would stay for long
        away = norm - mean
        return [mean + share * away, (1 - share) * (variance + share * away * away), count + 1]

    def _weighed(self, gram: Sequence[Sequence[float]], weights: Sequence[float], out: Sequence[bool]) -> list[float]:
        norms = [math.sqrt(max(0.0, gram[i][i])) for i in range(len(weights))]
        least = min(n for n, gone in zip(norms, out, strict=True) if not gone)
        raw = [
            0.0 if gone else w * math.exp(-self.sharpness * (n - least))
            for w, n, gone in zip(weights, norms, out, strict=True)
        ]
        total = math.fsum(raw)
        found = list(raw) if abs(total - 1) < 1e-12 else [r / total for r in raw]
        square = math.fsum(a * b * gram[i][j] for i, a in enumerate(found) for j, b in enumerate(found))
        size = math.sqrt(max(0.0, square))
        cut = 1.0 if self.radius is None or size <= self.radius else self.radius / size
        return [c * cut for c in found]


def _known(context: Context, islands: int) -> list[list[float]]:
    """Mean, variance and count of norms by island number; zeros for those that were never heard."""
    known: list[list[float]] = context.state["usual"].tolist() if context.state else []
    return known + [[0.0, 0.0, 0.0] for _ in range(islands - len(known))]
