"""What one sync did, and the one set of weights that islands with anchors of their own agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lowcomm.types import Round


@dataclass(frozen=True, kw_only=True)
class Health:
    """What is left of a network of islands that exchange with neighbours, for metrics and reports."""

    components: int
    """Connected parts among the islands that are there, over many rounds where neighbours change."""
    spectral_gap: float
    """Of mixing among them, 0 to 1; 0 with several components."""
    there: int
    """Islands that are there."""


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What one sync did, for logs; lists have one entry per island, in island order."""

    round: Round
    seconds_s: float
    """Whole sync, or the exchange alone if training went on beside it."""
    blocked_s: float
    """Part of it in which the island could not train."""
    delta_norms: list[float]
    weights: list[float]
    dropped: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What codec and schedule decided in it."""
    began: float = 0.0
    """time.perf_counter() when the exchange began."""
    launched: float | None = None
    """time.perf_counter() when training stopped to start it; None: it waited until the exchange had landed."""
    launch_s: float = 0.0
    """Part of `blocked_s` that starting it took, from `launched` on; the rest ends with this report."""
    exchange_s: float = 0.0
    """The exchange alone, roll call included."""
    transfer_s: float = 0.0
    """The exchange after its roll call, in which islands wait for the last one."""
    exchanged_bytes: list[int] = field(default_factory=list)
    """Bytes that each local island sent in the exchange."""
    needed_bytes_per_s: float | None = None
    """Rate at which it would have been there just when it was due; None where it was not due beside training."""
    aggregation_error: float | None = None
    """How far what was aggregated is from what should be, relative; None: exact by construction, or not known."""
    scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """What the aggregator thinks of islands, by name of the score and island."""
    ranks: list[int] = field(default_factory=list)
    """Rank of each island's LoRA factors from now on, where ranks shrink."""
    health: Health | None = None
    """Of the network over which neighbours exchanged; None: all heard all."""


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """The mean of the islands' anchors, and how far they are from it; equal on every island."""

    named: list[Mapping[str, Tensor]]
    """By fragment: the mean by name, fp32, on the outer device."""
    distance: float
    """mean_k ||a_k - mean||^2 over all islands that are there."""
