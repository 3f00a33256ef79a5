"""Islands as processes under torch.distributed: gloo for tensors on the CPU, NCCL for tensors on a GPU.

The sum is an all-to-all of chunks, a sum in island order and an all-gather: the bytes of a ring all-reduce, but with
bits that do not depend on the ring. Results go to scratch first: a failed collective tears the buffer that it writes.
On the CPU vectors go by paired sends and receives: gloo's own all-gather of 60 MB between two processes took 100 ms on
the loopback device where these take 27 ms.
`streams` process groups share what is large: each has its own TCP connections, and on a link with a long round trip one
connection's window does not fill it. NCCL has channels of its own, so tensors on a GPU always go by the one group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from lowcomm.transport.base import (
    BLOCK,
    KEPT,
    MOST_BYTES,
    Altered,
    Arrival,
    Transport,
    check_sizes,
    ordered_sum,
    sum_bytes,
)
from lowcomm.transport.links import STRIPE_BYTES, gloo_beside, stripes
from lowcomm.transport.pipelined import pipelined_sum, size_and_rank, window
from lowcomm.transport.survivors import swap_living
from lowcomm.types import AbandonedError, TransportError, require

ALTERED = "its contribution was altered on its way: its checksum differs"

MEASURED_BYTES = 1 << 16
"""Exchanges from this size on tell the link's speed; shorter ones its latency."""


