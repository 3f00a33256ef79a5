"""pFedGame: an island mixes with the neighbours that help it, by shares of a game of two.

By the description of seed paper 45 in the specifications (decentralised, personalised, over graphs that change).

    gain of j:  v_j = [L(x) - L((x + x_j) / 2)]+ ;   c = mean of the `best` neighbours with the largest gains above 0
    game:       v(own) = L0 - L(x),  v(c) = L0 - L(c),  v(both) = L0 - L((x + c) / 2)
    Shapley:    phi_own = (v(own) + v(both) - v(c)) / 2,  phi_c = (v(c) + v(both) - v(own)) / 2,  below 0: 0
    x <- (phi_own x + phi_c c) / (phi_own + phi_c)

L: the island's loss on a little held-out text of its own (nats per token); L0: at the anchor, where the round began;
x: `place.anchor - place.delta`. Both shares 0: the island keeps x. Weights of the topology are not used.
One vector per message, in fp32. Cost: d + 4 evaluations per round, d neighbours.
State: none. Islands end with weights of their own, whose mean means little where their text differs (`eval.clients`).
Raises: ConfigError for a number out of range. A loop of one's own is refused: it has no held-out text to judge by.
Reduces to: local training where no neighbour has a gain, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.mixing.base import Heard, Place, Rule
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Game(Rule):
    """The neighbours that help, and how much, by losses on own text."""

    best: int = 3
    """m: neighbours that are mixed at most, 1 or more."""

    whole: ClassVar[bool] = True
    judges: ClassVar[bool] = True

    def say(self, place: Place) -> tuple[Tensor, ...]:
        return (place.anchor - place.delta,)

    def mix(self, place: Place, heard: Sequence[Heard]) -> None:
        assert place.loss is not None
        own, loss = place.anchor - place.delta, place.loss
        here = loss(own) if heard else 0.0
        gains = [(here - loss(own + 0.5 * one.differences[0]), -i) for i, one in enumerate(heard)]
        kept = [-i for gain, i in sorted(gains, reverse=True)[: self.best] if gain > 0]
        if not kept:
            return
        towards = torch.stack([heard[i].differences[0] for i in kept]).mean(dim=0)  # c - x
        start, there, between = loss(place.anchor), loss(own + towards), loss(own + 0.5 * towards)
        payoffs = start - here, start - there, start - between
        mine = max(0.0, (payoffs[0] + payoffs[2] - payoffs[1]) / 2)
        theirs = max(0.0, (payoffs[1] + payoffs[2] - payoffs[0]) / 2)
        if theirs > 0:
            place.delta.sub_(towards, alpha=theirs / (mine + theirs))

    def check(self) -> None:
        require(self.best >= 1, "sync.exchange.rule.best", self.best, "1 or more", "3")
