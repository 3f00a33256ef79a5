"""FedBuff: islands contribute when they are ready, and the anchor steps after every Z contributions.

Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, arXiv 2106.06639. In the paper's symbols, with
K = Z (`size`) the buffer, `Delta_i` a client's update and `tau_i` its staleness in versions:

    w <- w - eta_g (1/Z) sum_{i in buffer} s(tau_i) Delta_i,      s(tau) = 1/sqrt(1 + tau)  ("polynomial") or 1

eta_g and the step itself are the outer optimizer's. There is no server: contributions go into an ordered log (`log.py`)
that every island folds by itself (`fold.py`), so that all have the same versions, sooner or later. Nobody waits for
anybody, until the run's end. After its own H steps an island appends its Delta, folds what is new and goes on from the
newest version: so each has its copy of the anchor, at a version of its own.

Bytes per island and contribution: a payload and 80 B out; every other island's payload in, once.
Simulation: a virtual clock. In tick t island k takes an inner step iff floor(t v_k) > floor((t - 1) v_k), or it rests;
contributions come in the order of (tick, island), and those of one tick before anybody of it reads.
End: an island appends a mark that it is done and waits for those of the others. Left behind is who appends nothing
while `wait_s` pass in which nothing comes at all; the first such mark in the log counts, for everybody alike. A buffer
that is not full is applied then, still with 1/Z.
Deviations: contributions weigh the same whatever their tokens are; a client never sits out.
Reduces to: Z islands of equal speed: FedAvg with uniform weights and the same outer optimizer, the same bits for fp32.
Errors: what can't be used is left out and named (see `fold.py`); SyncError where the log can't be written or read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from lowcomm.exchange.base import Exchange, ExchangeChoice, ExchangeParts
from lowcomm.exchange.log import DirectoryLog, Log, MemoryLog
from lowcomm.exchange.log_follower import LogFollower
from lowcomm.types import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class Buffered(ExchangeChoice):
    """Islands contribute to an ordered log when they are ready; every `size` contributions make a version."""

    size: int = 4
    """Z: contributions per outer step."""
    staleness: Literal["polynomial", "constant"] = "polynomial"
    """What a contribution of staleness tau counts: 1/sqrt(1 + tau), or 1."""
    max_staleness: int | None = None
    """Contributions that are more versions behind are left out; None: none is."""
    speeds: tuple[float, ...] | None = None
    """In a simulation, inner steps of each island per tick: more than 0, at most 1. None: 1 for all."""
    log: Path | None = field(
        default=None, repr=False
    )  # not compared in the handshake: machines mount it where they like
    """Directory of the log of real processes; a simulation keeps its own in memory."""
    wait_s: float = 300.0
    """At the end of a run, seconds without a new entry after which islands that are not done are left behind."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"

    def check(self, islands: int) -> None:
        field_name = "sync.exchange"
        require(self.size >= 1, f"{field_name}.size", self.size, "1 or more", "5 or 10 are usual")
        legal = ("polynomial", "constant")
        require(self.staleness in legal, f"{field_name}.staleness", self.staleness, f"one of {legal}", "take one")
        most = self.max_staleness
        ok = most is None or most >= 0
        require(ok, f"{field_name}.max_staleness", most, "0 or more, or None", "None leaves none out")
        ok = 0 < self.wait_s < math.inf
        require(
            ok, f"{field_name}.wait_s", self.wait_s, "a positive number of seconds", "pass more than one round takes"
        )
        if self.speeds is not None:
            ok = len(self.speeds) == islands
            require(ok, f"{field_name}.speeds", self.speeds, f"{islands} numbers, one per island", "give as many")
            ok = all(0 < v <= 1 for v in self.speeds)
            require(
                ok, f"{field_name}.speeds", self.speeds, "each more than 0 and at most 1", "let the fastest have 1.0"
            )

    def build(self, parts: ExchangeParts) -> Exchange:
        return LogFollower(
            parts, self._open(parts), size=self.size, damping=self.damping, max_staleness=self.max_staleness,
            speeds=self.speeds or (1.0,) * parts.transport.islands, wait_s=self.wait_s,
        )  # fmt: skip

    def damping(self, staleness: int) -> float:
        """d(tau)."""
        return 1.0 if self.staleness == "constant" else 1 / math.sqrt(1 + staleness)

    def check_processes(self, simulated: bool) -> None:
        """Raise ConfigError for settings that do not fit a simulation, or islands that are real processes."""
        if simulated:
            return
        if self.speeds is not None:
            raise ConfigError(
                "sync.exchange.speeds is not allowed in real processes: they have speeds of their own. Fix: leave it "
                "out, or pass --transport simulated"
            )
        if self.log is None:
            raise ConfigError(
                "sync.exchange.log = None is not allowed in real processes: contributions go through a directory. "
                "Fix: pass --sync.exchange.log DIR, which all islands can write, or --transport simulated"
            )

    def _open(self, parts: ExchangeParts) -> Log:
        transport = parts.transport
        simulated = len(transport.local) == transport.islands
        self.check_processes(simulated)
        if simulated or self.log is None:
            return MemoryLog()
        return DirectoryLog(Path(self.log), _most_bytes([anchors[0].fragment.numel for anchors in parts.anchors]))


def _most_bytes(elements: Sequence[int]) -> int:
    """Size of the largest entry: no codec sends as much as twice the fp32 Delta."""
    return 8 * sum(elements) + (1 << 16)
