"""Data blocks: the text of a run as numbered pieces that members lease, each trained by whoever holds its lease.

Block b is what island b % N of a run of N fixed islands trains in the steps (b // N) s + 1 to (b // N + 1) s, where s
is the number of inner steps of a block and N the number of islands that the run was made for: members that never change
read what fixed islands read. Epochs follow one another without end; how many blocks a run has is in `run.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowcomm.config import RunConfig
from lowcomm.data import Data
from lowcomm.data.windows import WindowShard
from lowcomm.exchange.store import Store
from lowcomm.types import ConfigError, require

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """How a run's text is cut; equal on every island."""

    steps: int
    """Inner steps of a block."""
    batches: int
    """Batches of a block."""
    sequences: int
    per_round: int
    """Blocks of a round of `sync.every` inner steps."""
    count: int
    """Blocks of the run."""
    tokens: int
    """Of a block of plain text; conversations count fewer."""

    @classmethod
    def of(cls, config: RunConfig, choice: Store, islands: int) -> BlockSizes:
        """Raises ConfigError where rounds do not consist of whole blocks."""
        every, steps = config.sync.every, choice.steps_per_block(config.sync.every)
        legal = f"a divisor of sync.every ({every})"
        require(every % steps == 0, "sync.exchange.block_steps", steps, legal, "leave it out: a block is a round")
        batches = steps * config.inner.accumulation
        sequences = batches * config.data.batch_size
        return cls(
            steps=steps,
            batches=batches,
            sequences=sequences,
            per_round=every // steps,
            count=islands * -(-config.steps // steps),
            tokens=sequences * config.data.seq_len,
        )


class BlockReader:
    """Reads blocks, in any order and as often as asked."""

    def __init__(self, data: Data, islands: int, sizes: BlockSizes) -> None:
        self._data, self._islands, self._sizes = data, islands, sizes
        self._shards: dict[int, WindowShard] = {}

    def batches(self, block: int) -> Sequence[Batch]:
        """The batches of a block: int64 (inputs, targets), [batch_size, seq_len] each."""
        shard = self._shard(block % self._islands)
        epoch, position = divmod(block // self._islands * self._sizes.sequences, shard.windows_per_epoch)
        shard.load_state_dict({**shard.state_dict(), "epoch": epoch, "position": position})
        return [shard.next_batch() for _ in range(self._sizes.batches)]

    def _shard(self, slot: int) -> WindowShard:
        if slot not in self._shards:
            shard = self._data.shard(slot)
            if not isinstance(shard, WindowShard):
                raise ConfigError(
                    "data.source is not allowed with sync.exchange = Store: what is streamed has no blocks that "
                    "members could lease. Fix: read it first (--data.source.no-streaming), or pass --data.sharding own"
                )
            self._shards[slot] = shard
        return self._shards[slot]
