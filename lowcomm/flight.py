"""One fragment's exchange on its way, maybe beside training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowcomm.exchange import Exchanged
from lowcomm.roll_call import RollCall
from lowcomm.types import Round


@dataclass(kw_only=True)
class Flight:
    """From the pseudo-gradient to the aggregate; what it has computed is committed only when it lands."""

    fragment: int
    round: Round
    deltas: list[Tensor]
    """Flat, fp32, one per local island: `global - local` when it started."""
    norms: list[float]
    tokens: list[float]
    """Tokens that each local island had trained when it started."""
    unsynced: list[float]
    """Of them, those since this fragment's last sync: the weights of the mean."""
    bytes_before: list[tuple[int, int]]
    """Bytes (sent, received) that each local island had counted when it started."""
    to_verify: dict[int, tuple[bytes, Round]] = field(default_factory=dict)
    """Digests of fragments that landed before and are compared on the way of this exchange."""
    blocked_s: float = 0.0
    """Seconds of training that starting it took."""
    exchange_s: float = 0.0
    """Seconds that the exchange itself took."""
    latency_s: float = 0.0
    """Seconds that its roll call took: a small gather, and waiting for islands that come late."""
    roll: RollCall | None = None
    """Who was on the roll before payloads were looked at."""
    future: Future[Exchanged] = field(default_factory=Future)

    def result(self) -> Exchanged:
        """Wait for it. Raises what the exchange raised."""
        return self.future.result()


class Worker:
    """Runs exchanges beside training, one at a time and in order; with `beside=False` at once instead.

    Islands simulated in one process have no link to hide, and their exchange gives the same bits either way. A codec
    that sets the number of threads must not run beside training that uses several, whose bits would change.
    """

    def __init__(self, beside: bool) -> None:
        self.beside = beside
        self._last: Future[Exchanged] | None = None

    def start(self, flight: Flight, exchange: Callable[[Flight], Exchanged]) -> None:
        """Start `exchange(flight)`; what it raises comes out of `flight.result`."""
        self.wait()
        self._last = flight.future

        def run() -> None:
            start = time.perf_counter()
            try:
                with torch.no_grad():  # a new thread has gradients on
                    done = exchange(flight)
            except Exception as error:  # it is raised where the result is asked for
                flight.exchange_s = time.perf_counter() - start
                flight.future.set_exception(error)
            else:
                flight.exchange_s = time.perf_counter() - start
                flight.future.set_result(done)

        if self.beside:
            # daemon: a process that stops must not wait for peers that have stopped as well
            threading.Thread(target=run, name="lowcomm-exchange", daemon=True).start()
        else:
            run()

    def wait(self) -> None:
        """Until nothing runs: only then may others use the transport, whose calls come in one order everywhere."""
        if self._last is not None:
            self._last.exception()
