"""Rounds over an object store: bytes, requests, seconds and money of a member, in closed form.

    up       = P + h + c / n + snapshots,   P: payload, h, c: headers of a contribution and of a commit
    down     = (n - 1) (P + h) + c
    requests = 1 + p + (n - 1) (1 + p) + 2 looks + 1 + 3 / n,   p: parts of a payload above 64 MiB
    blocked  = P / rate + (n - 1) P / rate + encode, decode, fold + trips x RTT + polls

n members of equal speed whose commits wait for all (mode "synchronous"); nobody hears of the others but by looking:
a look after 0.25 s, the next after 0.375 s ... (a directory: 20 ms). Where `shared_bytes_per_s` is set, all members
share one line to the store (a server of one's own). Snapshots go up when the bytes of the commits since the last one
exceed its own, or after `snapshot_s`, from one of the members. Left out: joins (a snapshot down for each), healing,
what is published for followers, and a bucket's price for what it keeps (a few snapshots, cents a month).
Bytes and requests are beside those of results/store.json in a test; `benchmarks.store_plan` measures seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.plan.choose import PERIODS
from lowcomm.plan.codecs import HEADER_BYTES, Coded
from lowcomm.plan.penalty import loss_penalty
from lowcomm.plan.runtime import EFFICIENCY, Job, Settings

PART_BYTES = 1 << 26
"""`lowcomm.store.objects.PART_BYTES`."""
CONTRIBUTION_BYTES, COMMIT_BYTES, USED_BYTES = 560, 384, 158
"""Text around a payload, of a commit, and of each contribution in it (results/store.json: round_2 and round_4)."""
STATE_BYTES = 8
"""Of a snapshot, per parameter: fp32 weights and the outer momentum."""
LOOKS = 6.5
"""Of a member in a round: four while it trains, and those for which it waits (results/store.json: requests)."""
TRIPS = 8
"""Requests that wait for each other, beside one for each payload: probe, put, listings, stop, commit, read."""
POLL_S, DIRECTORY_POLL_S = 0.25, 0.02
"""First pause between two looks; the next is half as long again."""


@dataclass(frozen=True, kw_only=True)
class StoreLink:
    """The way to the store."""

    rate_bytes_per_s: float
    """Of each member, each way."""
    rtt_s: float = 0.0
    """Of a small request."""
    shared_bytes_per_s: float | None = None
    """Of the store, each way, for all members together; None: a bucket, which has no such limit."""
    efficiency: float = EFFICIENCY
    poll_s: float = POLL_S


@dataclass(frozen=True, kw_only=True)
class Prices:
    """In dollars."""

    per_gb: float = 0.09
    """Of 10^9 bytes that leave the store."""
    per_thousand_requests: float = 0.005


@dataclass(frozen=True, kw_only=True)
class StoreRound:
    """A round of `every` inner steps over the store, per member where nothing else is said."""

    codec: Coded
    every: int
    up_bytes: float
    """Contribution, commits and snapshots."""
    down_bytes: float
    snapshot_bytes: float
    """Of `up_bytes`."""
    requests: float
    blocked_s: float
    """Without training."""
    round_s: float
    utilisation: float
    wall_s: float
    """Of the whole run."""
    penalty: float
    """Loss against data-parallel, as a part of it."""
    dollars_per_day: float
    """Of all members."""
    dollars: float
    """Of the whole run."""


def store_round(
    job: Job, link: StoreLink, codec: Coded, every: int, prices: Prices, *, snapshot_s: float = 600.0
) -> StoreRound:
    """What a round of these settings costs."""
    n = job.islands
    payload = codec.body_bytes(job.parameters) + HEADER_BYTES
    parts = math.ceil(payload / PART_BYTES) if payload > PART_BYTES else 0
    commit = COMMIT_BYTES + n * USED_BYTES
    down = (n - 1) * (payload + CONTRIBUTION_BYTES) + commit
    blocked_s = _blocked_s(job, link, codec, payload, parts)
    round_s = every * job.step_s + blocked_s
    snapshot = STATE_BYTES * job.parameters
    by_bytes = snapshot // (n * (payload + CONTRIBUTION_BYTES) + commit) + 1
    rounds = max(1.0, min(by_bytes, math.ceil(snapshot_s / round_s)))
    snapshot_bytes = snapshot / rounds / n
    requests = 2 + parts + (n - 1) * (1 + parts) + 2 * LOOKS + 3 / n
    dollars = n * (down / 1e9 * prices.per_gb + requests / 1000 * prices.per_thousand_requests)
    return StoreRound(
        codec=codec,
        every=every,
        up_bytes=payload + CONTRIBUTION_BYTES + commit / n + snapshot_bytes,
        down_bytes=down,
        snapshot_bytes=snapshot_bytes,
        requests=requests,
        blocked_s=blocked_s,
        round_s=round_s,
        utilisation=every * job.step_s / round_s,
        wall_s=job.steps * round_s / every,
        penalty=loss_penalty(job, Settings(every=every, codec=codec)),
        dollars_per_day=dollars * 86400 / round_s,
        dollars=dollars * job.steps / every,
    )


def _blocked_s(job: Job, link: StoreLink, codec: Coded, payload: int, parts: int) -> float:
    n = job.islands
    rate = link.rate_bytes_per_s * link.efficiency
    shared = math.inf if link.shared_bytes_per_s is None else link.shared_bytes_per_s * link.efficiency
    move_s = max(payload / rate, n * payload / shared) + max((n - 1) * payload / rate, n * (n - 1) * payload / shared)
    work_s = (codec.codec_s_per_parameter * n / 2 + job.local_s_per_parameter) * job.parameters
    trips = TRIPS + parts + (n - 1) * (1 + parts)
    # one pause until the others' contributions are there, and for all but the committer half of the next
    return move_s + work_s + trips * link.rtt_s + link.poll_s * (1 + 0.75 * (n - 1) / n)


def over_store(
    job: Job, link: StoreLink, prices: Prices, codecs: Sequence[Coded], *, goal: float, every: int | None = None
) -> list[StoreRound]:
    """For each codec the shortest round that reaches this utilisation (else the longest), the least loss first.

    every: a fixed H instead.
    """
    found = []
    for codec in codecs:
        periods = [every] if every is not None else [h for h in PERIODS if h <= job.steps] or [job.steps]
        rounds = [store_round(job, link, codec, h, prices) for h in periods]
        found.append(next((r for r in rounds if r.utilisation >= goal), rounds[-1]))
    return sorted(found, key=lambda r: (r.utilisation < goal, round(r.penalty, 4), r.dollars))
