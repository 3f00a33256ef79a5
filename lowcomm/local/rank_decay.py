"""HetLoRA's regulariser: a client's last rows of its LoRA factors shrink unless its data need them.

Cho, Liu, Xu, Fahrezi, Joshi, HetLoRA, arXiv 2401.06432.

    min_{A_k, B_k} F_k + lambda sum_layers ||B_k[:, gamma r_k:]||_F ||A_k[gamma r_k:]||_F
    g_A[gamma r_k:] += lambda ||B'|| A' / ||A'||,   g_B[:, gamma r_k:] += lambda ||A'|| B' / ||B'||

A', B': the last rows and columns; r_k: the client's rank, which is that of its last row of A that is not zero (clients
of lower rank have zeros behind it); gamma r_k is rounded down, and one row at least is left out. lambda: `strength`.
Shapes and dtypes: A [r, in], B [out, r], any float dtype; norms in fp32. A norm of 0 has the gradient 0.
No bytes, no state.
Raises: ConfigError for a setting out of range, for a model without LoRA factors or with one of a layer's two frozen.
Deviates: the term is added after gradient clipping; with an adaptive inner optimizer it is scaled like a gradient.
Whether to prune is decided elsewhere (`aggregate.lora.HetLoRA`, which wants the same gamma).
Reduces to: FedAvg for strength = 0 or gamma = 1, bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.local.objective import Objective
from lowcomm.types import ConfigError, Delta, require

FACTOR = re.compile(r"(.+\.lora_(?:embedding_)?)([AB])(\..+)")
"""peft's names of factors."""


@dataclass(frozen=True, kw_only=True)
class RankDecay(Objective):
    """The gradient of the product of norms of the last rows, on that of every inner step."""

    strength: float = 1e-3
    """lambda, 0 or more."""
    gamma: float = 0.99
    """Part of the rank that is not decayed, above 0 and at most 1; small ranks: all but one row from 0.99 on."""

    anchored: ClassVar[bool] = False

    def correct(self, grads: Delta, local: Delta, start: Delta, controls: Delta) -> None:
        if self.strength == 0 or self.gamma == 1:
            return
        for name_a, name_b in pairs(local):
            a, b = local[name_a].detach().float(), local[name_b].detach().float()
            last = self._last(a)
            a, b = a * last[:, None], b * last
            norm_a, norm_b = a.norm(), b.norm()
            for name, part, ratio in (
                (name_a, a, torch.where(norm_a > 0, norm_b / norm_a, 0.0)),
                (name_b, b, torch.where(norm_b > 0, norm_a / norm_b, 0.0)),
            ):
                if name in grads:
                    grads[name].add_((self.strength * ratio * part).to(grads[name].dtype))

    def _last(self, a: Tensor) -> Tensor:
        """Which rows are decayed, fp32 [r]: on the device alone, as no step should wait for it."""
        row = torch.arange(1, a.shape[0] + 1, dtype=torch.float64, device=a.device)
        rank = (row * a.any(dim=1)).amax()
        return (row > (self.gamma * rank).floor().clamp_min(1)).float()

    def check(self) -> None:
        ok = math.isfinite(self.strength) and self.strength >= 0
        require(ok, "sync.objective.strength", self.strength, "a finite number, 0 or more", "1e-3")
        require(0 < self.gamma <= 1, "sync.objective.gamma", self.gamma, "0 < gamma <= 1", "0.99 is the paper's")

    def check_names(self, names: Collection[str]) -> None:
        alone = [n for n in names if (match := FACTOR.fullmatch(n)) and _partner(match) not in names]
        if alone or not pairs(names):
            what = f"{alone[0]} is trained without its partner" if alone else "no LoRA factor is trained"
            raise ConfigError(
                f"sync.objective = RankDecay is not allowed: {what}. Fix: model.tuning = LoRA(train='AB'), "
                "or leave the objective out"
            )


def pairs(names: Collection[str]) -> list[tuple[str, str]]:
    """The names of A and B of every layer that has both."""
    found = [(n, _partner(m)) for n in names if (m := FACTOR.fullmatch(n)) and m[2] == "A"]
    return [(a, b) for a, b in found if b in names]


def _partner(match: re.Match[str]) -> str:
    return f"{match[1]}{'B' if match[2] == 'A' else 'A'}{match[3]}"
