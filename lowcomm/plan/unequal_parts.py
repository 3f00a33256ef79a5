"""Parts of a butterfly sum for unequal links: how much each island reduces for all.

Diskin et al. (DeDLOC), arXiv 2106.10207. Island k of K reduces the share a_k of the vector: it receives that share from
all others, sends the sum of it back to them, and sends and gets the rest; either way (1 + (K - 2) a_k) vectors:

    minimise xi    so that (1 + (K - 2) a_k) / rate_k <= xi,  a_k >= 0,  sum_k a_k = 1

The paper solves this linear programme with a solver. Here it has one bound per island, since both directions carry the
same: rate_k = min(upload, download). So a_k = max(0, (xi rate_k - 1) / (K - 2)) for the smallest xi at which they add
up to 1, which lies between two kinks of a piecewise linear function and is found exactly.
An island that accepts no connections has a_k = 0, and is served by the others.
Reduces to: equal rates: 1/K each.
Errors: ConfigError for rates that are not positive, or if nobody accepts connections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowcomm.types import require


def parts_of_sum(
    upload: Sequence[float], download: Sequence[float], accepts: Sequence[bool] | None = None
) -> tuple[list[float], float]:
    """Shares by island, and the time of the sum for a vector of 1 byte in seconds. Rates in bytes per second."""
    rates = [min(up, down) for up, down in zip(upload, download, strict=True)]
    islands = len(rates)
    require(islands >= 2, "islands", islands, "2 or more", "one island has nothing to sum")
    for k, rate in enumerate(rates):
        require(0 < rate < math.inf, f"rates[{k}]", rate, "a positive number of bytes per second", "leave it out")
    open_ = [True] * islands if accepts is None else list(accepts)
    require(any(open_), "accepts", open_, "at least one True", "one island must be reachable")
    least_s = max(1 / rate for rate in rates)
    if islands == 2:  # whatever the shares, each sends and gets one vector
        reducing = sum(rate for rate, ok in zip(rates, open_, strict=True) if ok)
        return [rate / reducing if ok else 0.0 for rate, ok in zip(rates, open_, strict=True)], least_s
    able = sorted((rate for rate, ok in zip(rates, open_, strict=True) if ok), reverse=True)
    # with the n fastest reducing: sum (xi r - 1) = K - 2, so xi = (K - 2 + n) / sum of their rates
    candidates = [(islands - 2 + n) / sum(able[:n]) for n in range(1, len(able) + 1)]
    sum_s = min(candidates)
    shares = [
        max(0.0, (sum_s * rate - 1) / (islands - 2)) if ok else 0.0 for rate, ok in zip(rates, open_, strict=True)
    ]
    total = sum(shares)
    return [share / total for share in shares], max(sum_s, least_s)
