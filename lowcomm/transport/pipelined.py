"""An ordered sum over gloo that sends, sums and sends back segment by segment.

One send of 60 MB leaves the socket's copies and the sum taking turns in main memory; segments of 4 MB stay in the cache
and overlap: on the loopback device it takes no longer than gloo's own all-reduce, whose bits depend on its ring.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from lowcomm.transport.base import CHECKSUM_BYTES, may_take_place, ordered_sum

SEGMENT = 1 << 20
"""Elements sent at a time."""
SMALLEST = 1 << 11
"""Elements of a segment that is cut smaller so that each group gets one, and both directions of a slow link are used:
results set out while contributions still come in."""
WINDOW = 4
"""Segments that each group may have on the way to an island at a time."""
CONTRIBUTION, RESULT, CHECKSUM = 1, 2, 3
"""Message tags, so that results never meet a receive that waits for contributions."""


def pipelined_sum(
    vector: Tensor,
    weights: Sequence[float],
    out: Tensor,
    received: Tensor,
    scratch: Tensor,
    groups: Sequence[dist.ProcessGroup | None],
) -> list[int]:
    """`out = sum_k weights[k] * vector_k` in island order on every rank; raises RuntimeError on a failure.

    Returns the ranks whose contribution to this rank's part of the sum is not what they sent, by its checksum.

    groups: groups of the same ranks that carry the segments in turn.
    All fp32, 1-D, on the CPU. vector, out: of one size, a multiple of the ranks, or the same tensor: a segment's
    result arrives only when all of it has been sent. `out` is torn on a failure. received: of `window` elements.
    """
    n, me = size_and_rank(groups[0])
    peers = [k for k in range(n) if k != me]
    chunk = out.numel() // n
    mine, results = list(vector.view(n, chunk)), list(out.view(n, chunk))
    size, slots = segmentation(out.numel(), n, len(groups))
    cuts = [slice(start, min(start + size, chunk)) for start in range(0, chunk, size)]
    lanes = [(cut, groups[i % len(groups)]) for i, cut in enumerate(cuts)]
    rows = list(received[: slots * n * size].view(slots, n, size))

    def expect(i: int) -> list[dist.Work | None]:
        (cut, lane), row = lanes[i], rows[i % slots]
        length = cut.stop - cut.start
        return [dist.irecv(row[k][:length], group=lane, group_src=k, tag=CONTRIBUTION) for k in peers]

    contributions = [expect(i) for i in range(min(slots, len(lanes)))]
    answers = [[dist.irecv(results[k][cut], group=lane, group_src=k, tag=RESULT) for k in peers] for cut, lane in lanes]
    sums = Checksums(peers, groups[0])
    sent = _send(mine, lanes, peers, sums)
    for i, (cut, lane) in enumerate(lanes):
        _wait(contributions[i])
        parts = [row[: cut.stop - cut.start] for row in rows[i % slots]]
        for k in peers:
            sums.received(k, parts[k])
        if may_take_place(me, weights):
            parts[me] = mine[me][cut]
        else:
            parts[me].copy_(mine[me][cut])
        ordered_sum(parts, weights, results[me][cut], scratch)
        if i + slots < len(lanes):
            contributions.append(expect(i + slots))
        sent += [dist.isend(results[me][cut], group=lane, group_dst=k, tag=RESULT) for k in peers]
    _wait([work for waiting in answers for work in waiting] + sent)
    return sums.differing()


def _send(
    mine: Sequence[Tensor],
    lanes: Sequence[tuple[slice, dist.ProcessGroup | None]],
    peers: Sequence[int],
    sums: Checksums,
) -> list[dist.Work | None]:
    """Start to send every peer its part of the contribution, and then its checksum."""
    sent: list[dist.Work | None] = []
    for cut, lane in lanes:
        for k in peers:
            sums.sending(k, mine[k][cut])  # before a result may take its place
            sent.append(dist.isend(mine[k][cut], group=lane, group_dst=k, tag=CONTRIBUTION))
    sums.send()
    return sent


class Checksums:
    """xxh3-64 of what goes to and comes from each peer, which tell each other theirs: against accidents only."""

    def __init__(self, peers: Sequence[int], group: dist.ProcessGroup | None) -> None:
        self.peers, self.group = peers, group
        self._out = {k: xxhash.xxh3_64() for k in peers}
        self._in = {k: xxhash.xxh3_64() for k in peers}
        self._theirs = {k: torch.empty(CHECKSUM_BYTES, dtype=torch.uint8) for k in peers}
        self._own: list[Tensor] = []
        self._works = [dist.irecv(self._theirs[k], group=group, group_src=k, tag=CHECKSUM) for k in peers]

    def sending(self, k: int, part: Tensor) -> None:
        """The next part of what goes to rank k."""
        self._out[k].update(part.numpy().data)

    def received(self, k: int, part: Tensor) -> None:
        """The next part of what came from rank k."""
        self._in[k].update(part.numpy().data)

    def send(self) -> None:
        """Tell every peer the checksum of what goes to it."""
        for k in self.peers:
            self._own.append(torch.frombuffer(bytearray(self._out[k].digest()), dtype=torch.uint8))
            self._works.append(dist.isend(self._own[-1], group=self.group, group_dst=k, tag=CHECKSUM))

    def differing(self) -> list[int]:
        """The ranks from which something else came than they sent."""
        _wait(self._works)
        return [k for k in self.peers if self._in[k].digest() != self._theirs[k].numpy().tobytes()]


def size_and_rank(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Of a group, known to torch.distributed or not."""
    return (dist.get_world_size(), dist.get_rank()) if group is None else (group.size(), group.rank())


def segmentation(numel: int, islands: int, groups: int) -> tuple[int, int]:
    """Elements of a segment, and how many segments of a chunk may arrive before the first has been summed.

    What waits is a quarter of the vector at most, unless segments would get smaller than SMALLEST.
    """
    chunk = numel // islands
    slots = WINDOW * groups
    size = min(SEGMENT, -(-chunk // groups), -(-numel // (4 * slots * islands)))
    size = max(1, min(chunk, max(SMALLEST, size)))
    return size, max(1, min(slots, -(-chunk // size)))


def window(numel: int, islands: int, groups: int) -> int:
    """Elements of the buffer that `pipelined_sum` receives into."""
    size, slots = segmentation(numel, islands, groups)
    return size * slots * islands


def _wait(works: Sequence[dist.Work | None]) -> None:
    for work in works:
        if work is not None:
            work.wait()
