"""Mixing beside training: what is mixed are the weights that a round began with, so that messages cross meanwhile.

Wang et al., From Promise to Practice: Realizing High-performance Decentralized Training, arXiv 2410.11998:
decentralised Adam in the form "adapt while communicate", with gradients accumulated over micro-batches.

    x_k(t+1) = x_k(t) + gamma sum_j W_kj (x_j(t) - x_k(t)) - u_k(t)

x_k(t): the anchor a_k; u_k: what the island's own AdamW steps moved in the round, D_k. With `sync.every` 1 and
`inner.accumulation` s it is the paper's accumulated Adam: one message per s micro-batches, sent while they are
computed. Moments stay on their island.
One vector per message. It is sent as soon as the round begins, in a thread beside training (islands simulated in one
process have no link to hide): a round takes max(compute, exchange), not their sum. `lowcomm.plan.decentral` says when
that beats an all-reduce. The messages of the round after the last are sent for nothing.
State: none.
Deviates: any number of inner steps; the paper's buckets, mixed one by one as the backward pass gets to them, are one.
Reduces to: `PlainMixing` where islands do not train; for all with all, its mean is FedAvg's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowcomm.mixing.base import Heard, Place, Rule


@dataclass(frozen=True, kw_only=True)
class Overlapped(Rule):
    """Mix where the round began, while it is trained."""

    early: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    plain_outer: ClassVar[bool] = False

    def say(self, place: Place) -> tuple[Tensor, ...]:
        return (place.anchor.clone(),)

    def mix(self, place: Place, heard: Sequence[Heard]) -> None:
        for one in heard:
            place.delta.sub_(one.differences[0], alpha=one.weight * place.gamma)

    def check(self) -> None:
        return None
