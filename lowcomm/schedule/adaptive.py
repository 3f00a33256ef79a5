"""A period, and bits, that follow what was measured: as many rounds, and as fine, as the link can carry.

The idea of choosing both from the link: DiLoCoX, arXiv 2506.21263 (there with the rank, which follows the update's
spectrum: see lowcomm.codec.PowerSGD and its `energy`).

    e(l) = e_0 + (e - e_0) b(l) / b,   H(l) = ceil(u e(l) / ((1 - u) s))
    the finest l whose H(l) is at most `every`, else the coarsest;   H = H(l) within `shortest` ... `longest`

s: seconds of an inner step, of the slowest island; e: seconds of the last exchange, of the island that came last and
waited for none; e_0: the part of it that does not grow with bytes, four roll calls long; b(l): bytes per round at level
l of a `Graded` codec (one level otherwise), b: those of the last round; u: `utilisation`. s and e are averaged over
rounds with weight 1/2, and H at most doubles or halves from round to round.
Cost: one model of payload per island each way at the end of each round, and 32 B for the decision.
Raises: ConfigError for a setting out of range.
Deviates: a rule of our own; DiLoCoX ties H to the rank alone. With `step_s` and `link_mbit` given, decisions do not
depend on clocks, so that processes and simulation have the same bits; measured, only the replicas do.
Reduces to: EveryH for shortest = longest = `sync.every` and one level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.schedule.base import Action, Measured, Pace, Schedule, check_every
from lowcomm.types import require

TRIPS = 4
"""Small gathers in an exchange: roll call, agreement on payloads, digests, and the decision itself."""


@dataclass(frozen=True, kw_only=True)
class Adaptive(Schedule):
    """The shortest round in which islands still train for the share `utilisation` of the time."""

    utilisation: float = 0.95
    """Share of the time in which islands are to train, 0 < utilisation < 1."""
    shortest: int = 8
    """Inner steps of a round, at least."""
    longest: int = 512
    """Inner steps of a round, at most."""
    step_s: float | None = None
    """Seconds of an inner step; None: measured."""
    link_mbit: float | None = None
    """Speed of an island's link, 10^6 bits per second; None: exchanges are timed."""
    round_trip_ms: float = 0.0
    """Round trip between islands, where `link_mbit` is given."""

    adapts = True

    def __call__(self, step: int, every: int) -> Action:
        return Action(sync=(0,) if step % every == 0 else ())

    def next_pace(self, pace: Pace, every: int, measured: Measured, level_bytes: Sequence[int]) -> Pace:
        now = self._known(measured)
        step_s, exchange_s, fixed_s = (
            new if old is None else (old + new) / 2
            for old, new in zip(
                (pace.step_s, pace.exchange_s, pace.fixed_s),
                (now.step_s, _whole(now, pace.level, level_bytes), _fixed(now)),
                strict=True,
            )
        )
        needed = [self._needed(fixed_s + (exchange_s - fixed_s) * b / level_bytes[0], step_s) for b in level_bytes]
        level = next((i for i, h in enumerate(needed) if h <= every), len(needed) - 1)
        most, least = min(self.longest, 2 * pace.every), max(self.shortest, -(-pace.every // 2))
        return Pace(
            every=max(least, min(most, needed[level])),
            since=measured.step,
            level=level,
            step_s=step_s,
            exchange_s=exchange_s,
            fixed_s=fixed_s,
        )

    def _known(self, measured: Measured) -> Measured:
        """What was measured, with what is given in its place."""
        step_s = measured.step_s if self.step_s is None else self.step_s
        if self.link_mbit is None:
            return Measured(
                step=measured.step,
                step_s=step_s,
                exchange_s=measured.exchange_s,
                latency_s=measured.latency_s,
                sent_bytes=measured.sent_bytes,
            )
        latency_s = self.round_trip_ms / 1000
        exchange_s = TRIPS * latency_s + measured.sent_bytes * 8e-6 / self.link_mbit
        return Measured(
            step=measured.step,
            step_s=step_s,
            exchange_s=exchange_s,
            latency_s=latency_s,
            sent_bytes=measured.sent_bytes,
        )

    def _needed(self, exchange_s: float, step_s: float) -> int:
        share = self.utilisation / (1 - self.utilisation)
        return max(1, math.ceil(min(share * exchange_s / max(step_s, 1e-9), 1e9)))

    def check(self, every: int, steps: int | None) -> None:
        check_every(every, steps)
        ok = 0 < self.utilisation < 1
        require(ok, "sync.schedule.utilisation", self.utilisation, "above 0, below 1", "0.95")
        ok = 1 <= self.shortest <= every
        require(ok, "sync.schedule.shortest", self.shortest, f"1 to {every} (sync.every)", "8, or raise --sync.every")
        fix = "leave it out, or lower --sync.every"
        require(self.longest >= every, "sync.schedule.longest", self.longest, f"{every} (sync.every) or more", fix)
        for name, value in (("step_s", self.step_s), ("link_mbit", self.link_mbit)):
            ok = value is None or 0 < value < float("inf")
            require(
                ok, f"sync.schedule.{name}", value, "a finite number above 0, or None", "leave it out: it is measured"
            )
        ok = 0 <= self.round_trip_ms < float("inf")
        require(ok, "sync.schedule.round_trip_ms", self.round_trip_ms, "a finite number, 0 or more", "0")


def _fixed(measured: Measured) -> float:
    return min(measured.exchange_s, TRIPS * measured.latency_s)


def _whole(measured: Measured, level: int, level_bytes: Sequence[int]) -> float:
    """Seconds that the exchange would have taken at level 0."""
    fixed_s = _fixed(measured)
    return fixed_s + (measured.exchange_s - fixed_s) * level_bytes[0] / level_bytes[level]
