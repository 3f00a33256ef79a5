"""Topologies: neighbours, mixing weights, what the textbooks say of them, and which are refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.network import Network
from lowcomm.topology import (
    BarabasiAlbert,
    Churn,
    Complete,
    Edges,
    Exponential,
    Loss,
    Multigraph,
    OnePeer,
    RandomPairs,
    RandomRegular,
    Ring,
    Topology,
    Torus,
    check_graph,
    components,
    mixing,
    spectral_gap,
)
from lowcomm.types import ConfigError
from tests.methods import TOPOLOGIES, name


def fits(topology: Topology, islands: int) -> bool:
    try:
        check_graph(topology, islands)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=name)
@pytest.mark.parametrize("islands", [1, 2, 3, 4, 5, 6, 8, 13])
def test_mixing_weights_are_doubly_stochastic_and_neighbours_mutual(topology: Topology, islands: int) -> None:
    if not fits(topology, islands):
        assert isinstance(topology, RandomRegular | BarabasiAlbert | Edges)
        pytest.skip("refused")
    for index in range(5):
        near = [topology.neighbours(index, k, islands, 7) for k in range(islands)]
        for k, mine in enumerate(near):
            assert list(mine) == sorted(set(mine) - {k})
            assert all(k in near[j] for j in mine)
        weights = torch.tensor(mixing(topology, index, islands, 7), dtype=torch.float64)
        assert bool((weights >= 0).all())
        assert torch.equal(weights, weights.T)
        torch.testing.assert_close(weights.sum(dim=0), torch.ones(islands, dtype=torch.float64))
        for k, mine in enumerate(near):
            assert [j for j in range(islands) if weights[k, j] != 0 and j != k] == list(mine)
    assert 0 < spectral_gap(topology, islands, 7) <= 1 + 1e-9 or islands == 1


def test_spectral_gaps_are_those_of_the_textbook() -> None:
    assert math.isclose(spectral_gap(Complete(), 6, 0), 1, abs_tol=1e-6)
    assert math.isclose(spectral_gap(Ring(), 8, 0), 1 - (1 + 2 * math.cos(math.pi / 4)) / 3)
    assert spectral_gap(Exponential(), 32, 0) > 5 * spectral_gap(Ring(), 32, 0)
    # E[W] of a random matching of 8 has lambda_2 = 1/2 - 1/14
    assert math.isclose(spectral_gap(RandomPairs(), 8, 0, rounds=4000), 1 - math.sqrt(3 / 7), abs_tol=0.02)
    # a torus of 4 x 4: (1 + 2 + 2 cos(pi / 2)) / 5
    assert math.isclose(spectral_gap(Torus(), 16, 0), 2 / 5)
    assert spectral_gap(Torus(), 64, 0) > 3 * spectral_gap(Ring(), 64, 0)
    assert spectral_gap(RandomRegular(degree=4), 144, 0) > 1.5 * spectral_gap(Torus(), 144, 0)


def test_pairs_change_with_round_and_seed_and_one_rests() -> None:
    pairs = RandomPairs()
    rounds = {tuple(pairs.neighbours(r, k, 12, seed) for k in range(12)) for r in range(6) for seed in (0, 1)}
    assert len(rounds) == 12
    assert [len(pairs.neighbours(3, k, 5, 0)) for k in range(5)].count(0) == 1


@pytest.mark.parametrize("islands", [2, 4, 8, 16])
def test_one_peer_gives_the_exact_mean_after_log2_n_rounds(islands: int) -> None:
    product = torch.eye(islands, dtype=torch.float64)
    for index in range(islands.bit_length() - 1):
        assert all(len(OnePeer().neighbours(index, k, islands, 0)) == 1 for k in range(islands))
        product = torch.tensor(mixing(OnePeer(), index, islands, 0), dtype=torch.float64) @ product
    assert torch.equal(product, torch.full_like(product, 1 / islands))


def test_drawn_graphs_have_their_degrees_and_follow_the_seed() -> None:
    for degree in (2, 3, 5):
        for seed in range(4):
            near = [RandomRegular(degree=degree).neighbours(0, k, 12, seed) for k in range(12)]
            assert [len(mine) for mine in near] == [degree] * 12
    drawn = {tuple(RandomRegular().neighbours(0, k, 12, seed) for k in range(12)) for seed in range(5)}
    assert len(drawn) == 5
    grown = [BarabasiAlbert(attach=2).neighbours(0, k, 200, 1) for k in range(200)]
    assert sum(len(mine) for mine in grown) == 2 * (3 + 2 * 197)
    assert max(len(mine) for mine in grown) > 5 * min(len(mine) for mine in grown)


def test_a_torus_is_a_ring_where_it_has_one_row() -> None:
    for islands in (5, 7, 12):
        one_row = Torus() if islands in (5, 7) else Torus(rows=1)
        assert all(one_row.neighbours(0, k, islands, 0) == Ring().neighbours(0, k, islands, 0) for k in range(islands))
    assert Torus().neighbours(0, 5, 12, 0) == (1, 4, 6, 9)


def test_edges_of_a_ring_are_a_ring() -> None:
    ring = Edges(pairs=tuple((k, (k + 1) % 6) for k in range(6)))
    assert mixing(ring, 0, 6, 0) == mixing(Ring(), 0, 6, 0)


def test_slow_edges_of_a_multigraph_rest_and_its_weights_stay() -> None:
    graph = Multigraph(delay_s=(1.0, 1.0, 2.1, 30.0), longest=5)
    assert [graph.period(k, (k + 1) % 4) for k in range(4)] == [1, 2, 5, 5]
    assert [len(graph.neighbours(t, 3, 4, 0)) for t in range(6)] == [2, 0, 0, 0, 0, 2]
    assert mixing(graph, 1, 4, 0) == mixing(Ring(), 0, 4, 0)


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (Edges(pairs=((0, 1), (2, 3))), r"a connected graph.*islands \[0, 1\] never hear"),
        (Edges(pairs=((0, 1), (1, 2), (1, 3)), links=(0.5, 0.5, 0.5)), "every row and every column sums to 1"),
        (Edges(pairs=((0, 1), (1, 2), (2, 7))), r"topology\.pairs = \(2, 7\).*0 to 3"),
        (Edges(pairs=((0, 1), (1, 0), (1, 2), (2, 3))), "each pair once"),
        (Edges(pairs=((0, 1), (1, 2), (2, 3)), links=(0.5,)), "3, one per pair"),
        (Edges(pairs=((0, 1), (1, 2), (2, 3)), links=(0.5, 0.0, 0.1)), "more than 0"),
        (RandomRegular(degree=4), r"topology\.degree = 4 is not allowed: 2 to 3"),
        (RandomRegular(degree=1), r"topology\.degree = 1"),
        (BarabasiAlbert(attach=4), r"topology\.attach = 4 is not allowed: 1 to 3"),
        (BarabasiAlbert(attach=0), r"topology\.attach = 0"),
        (Torus(rows=3), r"topology\.rows = 3 is not allowed: a divisor of the 4 islands"),
        (Multigraph(overlay=OnePeer()), "a topology that stays the same"),
        (Multigraph(delay_s=(1.0, 2.0)), r"topology\.delay_s = .*4 numbers"),
        (Multigraph(delay_s=(1.0, 2.0, math.nan, 1.0)), r"topology\.delay_s"),
        (Multigraph(longest=0), r"topology\.longest = 0"),
    ],
)
def test_what_can_not_be_mixed_over_is_refused(topology: Topology, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Gossip(topology=topology).check(4)
    assert "Fix: " in str(caught.value)


def test_an_odd_number_of_ends_is_refused() -> None:
    with pytest.raises(ConfigError, match="even with 5 islands"):
        check_graph(RandomRegular(degree=3), 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong(Topology):
    """Somebody's own, with a mistake."""

    near: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[float, ...], ...] | None = None

    def neighbours(self, round_index: int, island: int, islands: int, seed: int) -> tuple[int, ...]:
        return self.near[island]

    def weights(self, round_index: int, islands: int, seed: int) -> list[list[float]]:
        return super().weights(round_index, islands, seed) if self.rows is None else [list(r) for r in self.rows]


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (Wrong(near=((1,), (0, 2), ())), "island 2 has no edge back to 1"),
        (Wrong(near=((1,), (0, 5), (1,))), "island 1 has neighbour 5"),
        (Wrong(near=((0, 1), (0, 2), (1,))), "island 0 has neighbour 0"),
        (
            Wrong(near=((1,), (0, 2), (1,)), rows=((0.5, 0.5, 0.0), (0.25, 0.5, 0.25), (0.0, 0.5, 0.5))),
            "column 0 sums to 0.75",
        ),
    ],
)
def test_a_topology_of_ones_own_is_checked(topology: Topology, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_graph(topology, 3)


def test_a_plan_of_churn_says_who_is_there() -> None:
    plan = Churn(losses=(Loss(round=2, nodes=(0, 3), rounds=2), Loss(round=3, links=((1, 2),))), relays=(4,))
    assert [sorted(plan.lost(t)) for t in range(5)] == [[], [], [0, 3], [0, 3], []]
    assert [sorted(plan.cut(t)) for t in (2, 3, 9)] == [[], [(1, 2), (2, 1)], [(1, 2), (2, 1)]]
    assert [plan.changes(t) for t in range(6)] == [False, False, True, True, True, False]
    network = Network(Ring(), plan, 6, 0)
    assert network.reached(2, 2, 1) == [2]
    assert network.reached(3, 3, 1) == []
    assert [network.health(t, ()).components for t in range(5)] == [1, 1, 2, 3, 1]
    assert network.health(2, {1}).there == 3
    assert components([{1}, {0}, set()]) == [{0, 1}, {2}]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Churn(losses=(Loss(round=-1),)), r"churn\.losses\[0\]\.round = -1"),
        (Churn(losses=(Loss(round=0, rounds=0),)), r"churn\.losses\[0\]\.rounds = 0"),
        (Churn(losses=(Loss(round=0, nodes=(4,)),)), r"churn\.losses\[0\]\.nodes = \(4,\).*0 to 3"),
        (Churn(losses=(Loss(round=0, links=((1, 1),)),)), r"churn\.losses\[0\]\.links"),
        (Churn(losses=(Loss(round=0, nodes=(0, 1)), Loss(round=0, nodes=(2, 3)))), "not all islands at once"),
        (Churn(relays=(0, 1, 2, 3)), r"churn\.relays.*at most 3"),
        (Churn(relays=(9,)), r"churn\.relays"),
    ],
)
def test_a_plan_of_other_islands_is_refused(plan: Churn, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Gossip(churn=plan).check(4)
