"""Training text of islands that attack by it: a reader whose targets an attack has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowcomm.attack import Attack
from lowcomm.data.shard import Shard, State


class PoisonedShard(Shard):
    """Another reader's batches; what is drawn depends on the seed, the island and the place, so it resumes alike."""

    def __init__(self, shard: Shard, attack: Attack, vocabulary: int, seed: int, island: int) -> None:
        self.shard, self.attack, self.vocabulary = shard, attack, vocabulary
        self.key = f"{seed} {island}"

    def next_batch(self) -> tuple[Tensor, Tensor]:
        drawn = hashlib.blake2b(f"{self.key} {self.shard.tokens}".encode(), digest_size=7).digest()
        inputs, targets = self.shard.next_batch()
        generator = torch.Generator().manual_seed(int.from_bytes(drawn, "little"))
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
