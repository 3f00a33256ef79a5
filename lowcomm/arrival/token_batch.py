"""DeDLOC's global batch: a round ends when the islands have trained so many tokens together, however they share them.

Diskin et al., Distributed Deep Learning in Open Collaborations, arXiv 2106.10207. With N = `tokens` and c_k the tokens
of a contribution:

    the version is made when sum_k c_k >= N;    D = sum_k c_k Delta_k / sum_k c_k

Islands of unequal speed take unequal numbers of steps, so that all contribute at about the same time: with r_k the
tokens per second of island k and b its tokens per step, its next round has H_k = N (r_k / sum_j r_j) / b steps, at
least 1; `every` until all rates are known. Costs nothing on the wire.
Deviations: progress is told with contributions, not after each step, so that a round may end up to one contribution
late; the learning rate follows each island's own schedule; members of a store train whole blocks, and keep their H.
Reduces to: N = K H b and equal speeds: fixed H, FedAvg weighted by tokens.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.arrival.base import ArrivalRule, Moment, Waiting
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class TokenBatch(ArrivalRule):
    """A version every `tokens` tokens."""

    tokens: int = 65_536
    """N: tokens of all islands per outer step, 1 or more."""

    @property
    def sets_steps(self) -> bool:
        return True

    def due(self, now: Moment) -> bool:
        return sum(one.tokens for one in now.here) >= self.tokens

    def weight(self, one: Waiting, now: Moment) -> float:
        return one.tokens

    def scale(self, used: Sequence[Waiting], total: float) -> float:
        return 1 / total

    def steps(self, every: int, author: str, now: Moment) -> int:
        rates = {k: now.pace(k).tokens_per_s for k in sorted(now.members | {author})}
        if not all(rates.values()):
            return every
        per_step = rates[author] * now.pace(author).step_s
        return max(1, round(self.tokens * rates[author] / sum(rates.values()) / per_step))

    def check(self, name: str, islands: int | None) -> None:
        super().check(name, islands)
        legal, fix = "1 or more", "islands * sync.every * tokens per step is a round of fixed H"
        require(self.tokens >= 1, f"{name}.tokens", self.tokens, legal, fix)
