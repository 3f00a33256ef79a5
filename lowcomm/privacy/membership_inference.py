"""Membership inference: can a sequence that was trained on be told from one that was held out, by its loss.

Yeom et al., loss threshold, arXiv 1709.01604; Watson et al., calibrated by the untuned model, arXiv 2111.08440.

    loss         score(x) = -loss_after(x)
    calibrated   score(x) = loss_before(x) - loss_after(x): takes out how hard the sequence is for anybody
    untuned      score(x) = -loss_before(x): the loss attack on a model that was trained on neither

What `untuned` finds is how the two kinds of text differ: where whole files are held out it may be far from 0.5, and
`loss` is to be read beside it. `calibrated` is 0.5 on the untuned model, whatever the text, but a model that learnt the
style of some files gains more on all of their text: of members that are files of their own it tells the files.
A high score says member. AUC is the probability that a random member scores above a random non-member, ties counting
half: 0.5 is guessing; its standard error stands beside it. The last figure is the true positive rate at the threshold
with at most 1 % false positives.
Scores: float [members] and float [nonmembers], in fp64 here. Cost: no bytes.
Raises: ValueError without members, without non-members, or for a score that is not finite.
An attack that fails is no guarantee: stronger ones exist. Epsilon bounds them all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIGURES = ("auc", "auc_error", "tpr_at_1pct_fpr")
"""Of each attack."""


def auc(members: Tensor, nonmembers: Tensor) -> float:
    """Probability that a member's score is above a non-member's, ties counting half."""
    inside, outside = _checked(members), _checked(nonmembers).sort().values
    below = torch.searchsorted(outside, inside)
    up_to = torch.searchsorted(outside, inside, right=True)
    return float((below + up_to).sum()) / (2 * len(inside) * len(outside))


def tpr_at_fpr(members: Tensor, nonmembers: Tensor, fpr: float = 0.01) -> float:
    """Fraction of members strictly above the lowest threshold that at most `fpr` of the non-members exceed."""
    inside, outside = _checked(members), _checked(nonmembers).sort(descending=True).values
    allowed = int(fpr * len(outside))
    if allowed >= len(outside):
        return 1.0
    return float((inside > outside[allowed]).double().mean())


def attacks(members: tuple[Tensor, Tensor], nonmembers: tuple[Tensor, Tensor]) -> dict[str, dict[str, float]]:
    """All three; each side is (losses before, losses after) of its sequences."""
    scores = {
        "loss": (-members[1], -nonmembers[1]),
        "calibrated": (members[0] - members[1], nonmembers[0] - nonmembers[1]),
        "untuned": (-members[0], -nonmembers[0]),
    }
    return {
        k: {"auc": auc(a, b), "auc_error": auc_error(auc(a, b), len(a), len(b)), "tpr_at_1pct_fpr": tpr_at_fpr(a, b)}
        for k, (a, b) in scores.items()
    }


def auc_error(area: float, members: int, nonmembers: int) -> float:
    """Standard error of an AUC (Hanley and McNeil 1982), for scores that fall off exponentially."""
    both = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (members - 1) * (both[0] - area**2) + (nonmembers - 1) * (both[1] - area**2)
    return math.sqrt(max(0.0, spread) / (members * nonmembers))


def _checked(scores: Tensor) -> Tensor:
    if not scores.numel() or not bool(scores.isfinite().all()):
        raise ValueError(f"{scores.numel()} scores: at least one is needed, all finite")
    return scores.double().flatten()
