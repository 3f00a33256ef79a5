"""An ordered sum over gloo that sends, sums and sends back segment by segment.

One send of 60 MB leaves the socket's copies and the sum taking turns in main memory; segments of 4 MB stay in the cache
and overlap: on the loopback device it takes no longer than gloo's own all-reduce, whose bits depend on its ring.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from lowcomm.transport.base import ordered_sum

SEGMENT = 1 << 20
"""Elements sent at a time."""
SMALLEST = 1 << 15
"""Elements of a segment that is cut smaller so that each group gets one."""
CONTRIBUTION, RESULT = 1, 2
"""Message tags, so that results never meet a receive that waits for contributions."""


def pipelined_sum(
    vector: Tensor,
    weights: Sequence[float],
    out: Tensor,
    received: Tensor,
    scratch: Tensor,
    groups: Sequence[dist.ProcessGroup | None],
) -> None:
    """`out = sum_k weights[k] * vector_k` in island order on every rank; raises RuntimeError on a failure.

    groups: groups of the same ranks that carry the segments in turn.
    All fp32, 1-D, on the CPU. vector, out, received: of one size, a multiple of the ranks. `out` is torn on a failure.
    """
    n, me = dist.get_world_size(groups[0]), dist.get_rank(groups[0])
    peers = [k for k in range(n) if k != me]
    chunk = out.numel() // n
    mine, arrived, results = (list(t.view(n, chunk)) for t in (vector, received, out))
    size = min(SEGMENT, max(SMALLEST, -(-chunk // len(groups))))
    cuts = [slice(start, min(start + size, chunk)) for start in range(0, chunk, size)]
    lanes = [(cut, groups[i % len(groups)]) for i, cut in enumerate(cuts)]

    def receive(rows: list[Tensor], tag: int) -> list[list[dist.Work | None]]:
        return [[dist.irecv(rows[k][cut], group=lane, group_src=k, tag=tag) for k in peers] for cut, lane in lanes]

    contributions, answers = receive(arrived, CONTRIBUTION), receive(results, RESULT)
    sent = [dist.isend(mine[k][cut], group=lane, group_dst=k, tag=CONTRIBUTION) for cut, lane in lanes for k in peers]
    for (cut, lane), waiting in zip(lanes, contributions, strict=True):
        _wait(waiting)
        parts = [mine[k][cut] if k == me else arrived[k][cut] for k in range(n)]
        ordered_sum(parts, weights, results[me][cut], scratch)
        sent += [dist.isend(results[me][cut], group=lane, group_dst=k, tag=RESULT) for k in peers]
    for waiting in answers:
        _wait(waiting)
    _wait(sent)


def _wait(works: Sequence[dist.Work | None]) -> None:
    for work in works:
        if work is not None:
            work.wait()
