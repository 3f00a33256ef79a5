"""How long a round takes: compute, exchange, what of it is hidden. Closed form; islands are alike and start together.

    exchange = round trips x RTT + bytes / rate + slow start + codec
    rate     = min(link x efficiency, streams x (n - 1) x min(window / RTT, 1.22 packet / (RTT sqrt(loss))))
    blocked  = P (local + max(0, exchange - tau step)),   utilisation = H step / (H step + blocked)

P: fragments; tau: steps that a fragment has to arrive; local: pseudo-gradient, outer step, weights and digest. The loss
term is Mathis et al. 1997. Slow start: each sync begins with ten packets per connection (Linux falls back to that when
idle) and doubles per round trip until the pipe is full. Where the constants were measured stands beside each.
Left out: other traffic, islands of unequal speed (the slowest sets the pace: plan with its step time and its link), and
what the exchange's own CPU work costs a training step on the same core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowcomm.plan.codecs import Coded
from lowcomm.plan.traffic import RING_BYTES, SEGMENT, Traffic, traffic

EFFICIENCY = 0.95
"""Payload bytes per byte of the line: 1448 of 1538 on Ethernet are 0.941, the shaped network's large packets 0.98."""
WINDOW_BYTES = 2.5e6
"""What one TCP connection keeps under way with Linux' default buffers: 400 Mbit/s at 50 ms (results/streams.json: the
fp32 sum over one connection of a 1 Gbit/s link took 1.95 s for 100 MB, 51 MB/s)."""
PACKET_BYTES = 1448
"""Payload of one packet on the internet; the shaped network's have 65,000."""
FIRST_PACKETS = 10
"""Packets that a connection sends before the first acknowledgement."""
LOCAL_S_PER_PARAMETER = 2.2e-9
"""results/sync_cost.json: (sync - all_reduce) of 28.6M parameters on one CPU thread; `local` of planner_constants."""
MATHIS = 1.22


@dataclass(frozen=True, kw_only=True)
class Link:
    """The link between two islands, the slowest one if they differ."""

    rate_bytes_per_s: float
    rtt_s: float = 0.0
    loss: float = 0.0
    """Part of the packets that is lost, 0 to below 1."""
    packet_bytes: float = PACKET_BYTES
    efficiency: float = EFFICIENCY
    window_bytes: float = WINDOW_BYTES

    def bytes_per_s(self, connections: int) -> float:
        """Payload that `connections` TCP connections move per second."""
        each = math.inf
        if self.rtt_s > 0:
            each = self.window_bytes / self.rtt_s
            if self.loss > 0:
                each = min(each, MATHIS * self.packet_bytes / (self.rtt_s * math.sqrt(self.loss)))
        return min(self.rate_bytes_per_s * self.efficiency, connections * each)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained."""

    parameters: int
    islands: int
    step_s: float
    """Seconds of one inner step of an island, without any sync."""
    steps: int
    """Inner steps of the whole run."""
    local_s_per_parameter: float = LOCAL_S_PER_PARAMETER


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the planner chooses among."""

    every: int
    """Inner steps between two syncs of a fragment (H)."""
    codec: Coded
    fragments: int = 1
    delay: int = 0
    """Inner steps that a fragment has to arrive (tau); `every` with one fragment: one-step delay."""
    streams: int = 1


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of settings."""

    settings: Settings
    exchange_s: float
    """Of one fragment."""
    blocked_s: float
    """Per round of `every` steps: what training waits for."""
    round_s: float
    utilisation: float
    sent_bytes: int
    """Per island and round."""
    bytes_per_day: float
    """Sent by one island; it receives as much."""
    peak_bytes_per_s: float
    """Rate of the link while a fragment is on its way."""
    wall_s: float
    """Of the whole run."""


def exchange_s(job: Job, link: Link, settings: Settings, numel: int) -> float:
    """Seconds from the start of a fragment's exchange to its aggregate, with all its checks."""
    found = traffic(settings.codec, numel, job.islands)
    peers = job.islands - 1
    row_bytes = max(1, found.sent_bytes // max(1, peers * found.phases))
    used = max(1, min(settings.streams, row_bytes // RING_BYTES))
    rate = link.bytes_per_s(used * peers)
    move_s = found.sent_bytes / rate + found.phases * min(link.packet_bytes, row_bytes) / link.rate_bytes_per_s
    codec_s = settings.codec.codec_s_per_parameter * numel * job.islands / 2
    parts = 1 if settings.codec.kind == "gathered" else max(1, -(-numel // SEGMENT))
    alone_s = codec_s / parts  # the first segment is encoded, and the last one decoded, while nothing travels
    bulk_s = alone_s + max(move_s, codec_s - alone_s)
    return found.round_trips * link.rtt_s + _slow_start_s(link, found, used * peers, rate) + bulk_s


def _slow_start_s(link: Link, found: Traffic, connections: int, rate: float) -> float:
    """What a connection loses until it fills the pipe, or has sent all."""
    first_bytes = FIRST_PACKETS * link.packet_bytes * connections
    pipe_bytes = min(rate * link.rtt_s, found.sent_bytes / found.phases)
    if pipe_bytes <= first_bytes:
        return 0.0
    trips = math.ceil(math.log2(pipe_bytes / first_bytes))
    return max(0.0, trips * link.rtt_s - first_bytes * (2**trips - 1) / rate)


def predict(job: Job, link: Link, settings: Settings, sizes: list[int] | None = None) -> Prediction:
    """The round of these settings. sizes: parameters of each fragment (None: equal ones)."""
    if sizes is None:
        sizes = [-(-job.parameters // settings.fragments)] * settings.fragments
    each = {numel: exchange_s(job, link, settings, numel) for numel in set(sizes)}
    exchanges = [each[numel] for numel in sizes]
    local_s = job.local_s_per_parameter * sum(sizes)
    hidden_s = settings.delay * job.step_s
    blocked_s = local_s + sum(max(0.0, e - hidden_s) for e in exchanges)
    compute_s = settings.every * job.step_s
    round_s = compute_s + blocked_s
    sent = sum(traffic(settings.codec, numel, job.islands).sent_bytes for numel in sizes)
    largest = max(range(len(sizes)), key=lambda i: exchanges[i])
    in_flight_bytes = traffic(settings.codec, sizes[largest], job.islands).sent_bytes
    return Prediction(
        settings=settings,
        exchange_s=exchanges[largest],
        blocked_s=blocked_s,
        round_s=round_s,
        utilisation=compute_s / round_s,
        sent_bytes=sent,
        bytes_per_day=sent * 86400 / round_s,
        peak_bytes_per_s=in_flight_bytes / max(exchanges[largest], hidden_s),
        wall_s=job.steps * round_s / settings.every,
    )
