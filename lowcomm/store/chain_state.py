"""The state of a run: what every island folds from its chain, a function of the chain's bytes and of nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowcomm import optimizer_state
from lowcomm.state.digest import digest_all
from lowcomm.store import text
from lowcomm.store.commit import Announced
from lowcomm.store.layout import Layout
from lowcomm.store.rules import ChainRules

OUTER = "outer"
NORM_ROUNDS = 16
"""Rounds of a fragment whose norms are kept."""


@dataclass(frozen=True, kw_only=True)
class FragmentState:
    """A fragment's weights, its outer optimizer's state and its aggregator's; never changed in place."""

    weights: Tensor
    """fp32, flat, on the CPU."""
    outer: Mapping[str, Tensor]
    outer_values: Mapping[str, Any]
    rule: Mapping[str, Tensor] = field(default_factory=dict)
    version: int = 0
    """Outer steps taken."""
    norms: tuple[Mapping[str, float], ...] = ()
    """Of the latest rounds: norms of contributions, by incarnation."""

    @classmethod
    def new(cls, weights: Tensor, layout: Layout, rules: ChainRules) -> FragmentState:
        """Before the first step."""
        optimizer = rules.outer.build(list(layout.views(weights).values()))
        tensors, values = optimizer_state.to_tensors(optimizer, OUTER)
        return cls(weights=weights, outer=tensors, outer_values=values)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as a snapshot holds them."""
        return {"weights": self.weights, **self.outer, **{f"rule.{k}": t for k, t in sorted(self.rule.items())}}

    @cached_property
    def values(self) -> dict[str, Any]:
        """The rest, as JSON."""
        return {"outer": dict(self.outer_values), "version": self.version, "norms": [dict(row) for row in self.norms]}

    @cached_property
    def tensors_digest(self) -> str:
        """xxh3 over names, shapes, dtypes and bits."""
        return digest_all(dict(sorted(self.tensors.items()))).hex()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> FragmentState:
        """What `tensors` and `values` gave."""
        return cls(
            weights=tensors["weights"],
            outer={k: t for k, t in tensors.items() if k.startswith(f"{OUTER}.")},
            outer_values=values["outer"],
            rule={k.removeprefix("rule."): t for k, t in tensors.items() if k.startswith("rule.")},
            version=values["version"],
            norms=tuple(values["norms"]),
        )


@dataclass(frozen=True, kw_only=True)
class Member:
    """An island that is let in."""

    name: str
    settled: int = 0
    """Highest sequence number that a commit has used."""
    lease: tuple[int, ...] = ()
    """Blocks that it trains, ascending."""
    finished: tuple[int, ...] = ()
    """Fragments to which its last contribution was used."""
    expected_s: float = 0.0
    """Seconds until its next contribution, as it last said; 0: it has not."""


class Seen(NamedTuple):
    """A version of late: its digest, and the fragments' versions then."""

    digest: str
    fragments: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ChainState:
    """A version of the run; a value."""

    fragments: tuple[FragmentState, ...]
    version: int = 0
    prev: str = ""
    """sha256 of the bytes of the commit before it."""
    members: Mapping[str, Member] = field(default_factory=dict)
    gone: Mapping[str, int] = field(default_factory=dict)
    """Removed incarnations, by the version whose commit removed them; the last S versions."""
    returned: tuple[int, ...] = ()
    """Blocks of removed members, to be leased again."""
    next_block: int = 0
    tokens_done: int = 0
    anchors: Mapping[int, Seen] = field(default_factory=dict)
    """Versions before this one that a contribution may still have been taken from."""
    pace: Mapping[str, Any] | None = None
    snapshots: tuple[Announced, ...] = ()
    """Announced ones, the oldest first."""
    stopping: bool = False
    """Whether somebody stopped the run."""
    closing: bool = False
    """Whether nothing more is given out."""
    done: bool = False

    @cached_property
    def rest(self) -> dict[str, Any]:
        """All but tensors, as JSON."""
        return {
            "version": self.version, "prev": self.prev,
            "fragments": [f.values for f in self.fragments],
            "members": {i: dataclasses.asdict(m) for i, m in self.members.items()},
            "gone": dict(self.gone), "returned": self.returned, "next_block": self.next_block,
            "tokens_done": self.tokens_done,
            "anchors": {str(v): [seen.digest, list(seen.fragments)] for v, seen in self.anchors.items()},
            "pace": self.pace, "snapshots": [s.as_json() for s in self.snapshots], "stopping": self.stopping,
            "closing": self.closing, "done": self.done,
        }  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """Over all of it: tensors by xxh3, the rest as canonical JSON."""
        whole = {"rest": self.rest, "tensors": [f.tensors_digest for f in self.fragments]}
        return text.sha256(text.write(whole, MOST_REST_BYTES))

    def seen(self, version: int) -> Seen | None:
        """This version or one of the last S; None: it is older, or still to come."""
        if version == self.version:
            return Seen(self.digest, tuple(f.version for f in self.fragments))
        return self.anchors.get(version)

    def staleness(self, fragment: int, base: int) -> int:
        """Outer steps of a fragment since a version of late."""
        seen = self.seen(base)
        return 0 if seen is None else self.fragments[fragment].version - seen.fragments[fragment]

    def horizon(self, keep: int) -> int:
        """Version of the oldest snapshot that is kept: commits before it need not be replayed any more."""
        return self.snapshots[0].version if len(self.snapshots) >= keep else 0

    @classmethod
    def of(cls, fragments: tuple[FragmentState, ...], rest: Mapping[str, Any]) -> ChainState:
        """What `rest` gave."""
        members = {
            i: Member(
                name=m["name"], settled=m["settled"], lease=tuple(m["lease"]), finished=tuple(m["finished"]),
                expected_s=m["expected_s"],
            )
            for i, m in rest["members"].items()
        }  # fmt: skip
        return cls(
            fragments=fragments,
            version=rest["version"],
            prev=rest["prev"],
            members=members,
            gone=rest["gone"],
            returned=tuple(rest["returned"]),
            next_block=rest["next_block"],
            tokens_done=rest["tokens_done"],
            anchors={int(v): Seen(digest, tuple(f)) for v, (digest, f) in rest["anchors"].items()},
            pace=rest["pace"],
            snapshots=tuple(Announced.of(s) for s in rest["snapshots"]),
            stopping=rest["stopping"],
            closing=rest["closing"],
            done=rest["done"],
        )


MOST_REST_BYTES = 1 << 26
"""Of the state's text: larger than other texts, since a member may lease many blocks."""


def first_state(weights: list[dict[str, Tensor]], rules: ChainRules) -> ChainState:
    """Version 0 from the tensors of each fragment."""
    with torch.no_grad():
        flats = [layout.flatten(list(t.values())) for layout, t in zip(rules.layouts, weights, strict=True)]
    fragments = [FragmentState.new(f, layout, rules) for f, layout in zip(flats, rules.layouts, strict=True)]
    return ChainState(fragments=tuple(fragments))
