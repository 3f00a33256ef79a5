"""The cohort of a round: who contributes, with which weight, and why others do not; equal on every island."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lowcomm.aggregate import Aggregator
from lowcomm.types import Round, UnusableError

Refuse = Callable[[int, Sequence[float]], str | None]
"""Why numbers that an island (its number) put into a section can't be used; None: they can."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Numbers that a hook puts beside a contribution, 8 B each: the islands hear them in the roll call."""

    own: list[list[float]]
    """By local island; as many on every island."""
    otherwise: list[list[float]] | None = None
    """By island: what stands for those of an island that is left out; None: what it said."""
    refuse: Refuse | None = None


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Who takes part in a round (reasons may be worded by whoever saw them)."""

    weights: list[float]
    """Weight of each island, 0 for one that is left out; they sum to 1."""
    tokens: list[float]
    dropped: dict[int, str]
    """Islands left out, with the reason; not those that were not sampled."""
    norms: list[float]
    """L2 norm of each island's pseudo-gradient."""
    arrivals_s: list[float] = field(default_factory=list)
    """Seconds from the end of the last roll call, which is the same moment everywhere, to each island's arrival."""
    stopping: list[int] = field(default_factory=list)
    """Islands that want the run to stop because an exchange was late."""
    expected: frozenset[int] | None = None
    """Islands that were sampled; None: all."""
    gone: frozenset[int] = frozenset()
    """Islands whose process is gone, as all know."""
    sections: Mapping[str, list[list[float]]] = field(default_factory=dict)
    """Numbers of every island, in island order, by the name of the section."""

    def without(self, bad: Mapping[int, str], aggregator: Aggregator, round: Round, quorum: float) -> Cohort:
        """This cohort with more islands left out. Raises UnusableError if too few are left."""
        dropped = {**self.dropped, **bad}
        weights = weigh(self.tokens, dropped, aggregator, round, quorum, self.expected)
        return dataclasses.replace(self, weights=weights, dropped=dropped)


def weigh(
    tokens: Sequence[float],
    dropped: Mapping[int, str],
    aggregator: Aggregator,
    round: Round,
    quorum: float,
    expected: frozenset[int] | None,
) -> list[float]:
    """Weights of all islands.

    Raises UnusableError if fewer than `quorum` (a fraction) of those expected are usable, or fewer than the rule needs.
    """
    wanted = range(len(tokens)) if expected is None else expected
    kept = [t if i in wanted and i not in dropped else 0.0 for i, t in enumerate(tokens)]
    usable = len(wanted) - len(dropped)
    if usable < max(1.0, quorum * len(wanted)) or not sum(kept) > 0:
        reasons = "; ".join(f"island {i}: {why}" for i, why in dropped.items()) or "no island trained a token"
        raise UnusableError(
            f"round {round.index} has no quorum: {usable} of {len(wanted)} islands are usable "
            f"({reasons}). Nothing was committed."
        )
    contributing = sum(t > 0 for t in kept)
    if contributing < aggregator.fewest:
        reasons = "".join(f"; island {i}: {why}" for i, why in dropped.items())
        raise UnusableError(
            f"round {round.index} has {contributing} contributions, and {type(aggregator).__name__} needs "
            f"{aggregator.fewest}{reasons}. Nothing was committed."
        )
    return aggregator.weights(kept)
