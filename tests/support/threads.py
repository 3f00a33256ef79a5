"""Islands as threads of one process: a transport among them, whose wire or any island can be held up on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowcomm.transport import Simulated, Transport
from lowcomm.transport.base import MOST_BYTES, Altered, Arrival, sum_bytes
from lowcomm.types import TransportError


class Hub:
    """What the threads share: each collective meets here, and island 0's thread computes it for all."""

    def __init__(self, islands: int) -> None:
        self.inner = Simulated(islands)
        self.barrier = threading.Barrier(islands, timeout=20)
        self.given: list[object] = [None] * islands
        self.out: object = None


class Threaded(Transport):
    """Island `me` of a hub; same sums, in the same order, as the simulation."""

    def __init__(self, hub: Hub, me: int, wire_s: Callable[[int], float] = lambda _: 0.0) -> None:
        """wire_s: seconds that the n-th payload takes on the link."""
        self.hub, self.local, self.islands = hub, (me,), hub.inner.islands
        self.sent_bytes, self.received_bytes = [0], [0]
        self.wire_s, self.payloads = wire_s, 0

    def _meet(self, given: object, combine: Callable[[list[object]], object]) -> object:
        hub = self.hub
        try:
            hub.given[self.local[0]] = given
            if hub.barrier.wait() == 0:
                hub.out = combine(list(hub.given))
            hub.barrier.wait()
            out = hub.out
            hub.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise TransportError("the gather failed: a peer has left. Nothing was committed") from error
        return out

    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        time.sleep(self.wire_s(self.payloads))
        self.payloads += 1

        def combine(given: list[object]) -> object:
            total = torch.empty_like(out)
            self.hub.inner.weighted_sum([v for v in given if isinstance(v, Tensor)], weights, total)
            return total

        result = self._meet(vectors[0].clone(), combine)
        assert isinstance(result, Tensor)
        out.copy_(result)
        size_bytes = sum_bytes(out, self.islands)
        self.count(size_bytes, size_bytes)
        return [{} for _ in self.local]

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        result = self._meet(rows[0].clone(), lambda given: torch.stack([r for r in given if isinstance(r, Tensor)]))
        assert isinstance(result, Tensor)
        size_bytes = (self.islands - 1) * rows[0].numel() * rows[0].element_size()
        self.count(size_bytes, size_bytes)
        return result

    def gather_sized(self, rows: Sequence[Tensor], most_bytes: int = MOST_BYTES) -> list[Tensor]:
        result = self._meet(rows[0].clone(), lambda given: given)
        assert isinstance(result, list)
        return result

    def start_swap(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        raise NotImplementedError

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.hub.barrier.abort()


def run_threads(islands: int, body: Callable[[int], None]) -> None:
    """Run `body(island)` in a thread each; raises the first error that came out of one."""
    errors: list[BaseException] = []

    def catching(island: int) -> None:
        try:
            body(island)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=catching, args=(k,)) for k in range(islands)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
