"""The loss on the proxy set: nats per token of a model on a text that all islands have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lowcomm.config import RunConfig
from lowcomm.data import Data, build_data
from lowcomm.island import PlainIsland
from lowcomm.types import IGNORED, require

Batches = Sequence[tuple[Tensor, Tensor]]


def proxy_batches(config: RunConfig, data: Data) -> Batches:
    """The batches of the proxy set; none without one. Raises ConfigError for text that can't be read, or too little."""
    proxy = config.sync.proxy
    if proxy is None:
        return []
    settings = dataclasses.replace(
        config.data,
        source=proxy.source,
        sharding="iid",
        partition=None,
        validation_fraction=0.5,
        validation_sequences=proxy.sequences,
        tuning=False,
    )
    built = build_data(settings, 1, config.seed)
    alike = built.tokenizer_name == data.tokenizer_name
    legal = "text of the same tokens as the run's; a tokenizer that is trained on it makes others"
    require(alike, "sync.proxy.source", type(proxy.source).__name__, legal, "use the tokenizer Bytes or HFTokenizer")
    return built.validation_batches()


def loss_on(batches: Batches, island: PlainIsland) -> Callable[[nn.Module], float]:
    """The loss of that island's model."""

    def loss(_: nn.Module) -> float:
        nats, tokens = 0.0, 0
        for inputs, targets in batches:
            nats += float(island.token_losses(inputs, targets).double().sum())
            tokens += int((targets != IGNORED).sum())
        return nats / max(1, tokens)

    return loss
