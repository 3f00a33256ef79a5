"""The network of a round: who exchanges with whom, with which weights, and what of it is left where some are lost."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lowcomm.state.report import Health
from lowcomm.topology import Churn, Topology, components, joined, mixing, spectral_gap


class Network:
    """A topology, less what a plan takes away."""

    def __init__(self, topology: Topology, churn: Churn | None, islands: int, seed: int) -> None:
        self.topology, self.churn, self.islands, self.seed = topology, churn or Churn(), islands, seed
        self._health: tuple[object, Health] | None = None

    def row(self, step: int, island: int) -> Sequence[float]:
        """The weights that an island gives to each other in a step of mixing, whoever is lost."""
        return mixing(self.topology, step, self.islands, self.seed)[island]

    def neighbours(self, step: int, island: int) -> list[int]:
        """Those with whom an island would exchange in a step of mixing, whoever is lost."""
        return list(self.topology.neighbours(step, island, self.islands, self.seed))

    def reached(self, round_index: int, step: int, island: int) -> list[int]:
        """Those with whom it exchanges, as the plan has it."""
        lost, cut = self.churn.lost(round_index), self.churn.cut(round_index)
        if island in lost:
            return []
        return [j for j in self.neighbours(step, island) if j not in lost and (island, j) not in cut]

    def silent(self, round_index: int, island: int) -> frozenset[int]:
        """Islands of which it hears nothing in a round, as the plan has it."""
        cut = self.churn.cut(round_index)
        return self.churn.lost(round_index) | {j for j in range(self.islands) if (island, j) in cut}

    def health(self, round_index: int, gone: Collection[int]) -> Health:
        """Of the islands that are there, worked out anew only where they or their links are others. gone: dead ones."""
        lost, cut = self.churn.lost(round_index) | set(gone), self.churn.cut(round_index)
        if self._health is None or self._health[0] != (lost, cut):
            there = [k for k in range(self.islands) if k not in lost]
            near = joined(
                self.topology, self.islands, self.seed,
                lambda k, j: k not in lost and j not in lost and (k, j) not in cut,
            )  # fmt: skip
            parts = len(components(near, there))
            gap = self._gap(there, cut) if parts == 1 and len(there) > 1 else float(parts == 1)
            self._health = ((lost, cut), Health(components=parts, spectral_gap=gap, there=len(there)))
        return self._health[1]

    def _gap(self, there: Sequence[int], cut: Collection[tuple[int, int]]) -> float:
        """Weights of whom is not heard stay on the diagonal."""

        def rows(step: int) -> list[list[float]]:
            whole, found = mixing(self.topology, step, self.islands, self.seed), list[list[float]]()
            for i, k in enumerate(there):
                near = {j for j in self.neighbours(step, k) if (k, j) not in cut}
                row = [whole[k][j] if j in near else 0.0 for j in there]
                row[i] = 1.0 - sum(row)
                found.append(row)
            return found

        return spectral_gap(self.topology, self.islands, self.seed, rows_of=rows)
