"""The rules of a run: what must be equal wherever its chain is folded, and the judgement that committers use.

`ChainRules` makes history. `Policy` says when to commit and whom to remove; islands may differ in it, and history is
one all the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.arrival import ArrivalRule, Turn
from lowcomm.codec import Codec, Fp32
from lowcomm.outer import Nesterov, Outer
from lowcomm.store.layout import Layout
from lowcomm.types import Round, require

Mode = Literal["synchronous", "buffered", "timed"]
STALE, KEEP = 8, 3


@dataclass(frozen=True, kw_only=True)
class ChainRules:
    """What the fold needs beside state and bytes; all of it stands in `run.json` or follows from it."""

    run_id: str
    """128 random bits in hex."""
    layouts: tuple[Layout, ...]
    """By fragment."""
    codec: Codec = field(default_factory=Fp32)
    aggregator: Aggregator = field(default_factory=Mean)
    outer: Outer = field(default_factory=Nesterov)
    turn: Turn | None = None
    """How stale Deltas are turned before they are added; None: they are not."""
    seed: int = 0
    stale: int = STALE
    """S: a contribution or a request is valid for commits base .. base + S."""
    keep: int = KEEP
    """Announced snapshots that are kept."""
    blocks: int | None = None
    """Data blocks of the run, leased to members; None: every island has text of its own."""
    lease_blocks: int = 1
    """Blocks that a member holds, at most."""
    target_tokens: int | None = None
    """Tokens after which the run closes; None: when its blocks are given out, or somebody stops it."""

    def check(self) -> None:
        """Raise ConfigError for a number out of range."""
        require(self.stale >= 1, "store.stale", self.stale, "1 or more", f"{STALE} is usual")
        require(self.keep >= 2, "store.keep", self.keep, "2 or more", f"{KEEP} is usual")
        require(self.lease_blocks >= 1, "store.lease_blocks", self.lease_blocks, "1 or more", "take two rounds' blocks")
        ok = self.blocks is None or self.blocks >= 1
        require(ok, "store.blocks", self.blocks, "1 or more, or None", "None: each site has text of its own")
        ok = self.target_tokens is None or self.target_tokens >= 1
        require(ok, "store.target_tokens", self.target_tokens, "1 or more, or None", "None: until the data is used up")

    @property
    def codec_name(self) -> str:
        """What contributions and `run.json` call the codec: its settings, hashed."""
        return f"{type(self.codec).__name__}-{hashlib.sha256(repr(self.codec).encode()).hexdigest()[:16]}"

    def round_of(self, inc: str, seq: int, fragment: int, index: int, *, last: bool) -> Round:
        """The round under which an island encodes a contribution, and everybody decodes it.

        index: the fragment's version that it was taken from.
        """
        mixed = hashlib.sha256(f"{self.seed}:{inc}:{seq}".encode()).digest()
        return Round(
            index=index,
            step=0,
            fragments=(fragment,),
            seed=int.from_bytes(mixed[:8], "little"),
            run=int(self.run_id[:16], 16),
            last=last,
        )


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When to commit, and whom to remove: a committer's judgement, which never touches safety."""

    mode: Mode = "synchronous"
    rule: ArrivalRule | None = None
    """When to commit, and what each contribution counts; None: as `mode` says."""
    size: int = 2
    """Buffered: contributions per commit (Z)."""
    every_s: float = 60.0
    """Timed: seconds between commits."""
    islands: int = 1
    """Members that the first commit waits for, until the grace time is over."""
    quorum: float = 0.5
    """Synchronous: share of the expected members that must have contributed when the grace time is over."""
    patience_s: float = 60.0
    """After it anything that can be done is done."""
    expected_s: float = 60.0
    """Seconds that a member's round is expected to take before it has said so itself."""
    norm_bound: float | None = 10.0
    """Multiple of the usual norm above which a contribution is refused and its author removed; None: any counts."""
    damping: Literal["none", "polynomial"] = "polynomial"
    """Weight by staleness tau: 1, or 1 / sqrt(1 + tau)."""
    nominal_tokens: int | None = None
    """Buffered and timed: tokens of a full round; a commit of fewer takes a smaller outer step. None: never smaller."""
    snapshot_every_s: float = 600.0
    """Seconds after which a snapshot is due, however little was committed."""
    publish_every: int | None = None
    """Versions between two that are published for machines that follow; None: none is."""
    anchor_every: int = 32
    """Published versions between two that are published whole."""

    def check(self) -> None:
        """Raise ConfigError for a number out of range."""
        require(self.size >= 1, "store.size", self.size, "1 or more", "half of the islands is usual")
        require(self.islands >= 1, "store.islands", self.islands, "1 or more", "as many as you start")
        require(0 < self.quorum <= 1, "store.quorum", self.quorum, "above 0, at most 1", "0.5 is usual")
        seconds = {name: getattr(self, name) for name in ("every_s", "patience_s", "expected_s", "snapshot_every_s")}
        for name, value in seconds.items():
            require(0 < value < float("inf"), f"store.{name}", value, "a positive number of seconds", "60 is usual")
        ok = self.publish_every is None or self.publish_every >= 1
        require(ok, "store.publish_every", self.publish_every, "1 or more, or None for off", "1 is every version")
        require(self.anchor_every >= 1, "store.anchor_every", self.anchor_every, "1 or more", "32 is usual")

    def as_json(self) -> dict[str, Any]:
        """All but the rule, which is a part of the configuration."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rule"}

    @property
    def pending(self) -> int:
        """Unsettled contributions of a member to a fragment, at most."""
        return 1 if self.mode == "synchronous" else 2
