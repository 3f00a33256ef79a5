"""Serves a user's loop beside training: saves and loads the whole state, counts bytes and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lowcomm.round import saved

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


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
    """Methods of a LocalSGD that no round needs."""

    _start_bytes: int = 0

    def save(self, path: Path | str, *, keep: int = 2) -> Path:
        """Write this process's islands to `path`/STEP; every process calls it after the same step.

        Whatever a resume needs is in it: weights with each island's own work, inner and outer optimizer, round, error
        feedback, exchanges in flight; not the loop's own data position, random states and schedules. No exchange.
        The newest `keep` stay. Returns the directory. Raises CheckpointError (disk full, ...), ConfigError for keep.
        """
        return saved.save_loop(cast("LocalSGD", self), Path(path), keep)

    def load(self, path: Path | str) -> int:
        """Put back the newest state in `path` that is whole on every island; returns its inner step.

        Every process calls it before the first step. 0: no island has anything there, and nothing was changed.
        Raises CheckpointError on every island if only some of them have one, or it is of other settings.
        """
        return saved.load_loop(cast("LocalSGD", self), Path(path))

    @property
    def stats(self) -> Stats:
        """Steps, rounds, bytes and seconds so far."""
        sync = cast("LocalSGD", self)
        return Stats(
            steps=sync.step,
            rounds=sync.round,
            sent_bytes=sync.transport.sent_bytes[0],
            received_bytes=sync.transport.received_bytes[0],
            start_bytes=self._start_bytes,
            sync_s=sync.sync_s,
            blocked_s=sync.blocked_s,
        )

    def _begin(self, *, watch: bool) -> None:
        """The last thing in the making of it. watch: whether weights that somebody else writes are told of."""
        sync = cast("LocalSGD", self)
        self._start_bytes = sync.transport.sent_bytes[0]
        for replica in sync.replicas:
            if watch:
                replica.watch()
