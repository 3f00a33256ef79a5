"""What islands with anchors of their own agree on when they are asked for one set of weights: the mean of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """The mean of the islands' anchors, and how far they are from it; equal on every island."""

    named: list[Mapping[str, Tensor]]
    """By fragment: the mean by name, fp32, on the outer device."""
    distance: float
    """mean_k ||a_k - mean||^2 over all islands that are there."""
