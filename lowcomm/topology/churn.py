"""Churn: a plan of islands and links that are lost, and of when they are back.

Studies of what a decentralised run loses with its nodes (seed paper 34 of the specifications); the plan is ours.

    loss = (round, nodes, links, rounds):  in rounds  round <= t < round + rounds  none of `nodes` trains or exchanges,
                                           and nothing crosses `links`;  rounds None: never again

A node that is lost takes its text with it; one in `relays` has none from the beginning: it never trains, but mixes and
passes on what it hears. Lost before the first round, its text is never seen ("before"); lost later, its last weights
may stay in its neighbours' memory ("after", `Gossip.memory`). A node that is back goes on from the weights that it had.
Everybody has the plan, in a simulation and in real processes alike, whose islands then fall silent: an injected fault
that gives the same bits. A process that really dies is noticed by its neighbours, with no plan.
Raises: ConfigError for islands that there are not, and rounds out of range.
Reduces to: nothing is lost, for an empty plan.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One event of a plan."""

    round: int
    """First round without them, from 0."""
    nodes: tuple[int, ...] = ()
    """Islands that are lost."""
    links: tuple[tuple[int, int], ...] = ()
    """Pairs of islands between which nothing crosses."""
    rounds: int | None = None
    """For so many rounds, 1 or more; None: to the end."""

    def holds(self, round_index: int) -> bool:
        """Whether it is in force in a round."""
        return self.round <= round_index and (self.rounds is None or round_index < self.round + self.rounds)


@dataclass(frozen=True, kw_only=True)
class Churn:
    """What is lost and when."""

    losses: tuple[Loss, ...] = ()
    relays: tuple[int, ...] = ()
    """Islands without text: they mix and pass on, and never train."""

    def lost(self, round_index: int) -> frozenset[int]:
        """Islands that are lost in a round."""
        return frozenset(k for loss in self.losses if loss.holds(round_index) for k in loss.nodes)

    def cut(self, round_index: int) -> frozenset[tuple[int, int]]:
        """Links that are lost in a round, both ways round."""
        pairs = [p for loss in self.losses if loss.holds(round_index) for p in loss.links]
        return frozenset(q for a, b in pairs for q in ((a, b), (b, a)))

    def changes(self, round_index: int) -> bool:
        """Whether a round is another network than the one before it."""
        before = round_index - 1
        return (self.lost(round_index), self.cut(round_index)) != (self.lost(before), self.cut(before))

    def check(self, islands: int) -> None:
        """Raise ConfigError for a plan that is not one of these islands."""
        name, fix = "sync.exchange.churn", "correct the plan, or change --islands"
        legal = f"islands from 0 to {islands - 1}"
        _check_islands(f"{name}.relays", self.relays, islands)
        most = islands - 1
        require(len(set(self.relays)) <= most, f"{name}.relays", self.relays, f"at most {most} islands", fix)
        for i, loss in enumerate(self.losses):
            at = f"{name}.losses[{i}]"
            require(loss.round >= 0, f"{at}.round", loss.round, "0 or more", "0 is before the first round")
            ok = loss.rounds is None or loss.rounds >= 1
            require(ok, f"{at}.rounds", loss.rounds, "1 or more, or None", "None is to the end")
            _check_islands(f"{at}.nodes", loss.nodes, islands)
            ok = all(a != b and min(a, b) >= 0 and max(a, b) < islands for a, b in loss.links)
            require(ok, f"{at}.links", loss.links, f"pairs of {legal}", fix)
            someone = len(self.lost(loss.round)) < islands
            require(someone, f"{at}.nodes", loss.nodes, "not all islands at once", "leave one")


def _check_islands(name: str, numbers: Collection[int], islands: int) -> None:
    ok = all(0 <= k < islands for k in numbers)
    require(ok, name, numbers, f"islands from 0 to {islands - 1}", "correct the plan, or change --islands")
