"""NaN in every entry, under the norm of an honest Delta.

    D_k'[x] = NaN

A norm that is not finite is left out by the roll call; this attacker says a finite one. A sum of all then is NaN, which
is found before it is committed: the round fails, and so does the run. Rules that see each contribution leave it out.
Flat fp32 Deltas; no byte beside the contribution's own. Reduces to: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowcomm.attack.base import Attack, Seen


@dataclass(frozen=True, kw_only=True)
class NotANumber(Attack):
    """NaN."""

    hides: ClassVar[bool] = True

    def corrupt(self, delta: Tensor, seen: Seen) -> Tensor:
        return torch.full_like(delta, torch.nan)
