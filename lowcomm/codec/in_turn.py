"""A and B of LoRA in turn: only the factor that the round trains is sent (RoLoRA).

Chen et al., RoLoRA, arXiv 2502.01755: even rounds send B, odd rounds A; other tensors always.

Shapes and dtypes: those of the Delta, fp32. Cost: `codec`'s for one factor, 64 + 8 ceil(n / 64) B more (n tensors).
Raises: as Parts. Deviates: it does not; the turn comes from the global round, as the rule's does.
Reduces to: `codec`, for models without LoRA factors.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.codec.parts import Parts, factor_of
from lowcomm.types import Delta, Round


@dataclass(frozen=True, kw_only=True)
class InTurn(Parts):
    """The factor whose turn it is."""

    def pick(self, delta: Delta, round: Round) -> list[bool]:
        resting = "A" if round.index % 2 == 0 else "B"
        return [factor_of(name) != resting for name in delta]
