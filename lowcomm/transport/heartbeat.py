"""Heartbeats beside training: each process tells the others that it is alive, and hears who is dead or silent.

A thread writes to the board and reads what the others wrote. It touches no group, so that a long inner phase or an
exchange that hangs does not keep it from telling. A process that is gone is told within a second where the board knows
(one machine); one that is silent, and one that is gone on another machine, after `every_s` and half a second.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lowcomm.transport.board import Board
from lowcomm.types import require

HEARTBEAT_S = 1.0
POLL_S = 0.2
"""Longest time between two looks at the board."""
JOIN_S = 10.0
LINGER_S = 3.0
"""Longest time that rank 0, which has left its groups, keeps the board on which the others read why."""
SLACK_S = 0.5
"""What a busy machine may hold a beat up, beyond `every_s`, before its process is called silent."""
Condition = Literal["alive", "silent", "dead", "left"]


def check_heartbeat(every_s: float | None, prefix: str = "") -> None:
    """Raise ConfigError for a time that there is not."""
    ok = every_s is None or 0.1 <= every_s <= 3600
    require(ok, f"{prefix}heartbeat_s", every_s, "0.1 to 3600 seconds, or None for off", f"{HEARTBEAT_S:g} is usual")


@dataclass(kw_only=True)
class Peer:
    """What is known of another process."""

    condition: Condition = "alive"
    beat: str | None = None
    """The last one heard."""
    heard_s: float = 0.0
    """When, on this process's clock."""


class Heartbeat:
    """That of rank `rank` among `ranks`; listeners hear, in its thread, of each change: rank, condition, seconds."""

    def __init__(self, board: Board, rank: int, ranks: Sequence[int], every_s: float) -> None:
        self.board, self.rank, self.every_s = board, rank, every_s
        self.peers = {k: Peer() for k in ranks if k != rank}
        self.listeners: list[Callable[[int, Condition, float], None]] = []
        self.looks: list[Callable[[], None]] = []
        """Called at every look at the board."""
        self.failure: str | None = None
        """Why the board can't be reached any more."""
        self._count = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="lowcomm-heartbeat", daemon=True)

    def start(self) -> None:
        """All processes have joined the board by now."""
        now = time.monotonic()
        for peer in self.peers.values():
            peer.heard_s = now
        self._thread.start()

    def stop(self, why: str) -> None:
        """Leave, and tell the others why; safe to call twice."""
        if self._over.is_set():
            return
        self._over.set()
        with contextlib.suppress(OSError):  # then nobody can be told
            self.board.post(f"left {self.rank}", why)
        if self._thread.is_alive():
            self._thread.join(JOIN_S)  # one that is in torch's store when the process ends takes it down

    def linger(self) -> None:
        """Once this process has left: keep a board that goes with it until the others have left as well."""
        if not (self._over.is_set() and self.rank == 0 and self.board.ends_with_rank_0):
            return
        ends_s = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            for rank, peer in self.peers.items():
                while peer.condition == "alive" and self.why_left(rank) is None and time.monotonic() < ends_s:
                    time.sleep(0.02)

    def silent_s(self, rank: int) -> float:
        """Seconds since a peer was last heard."""
        return time.monotonic() - self.peers[rank].heard_s

    def condition(self, rank: int) -> Condition:
        """How a peer is, looked up now."""
        self._look_at(rank, self.peers[rank])
        return self.peers[rank].condition

    def why_left(self, rank: int) -> str | None:
        """What a peer said when it left; None: it has not."""
        return self.board.read(f"left {rank}")

    def _run(self) -> None:
        due_s = 0.0
        while not self._over.wait(min(self.every_s / 2, POLL_S)):
            try:
                if (now := time.monotonic()) >= due_s:
                    due_s = now + self.every_s / 2
                    self._count += 1
                    self.board.post(f"beat {self.rank}", str(self._count))
                for rank, peer in self.peers.items():
                    self._look_at(rank, peer)
                for look in self.looks:
                    look()
            except OSError as error:
                self.failure = str(error)
                return

    def _look_at(self, rank: int, peer: Peer) -> None:
        with self._lock:
            before, now = peer.condition, time.monotonic()
            if before in ("dead", "left"):
                return
            beat = self.board.read(f"beat {rank}")
            passed_s = now - peer.heard_s
            if beat != peer.beat:
                peer.beat, peer.heard_s, peer.condition = beat, now, "alive"
            elif passed_s > self.every_s + SLACK_S:
                peer.condition = "silent"
            if (self.board.is_dead(rank) or peer.condition == "silent") and self.why_left(rank) is not None:
                peer.condition = "left"
            elif self.board.is_dead(rank):
                peer.condition = "dead"
            changed = peer.condition != before
        if changed and not self._over.is_set():
            for listener in self.listeners:
                listener(rank, peer.condition, passed_s)
