"""The runtime model of gossip against an all-reduce: its limits, and islands of unequal speed round after round."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lowcomm.plan.decentral import (
    GossipRound,
    all_reduce_round_s,
    faster,
    finish_s,
    gossip_round_s,
    gossip_s,
    message_bytes,
)
from lowcomm.plan.runtime import Job, Link
from lowcomm.topology import Multigraph, OnePeer, Ring

JOB = Job(parameters=120_000, islands=8, step_s=0.02, steps=640)
SLOW, FAST = Link(rate_bytes_per_s=2.5e6, rtt_s=0.06), Link(rate_bytes_per_s=1.25e9, rtt_s=0.0001)
ONE = GossipRound(degree=1, message_bytes=message_bytes(JOB.parameters))


def test_a_message_of_gossip_is_what_the_exchange_sends() -> None:
    assert message_bytes(100) == 32 + 64 + 400
    assert message_bytes(100, vectors=2) == 32 + 2 * 464
    assert message_bytes(100, body_bytes=60.5) == 32 + 64 + 61


def test_overlap_takes_the_longer_of_the_two() -> None:
    over = dataclasses.replace(ONE, overlapped=True)
    local_s = JOB.local_s_per_parameter * JOB.parameters
    for every in (1, 64):
        moved_s = gossip_s(JOB, SLOW, ONE)
        assert math.isclose(gossip_round_s(JOB, SLOW, every, ONE), every * 0.02 + moved_s + local_s)
        assert math.isclose(gossip_round_s(JOB, SLOW, every, over), max(every * 0.02, moved_s) + local_s)


def test_one_peer_beats_an_all_reduce_on_a_slow_link_and_many_neighbours_do_not_on_a_fast_one() -> None:
    assert faster(JOB, SLOW, 1, ONE) == "gossip"
    many = dataclasses.replace(ONE, degree=20)
    assert faster(JOB, FAST, 1, many) == "all-reduce"
    assert all_reduce_round_s(JOB, SLOW, 1) > 2 * gossip_round_s(JOB, SLOW, 1, ONE)


def ring(index: int, island: int) -> Sequence[int]:
    return Ring().neighbours(index, island, 4, 0)


def test_equal_islands_are_done_together() -> None:
    assert finish_s(10, [1.0] * 4, 0.5, None) == finish_s(10, [1.0] * 4, 0.5, ring) == 15.0
    assert finish_s(10, [1.0] * 4, 0.5, ring, overlapped=True) == 10.0
    assert finish_s(10, [1.0] * 4, 1.5, ring, overlapped=True) == 15.0


def test_in_a_connected_graph_all_go_at_the_pace_of_the_slowest() -> None:
    slow = [1.0, 1.0, 1.0, 4.0]
    assert finish_s(50, slow, 0.1, None) == finish_s(50, slow, 0.1, ring)
    peers = OnePeer()
    one = finish_s(50, slow, 0.1, lambda t, k: peers.neighbours(t, k, 4, 0))
    assert 0.95 * finish_s(50, slow, 0.1, None) < one <= finish_s(50, slow, 0.1, None)


def test_fast_islands_of_a_multigraph_are_ahead_of_those_of_its_overlay() -> None:
    graph = Multigraph(overlay=Ring(), delay_s=(1.0, 1.0, 1.0, 4.0))
    near = [len(graph.neighbours(t, 3, 4, 0)) for t in range(8)]
    assert near == [2, 0, 0, 0, 2, 0, 0, 0]
    compute = [1.0, 1.0, 1.0, 4.0]
    resting = finish_s(8, compute, 0.1, lambda t, k: graph.neighbours(t, k, 4, 0))
    assert resting < finish_s(8, compute, 0.1, ring)
