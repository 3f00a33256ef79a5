"""Runs exchanges beside training, in a thread of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from lowcomm.codec import Codec
from lowcomm.state.outgoing import Arrived, Pending
from lowcomm.transport import Simulated, Transport


def may_overlap(transport: Transport, codec: Codec, params: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether exchanges may run beside training; params: of each local island.

    Islands simulated in one process have no link to hide, and their exchange gives the same bits either way. A codec
    that sets the number of threads must not run beside training that uses several, whose bits would change.
    """
    on_cpu = all(p.device.type == "cpu" for named in params for p in named.values())
    own_threads = codec.sets_threads and on_cpu and torch.get_num_threads() > 1
    return not isinstance(transport, Simulated) and not own_threads


class Worker:
    """Runs one exchange at a time, in order; with `beside=False` at once instead."""

    def __init__(self, beside: bool) -> None:
        self.beside = beside
        self._last: Future[Arrived | None] | None = None

    def start(self, pending: Pending, exchange: Callable[[Pending], Arrived | None]) -> None:
        """Start `exchange(pending)` beside training; what it raises comes out of `pending.result`."""
        self.wait()
        self._last, pending.beside = pending.future, self.beside
        if self.beside:
            # daemon: a process that stops must not wait for peers that have stopped as well
            run = threading.Thread(target=carry_out, args=(pending, exchange), name="lowcomm-exchange", daemon=True)
            run.start()
        else:
            carry_out(pending, exchange)

    def wait(self) -> None:
        """Wait until nothing runs: only then may others use the transport, whose calls come in one order everywhere."""
        if self._last is not None:
            self._last.exception()


def carry_out(pending: Pending, exchange: Callable[[Pending], Arrived | None]) -> None:
    """Run an exchange here and now, and time it."""
    start = pending.began = time.perf_counter()
    try:
        with torch.no_grad():  # a new thread has gradients on
            done = exchange(pending)
    except Exception as error:  # it is raised where the result is asked for
        pending.exchange_s = time.perf_counter() - start
        pending.future.set_exception(error)
    else:
        pending.exchange_s = time.perf_counter() - start
        pending.future.set_result(done)
