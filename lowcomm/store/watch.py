"""What an island has seen on its own clock: who was heard of when, how far arrivals spread, since when it waits."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from lowcomm.store.chain_state import ChainState, Member
from lowcomm.store.rules import Policy

SPREADS = 5
"""Commits whose spread of arrivals counts."""
LEAST_GRACE_S = 1.0
MOST_TURN_S = 5.0
SILENT = "silent"
"""What the reason of a removal begins with where nothing was heard."""
OWN_WORDS = ("it left", "it healed as somebody new")
"""With which the reason begins where a member took itself out: told to stop, or healed under another incarnation."""
LEFT, HEALED = OWN_WORDS


class Watch:
    """Times are of the island's monotonic clock; whoever heals starts anew."""

    def __init__(self, now: float) -> None:
        self.waiting_since = now
        """Of the last commit that was applied."""
        self.first_seen: dict[str, float] = {}
        """By key: contributions that are not settled, and requests."""
        self.news: dict[str, float] = {}
        """By member: when something was last heard of it."""
        self.spreads: deque[float] = deque(maxlen=SPREADS)
        self.ready_since: float | None = None
        """Since when the next commit could be made."""
        self.due_at = math.inf
        """When the next commit may be made though nothing more comes, as far as is known: then it is time to look."""
        self.request_s = 0.0
        """Seconds that a small request takes, of late."""
        self.fold_s = 0.0
        """Seconds that a commit takes to be applied, of late: about as long as checking what the next one uses."""
        self.refused: dict[str, tuple[int, int]] = {}
        """By name: how often its contributions were refused, and the version of the last time."""

    def saw(self, key: str, now: float) -> None:
        """A contribution or request that is there."""
        self.first_seen.setdefault(key, now)

    def heard(self, inc: str, now: float) -> None:
        """A member has contributed."""
        self.news[inc] = now

    def took(self, seconds: float, *, folded: bool) -> None:
        """A look for the next commit is over. folded: it was there, and was applied."""
        before = self.fold_s if folded else self.request_s
        after = seconds if before == 0 else 0.8 * before + 0.2 * seconds
        if folded:
            self.fold_s = after
        else:
            self.request_s = after

    @property
    def turn_s(self) -> float:
        """Seconds for which a committer leaves the next commit to the one before it."""
        return min(2 * (self.request_s + self.fold_s), MOST_TURN_S)

    def applied(self, state: ChainState, used: Iterable[str], now: float) -> None:
        """A commit was applied, which used these."""
        times = [self.first_seen[key] for key in used if key in self.first_seen]
        if len(times) > 1:
            self.spreads.append(max(times) - min(times))
        self.first_seen = {key: t for key, t in self.first_seen.items() if key not in set(used)}
        self.news = {inc: self.news.get(inc, now) for inc in state.members}
        self.waiting_since, self.ready_since, self.due_at = now, None, math.inf

    def refuse(self, name: str, why: str, version: int) -> None:
        """A member of this name was removed; silence, a goodbye and a heal are no faults that it brings back."""
        if not why.startswith((SILENT, *OWN_WORDS)):
            self.refused[name] = (self.refused.get(name, (0, 0))[0] + 1, version)

    def ready(self, now: float) -> float:
        """Seconds for which the next commit could have been made; None of it counts if it could not in between."""
        self.ready_since = now if self.ready_since is None else self.ready_since
        return now - self.ready_since

    def grace_s(self, state: ChainState, policy: Policy) -> float:
        """How long a commit that has its quorum waits for the others."""
        spread = max(self.spreads, default=policy.expected_s)
        most = max(LEAST_GRACE_S, expected_s(state.members, policy) / 4)
        return min(max(2 * spread, LEAST_GRACE_S), most)

    def silent_s(self, inc: str, state: ChainState, policy: Policy, now: float) -> float:
        """Seconds of silence beyond what is expected of a member; negative: it has time."""
        said = state.members[inc].expected_s or expected_s(state.members, policy)
        return now - self.news.setdefault(inc, now) - 3 * said - policy.patience_s


def expected_s(members: Mapping[str, Member], policy: Policy) -> float:
    """Seconds of a round: the longest that a member says, or what the run expects."""
    return max((m.expected_s for m in members.values() if m.expected_s > 0), default=policy.expected_s)
