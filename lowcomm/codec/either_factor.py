"""One of A and B of each LoRA layer, drawn anew for each round and island; the other stays private (FedRand).

Park et al., FedRand, arXiv 2503.07216.

In round t an island takes the drawn factors from the global weights, keeps its own values of the others, trains both,
and sends the drawn ones. Draws: one bit per layer of the round's own seed. Other tensors are always sent.
Shapes and dtypes: those of the Delta, fp32. Cost: `codec`'s for about half of the factors, 64 + 8 ceil(n / 64) B more.
Raises: as Parts. Deviates: it does not.
Reduces to: `codec`, for models without LoRA factors.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.codec.parts import Parts, factor_of, layer_of
from lowcomm.types import Delta, Round

FIRST_USE = 101
"""Uses of `own_seed` from here on are layers' draws."""


@dataclass(frozen=True, kw_only=True)
class EitherFactor(Parts):
    """A or B of each layer, at random."""

    def pick(self, delta: Delta, round: Round) -> list[bool]:
        layers = list(dict.fromkeys(layer_of(name) for name in delta if factor_of(name)))
        drawn = {layer: "A" if round.own_seed(FIRST_USE + i) >> 63 else "B" for i, layer in enumerate(layers)}
        return [factor_of(name) in (None, drawn.get(layer_of(name))) for name in delta]

    def private(self, like: Delta, round: Round) -> frozenset[str]:
        return frozenset(name for name, sent in zip(like, self.pick(like, round), strict=True) if not sent)
