"""FedRand: in each round and layer a client shares one of A and B, drawn at random, and keeps the other to itself.

Park et al., FedRand, arXiv 2503.07216.

    in round t client k draws, layer by layer, which of A_k, B_k it takes from the server and will send back;
    the other is its own of the round before. Both are trained.
    A = sum_{k sent A} p_k A_k / sum_{k sent A} p_k,   B likewise; a factor that nobody sent stays as it is

Shapes and dtypes: those of `adapter`, fp32. Bytes: 4 r in or 4 r out up and down per layer and client: about half.
Aggregates: means of A and of B over those who sent them; the error against sum_k p_k s_k B_k A_k is that of these means
(a server, which never sees both of one client, can't compute it: `layer` can, for tests and simulations).
Raises: ConfigError for unequal ranks.
Deviates: weights are tokens. Draws come from the round's seed and the island, so that receivers know what a payload
holds (codec `EitherFactor`).
Reduces to: FedIT, if every client sends both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.aggregate.lora.adapter import Adapter, relative_error, target
from lowcomm.aggregate.lora.rule import Aggregated
from lowcomm.aggregate.lora.senders import SenderMean, mean_over_senders
from lowcomm.types import Contribution, Round, require


@dataclass(frozen=True, kw_only=True)
class FedRand(SenderMean):
    """Means over those who sent a factor."""

    def check(self) -> None:
        super().check()
        require(self.ranks is None, "sync.aggregator.ranks", self.ranks, "None: FedRand needs equal ranks", "FlexLoRA")

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        """As a run does it, with client k's draw from (round, k, layer)."""
        return self.layer_of(adapters, weights, before, [shares_a(round, k, layer) for k in range(len(adapters))])

    def layer_of(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, sent_a: Sequence[bool]
    ) -> Aggregated:
        """For given draws: True where a client shares A, False where it shares B."""
        like = {"a": before.a, "b": before.b}
        contributions = [
            Contribution(
                island=k,
                delta={"a": before.a - x.a} if a else {"b": before.b - x.b},
                weight=p,
                round=0,
            )
            for k, (x, p, a) in enumerate(zip(adapters, weights, sent_a, strict=True))
            if p != 0
        ]
        mean = mean_over_senders(contributions, like)
        server = Adapter(a=before.a - mean["a"], b=before.b - mean["b"], scale=self.scale)
        sizes = tuple(x.nbytes(a=a, b=not a) for x, a in zip(adapters, sent_a, strict=True))
        clients = tuple(
            Adapter(a=server.a if a else x.a, b=x.b if a else server.b, scale=x.scale)
            for x, a in zip(adapters, sent_a, strict=True)
        )
        wanted = target(adapters, weights)
        return Aggregated(
            server=server,
            clients=clients,
            up_bytes=sizes,
            down_bytes=sizes,
            error=relative_error(wanted, server.product),
            wanted_norm=wanted.norm(),
        )


def shares_a(round: Round, island: int, layer: int) -> bool:
    """The draw of a layer: one bit of a 64-bit seed per island and layer."""
    own = Round(index=round.index, step=round.step, fragments=round.fragments, seed=round.seed, island=island)
    return bool(own.own_seed(use=101 + layer) >> 63)
