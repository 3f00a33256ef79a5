"""A two-dimensional torus: neighbours above, below, left and right.

    k = (row, column) = divmod(k, c);   N(k) = {(row +- 1 mod r, column), (row, column +- 1 mod c)},   r c = n

Four messages per island and round (fewer where a side is 1 or 2 long). The gap falls with 1 / n, a ring's with 1 / n^2.
r: the largest divisor of n up to its root, unless `rows` says another.
Raises: ConfigError for rows that do not divide the islands.
Reduces to: `Ring` for one row, which is also what a prime number of islands gives.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowcomm.topology.base import Topology
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Torus(Topology):
    """Islands in rows and columns that close upon themselves."""

    rows: int | None = None
    """Number of rows, a divisor of the number of islands, 1 or more; None: as square as can be."""

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        rows = self.rows or max(r for r in range(1, islands + 1) if islands % r == 0 and r * r <= islands)
        columns = islands // rows
        row, column = divmod(island, columns)
        near = {((row + s) % rows) * columns + column for s in (-1, 1)}
        near |= {row * columns + (column + s) % columns for s in (-1, 1)}
        return tuple(sorted(near - {island}))

    def check(self, islands: int) -> None:
        rows = self.rows
        ok = rows is None or (1 <= rows <= islands and islands % rows == 0)
        legal = f"a divisor of the {islands} islands, or None"
        require(ok, "sync.exchange.topology.rows", rows, legal, "leave it out: as square as can be")
