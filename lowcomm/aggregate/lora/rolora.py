"""RoLoRA: A and B are trained in turn, so that the factor at rest is the same everywhere and the mean is exact.

Chen et al., RoLoRA, arXiv 2502.01755.

    even rounds:  A is at rest,  B = sum_k p_k B_k
    odd rounds:   B is at rest,  A = sum_k p_k A_k        => s B A = sum_k p_k s B_k A_k, exactly, in each round

Whose turn it is comes from the global round, never from a client's own count: a client that was away for a round would
train the other factor. Even rounds train B, since B starts at zero and A would get no gradient.
Shapes and dtypes: those of `adapter`, fp32. Bytes: 4 r out or 4 r in up and down per layer and client, with the
codec `InTurn`; with another one both factors cross, half of them zeros.
Aggregates: sum_k p_k s_k B_k A_k, exactly, at equal ranks.
Raises: ConfigError for unequal ranks and for factors that moved out of turn.
Deviates: weights are tokens; the inner optimizer's moments of the factor at rest are kept for its next turn.
Reduces to: FFA-LoRA within an even round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.aggregate.lora.adapter import Adapter
from lowcomm.aggregate.lora.rule import FACTOR, Aggregated, LoraRule, finish, naive
from lowcomm.types import ConfigError, Round, require


@dataclass(frozen=True, kw_only=True)
class RoLoRA(LoraRule):
    """A and B in turn, by the global round."""

    needs: ClassVar[Literal["sum", "each"]] = "sum"

    def check(self) -> None:
        super().check()
        require(self.ranks is None, "sync.aggregator.ranks", self.ranks, "None: RoLoRA shares a factor", "use FlexLoRA")

    def trains(self, name: str, round_index: int) -> bool:
        match = FACTOR.fullmatch(name)
        return match is None or match["factor"] == turn(round_index)

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        trained = turn(round.index)
        for x in adapters:
            rest, common = (x.a, before.a) if trained == "B" else (x.b, before.b)
            if rest.shape != common.shape or not bool((rest == common).all()):
                raise ConfigError(
                    f"RoLoRA found a client that trained out of turn: in round {round.index} it is {trained}'s. "
                    "Fix: take the turn from the global round"
                )
        mean = naive(self, adapters, weights)
        kept = {"a": before.a, "b": mean.b} if trained == "B" else {"a": mean.a, "b": before.b}
        server = Adapter(a=kept["a"], b=kept["b"], scale=self.scale)
        return finish(self, adapters, weights, server, up=trained.lower(), down=trained.lower())


def turn(round_index: int) -> Literal["A", "B"]:
    """The factor that is trained in this global round."""
    return "B" if round_index % 2 == 0 else "A"
