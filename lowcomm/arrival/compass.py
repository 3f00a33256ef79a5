"""FedCompass: islands get steps by their speed so that groups of them arrive together, and each group makes a version.

Li et al., FedCompass, ICLR 2024, arXiv 2309.14675. s_k: moving mean of an island's seconds per inner step. An island
that contributes at time t joins the group, expected at Te, for which it can take the most steps

    q = floor((Te - t)/s_k),    least_steps <= q <= most_steps

Where there is none it opens one: q steps, such that it meets the next arrival of the fastest member of the group that
is expected first, at Tl + s_fast most_steps, cut to the range. A group is waited for until Tl = t + late (Te - t).
Then, or when all of it have come, what waits makes a version, with those who came after the time of their own group:

    w <- outer(w, (1/K) sum_k d(tau_k) Delta_k),    d(tau) = 1/sqrt(1 + tau) ("polynomial") or 1

Costs nothing on the wire. Groups are a function of the log: t is the sum of an island's own round times, no clocks are
compared; the first group is of all islands, as no speed is known.
Deviations: an island trains on at once, where the paper lets it wait for its group; that a group's time is over shows
when anybody contributes; the paper's rate of 0.9 is the outer optimizer's. Not over a store, whose blocks are of one
size.
Reduces to: equal speeds, least_steps = most_steps = H: the synchronous run with uniform weights.
Errors: ConfigError for a number out of range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lowcomm.arrival.base import ArrivalRule, Damping, Moment, Waiting, check_damping, damping
from lowcomm.types import require

_NEVER_S = 1e300
"""JSON has no infinity."""
_ROUNDING = 1e-6
"""Steps: a sum of times may be that much too short."""


@dataclass(frozen=True, kw_only=True)
class FedCompass(ArrivalRule):
    """A version per group of islands that arrive together."""

    least_steps: int = 20
    """Inner steps of a round at least, 1 or more."""
    most_steps: int = 100
    """At most; `sync.every` is that of the first round."""
    late: float = 1.5
    """How long a group is waited for, in its expected times, 1 to 10."""
    staleness: Damping = "polynomial"
    """What a contribution of staleness tau counts: 1/sqrt(1 + tau), or 1."""

    remembers: ClassVar[bool] = True

    @property
    def sets_steps(self) -> bool:
        return True

    def due(self, now: Moment) -> bool:
        return any(group["done"] for group in now.memory.get("groups", ()))

    def weight(self, one: Waiting, now: Moment) -> float:
        return damping(self.staleness, one.staleness) / max(1, len(now.members | {one.author}))

    def scale(self, used: Sequence[Waiting], total: float) -> float:
        return 1.0

    def steps(self, every: int, author: str, now: Moment) -> int:
        return now.memory.get("steps", {}).get(author, every)

    def remember(self, memory: Mapping[str, Any], one: Waiting, took_s: float, now: Moment) -> dict[str, Any]:
        author, step_s = one.author, now.pace(one.author).step_s
        times = {**memory.get("times", {}), author: memory.get("times", {}).get(author, 0.0) + took_s}
        first = [{"at": _NEVER_S, "until": _NEVER_S, "wait": sorted(now.members), "here": 0, "done": False}]
        groups = [{**g, "wait": [k for k in g["wait"] if k != author]} for g in memory.get("groups", first)]
        for new, old in zip(groups, memory.get("groups", first), strict=True):
            new["here"] += new["wait"] != old["wait"]
        groups = [g for g in groups if not g["done"] and (g["here"] or g["wait"])]
        for group in groups:
            over = times[author] > group["until"]
            group["done"] = group["here"] > 0 and (over or not now.members & set(group["wait"]))
        running = [g for g in groups if not g["done"] and g["at"] < _NEVER_S and g["until"] >= times[author]]
        steps = self._join(running, groups, author, times[author], step_s, now)
        return {"times": times, "groups": groups, "steps": {**memory.get("steps", {}), author: steps}}

    def _join(
        self,
        running: list[dict[str, Any]],
        groups: list[dict[str, Any]],
        author: str,
        t: float,
        step_s: float,
        now: Moment,
    ) -> int:
        """Steps of the author's next round; puts it into its group."""
        if step_s <= 0:
            return self.least_steps
        could = [(math.floor((g["at"] - t) / step_s + _ROUNDING), i) for i, g in enumerate(running)]
        fits = [(q, -i) for q, i in could if self.least_steps <= q <= self.most_steps]
        if fits:
            q, i = max(fits)
            running[-i]["wait"] = sorted([*running[-i]["wait"], author])
            return q
        q = self.most_steps
        if running:
            soonest = min(running, key=lambda g: g["at"])
            known = [now.pace(k).step_s for k in soonest["wait"] if now.pace(k).step_s > 0]
            meets = soonest["until"] + min(known, default=step_s) * self.most_steps
            q = min(max(math.floor((meets - t) / step_s), self.least_steps), self.most_steps)
        at, until = t + q * step_s, t + self.late * q * step_s
        groups.append({"at": at, "until": until, "wait": [author], "here": 0, "done": False})
        return q

    def check(self, name: str, islands: int | None) -> None:
        super().check(name, islands)
        require(self.least_steps >= 1, f"{name}.least_steps", self.least_steps, "1 or more", "20 is usual")
        legal = f"{self.least_steps} or more, as least_steps"
        require(self.most_steps >= self.least_steps, f"{name}.most_steps", self.most_steps, legal, "5 times as many")
        require(1 <= self.late <= 10, f"{name}.late", self.late, "1 to 10", "1.5 is usual")
        check_damping(name, self.staleness)
