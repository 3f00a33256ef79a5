"""A loop's view of a sync: its numbers and parts, saving and loading the whole state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lowcomm.state.deadlines import Deadlines
from lowcomm.state.replica import Replica
from lowcomm.state.report import SyncReport
from lowcomm.state.spec import SyncSpec
from lowcomm.state.state import SyncState
from lowcomm.sync.saved import load_loop, save_loop
from lowcomm.transport import Transport


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a loop has cost so far; bytes are those of this process's first island, counted by its transport."""

    steps: int
    """Inner steps, those included in which a loop that had ended took part in the others' rounds."""
    rounds: int
    """Exchanges committed: of fragments, so that a streamed model has several per `every` steps."""
    sent_bytes: int
    """Bytes sent, `start_bytes` included."""
    received_bytes: int
    start_bytes: int
    """Of `sent_bytes`, those before the first step: the comparison of settings and, where islands were made from other
    weights, the first weights (which island 0 sends to all)."""
    sync_s: float
    """Seconds of exchanges, beside training or not."""
    blocked_s: float
    """Seconds in which training waited for them."""


class Loop:
    """Members of a LocalSGD that no round needs."""

    state: SyncState
    """What a checkpoint holds, and the parts that a round runs through."""
    _start_bytes: int = 0

    def save(self, path: Path | str, *, keep: int = 2) -> Path:
        """Write this process's islands to `path`/STEP; every process calls it after the same step.

        Whatever a resume needs is in it: weights with each island's own work, inner and outer optimizer, round, error
        feedback, exchanges in flight; not the loop's own data position, random states and schedules. No exchange.
        The newest `keep` stay. Returns the directory. Raises CheckpointError (disk full, ...), ConfigError for keep
        or a path that is no directory.
        """
        return save_loop(self.state, path, keep)

    def load(self, path: Path | str) -> int:
        """Put back the newest state in `path` that is whole on every island; returns its inner step.

        Every process calls it before the first step. 0: no island has anything there, and nothing was changed.
        Raises CheckpointError on every island if only some of them have one, all are damaged, or it is of other
        settings; ConfigError for a path that is no directory.
        """
        return load_loop(self.state, path)

    @property
    def stats(self) -> Stats:
        """Steps, rounds, bytes and seconds so far."""
        state = self.state
        return Stats(
            steps=state.step,
            rounds=state.round,
            sent_bytes=state.transport.sent_bytes[0],
            received_bytes=state.transport.received_bytes[0],
            start_bytes=self._start_bytes,
            sync_s=state.sync_s,
            blocked_s=state.blocked_s,
        )

    def _begin(self, *, watch: bool) -> None:
        """The last thing in the making of it. watch: whether weights that somebody else writes are told of."""
        self._start_bytes = self.state.transport.sent_bytes[0]
        for replica in self.state.replicas:
            if watch:
                replica.watch()

    @property
    def spec(self) -> SyncSpec:
        """Every choice: `every`, `outer`, `codec`, `schedule` and the others."""
        return self.state.spec

    @property
    def step(self) -> int:
        """Inner steps that all local islands have done."""
        return self.state.step

    @property
    def round(self) -> int:
        """Rounds committed: the number of the next one."""
        return self.state.round

    @property
    def rounds_done(self) -> int:
        """Rounds committed, a period of averaged gradients counting as one: what checkpoints are named by."""
        return self.state.round + self.state.gradient_steps // self.state.spec.every

    @property
    def pending(self) -> tuple[int, ...]:
        """Fragments whose exchange was due and has not been committed."""
        return self.state.due

    @property
    def replicas(self) -> list[Replica]:
        """The local islands' models and inner optimizers."""
        return self.state.replicas

    @property
    def transport(self) -> Transport:
        """Joins the islands; `sent_bytes` and `received_bytes` count what crossed it, by local island."""
        return self.state.transport

    @property
    def deadlines(self) -> Deadlines:
        """Late exchanges: their number, their times, who listens to them."""
        return self.state.deadlines

    @property
    def listeners(self) -> list[Callable[[SyncReport], None]]:
        """Called with the report of every committed round."""
        return self.state.listeners

    def weights(self) -> dict[str, Tensor]:
        """The global weights by name: fp32 views on the outer device."""
        return self.state.weights()
