"""When gossip beats an all-reduce: the time of a round of each, and of islands of unequal speed round after round.

After the runtime model of Wang et al., From Promise to Practice, arXiv 2410.11998, for the exchanges of this toolkit.

    all-reduce            round = max_k c_k + E_ar                     E_ar: `runtime.exchange_s` of a fp32 sum
    gossip                round = c + E_g                              E_g = RTT + d p / rate + slow start
    gossip, overlapped    round = max(c, E_g) + local

c: compute of a round, `every` inner steps; d: messages that an island sends in a round; p: bytes of a message; local:
what the mixing itself costs. The rate is that of the link for all of an island's messages together, up to its streams'
windows. All wait for all in an all-reduce. In gossip an island waits for its neighbours only:

    start_k(t + 1) = max over k and its neighbours j of (start_j(t) + c_j) + E_g       (overlapped: see `finish_s`)

so that a slow island is felt at a distance of i edges i rounds later: in a connected graph all go at its pace in the
end, and only edges that rest (`Multigraph`), sampling (`Modest`) or buffers (`Buffered`) change that.
Left out: jitter, and what a compressing codec costs beyond fp32's checksums and copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lowcomm.plan.codecs import FP32, HEADER_BYTES
from lowcomm.plan.runtime import FIRST_PACKETS, Job, Link, Settings, exchange_s

HEAD_BYTES = 32
"""Before the payload of a message of gossip."""
Neighbours = Callable[[int, int], Sequence[int]]
"""Islands with whom an island (second) exchanges in a round (first)."""


@dataclass(frozen=True, kw_only=True)
class GossipRound:
    """What an island of a gossip run sends in a round."""

    degree: float
    """Messages, each of which another one comes for."""
    message_bytes: int
    overlapped: bool = False
    """Whether they cross while the round is trained."""


def message_bytes(parameters: int, body_bytes: float | None = None, vectors: int = 1) -> int:
    """Of one message. body_bytes: of a payload (None: fp32); vectors: payloads in it."""
    body = 4 * parameters if body_bytes is None else math.ceil(body_bytes)
    return HEAD_BYTES + vectors * (HEADER_BYTES + body)


def gossip_s(job: Job, link: Link, gossip: GossipRound, streams: int = 1) -> float:
    """Seconds from the first byte of an island's messages to the last of its neighbours'."""
    sent = gossip.degree * gossip.message_bytes
    connections = max(1, round(gossip.degree)) * streams
    rate = link.bytes_per_s(connections)
    first = FIRST_PACKETS * link.packet_bytes * connections
    pipe = min(rate * link.rtt_s, sent)
    lost_s = 0.0
    if pipe > first:
        trips = math.ceil(math.log2(pipe / first))
        lost_s = max(0.0, trips * link.rtt_s - first * (2**trips - 1) / rate)
    codec_s = FP32.codec_s_per_parameter * job.parameters * gossip.degree
    return link.rtt_s + lost_s + sent / rate + codec_s


def all_reduce_round_s(job: Job, link: Link, every: int, streams: int = 1) -> float:
    """Seconds of a round of `every` inner steps and one fp32 sum of all islands."""
    settings = Settings(every=every, codec=FP32, streams=streams)
    local_s = job.local_s_per_parameter * job.parameters
    return every * job.step_s + exchange_s(job, link, settings, job.parameters) + local_s


def gossip_round_s(job: Job, link: Link, every: int, gossip: GossipRound, streams: int = 1) -> float:
    """Seconds of a round of `every` inner steps and one exchange with neighbours."""
    compute_s, moved_s = every * job.step_s, gossip_s(job, link, gossip, streams)
    local_s = job.local_s_per_parameter * job.parameters
    return (max(compute_s, moved_s) if gossip.overlapped else compute_s + moved_s) + local_s


def faster(job: Job, link: Link, every: int, gossip: GossipRound, streams: int = 1) -> Literal["gossip", "all-reduce"]:
    """Which of the two has the shorter round."""
    alone_s = all_reduce_round_s(job, link, every, streams)
    return "gossip" if gossip_round_s(job, link, every, gossip, streams) < alone_s else "all-reduce"


def finish_s(
    rounds: int, compute_s: Sequence[float], moved_s: float, neighbours: Neighbours | None, overlapped: bool = False
) -> float:
    """When the last island has done its rounds, from the same start.

    compute_s: of a round, by island. moved_s: of an exchange. neighbours: None: all wait for all. overlapped: what
    crosses in a round are the weights that it began with.
    """
    islands = range(len(compute_s))
    starts = [0.0 for _ in islands]
    for index in range(rounds):
        ready = [start + c for start, c in zip(starts, compute_s, strict=True)]
        said = [start + moved_s for start in starts] if overlapped else [r + moved_s for r in ready]
        following: list[float] = []
        for k in islands:
            near = [j for j in islands if j != k] if neighbours is None else list(neighbours(index, k))
            own = ready[k] if overlapped or not near else ready[k] + moved_s
            following.append(max([own, *(said[j] for j in near)]))
        starts = following
    return max(starts)
