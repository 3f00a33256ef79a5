"""Plain mixing: a weighted mean of the neighbours' weights and one's own.

Lian et al., D-PSGD, arXiv 1705.09056, after H local steps.

    x_k = a_k - D_k;   target_k = x_k + gamma sum_j W_kj (x_j - x_k);   D_k <- a_k - target_k

a_k: `place.anchor`; D_k: `place.delta`; W: the topology's. One vector per message, fp32 or what the codec makes of it.
With the codec Fp32 it works on x; with another on the public copies xhat (CHOCO).
State: none. Any outer optimizer: its momentum runs over mixing and training.
Reduces to: FedAvg with uniform weights for all with all and SGD(lr=1), up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.mixing.base import Heard, Place, Rule


@dataclass(frozen=True, kw_only=True)
class PlainMixing(Rule):
    """x_k + gamma sum_j W_kj (x_j - x_k)."""

    repeats: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    plain_outer: ClassVar[bool] = False

    def say(self, place: Place) -> tuple[Tensor, ...]:
        return (place.anchor - place.delta,)

    def mix(self, place: Place, heard: Sequence[Heard]) -> None:
        for one in heard:
            place.delta.sub_(one.differences[0], alpha=one.weight * place.gamma)

    def check(self) -> None:
        return None
