"""Settings of a run that lives in an object store: islands come and go, history is a chain of commits.

No island talks to another. After its round an island puts its encoded Delta into the store as a contribution; whoever
sees that enough of them are there writes the next commit, which names those that count; all fold it to the same bits.

    w <- outer(w, scale sum_k p_k Delta_k),   p_k = tokens_k d(tau_k) / sum_j tokens_j d(tau_j)

tau_k: staleness, outer steps since the version that the Delta was taken from; d: `staleness`. Mode "synchronous": a
commit waits for every member, or for a quorum (`sync.quorum`) and a grace time that follows the spread of arrivals;
scale 1. Mode "buffered": a commit takes `size` contributions, and nobody waits for anybody;
scale = min(1, tokens used / tokens of a full round). Other modes are rules of `lowcomm/arrival/` (`rule`), which say
when a commit is made and what each contribution counts.
Bytes per island and round: a payload up, every other member's payload down.
Errors: ConfigError for a setting out of range.
Reduces to: mode "synchronous" with members that never change is the run of as many fixed islands, but for the order of
sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from lowcomm.arrival import ArrivalRule
from lowcomm.codec.zstd import Zstd
from lowcomm.exchange.base import Exchange, ExchangeChoice, ExchangeParts
from lowcomm.state.outgoing import Outgoing, Pending
from lowcomm.types import ConfigError, SyncError, require

FIELD = "sync.exchange"


@dataclass(frozen=True, kw_only=True)
class Store(ExchangeChoice):
    """Islands contribute to a chain of commits in the store that `store` names."""

    mode: Literal["synchronous", "buffered", "timed"] = "synchronous"
    """Whether a commit waits for the members, takes `size` contributions, or what is there every `every_s` seconds."""
    rule: ArrivalRule | None = None
    """In the place of a mode: when a commit is made, and what each contribution counts. None: as `mode` says."""
    size: int = 4
    """Of mode "buffered", Z: contributions of islands per commit."""
    every_s: float = 60.0
    """Of mode "timed": seconds between commits."""
    staleness: Literal["polynomial", "constant"] = "polynomial"
    """What a contribution of staleness tau counts: 1/sqrt(1 + tau), or 1."""
    max_staleness: int = 8
    """S: versions that a contribution, or a request to join, may be behind; an island that is more heals."""
    block_steps: int | None = None
    """Inner steps whose text is leased as one block; a divisor of `sync.every`. None: `sync.every`."""
    patience_s: float = 30.0
    """Seconds after which members that say nothing are given up, and a commit is made of whatever there is."""
    snapshot_s: float = 600.0
    """A new snapshot at least every so many seconds, for those who join."""
    keep: int = 3
    """Number of announced snapshots that are kept."""
    publish_every: int | None = None
    """Versions (commits) between two that are published for `lowcomm follow`; None: none is, as it costs upload."""
    anchor_every: int = 32
    """Published versions between two that are published whole, for machines that begin to follow or were away."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"
    whole_islands: ClassVar[bool] = True

    @property
    def waits_for_all(self) -> bool:
        """Whether a member waits for the commit that uses its contribution."""
        return self.rule is None and self.mode == "synchronous"

    def steps_per_block(self, every: int) -> int:
        """Inner steps of a block in rounds of `every`."""
        return self.block_steps or every

    def check(self, islands: int) -> None:
        modes = ("synchronous", "buffered", "timed")
        require(self.mode in modes, f"{FIELD}.mode", self.mode, f"one of {modes}", "take one")
        require(1 <= self.size <= 4096, f"{FIELD}.size", self.size, "1 to 4096", "half of the islands is usual")
        if self.rule is not None:
            ok = self.mode == "synchronous"
            require(ok, f"{FIELD}.mode", self.mode, "left out with a rule, which stands in its place", "leave one out")
            self.rule.check(f"{FIELD}.rule", None)
        known = ("polynomial", "constant")
        require(self.staleness in known, f"{FIELD}.staleness", self.staleness, f"one of {known}", "take one")
        most = self.max_staleness
        require(1 <= most <= 1024, f"{FIELD}.max_staleness", most, "1 to 1024 versions", "8 is usual")
        steps = self.block_steps
        require(steps is None or steps >= 1, f"{FIELD}.block_steps", steps, "1 or more, or None", "leave it out")
        for name in ("every_s", "patience_s", "snapshot_s"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{FIELD}.{name}", value, "a positive number of seconds", "leave it out")
        require(2 <= self.keep <= 64, f"{FIELD}.keep", self.keep, "2 to 64", "3 is usual")
        self._check_publishing()

    def _check_publishing(self) -> None:
        every, anchor = self.publish_every, self.anchor_every
        ok = every is None or 1 <= every <= 10**6
        require(ok, f"{FIELD}.publish_every", every, "1 to 1000000 versions, or None for off", "1 is every version")
        require(1 <= anchor <= 10**6, f"{FIELD}.anchor_every", anchor, "1 to 1000000 published versions", "32 is usual")
        if every is not None:
            Zstd().check()

    def build(self, parts: ExchangeParts) -> Exchange:
        raise ConfigError(
            "sync.exchange = Store(...) is not allowed without a store: its islands would train apart. Fix: pass "
            "--store DIR (or s3://BUCKET/RUN) to `lowcomm train`; a loop of your own can't be a member"
        )


@dataclass(frozen=True, kw_only=True)
class Member(Store):
    """What the LocalSGD of a member gets, which counts steps and takes Deltas: the member's own loop sends them."""

    def build(self, parts: ExchangeParts) -> Exchange:
        return BesideTheLoop()


class BesideTheLoop(Exchange):
    """No exchange."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"
    hears_all: ClassVar[bool] = False

    def due(self, step: int, scheduled: tuple[int, ...]) -> tuple[int, ...]:
        return ()

    def start(self, out: Outgoing) -> Pending:
        raise SyncError("a member contributes to its store, and exchanges with nobody")
