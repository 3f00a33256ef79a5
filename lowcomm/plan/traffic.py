"""Bytes and round trips of one sync of one fragment: what the transport counts, in closed form.

Per island and sync, for n islands (tests compare each with a simulated run, byte by byte):

    roll call 32 (n - 1), digest of the new weights 16 (n - 1), packed: agreement n (n - 1) each time
    fp32      2 (n - 1) ceil(S / n) 4
    packed    n = 2: (n - 1) payloads; else all-to-all of chunks and all-gather of their sums: 2 (n - 1) / n payloads
    gathered  (n - 1) payloads

Round trips, from what gloo's TCP transport does (a receiver says that it is ready, then the data comes: one round trip
per exchange, half of one where the receive was posted before): a gather is a ring of n - 1 exchanges; the fp32 sum 1.5;
a swap 1. Measured on the shaped network at 50 and 100 ms: results/planner_constants.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lowcomm.plan.codecs import HEADER_BYTES, Coded

SEGMENT = 1 << 20
"""Elements of a chunk that are encoded and sent at a time."""
RING_BYTES = 1 << 17
"""A gather of more than this goes to all at once, a smaller one around the ring."""

Bounds = tuple[int, int]


CHECKSUM_BYTES = 8
"""Of a plain contribution, to each of the others."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One sync of one fragment on one island."""

    sent_bytes: int
    received_bytes: int
    round_trips: float
    """Of them, that wait for each other."""
    phases: int
    """Bulk transfers that wait for each other."""


@lru_cache(maxsize=1024)
def traffic(codec: Coded, numel: int, islands: int, island: int = 0) -> Traffic:
    """What one sync of `numel` parameters moves over the link of `island`, checks included."""
    peers = islands - 1
    control_bytes = (32 + 16) * peers
    ring = 2.0 * peers  # roll call and digests
    if codec.kind == "plain":
        bulk = 2 * peers * -(-numel // islands) * 4
        total = bulk + control_bytes + (CHECKSUM_BYTES + islands) * peers  # and who was found to be altered
        return Traffic(sent_bytes=total, received_bytes=total, round_trips=ring + 1.5, phases=2)
    agree_bytes = islands * peers
    if codec.kind == "gathered":
        bulk = peers * (HEADER_BYTES + codec.body_bytes(numel))
        trips = 1 if bulk // max(1, peers) > RING_BYTES else peers
        total = bulk + control_bytes + agree_bytes
        return Traffic(sent_bytes=total, received_bytes=total, round_trips=ring + trips + peers, phases=1)
    if islands == 2:
        bulk = sum(_row_bytes(codec, cut[0]) for cut in segments([(0, numel)], codec.granule))
        total = bulk + control_bytes + agree_bytes
        return Traffic(sent_bytes=total, received_bytes=total, round_trips=ring + 1 + peers, phases=1)
    sent, received = _reduced(codec, numel, islands, island)
    control_bytes += 2 * agree_bytes
    return Traffic(
        sent_bytes=sent + control_bytes,
        received_bytes=received + control_bytes,
        round_trips=ring + 2 + 2 * peers,
        phases=2,
    )


def _reduced(codec: Coded, numel: int, islands: int, island: int) -> tuple[int, int]:
    """All-to-all of contributions, then all-gather of sums: (sent, received)."""
    own = others = 0
    for cut in segments(chunks(numel, islands, codec.granule), codec.granule):
        rows = [_row_bytes(codec, bounds) for bounds in cut]
        own += rows[island]
        others += sum(rows) - rows[island]
    both = others + (islands - 1) * own
    return both, both


def _row_bytes(codec: Coded, bounds: Bounds) -> int:
    return HEADER_BYTES + codec.body_bytes(bounds[1] - bounds[0])


def chunks(numel: int, islands: int, granule: int) -> list[Bounds]:
    """(start, stop) of each island's chunk: equal multiples of `granule`, the last ones shorter or empty."""
    per_island = -(-numel // islands)
    step = -(-per_island // granule) * granule
    return [(k * step, min((k + 1) * step, numel)) if k * step < numel else (0, 0) for k in range(islands)]


def segments(parts: list[Bounds], granule: int) -> list[list[Bounds]]:
    """Segment by segment the bounds of each chunk's part, (0, 0) where none is left."""
    step = -(-SEGMENT // granule) * granule
    longest = max(stop - start for start, stop in parts)
    return [
        [(start + at, min(start + at + step, stop)) if start + at < stop else (0, 0) for start, stop in parts]
        for at in range(0, max(longest, 1), step)
    ]
