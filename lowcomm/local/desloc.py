"""DES-LOC: the inner optimizer's moments are averaged over the islands, each at its own period.

DES-LOC, arXiv 2505.22549.

    after every K_u-th round: u_k <- sum_j p_j u_j;   after every K_v-th: v_k <- sum_j p_j v_j

u: first moments (AdamW's exp_avg, Muon's momentum), v: second ones; K_u: `first_every`, K_v: `second_every`, in
rounds: the slower a moment moves, the rarer it is sent. p: the weights of the round's mean. Done in hooks/moments.py.
Shapes and dtypes: those of the moments; sums in fp32. Bytes: of each average those of an fp32 sum of the model.
Raises: ConfigError for a period below 1, or with what has no second exchange in a round.
Deviates: periods count rounds, not steps.
Reduces to: local moments (DiLoCo) for None; Local Adam for 1 and 1 with outer SGD of rate 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class DesLoc:
    """Periods of the moments' averages."""

    first_every: int | None = 3
    """K_u: rounds between two averages of first moments, 1 or more; None: they stay local."""
    second_every: int | None = 6
    """K_v: rounds between two averages of second moments, 1 or more; None: they stay local."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ("first_every", "second_every"):
            value = getattr(self, name)
            ok = value is None or value >= 1
            require(ok, f"sync.moments.{name}", value, "1 or more, or None for off", "3 and 6 are the paper's")
