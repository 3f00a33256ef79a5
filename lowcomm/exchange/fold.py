"""The fold of an ordered log of contributions into an anchor: a pure function of the log.

Whenever the rule says so, `w <- outer(w, scale sum_k weight_k Delta_k)`, `version += 1`, with staleness
`tau_k = version - base version`. In the order of the log; product and sum rounded apart. Contributions that can't be
used are left out and named: of another run, damaged, not finite, replayed (island, sequence), too stale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lowcomm_kernels.inner_products import add_products, fold_lanes, no_lanes
from torch import Tensor

from lowcomm.arrival import ArrivalRule, Moment, Waiting
from lowcomm.codec import Codec
from lowcomm.exchange.entry import Entry, Kind
from lowcomm.exchange.waiting import Room
from lowcomm.state.anchor import Anchor
from lowcomm.types import Part, Payload, PayloadError, Round

MOMENTUM = "momentum_buffer"
"""What optimizers call the momentum that stale Deltas are turned to."""


@dataclass(frozen=True, kw_only=True)
class FoldRules:
    """What must be equal wherever the log is folded."""

    codec: Codec
    islands: int
    rule: ArrivalRule
    """When what waits makes a version, and how each contribution counts."""
    max_staleness: int | None
    round_seed: Callable[[int], int]

    def round_of(self, run: int, island: int, sequence: int) -> Round:
        """The round under which an island encodes its contribution of this number, and everybody decodes it."""
        seed = self.round_seed(sequence)
        return Round(index=sequence, step=0, fragments=(0,), seed=seed, island=island, run=run)


@dataclass(frozen=True, kw_only=True)
class Event:
    """What became of an entry."""

    position: int
    entry: Entry | None
    """None: it could not be read as one."""
    staleness: int | None = None
    weight: float = 0.0
    """What it counts; 0 where it is left out."""
    why: str | None = None
    """Why it is left out."""

    def __str__(self) -> str:
        e = self.entry
        of = "" if e is None else f": island {e.island}, {e.kind.name.lower()}"
        if e is not None and e.kind == Kind.CONTRIBUTION:
            of += f" {e.sequence}, base version {e.base_version}"
        if e is not None and e.kind == Kind.FULL:
            of += f", version {e.base_version}"
        tau = "" if self.staleness is None else f", staleness {self.staleness}"
        return f"log {self.position}{of}{tau}{'' if self.why is None else f', left out: {self.why}'}"


class Fold:
    """How far an anchor has followed the log, and the contributions that wait for the next outer step."""

    def __init__(self, anchor: Anchor, rules: FoldRules) -> None:
        self.anchor, self.rules = anchor, rules
        self.position = 0
        """Of the next entry."""
        self.room = Room(rules.islands)
        """Contributions in the buffer, and how fast islands are."""
        self.sum: Tensor | None = None
        """Their weighted sum: fp32, flat, of the fragment's size; None: there are none."""
        self.latest: dict[int, Tensor] = {}
        """What the latest contribution of each island added to the sum, where the rule keeps it there."""
        self.seen = [-1] * rules.islands
        """The highest sequence number of each island."""
        self.done: set[int] = set()
        """Islands that are done in this epoch."""
        self.epoch = 0
        """Times that the islands have finished."""
        self.ended_with: frozenset[int] = frozenset()
        """Islands that were done when they last finished."""

    @property
    def count(self) -> int:
        """Contributions in the buffer."""
        return len(self.room.here)

    @torch.no_grad()
    def take(self, data: bytes, run: int) -> Event:
        """Fold the next entry."""
        position = self.position
        self.position += 1
        try:
            entry = Entry.unpack(data)
        except PayloadError as error:
            return Event(position=position, entry=None, why=str(error))
        if entry.run != run:
            return Event(position=position, entry=entry, why=f"it is of run {entry.run:016x}, this is {run:016x}")
        if entry.island >= self.rules.islands:
            return Event(position=position, entry=entry, why=f"there are {self.rules.islands} islands")
        if entry.kind == Kind.CONTRIBUTION:
            return self._contribution(position, entry)
        if entry.kind == Kind.FULL:
            if entry.base_version == self.anchor.version and self.count:
                self._step(position)
        elif entry.epoch == self.epoch:
            if entry.kind == Kind.DONE:
                self.done.add(entry.island)
            if entry.kind == Kind.CLOSE or len(self.done) == self.rules.islands:
                self._end(position)
        return Event(position=position, entry=entry)

    def moment(self, waited_s: Callable[[int | None], float] = lambda position: 0.0) -> Moment:
        """What a rule is told. waited_s: seconds since the entry at a position came; None: since the start."""
        return self.room.moment(self.done, waited_s)

    def _contribution(self, position: int, entry: Entry) -> Event:
        staleness = self.anchor.version - entry.base_version
        why = self._unusable(entry, staleness)
        self.seen[entry.island] = max(self.seen[entry.island], entry.sequence)
        if why is None:
            try:
                values = self._decode(entry)
            except PayloadError as error:
                why = str(error)
            else:
                weight = self._add(position, entry, values, staleness)
                return Event(position=position, entry=entry, staleness=staleness, weight=weight)
        return Event(position=position, entry=entry, staleness=staleness, why=why)

    def _unusable(self, entry: Entry, staleness: int) -> str | None:
        most = self.rules.max_staleness
        if entry.sequence <= self.seen[entry.island]:
            return f"it is replayed, {self.seen[entry.island]} has come"
        if not math.isfinite(entry.norm):
            return f"its pseudo-gradient is not finite (norm {entry.norm})"
        if staleness < 0:
            return f"it is of a future version, this is {self.anchor.version}"
        if most is not None and staleness > most:
            return f"it is too stale, {most} is allowed"
        return None

    def _decode(self, entry: Entry) -> list[Tensor]:
        """The Delta's tensors, in order. Raises PayloadError."""
        fragment = self.anchor.fragment
        like = self.anchor.named
        data = torch.frombuffer(bytearray(entry.body), dtype=torch.uint8) if entry.body else torch.empty(0).byte()
        now = self.rules.round_of(entry.run, entry.island, entry.sequence)
        decoded = self.rules.codec.at(now).decode(Payload(data=data.to(fragment.device)), like, now)
        values = [decoded[name] for name in like]
        for name, value in zip(like, values, strict=True):
            if not bool(value.isfinite().all()):
                raise PayloadError(f"the decoded {name} is not finite")
        return values

    def _add(self, position: int, entry: Entry, values: list[Tensor], staleness: int) -> float:
        """Let a contribution wait; returns what it counts."""
        fragment, rule = self.anchor.fragment, self.rules.rule
        one = Waiting(
            author=str(entry.island), tokens=entry.tokens, steps=entry.steps, staleness=staleness, norm=entry.norm
        )
        self.room.learn(one, entry.took_s)
        weight = rule.weight(one, self.moment())
        if rule.turn is not None:
            states = [self.anchor.optimizer.state.get(p, {}) for p in self.anchor.params]
            values = rule.turn(values, [state.get(MOMENTUM) for state in states], staleness)
        if self.sum is None:
            self.sum = torch.zeros(fragment.size, device=fragment.device)
        if rule.keeps_latest:
            self._replace(entry.island, values, weight)
        else:
            for total, value in zip(fragment.views(self.sum).values(), values, strict=True):
                total.add_(value.mul(weight))
        self.room.add(position, entry.sequence, one, weight)
        if rule.remembers:
            self.room.memory = rule.remember(self.room.memory, one, entry.took_s, self.moment())
        if not rule.by_clock and rule.due(self.moment()):
            self._step(position)
        return weight

    def _replace(self, island: int, values: list[Tensor], weight: float) -> None:
        """Let a contribution take the place of its author's last one in the sum."""
        assert self.sum is not None
        new = torch.zeros_like(self.sum)
        for view, value in zip(self.anchor.fragment.views(new).values(), values, strict=True):
            torch.mul(value, weight, out=view)
        self.latest[island] = new
        # added up anew, so that rounding errors do not
        self.sum.zero_()
        for k in sorted(self.latest):
            self.sum.add_(self.latest[k])

    def _step(self, position: int) -> None:
        """The outer step along the buffer, whose last entry is at `position`. Momentum alone moves nothing."""
        total = self.room.total
        if self.sum is not None and total > 0:
            delta = self.sum.mul_(self.rules.rule.scale(self.room.used, total))
            if self.rules.rule.needs_square:
                self.room.mean_square, self.room.mean_of = _square(delta), self.count
            self.anchor.step(delta)
        self.sum = None  # `latest`, where there is any, makes it again
        self.room.leave(position)

    def _end(self, position: int) -> None:
        if self.count:
            self._step(position)
        self.epoch += 1
        self.ended_with, self.done = frozenset(self.done), set()

    def part(self) -> Part:
        """For the checkpoint."""
        numel = self.anchor.fragment.numel
        tensors = {} if self.sum is None else {"buffered.sum": self.sum[:numel]}
        tensors |= {f"buffered.latest.{k}": flat[:numel] for k, flat in self.latest.items()}
        return tensors, {
            "latest": list(self.latest),
            "position": self.position, "room": self.room.part(), "seen": list(self.seen), "done": sorted(self.done),
            "epoch": self.epoch,
        }  # fmt: skip

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `part` gave."""
        self.position, self.epoch = values["position"], values["epoch"]
        self.room.load(values["room"])
        self.seen, self.done, self.sum = list(values["seen"]), set(values["done"]), None
        if self.count:
            self.sum = self._flat(tensors["buffered.sum"])
        self.latest = {k: self._flat(tensors[f"buffered.latest.{k}"]) for k in values["latest"]}

    def _flat(self, saved: Tensor) -> Tensor:
        fragment = self.anchor.fragment
        flat = torch.zeros(fragment.size, device=fragment.device)
        flat[: fragment.numel].copy_(saved)
        return flat


def _square(flat: Tensor) -> float:
    """The squared norm, with the same bits on every machine: all islands must choose alike."""
    lanes = no_lanes(1, flat.device)
    add_products(flat[None], lanes)
    return float(fold_lanes(lanes))
