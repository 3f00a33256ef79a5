"""What RQM's randomness hides, in Renyi divergence: exact for one element, composed over elements and rounds.

Youn, Hu, Ziani, Abernethy, RQM, arXiv 2306.11913; Mironov, Renyi differential privacy, arXiv 1702.07476; conversion to
(epsilon, delta): Canonne, Kamath, Steinke, arXiv 2004.00010, proposition 12.

    P(a, b | x) = P(a) P(b),  P(a = j - g) = q (1 - q)^g, what is left over for g = j;  b likewise upwards
    P(Z = i | x) = sum_b P(i, b) (B_b - x) / (B_b - B_i) for i <= j, and the mirror image for i > j
    rho(alpha) = max over x, x' in [-c, c] of 1 / (alpha - 1) log sum_i P(i | x)^alpha P(i | x')^(1 - alpha)
    epsilon(delta) = min over alpha of T d rho(alpha) + log(1 - 1 / alpha) - log(alpha delta) / (alpha - 1)

j: the level below x; q: `keep`; c: `clip`; d: `elements` of the Delta; T: `rounds`; everything in fp64. P(. | x) is
linear in x between two levels, and sum P^alpha Q^(1 - alpha) is jointly convex, so the maximum is at levels or at the
clip: a few pairs are exact, no grid is needed.
No bytes. State: the number of rounds, by whoever asks.
Raises: ConfigError for a parameter out of range.
Deviates: the paper bounds the sum of many clients' codes; here each island's payload is seen by the others (local
privacy), and no sampling of islands or of elements is credited. Hidden is everything that an island trained on in a
round. Elements compose one by one: for a whole model that is much.
Reduces to: randomised response between two levels for levels = 2 or keep = 0: rho(infinity) = log(p / (1 - p)) with
p = (1 + 1 / (1 + margin)) / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lowcomm.types import require

ALPHAS = (
    1.01,
    1.05,
    1.1,
    1.25,
    1.5,
    1.75,
    2.0,
    2.5,
    3.0,
    4.0,
    5.0,
    6.0,
    8.0,
    12.0,
    16.0,
    24.0,
    32.0,
    64.0,
    128.0,
    256.0,
)
"""Orders that the conversion tries."""


@dataclass(frozen=True, kw_only=True)
class RqmAccountant:
    """The privacy of an RQM codec with these settings, which are the codec's own."""

    clip: float
    margin: float
    levels: int
    keep: float
    elements: int
    """Parameters whose updates are sent in a round."""

    def __post_init__(self) -> None:
        require(0 < self.clip < math.inf, "clip", self.clip, "a finite number above 0", "the codec's")
        require(0 <= self.margin < math.inf, "margin", self.margin, "a finite number, 0 or more", "the codec's")
        require(self.levels >= 2, "levels", self.levels, "2 or more", "the codec's")
        require(0 <= self.keep <= 1, "keep", self.keep, "0 to 1", "the codec's")
        require(self.elements >= 1, "elements", self.elements, "1 or more", "the model's parameters")

    def distribution(self, x: float) -> np.ndarray:
        """P(Z = i | x), fp64 [levels], for x within the clip."""
        top = self.levels - 1
        place = (min(max(x, -self.clip), self.clip) / (self.clip * (1 + self.margin)) + 1) * top / 2
        j = min(math.floor(place), top - 1)
        below = self._kept(j + 1)[::-1]  # of level 0 ... j
        above = self._kept(top - j)  # of level j + 1 ... top
        a, b = np.arange(j + 1)[:, None], np.arange(j + 1, top + 1)[None, :]
        both = below[:, None] * above[None, :]
        upper = (place - a) / (b - a)
        return np.concatenate([(both * (1 - upper)).sum(axis=1), (both * upper).sum(axis=0)])

    def rdp(self, alpha: float) -> float:
        """rho(alpha) of one element in one round, alpha > 1 (math.inf: the largest log ratio)."""
        require(alpha > 1, "alpha", alpha, "above 1", "2")
        rows = [self.distribution(x) for x in self._corners()]
        return max(divergence(p, q, alpha) for p in rows for q in rows)

    def epsilon(self, rounds: int, delta: float) -> float:
        """Epsilon after `rounds` rounds of all elements, 0 < delta < 1; math.inf if nothing is hidden."""
        require(rounds >= 0, "rounds", rounds, "0 or more", "the rounds done")
        require(0 < delta < 1, "delta", delta, "0 < delta < 1", "1e-5")
        if rounds == 0:
            return 0.0
        found = [rounds * self.elements * self.rdp(math.inf)]
        for alpha in ALPHAS:
            spent = rounds * self.elements * self.rdp(alpha)
            found.append(spent + math.log1p(-1 / alpha) - math.log(alpha * delta) / (alpha - 1))
        return max(0.0, min(found))

    def report(self, rounds: int, delta: float) -> dict[str, float]:
        """Epsilon of one round and of all of them, with what they were computed for."""
        return {
            "rounds": rounds,
            "delta": delta,
            "epsilon_per_round": self.epsilon(min(rounds, 1), delta),
            "epsilon_total": self.epsilon(rounds, delta),
        }

    def _kept(self, number: int) -> np.ndarray:
        """Probability that the nearest kept of `number` levels is the g-th, of which the last is always kept."""
        chances = self.keep * (1 - self.keep) ** np.arange(number)
        chances[-1] = (1 - self.keep) ** (number - 1)
        return chances

    def _corners(self) -> list[float]:
        """Where the distribution bends, and the ends: x at which a maximum can be."""
        top, reach = self.levels - 1, self.clip * (1 + self.margin)
        inner = [x for i in range(self.levels) if abs(x := reach * (2 * i - top) / top) < self.clip]
        return [-self.clip, *inner, self.clip]


def divergence(p: np.ndarray, q: np.ndarray, alpha: float) -> float:
    """Renyi divergence of order alpha > 1 in nats; infinite if q is 0 where p is not."""
    some = p > 0
    if (q[some] == 0).any():
        return math.inf
    ratio = np.log(p[some]) - np.log(q[some])
    if alpha == math.inf:
        return float(ratio.max())
    exponents = np.log(p[some]) + (alpha - 1) * ratio
    largest = exponents.max()
    return float((largest + math.log(np.exp(exponents - largest).sum())) / (alpha - 1))
