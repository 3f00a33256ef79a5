"""FedSA-LoRA: A is shared and averaged, each client keeps its own B.

Guo et al., FedSA-LoRA, arXiv 2410.01463.

    A = sum_k p_k A_k;   client k goes on with s_k B_k A

Shapes and dtypes: those of `adapter`, fp32. Bytes: 4 r in up and down per layer and client, with the codec `Shared`.
Aggregates: A only. The clients' mean, sum_k p_k s_k B_k A, is off sum_k p_k s_k B_k A_k by sum_k p_k s_k B_k (A_k - A),
which is the reported error; a server does not know any B.
Raises: ConfigError for unequal ranks.
Deviates: weights are tokens. The global B stays at its first value, zero: the global weights are the base model, and
each client's model is its own.
Reduces to: local training, for A that do not move; one client => the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowcomm.aggregate.lora.adapter import Adapter, relative_error, target
from lowcomm.aggregate.lora.rule import Aggregated, finish, naive
from lowcomm.aggregate.lora.senders import SenderMean
from lowcomm.types import Round, require


@dataclass(frozen=True, kw_only=True)
class FedSA(SenderMean):
    """A is averaged, B stays with its client."""

    private: ClassVar[frozenset[str]] = frozenset("B")

    def check(self) -> None:
        super().check()
        require(self.ranks is None, "sync.aggregator.ranks", self.ranks, "None: FedSA shares one A", "use FlexLoRA")

    def layer(
        self, adapters: Sequence[Adapter], weights: Sequence[float], before: Adapter, round: Round, layer: int = 0
    ) -> Aggregated:
        mean = naive(self, adapters, weights)
        clients = tuple(Adapter(a=mean.a, b=x.b, scale=x.scale) for x in adapters)
        error = relative_error(target(adapters, weights), target(clients, weights))
        server = Adapter(a=mean.a, b=before.b, scale=self.scale)
        done = finish(self, adapters, weights, server, clients=clients, up="a", down="a")
        return Aggregated(
            server=server,
            clients=clients,
            up_bytes=done.up_bytes,
            down_bytes=done.down_bytes,
            error=error,
            wanted_norm=done.wanted_norm,
        )