class Collective(Transport):
    """One island per process of an initialised process group (default: the world)."""

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        beside: dist.ProcessGroup | None = None,
        streams: int = 1,
        timeout_s: float | None = None,
    ) -> None:
        """group: one rank of each island, in island order; beside: gloo, the ranks of this island, if it has several.

        streams: TCP connections between each pair of islands.
        timeout_s: of the groups made here (None: torch's).
        """
        require(1 <= streams <= 64, "streams", streams, "1 to 64", "4 to 8 suit a round trip of 50 ms")
        has_cpu = "cpu:" in str(dist.get_backend_config(group))
        # a loop on GPUs often has an NCCL group only; roll calls and CPU-offloaded syncs need gloo beside it
        cpu_group = group if has_cpu else gloo_beside(group, timeout_s)
        lanes = [cpu_group, *(gloo_beside(group, timeout_s) for _ in range(streams - 1))]
        self._begin(group, lanes, beside, dist.get_world_size(group), dist.get_rank(group))

    @classmethod
    def of_lanes(cls, lanes: Sequence[dist.ProcessGroup]) -> Self:
        """Over groups of gloo with the same ranks, the first of which carries what is small; they stay as they are."""
        made = cls.__new__(cls)
        made._begin(lanes[0], lanes, None, *size_and_rank(lanes[0]))
        return made

    def _begin(
        self,
        group: dist.ProcessGroup | None,
        lanes: Sequence[dist.ProcessGroup | None],
        beside: dist.ProcessGroup | None,
        islands: int,
        rank: int,
    ) -> None:
        self.group, self._cpu_group, self._lanes = group, lanes[0], list(lanes)
        self.islands, self.local = islands, (rank,)
        self._beside, self.ranks = beside, 1 if beside is None else dist.get_world_size(beside)
        self.sent_bytes = [0]
        self.received_bytes = [0]
        self.lost: Mapping[int, str] = {}
        self._received: Tensor | None = None
        self._scratch: Tensor | None = None

    @classmethod
    def open(
        cls,
        device: torch.device,
        timeout_s: float,
        streams: int = 1,
        store: dist.Store | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> Collective:
        """Join the group that torchrun's environment describes, or `ranks` ranks that meet in `store`.

        timeout_s: bounds each exchange.
        """
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_s)
        if store is None:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
        return cls(streams=streams, timeout_s=timeout_s)

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        (vector,) = vectors
        self._need_all("sum")
        n, size, on_cpu = self.islands, out.numel(), out.device.type == "cpu"
        received, scratch = self._buffers(window(size, n, len(self._lanes)) if on_cpu else size, out.device)
        crossing_bytes, altered = sum_bytes(out, n), dict[int, str]()
        if on_cpu:
            began = time.perf_counter()
            parts = (vector, weights, out, received, scratch, self._lanes)
            self._run("sum", lambda: altered.update(dict.fromkeys(pipelined_sum(*parts), ALTERED)))
            self._measure(crossing_bytes, time.perf_counter() - began)
        else:
            self._run("all-to-all", lambda: dist.all_to_all_single(received, vector, group=self.group))
            result = out.view(n, size // n)[self.local[0]]
            ordered_sum(list(received.view(n, size // n)), weights, result, scratch)
            self._run("all-gather", lambda: dist.all_gather_single(out, result, group=self.group))  # NCCL: in place
        self.count(crossing_bytes, crossing_bytes)
        return [altered]

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        (row,) = rows
        if self.goes_on:
            return self._gather_among_present(row)
        out = torch.empty(self.islands * row.numel(), dtype=row.dtype, device=row.device)
        size_bytes = row.numel() * row.element_size()
        if row.device.type == "cpu" and size_bytes > STRIPE_BYTES:
            arrived = list(out.view(self.islands, -1))
            arrived[self.local[0]].copy_(row)
            self._start("all-gather", [row.contiguous()] * self.islands, arrived)()
        else:
            self._run("all-gather", lambda: dist.all_gather_single(out, row.contiguous(), group=self._group(row)))
        self.count((self.islands - 1) * size_bytes, (self.islands - 1) * size_bytes)
        return out.view(self.islands, -1)

    def gather_sized(self, rows: Sequence[Tensor], most_bytes: int = MOST_BYTES) -> list[Tensor]:
        (row,) = rows
        sizes = self.gather([torch.tensor([row.numel()], dtype=torch.int64, device=row.device)]).flatten().tolist()
        check_sizes(sizes, most_bytes)
        out = [torch.empty(size, dtype=torch.uint8, device=row.device) for size in sizes]
        out[self.local[0]].copy_(row)
        self._start("all-gather", [row.contiguous()] * self.islands, out)()
        self.count((self.islands - 1) * row.numel(), sum(sizes) - row.numel())
        return out

    def start_swap(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        (sends,), (expected,), me = rows, sizes, self.local[0]
        device = sends[me].device
        coming = [n if k != me and k not in self.lost else 0 for k, n in enumerate(expected)]
        arrived = [torch.empty(n, dtype=torch.uint8, device=device) for n in coming]
        wait = self._start("all-to-all", sends, arrived)
        arrived[me] = sends[me]
        own_bytes = sends[me].numel()
        self.count(sum(row.numel() for row in sends) - own_bytes, sum(coming))

        def result() -> list[list[Tensor]]:
            wait()
            return [arrived]

        return result

    def gather_present(self, rows: Sequence[Tensor]) -> list[Tensor | None]:
        (row,) = rows
        (came,) = self._swap_living(
            [row.contiguous()] * self.islands, [torch.empty_like(row) for _ in range(self.islands)]
        )
        return came

    def swap_present(
        self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]
    ) -> list[list[Tensor | None]]:
        (sends,), (expected,) = rows, sizes
        return self._swap_living(sends, [torch.empty(n, dtype=torch.uint8) for n in expected])

    def _swap_living(self, sends: Sequence[Tensor], receives: Sequence[Tensor]) -> list[list[Tensor | None]]:
        """Raises TransportError if nobody else is left of several."""
        me = self.local[0]
        peers = [k for k in self.present if k != me]
        out = [(k, lane, part) for k in peers for lane, part in stripes(self._lanes, sends[k])]
        into = [(k, lane, part) for k in peers for lane, part in stripes(self._lanes, receives[k])]
        gone = swap_living(out, into)
        self._lose(gone)
        self.count(sum(_bytes(sends[k]) for k in peers), sum(_bytes(receives[k]) for k in self.present if k != me))
        arrived = {**{k: receives[k] for k in self.present}, me: sends[me]}
        return [[arrived.get(k) for k in range(self.islands)]]

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        (tensor,) = tensors
        self._need_all("broadcast")
        copy = tensor.detach().clone()
        self._run("broadcast", lambda: dist.broadcast(copy, group_src=0, group=self._group(copy)))
        tensor.copy_(copy)
        size_bytes = tensor.numel() * tensor.element_size()
        if self.local[0] == 0:
            self.count((self.islands - 1) * size_bytes, 0)
        else:
            self.count(0, size_bytes)

    def inside(self, row: Tensor) -> Tensor:
        if self._beside is None:
            return row[None]
        if not bool(self._gather_inside(torch.tensor([True])).all()):
            raise AbandonedError(f"another rank of island {self.local[0]} lost its connection. {KEPT}")
        return self._gather_inside(row)

    def abandon(self) -> None:
        if self._beside is not None:
            self._gather_inside(torch.tensor([False]))

    def _gather_inside(self, row: Tensor) -> Tensor:
        out = torch.empty(self.ranks * row.numel(), dtype=row.dtype)
        self._run("gather inside", lambda: dist.all_gather_single(out, row.contiguous(), group=self._beside))
        return out.view(self.ranks, -1)

    def close(self) -> None:
        if self.group is None and dist.is_initialized():
            dist.destroy_process_group()

    def _group(self, tensor: Tensor) -> dist.ProcessGroup | None:
        return self._cpu_group if tensor.device.type == "cpu" else self.group

    def _buffers(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._received is None or self._received.numel() < size or self._received.device != device:
            self._received = torch.empty(size, device=device)
            self._scratch = torch.empty(BLOCK, device=device)
        assert self._scratch is not None
        return self._received[:size], self._scratch

    def _start(self, what: str, sends: Sequence[Tensor], receives: Sequence[Tensor]) -> Callable[[], None]:
        """Start to send `sends[k]` to island k and to receive `receives[k]` from it, for every other island at once.

        Calling the result waits. It holds the tensors, which gloo reads and writes meanwhile.
        """
        peers = [k for k in self.present if k != self.local[0]]
        pairs = [(sends[k], receives[k], k) for k in peers]
        works: list[dist.Work] = []
        began = time.perf_counter()

        def start() -> None:
            if sends[0].device.type == "cpu":
                works.extend(self._post(pairs))
                return
            ops = [dist.P2POp(dist.irecv, row, group=self.group, group_peer=k) for _, row, k in pairs if row.numel()]
            ops += [dist.P2POp(dist.isend, row, group=self.group, group_peer=k) for row, _, k in pairs if row.numel()]
            works.extend(dist.batch_isend_irecv(ops) if ops else [])

        def wait() -> None:
            for work in works:
                work.wait()
            self._measure(sum(row.numel() * row.element_size() for row, _, _ in pairs), time.perf_counter() - began)
            pairs.clear()

        if pairs:
            self._run(what, start)
        return lambda: self._run(what, wait)

    def _post(self, pairs: Sequence[tuple[Tensor, Tensor, int]]) -> Iterator[dist.Work]:
        """Receives and sends over gloo: (what goes out, where the other's goes, island)."""
        parts = [(lane, part, k) for _, row, k in pairs for lane, part in stripes(self._lanes, row)]
        works = [dist.irecv(part, group=lane, group_src=k) for lane, part, k in parts]
        parts = [(lane, part, k) for row, _, k in pairs for lane, part in stripes(self._lanes, row)]
        works += [dist.isend(part, group=lane, group_dst=k) for lane, part, k in parts]
        return (work for work in works if work is not None)

    def _measure(self, sent_bytes: int, seconds_s: float) -> None:
        """Keep the fastest of the latest exchanges: one that waited for a late peer says little of the link."""
        if sent_bytes >= MEASURED_BYTES:
            self.link_bytes_per_s = max(sent_bytes / max(seconds_s, 1e-6), 0.9 * (self.link_bytes_per_s or 0.0))

    def _run(self, what: str, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            cause = str(error).strip().splitlines()[0]
            raise TransportError(
                f"the {what} among {self.islands} islands failed on island {self.local[0]}: {cause}. {KEPT}"
            ) from error


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
