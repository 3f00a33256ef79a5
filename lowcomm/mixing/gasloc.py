"""GASLoC: gossip after a scaled local step, with the momentum of an accelerated gossip.

GASLoC, arXiv 2606.11081, by a summary of it.

    y = a_k - lr D_k;   a_k <- y + a sum_j W_kj (y_j - y) + gam (y - y_prev)

y: where H local steps lead, scaled (d = -D_k is the paper's drift); Lap(y) = -sum_j W_kj (y_j - y); a: `gamma` of the
exchange; lr, gam: `lr`, `momentum`; y_prev: y of the round before, y itself in the first.
One vector per message; with a codec the differences are those of public copies.
State: y_prev, 4 bytes per parameter.
Raises: ConfigError for settings out of range.
Reduces to: `PlainMixing` for gam = 0 and lr = 1, bit for bit; for gam = 0, all with all and a = 1 to FedAvg with
SGD(lr), up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.mixing.base import Heard, Place, Rule
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class GASLoC(Rule):
    """A scaled local step, mixed, and a share of the last move."""

    lr: float = 1.0
    """Outer learning rate on what an island moved (no unit), above 0."""
    momentum: float = 0.3
    """gam: share of the last move that is made again (no unit), 0 to below 1."""

    remembers: ClassVar[bool] = True

    def say(self, place: Place) -> tuple[Tensor, ...]:
        return (torch.sub(place.anchor, place.delta, alpha=self.lr),)

    def mix(self, place: Place, heard: Sequence[Heard]) -> None:
        if self.lr != 1:
            place.delta.mul_(self.lr)
        if self.momentum:
            here = place.anchor - place.delta
            before = place.state.get("gasloc.before")
            place.state["gasloc.before"] = here
            if before is not None:
                place.delta.sub_(here - before, alpha=self.momentum)
        for one in heard:
            place.delta.sub_(one.differences[0], alpha=one.weight * place.gamma)

    def check(self) -> None:
        name = "sync.exchange.rule"
        require(0 < self.lr < math.inf, f"{name}.lr", self.lr, "a finite number above 0", "1.0")
        require(0 <= self.momentum < 1, f"{name}.momentum", self.momentum, "0 <= value < 1", "0.3")
