"""The exchange of gossip: messages with the neighbours of a round, and every local island's update from what came.

The method, its equation and its limits stand in `gossip`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor

from lowcomm.exchange.base import Exchange, ExchangeParts
from lowcomm.exchange.neighbour_memory import NeighbourMemory
from lowcomm.exchange.neighbour_talk import NOTHING, Side, Talk
from lowcomm.exchange.network import Network
from lowcomm.exchange.worker import carry_out
from lowcomm.mixing import Heard, Place, Rule
from lowcomm.state.cohort import Cohort
from lowcomm.state.norms import l2_norm
from lowcomm.state.outgoing import Arrived, Outgoing, Pending
from lowcomm.state.report import Health
from lowcomm.transport.base import KEPT
from lowcomm.types import Part, PayloadError, TransportError

Came = list[list[Tensor | None]]
PREFIX = "mixing"


@dataclass(kw_only=True)
class Ahead:
    """Messages that cross while a round is trained."""

    sides: list[Side]
    came: Came | None = None
    """What came of the neighbours; None: not yet, or it failed and is done again."""
    sent_bytes: list[int] = field(default_factory=list)
    """By local island."""


class NeighbourExchange(Exchange):
    """Swaps messages with neighbours and makes each local island's update of them."""

    anchors: ClassVar[Literal["shared", "own"]] = "own"
    hears_all: ClassVar[bool] = False
    stands_for_all: ClassVar[Literal["first", "mean"]] = "mean"

    def __init__(
        self, network: Network, gamma: float, parts: ExchangeParts, *, rule: Rule, steps: int,
        memory: NeighbourMemory | None,
    ) -> None:  # fmt: skip
        self.network, self.gamma, self.parts, self.rule, self.steps = network, gamma, parts, rule, steps
        self.memory, self.talk = memory, Talk(rule, parts)
        self.kept: dict[tuple[int, int], dict[str, Tensor]] = {}
        """What the rule keeps, by fragment and local island."""
        self.ahead: dict[int, Ahead] = {}
        """By fragment: the messages of its next round that cross while it is trained."""
        self.round = 0
        self.missing = 0
        """Islands that were lost when the last round was over."""

    def rests(self, island: int, step: int) -> bool:
        churn, index = self.network.churn, step // self.parts.every
        return island in churn.relays or island in churn.lost(index)

    def absent(self) -> frozenset[int]:
        return self.network.churn.lost(max(0, self.round - 1))

    def unfinished(self, step: int) -> bool:
        return bool(self.network.churn.relays) and step % self.parts.every != 0

    def force(self, index: int, local: int) -> tuple[float, float, Tensor] | None:
        return self.rule.force(self.kept.get((index, local), {}))

    def start(self, out: Outgoing) -> Pending:
        pending = Pending()
        self.parts.worker.wait()
        carry_out(pending, lambda at: self._exchange(out, at))
        return pending

    def committed(self, out: Outgoing) -> None:
        """Let the messages of the next round cross while it is trained, where they are known already."""
        if not self.rule.early or out.round.last:
            return
        index = out.round.index + 1
        after = dataclasses.replace(out.round, index=index, seed=self.parts.round_seed(index))
        following = dataclasses.replace(out, round=after, norms=[0.0] * len(out.norms))
        ahead = self.ahead[out.index] = Ahead(sides=self._say(following, index))

        def cross(pending: Pending) -> None:
            before = list(self.parts.transport.sent_bytes)
            ahead.came = self._swap(ahead.sides)
            ahead.sent_bytes = [now - then for now, then in zip(self.parts.transport.sent_bytes, before, strict=True)]

        self.parts.worker.start(Pending(), cross)

    def _exchange(self, out: Outgoing, pending: Pending) -> Arrived:
        transport, index, last = self.parts.transport, out.round.index, (out.round.index + 1) * self.steps - 1
        unusable, dropped, norms = self._not_finite(out), dict[int, str](), [0.0] * transport.islands
        for k, norm in zip(transport.local, out.norms, strict=True):
            norms[k] = norm
        before, pending.called = list(transport.sent_bytes), time.perf_counter()
        pending.cohort = self._cohort(out, last, None, unusable, norms)
        heard = dict[int, float]()
        for step in range(index * self.steps, last + 1):
            sides, came = self._heard(out, step)
            unusable.update({transport.local[s.local]: s.unusable for s in sides if s.unusable})
            if len(transport.lost) > self.missing and self.leaving():
                raise TransportError(f"islands {sorted(transport.lost)} have stopped, as this one is about to. {KEPT}")
            for side, rows in zip(sides, came, strict=True):
                far = self._mix(out, step, side, rows, dropped, norms)
                heard = far if side.local == 0 else heard
        pending.cohort = dataclasses.replace(pending.cohort, dropped=dict(unusable))
        ahead = self.ahead.pop(out.index, None)
        crossed = ahead.sent_bytes if ahead is not None and ahead.sent_bytes else [0] * len(before)
        sent = zip(transport.sent_bytes, before, crossed, strict=True)
        pending.sent_bytes = [now - then + earlier for now, then, earlier in sent]
        lost, self.round, self.missing = self.network.churn.lost(index), index + 1, len(transport.lost)
        health = self.network.health(index, transport.lost)
        return Arrived(
            cohort=self._cohort(out, last, heard, {**unusable, **dropped}, norms),
            updates=[(a, out.deltas[a.local[0]]) for a in out.anchors if transport.local[a.local[0]] not in lost],
            states=out.states,
            notes=self._notes(index, heard, health),
            health=health,
        )

    def _not_finite(self, out: Outgoing) -> dict[int, str]:
        """Local islands that have nothing to mix in: of a rule that speaks early, what they said was sound."""
        found: dict[int, str] = {}
        for local, norm in enumerate(out.norms):
            if self.rule.early and not math.isfinite(norm):
                out.deltas[local].zero_()
                found[self.parts.transport.local[local]] = f"its pseudo-gradient is not finite (norm {norm})"
        return found

    def _heard(self, out: Outgoing, step: int) -> tuple[list[Side], Came]:
        """What this process's islands said and what came, from the messages that crossed while it trained or now."""
        ahead = self.ahead.get(out.index)
        if ahead is None or ahead.came is None:
            sides = self._say(out, step)
            return sides, self._swap(sides)
        for side in ahead.sides:  # which had vectors that were lent for the round before
            side.place.delta = out.deltas[side.local]
        return ahead.sides, ahead.came

    def _say(self, out: Outgoing, step: int) -> list[Side]:
        transport, index, sides = self.parts.transport, out.round.index, list[Side]()
        lost = self.network.churn.lost(index)
        for local, k in enumerate(transport.local):
            if k in lost:
                continue
            place = Place(
                island=k, islands=transport.islands, anchor=out.anchors[local].weights, delta=out.deltas[local],
                gamma=self.gamma, views=out.fragment.views, state=self.kept.setdefault((out.index, local), {}),
                loss=None if self.judge is None else partial(self.judge, out.index, local),
            )  # fmt: skip
            norm = 0.0 if self.rule.early else out.norms[local]
            sides.append(self.talk.say(out, place, local, self.network.reached(index, step, k), norm))
        return sides

    def _swap(self, sides: Sequence[Side]) -> Came:
        transport = self.parts.transport
        if not any(side.messages for side in sides):  # nobody to wait for
            return [[None] * transport.islands for _ in sides]
        by_local = {side.local: side.rows(transport.islands) for side in sides}
        silent = [NOTHING] * transport.islands
        rows = [by_local.get(i, silent) for i in range(len(transport.local))]
        came = transport.swap_present(rows, [[row.numel() for row in mine] for mine in rows])
        return [came[side.local] for side in sides]

    def _mix(
        self,
        out: Outgoing,
        step: int,
        side: Side,
        came: Sequence[Tensor | None],
        dropped: dict[int, str],
        norms: list[float],
    ) -> dict[int, float]:
        """Turn a local island's Delta into its update; its distance from each neighbour that it heard."""
        me, index = self.parts.transport.local[side.local], out.round.index
        row, heard, far = self.network.row(step, me), list[Heard](), dict[int, float]()
        for j in side.messages:
            arrived = came[j]
            if arrived is None:
                dropped[j] = "its process is gone"
                continue
            try:
                differences, norms[j] = self.talk.differences(out, side, j, arrived)
            except PayloadError as error:
                dropped[j] = str(error)
                continue
            far[j] = float(l2_norm(differences[0]))
            heard.append(Heard(island=j, weight=row[j], differences=differences))
            if self.memory is not None:
                self.memory.keep((out.index, side.local, j), side.said[0] + differences[0], index)
        self.rule.mix(side.place, [*heard, *self._remembered(out, side, row, far, dropped)])
        return far

    def _remembered(
        self, out: Outgoing, side: Side, row: Sequence[float], far: Mapping[int, float], dropped: Mapping[int, str]
    ) -> list[Heard]:
        """What neighbours that say nothing now said last."""
        if self.memory is None:
            return []
        me, index, found = self.parts.transport.local[side.local], out.round.index, list[Heard]()
        silent = self.network.silent(index, me) | dropped.keys() | self.parts.transport.lost.keys()
        for j, weight in enumerate(row):
            if not weight or j == me or j in far:
                continue
            known = self.memory.recall((out.index, side.local, j), index, j in silent)
            if known is not None:
                difference = known[0] - side.said[0]
                found.append(Heard(island=j, weight=weight * known[1], differences=(difference,)))
        return found

    def _notes(self, index: int, heard: Mapping[int, float], health: Health) -> tuple[str, ...]:
        transport, network, gap = self.parts.transport, self.network, f"{health.spectral_gap:.3g}"
        notes = list[str]()
        if index == 0:
            notes.append(f"{network.topology} of {transport.islands} islands has a spectral gap of {gap}")
        if network.churn.changes(index):
            lost, cut = sorted(network.churn.lost(index)), len(network.churn.cut(index)) // 2
            left = f"{health.there} islands are left in {health.components} connected part"
            notes.append(f"lost islands {lost}, {cut} links; {left}{'s' * (health.components != 1)}, gap {gap}")
        if heard:
            told = ", ".join(f"{distance:.4g} from island {j}" for j, distance in heard.items())
            notes.append(f"island {transport.local[0]} was {told}")
        return tuple(notes)

    def _cohort(
        self, out: Outgoing, step: int, heard: Mapping[int, float] | None, dropped: Mapping[int, str],
        norms: Sequence[float],
    ) -> Cohort:  # fmt: skip
        """As the first local island sees it: its row of W, and norms of 0 of islands that are not heard here.

        heard: None: it is not known yet who will be.
        """
        transport, me = self.parts.transport, self.parts.transport.local[0]
        row, tokens = self.network.row(step, me), [0.0] * transport.islands
        weights = [w if heard is None or j in heard else 0.0 for j, w in enumerate(row)]
        weights[me] = 1.0 - sum(w for j, w in enumerate(weights) if j != me)
        for k, count in zip(transport.local, out.unsynced, strict=True):
            tokens[k] = count
        return Cohort(weights=weights, tokens=tokens, dropped=dict(dropped), norms=list(norms))

    def global_part(self) -> Part:
        return ({}, {}) if self.talk.copies is None else self.talk.copies.global_part()

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.round = values["round"]
        if self.talk.copies is not None:
            self.talk.copies.load_global(tensors)

    def island_part(self, local: int) -> Part:
        tensors, values = ({}, {}) if self.talk.copies is None else self.talk.copies.island_part(local)
        if self.memory is not None:
            more, told = self.memory.island_part(local)
            tensors, values = {**tensors, **more}, {**values, **told}
        for (index, island), kept in self.kept.items():
            if island == local:
                tensors = {**tensors, **{f"{PREFIX}.{index}.{name}": t for name, t in kept.items()}}
        return tensors, values

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if self.talk.copies is not None:
            self.talk.copies.load_island(local, tensors)
        if self.memory is not None:
            self.memory.load_island(local, tensors, values)
        self.kept = {key: kept for key, kept in self.kept.items() if key[1] != local}
        for key, tensor in tensors.items():
            if key.startswith(f"{PREFIX}."):
                index, _, name = key.removeprefix(f"{PREFIX}.").partition(".")
                self.kept.setdefault((int(index), local), {})[name] = tensor.clone()
