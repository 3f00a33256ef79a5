"""Membership inference: how well a loss tells sequences that a model was trained on from others.

Yeom, Giacomelli, Fredrikson, Jha, arXiv 1709.01604 (the loss itself); Watson, Guo, Cormode, Sablayrolles, arXiv
2111.08440 (the loss less that of a model that has not seen the text); Carlini et al., arXiv 2112.03570 (why the rate of
hits at few false alarms says more than the area).

    score = -loss,   or   loss before tuning - loss after it
    AUC = P(score of a member > score of another) + P(equal) / 2
    TPR at FPR f = share of members above the score that at most f of the others exceed

Losses: one number per sequence, any real numbers; both groups of equally long sequences.
Raises: ValueError if a group is empty.
Reduces to: equal distributions => AUC 0.5; no overlap => AUC and TPR 1.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def area_under_curve(members: Sequence[float], others: Sequence[float]) -> float:
    """0 to 1; scores, larger for what looks like a member."""
    _check(members, others)
    ordered = sorted(others)
    below = sum(bisect.bisect_left(ordered, s) + bisect.bisect_right(ordered, s) for s in members)
    return below / (2 * len(members) * len(others))


def hits_at(members: Sequence[float], others: Sequence[float], false_alarms: float = 0.01) -> float:
    """Share of the members found when at most `false_alarms` of the others are taken for members."""
    _check(members, others)
    allowed = int(false_alarms * len(others))
    threshold = sorted(others, reverse=True)[allowed]
    return sum(s > threshold for s in members) / len(members)


def _check(members: Sequence[float], others: Sequence[float]) -> None:
    if not members or not others:
        raise ValueError("members and others must not be empty")
