"""A look at the mean before it is committed: contributions may be altered between their senders and the sum.

Islands get the same bits, so they refuse alike; where only one island's copy is damaged, its digest differs after the
commit and the others stop there. One pass over the mean, no byte.
"""

from __future__ import annotations

import math

from lowcomm.state.norms import l2_norm
from lowcomm.state.outgoing import Arrived
from lowcomm.types import Round, UnusableError

ROUNDING = 1e-3
"""Relative, between fp32 sums and norms: far above what they round, far below what a flipped exponent bit does."""


def check_mean(arrived: Arrived, round: Round, limit: float | None) -> None:
    """Raise UnusableError if the mean is not finite, or its norm above `limit` (sum_k w_k ||Delta_k||; None: any)."""
    for _, mean in arrived.updates:
        norm = float(l2_norm(mean))
        if math.isfinite(norm) and (limit is None or norm <= limit * (1 + ROUNDING)):
            continue
        bound = "" if limit is None else f" where the islands' norms allow {limit:.6g} at most"
        raise UnusableError(
            f"the mean of round {round.index} has the norm {norm:.6g}{bound}: a contribution was altered on its way or "
            "in memory. Nothing was committed: local weights are kept. Fix: resume from the last checkpoint; if it "
            "comes again, test the machines' memory and links"
        )
