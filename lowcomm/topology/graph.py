"""Whether a topology can be mixed over: neighbours mutual, weights doubly stochastic, islands connected."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from lowcomm.topology.base import Topology, mixing
from lowcomm.types import require

ROUNDS = 64
"""Over so many rounds a topology that varies must connect all islands."""
TOLERANCE = 1e-6


def components(near: Sequence[Collection[int]], there: Collection[int] | None = None) -> list[set[int]]:
    """The connected parts of a graph, given by the neighbours of each island; there: of these islands alone."""
    left = set(range(len(near)) if there is None else there)
    found: list[set[int]] = []
    while left:
        reached, todo = set[int](), [min(left)]
        while todo:
            k = todo.pop()
            if k not in reached:
                reached.add(k)
                todo += [j for j in near[k] if j in left]
        left -= reached
        found.append(reached)
    return found


def joined(
    topology: Topology, islands: int, seed: int, keeps: Callable[[int, int], bool] = lambda k, j: True
) -> list[set[int]]:
    """Whom each island ever exchanges with in ROUNDS rounds; ends early once all are connected. keeps: edges of use."""
    near = [set[int]() for _ in range(islands)]
    for index in range(ROUNDS if topology.varies else 1):
        for k in range(islands):
            near[k] |= {j for j in topology.neighbours(index, k, islands, seed) if keeps(k, j)}
        if len(components(near)) == 1:
            break
    return near


def check_graph(topology: Topology, islands: int, seed: int = 0) -> None:
    """Raise ConfigError for a topology that is out of range or can't be mixed over."""
    topology.check(islands)
    shown = str(topology)
    for index in range(3 if topology.varies else 1):
        near = [topology.neighbours(index, k, islands, seed) for k in range(islands)]
        wrong = next(((k, j) for k, mine in enumerate(near) for j in mine if j == k or not 0 <= j < islands), None)
        legal = f"neighbours from 0 to {islands - 1}, without oneself"
        fix = f"island {wrong and wrong[0]} has neighbour {wrong and wrong[1]}: correct it, or change --islands"
        require(wrong is None, "sync.exchange.topology", shown, legal, fix)
        wrong = next(((k, j) for k, mine in enumerate(near) for j in mine if k not in near[j]), None)
        fix = f"island {wrong and wrong[1]} has no edge back to {wrong and wrong[0]}: add it"
        require(wrong is None, "sync.exchange.topology", shown, "edges that go both ways", fix)
        _check_weights(topology, index, islands, seed)
    parts = components(joined(topology, islands, seed))
    fix = f"islands {sorted(min(parts, key=len))[:8]} never hear of the others: add an edge to them"
    require(len(parts) == 1, "sync.exchange.topology", shown, "a connected graph", fix)


def _check_weights(topology: Topology, index: int, islands: int, seed: int) -> None:
    rows = mixing(topology, index, islands, seed)
    legal = "weights from 0 to 1 of which every row and every column sums to 1"
    for what, lines in (("row", rows), ("column", list(zip(*rows, strict=True)))):
        for k, line in enumerate(lines):
            ok = abs(sum(line) - 1) <= TOLERANCE and all(-TOLERANCE <= w <= 1 + TOLERANCE for w in line)
            seen = f"{what} {k} sums to {sum(line):.4g} and has {min(line):.4g} to {max(line):.4g}"
            require(
                ok, "sync.exchange.topology", str(topology), legal, f"{seen}; without weights Metropolis' are taken"
            )
