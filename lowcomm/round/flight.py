"""One fragment's exchange on its way, maybe beside training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowcomm.codec import Codec
from lowcomm.round.exchange import Exchanged
from lowcomm.round.roll_call import RollCall
from lowcomm.transport import Simulated, Transport
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
    delta_needed: bool = False
    """Whether `deltas` are still needed when the exchange is over; if not, the mean may take their place."""
    to_verify: dict[int, tuple[bytes, Round]] = field(default_factory=dict)
    """Digests of fragments that landed before and are compared on the way of this exchange."""
    launched: float | None = None
    """time.perf_counter() when training stopped to start it; None: training waits until it has landed."""
    blocked_s: float = 0.0
    """Seconds of training that starting it took."""
    beside: bool = False
    """Whether the exchange runs beside training."""
    began: float = 0.0
    """time.perf_counter() when the exchange began."""
    rolled: float = 0.0
    """time.perf_counter() when its roll call was over, 0 before."""
    exchange_s: float = 0.0
    """Seconds that the exchange itself took, roll call included."""
    latency_s: float = 0.0
    """Seconds that its roll call took: a small gather, and waiting for islands that come late."""
    sent_bytes: list[int] = field(default_factory=list)
    """Bytes that each local island sent in it, roll call included."""
    needed_bytes_per_s: float | None = None
    """Rate at which it would have been there just when it was due; None: it was never due, or not beside training."""
    expected: frozenset[int] | None = None
    """Islands that contribute; None: all."""
    told: list[float] = field(default_factory=list)
    """What each island tells for its privacy mechanism to learn from: first the local ones, after the exchange all."""
    ranks: list[int] = field(default_factory=list)
    """By local island, the rank of the LoRA factors that it sends; empty where ranks stay as they are."""
    roll: RollCall | None = None
    """Who was on the roll before payloads were looked at."""
    future: Future[Exchanged] = field(default_factory=Future)

    @property
    def transfer_s(self) -> float:
        """Seconds from the end of the roll call to that of the exchange: encoding, the link, decoding."""
        return max(0.0, self.began + self.exchange_s - self.rolled) if self.rolled else 0.0

    def result(self) -> Exchanged:
        """Wait for it. Raises what the exchange raised."""
        return self.future.result()


def may_overlap(transport: Transport, codec: Codec, params: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether exchanges may run beside training; params: of each local island.

    Islands simulated in one process have no link to hide, and their exchange gives the same bits either way. A codec
    that sets the number of threads must not run beside training that uses several, whose bits would change.
    """
    on_cpu = all(p.device.type == "cpu" for named in params for p in named.values())
    own_threads = codec.sets_threads and on_cpu and torch.get_num_threads() > 1
    return not isinstance(transport, Simulated) and not own_threads


class Worker:
    """Runs exchanges beside training, one at a time and in order; with `beside=False` at once instead."""

    def __init__(self, beside: bool) -> None:
        self.beside = beside
        self._last: Future[Exchanged] | None = None

    def start(self, flight: Flight, exchange: Callable[[Flight], Exchanged]) -> None:
        """Start `exchange(flight)`; what it raises comes out of `flight.result`."""
        self.wait()
        self._last, flight.beside = flight.future, self.beside

        def run() -> None:
            start = flight.began = time.perf_counter()
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
