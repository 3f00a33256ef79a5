"""What leaves this process for a round, what is in flight, and what arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from lowcomm.aggregate import Aggregate
from lowcomm.codec import State
from lowcomm.state.anchor import Anchor
from lowcomm.state.cohort import Cohort, Section
from lowcomm.state.fragment import Fragment
from lowcomm.state.norms import NormHistory
from lowcomm.state.report import Health
from lowcomm.types import Delta, Round


@dataclass(kw_only=True)
class Outgoing:
    """One fragment's pseudo-gradients of the local islands, as hooks leave them; lists by local island."""

    fragment: Fragment
    index: int
    """The fragment's number."""
    round: Round
    anchors: list[Anchor]
    """What the Deltas were taken from: one that all local islands share, or one of each."""
    versions: list[int]
    """Of the anchors, then."""
    deltas: list[Tensor]
    """Flat, fp32: `anchor - local`."""
    norms: list[float]
    """L2 norms of the Deltas, as the others hear of them."""
    tokens: list[float]
    """Tokens trained when it departed."""
    unsynced: list[float]
    """Of them, those since this fragment's last sync: the weights of the mean."""
    states: list[State]
    """Codec states before it."""
    rule_state: State = field(default_factory=dict)
    """What the aggregator kept of its last committed round of this fragment."""
    losses: Callable[[Sequence[Delta]], list[float]] | None = None
    """Losses on the proxy set, as an aggregator's context has them."""
    norms_before: NormHistory = field(default_factory=lambda: NormHistory(bound=None))
    """Of the fragment's committed rounds: it has no other exchange until this one is committed."""
    expected: frozenset[int] | None = None
    """Islands that contribute; None: all."""
    without: dict[int, str] = field(default_factory=dict)
    """Islands that are left out of it, as all know from an exchange of the round that failed, with the reason."""
    sections: dict[str, Section] = field(default_factory=dict)
    """What hooks say beside the Delta, by name."""
    noised: bool = False
    """Whether Deltas carry noise, so that `norms` are not theirs."""
    cut: Callable[[Delta, int, Cohort], Delta] | None = None
    """What an island (its number) sends of whole tensors, as views; None: all."""
    bytes_before: list[tuple[int, int]] = field(default_factory=list)
    """Bytes (sent, received) counted when it departed."""
    delta_needed: bool = False
    """Whether `deltas` are still needed when the exchange is over; if not, the mean may take their place."""
    overlapped: bool = False
    """Whether training goes on while it is exchanged."""
    to_compare: dict[int, tuple[bytes, Round]] = field(default_factory=dict)
    """Digests of fragments committed before that are compared on the way of this exchange."""

    @classmethod
    def of(cls, anchor: Anchor, deltas: list[Tensor], states: list[State], round: Round) -> Outgoing:
        """Deltas of equal weight, without hooks: to exchange vectors outside a sync (benchmarks, tests)."""
        ones = [1.0] * len(deltas)
        return cls(
            fragment=anchor.fragment,
            index=0,
            round=round,
            anchors=[anchor],
            versions=[anchor.version],
            deltas=deltas,
            norms=ones,
            tokens=ones,
            unsynced=ones,
            states=states,
        )

    def part(self, whole: Delta, island: int, cohort: Cohort) -> Delta:
        """What `island` sends of tensors of the fragment's shapes."""
        return whole if self.cut is None else self.cut(whole, island, cohort)


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """What an exchange brings, to be committed together."""

    cohort: Cohort
    updates: list[tuple[Anchor, Tensor]]
    """Pseudo-gradients for the outer optimizers: flat, fp32, of the fragment's size."""
    states: list[State]
    """Codec state of each local island; that of an island whose contribution was not used is the old one."""
    payload_bytes: list[int] = field(default_factory=list)
    """Size of each island's payload, where all have got all of them."""
    aggregate: Aggregate | None = None
    """What the aggregator made beside the update; None: contributions were summed on the way."""
    notes: tuple[str, ...] = ()
    """Lines for the log of the round."""
    adopters: tuple[int, ...] | None = None
    """Local islands that go on from their anchors as the exchange has moved them; None: all, from those of `updates`.

    For the others the round has not been."""
    health: Health | None = None
    """Of the network over which neighbours exchanged; None: all heard all."""


@dataclass(kw_only=True)
class Pending:
    """An exchange that has started: its times, and its result to come."""

    future: Future[Arrived | None] = field(default_factory=Future)
    launched: float | None = None
    """time.perf_counter() when training stopped to start it; None: training waits until it is committed."""
    blocked_s: float = 0.0
    """Seconds of training that starting it took."""
    beside: bool = False
    """Whether the exchange runs beside training."""
    began: float = 0.0
    """time.perf_counter() when the exchange began."""
    called: float = 0.0
    """time.perf_counter() when its roll call was over, 0 before."""
    exchange_s: float = 0.0
    """Seconds that the exchange itself took, roll call included."""
    latency_s: float = 0.0
    """Seconds that its roll call took: a small gather, and waiting for islands that come late."""
    sent_bytes: list[int] = field(default_factory=list)
    """Bytes that each local island sent in it, roll call included."""
    needed_bytes_per_s: float | None = None
    """Rate at which it would have been there just when it was due; None: it was never due, or not beside training."""
    cohort: Cohort | None = None
    """Who took part before payloads were looked at."""

    @property
    def transfer_s(self) -> float:
        """Seconds from the end of the roll call to that of the exchange: encoding, the link, decoding."""
        return max(0.0, self.began + self.exchange_s - self.called) if self.called else 0.0

    def result(self) -> Arrived | None:
        """Wait for it; None: it makes no new version yet. Raises what the exchange raised."""
        return self.future.result()


@dataclass(kw_only=True)
class InFlight:
    """An exchange beside training, from its departure to its commit."""

    out: Outgoing
    pending: Pending = field(default_factory=Pending)
