"""Islands contribute to an ordered log when they are ready; the anchor steps when a rule says so. Nobody waits.

    w <- outer(w, scale sum_k weight_k Delta_k)

When what waits makes a version, and what each contribution counts, is the rule's (`lowcomm/arrival/`): FedBuff
(arXiv 2106.06639) if none is given. There is no server: contributions go into an ordered log (`log.py`) that every
island folds by itself (`fold.py`), so that all have the same versions, sooner or later. Nobody waits for anybody,
until the run's end. After its own steps an island appends its Delta, folds what is new and goes on: so each has its
copy of the anchor, at a version of its own. A rule that looks at times has a clock on every island, and the first
island that finds a version full says so by a mark in the log, which counts for all (`log_clock.py`).

Bytes per island and contribution: a payload and 88 B out; every other island's payload in, once. A mark has 88 B.
Simulation: a virtual clock of `tick_s` seconds per tick. In tick t island k takes an inner step iff
floor(t v_k) > floor((t - 1) v_k), or it rests; contributions come in the order of (tick, island), and those of one tick
before anybody of it reads. Marks come as if somebody looked in every tick.
End: an island appends a mark that it is done and waits for those of the others. Left behind is who appends nothing
while `wait_s` pass in which nothing comes at all; the first such mark in the log counts, for everybody alike. A buffer
that is not full is applied then, with the rule's scale (FedBuff's: still 1/Z).
Deviations: a client never sits out.
Reduces to: FedBuff, Z islands of equal speed: FedAvg with uniform weights and the same outer optimizer, the same bits
for fp32.
Errors: what can't be used is left out and named (see `fold.py`); SyncError where the log can't be written or read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from lowcomm.arrival import ArrivalRule, FedBuff
from lowcomm.arrival.base import Damping, check_damping, check_size
from lowcomm.exchange.base import Exchange, ExchangeChoice, ExchangeParts
from lowcomm.exchange.log import DirectoryLog, Log, MemoryLog
from lowcomm.exchange.log_follower import LogFollower
from lowcomm.types import ConfigError, require

SIZE = 4


@dataclass(frozen=True, kw_only=True)
class Buffered(ExchangeChoice):
    """Islands contribute to an ordered log when they are ready; a rule says when a version is made of it."""

    rule: ArrivalRule | None = None
    """When what waits makes a version, and how each counts. None: FedBuff with `size` and `staleness`."""
    size: int = SIZE
    """Without a rule, Z: contributions per outer step, 1 to 4096."""
    staleness: Damping = "polynomial"
    """Without a rule, what a contribution of staleness tau counts: 1/sqrt(1 + tau), or 1."""
    goes_on: Literal["version", "own"] = "version"
    """What an island trains on from: the newest version, or that and its own contributions that no version holds."""
    max_staleness: int | None = None
    """Contributions that are more versions behind are left out; None: none is."""
    speeds: tuple[float, ...] | None = None
    """In a simulation, inner steps of each island per tick: more than 0, at most 1. None: 1 for all."""
    tick_s: float = 1.0
    """In a simulation, seconds of the virtual clock per tick, above 0: what a rule's seconds are counted in."""
    log: Path | None = field(
        default=None, repr=False
    )  # not compared in the handshake: machines mount it where they like
    """Directory of the log of real processes; a simulation keeps its own in memory."""
    wait_s: float = 300.0
    """At the end of a run, seconds without a new entry after which islands that are not done are left behind."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"

    def check(self, islands: int) -> None:
        field_name = "sync.exchange"
        check_size(field_name, self.size)
        check_damping(field_name, self.staleness)
        if self.rule is not None:
            given = (self.size, self.staleness) != (SIZE, "polynomial")
            fix = "give them to the rule instead"
            require(not given, f"{field_name}.size", self.size, "left out with a rule, as is staleness", fix)
            self.rule.check(f"{field_name}.rule", islands)
        legal = ("version", "own")
        require(self.goes_on in legal, f"{field_name}.goes_on", self.goes_on, f"one of {legal}", "take one")
        ok = 0 < self.tick_s < math.inf
        require(ok, f"{field_name}.tick_s", self.tick_s, "a positive number of seconds", "1.0 counts in ticks")
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
        simulated = len(parts.transport.local) == parts.transport.islands
        return LogFollower(
            parts, self._open(parts), rule=self.arrival, max_staleness=self.max_staleness,
            speeds=self.speeds or (1.0,) * parts.transport.islands, wait_s=self.wait_s, own=self.goes_on == "own",
            tick_s=self.tick_s if simulated else None,
        )  # fmt: skip

    @property
    def arrival(self) -> ArrivalRule:
        """The rule."""
        return self.rule or FedBuff(size=self.size, staleness=self.staleness)

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
