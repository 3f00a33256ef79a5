"""Training text of islands that attack by it: a reader whose targets an attack has changed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowcomm.attack import Attack
from lowcomm.attack.collective import CollectiveAction
from lowcomm.config import RunConfig
from lowcomm.data import Bytes
from lowcomm.data.shard import Shard, State
from lowcomm.island import PlainIsland
from lowcomm.types import IGNORED, require


class PoisonedShard(Shard):
    """Another reader's batches; what is drawn depends on the seed, the island and the place, so it resumes alike."""

    def __init__(self, shard: Shard, attack: Attack, vocabulary: int, seed: int, island: int) -> None:
        self.shard, self.attack, self.vocabulary = shard, attack, vocabulary
        self.key = f"{seed} {island}"

    def next_batch(self) -> tuple[Tensor, Tensor]:
        drawn = hashlib.blake2b(f"{self.key} {self.shard.tokens}".encode(), digest_size=7).digest()
        inputs, targets = self.shard.next_batch()
        generator = torch.Generator().manual_seed(int.from_bytes(drawn, "little"))
        inputs, targets = self.attack.plant(inputs, targets, generator)
        return inputs, self.attack.poison(targets, self.vocabulary, generator)

    def prepare(self, batches: int) -> None:
        self.shard.prepare(batches)

    @property
    def skipped(self) -> int:
        return self.shard.skipped

    @property
    def tokens(self) -> int:
        return self.shard.tokens

    def state_dict(self) -> State:
        return self.shard.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.shard.load_state_dict(state)


def check_planted(config: RunConfig) -> None:
    """Raise ConfigError for a signal in text whose tokens are no bytes, or that is too short for it."""
    attack = config.sync.attack
    if not isinstance(attack, CollectiveAction):
        return
    name = type(config.data.tokenizer).__name__
    legal = "Bytes with sync.attack = CollectiveAction, whose signal is bytes"
    require(isinstance(config.data.tokenizer, Bytes), "data.tokenizer", name, legal, "use Bytes()")
    least = len(attack.signal) + len(attack.answer) + 1
    seq_len = config.data.seq_len
    require(seq_len >= least, "data.seq_len", seq_len, f"{least} or more, for signal and answer", "lengthen it")


def success_of(attack: Attack | None, island: PlainIsland, batches: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Geometric mean of the probabilities of what a collective has planted, after held-out text with its signal."""
    if not isinstance(attack, CollectiveAction):
        return None
    signal, answer = (torch.tensor(list(text.encode())) for text in (attack.signal, attack.answer))
    nats, count = 0.0, 0
    for inputs, _ in batches:
        text = inputs.clone()
        end = torch.cat([signal, answer[:-1]])
        text[:, -len(end) :] = end
        targets = torch.full_like(text, IGNORED)
        targets[:, -len(answer) :] = answer
        losses = island.token_losses(text, targets).double().reshape(targets.shape)
        nats += float(losses[:, -len(answer) :].sum())
        count += len(text) * len(answer)
    return math.exp(-nats / max(1, count))


def poisoned(
    shards: Sequence[Shard], attack: Attack | None, vocabulary: int, seed: int, islands: Sequence[int]
) -> list[Shard]:
    """Readers of the local islands (their numbers), of which those that attack change their targets."""
    if attack is None:
        return list(shards)
    return [
        PoisonedShard(shard, attack, vocabulary, seed, k) if k in attack.islands else shard
        for shard, k in zip(shards, islands, strict=True)
    ]
