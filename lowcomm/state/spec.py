"""The frozen choices of a sync, and who takes part in a round by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.attack import Attack
from lowcomm.codec import Codec, Fp32
from lowcomm.exchange.base import ExchangeChoice
from lowcomm.local import DesLoc, Objective
from lowcomm.outer import Nesterov, Outer
from lowcomm.privacy import Mechanism
from lowcomm.sampling import Sampling
from lowcomm.schedule import EveryH, Schedule
from lowcomm.secure import SecureSum
from lowcomm.state.deadlines import LATE_TOLERANCE_S, OnLate
from lowcomm.state.norms import NORM_BOUND

BufferRule = Literal["average", "local"]


@lru_cache(maxsize=64)
def _drawn(sampling: Sampling, islands: int, seed: int, round_index: int) -> frozenset[int]:
    """A round's draw, which every inner step of every island asks for."""
    return sampling.draw(islands, seed, round_index)


@dataclass(frozen=True, kw_only=True)
class Clients:
    """How islands take part in rounds; each None: all train alike, their sums are plain, moments are their own."""

    sampling: Sampling | None = None
    """Which islands train in a round."""
    local_steps: tuple[int, ...] | None = None
    """Inner steps of each island per round, 1 to `every`; it rests for the remaining ones."""
    objective: Objective | None = None
    """What is added to the gradients of inner steps (FedProx, SCAFFOLD)."""
    secure: SecureSum | None = None
    """Masks on every contribution."""
    attack: Attack | None = None
    """What some islands do to their contributions on purpose, to test the aggregator."""
    allow_attack: bool = False
    """Whether that is meant; an attack is refused without it."""
    moments: DesLoc | None = None
    """When the inner optimizers' moments are averaged, too."""
    fresh_inner: bool = field(default=False, repr=False)
    """Whether every round begins without inner moments."""

    def rests_somewhen(self) -> bool:
        """Whether an island may have inner steps in which it does nothing."""
        return self.sampling is not None or self.local_steps is not None


@dataclass(frozen=True, kw_only=True)
class SyncSpec:
    """Every choice of a LocalSGD, which documents them; equal on all islands."""

    every: int
    """Inner steps per round (H)."""
    outer: Outer = field(default_factory=Nesterov)
    codec: Codec = field(default_factory=Fp32)
    schedule: Schedule = field(default_factory=EveryH)
    aggregator: Aggregator = field(default_factory=Mean)
    privacy: Mechanism | None = None
    clients: Clients = field(default_factory=Clients)
    exchange: ExchangeChoice | None = None
    buffers: Mapping[str, BufferRule] = field(default_factory=dict)
    """Rule of persistent buffers by name pattern."""
    outer_device: torch.device | str | None = None
    """Where anchors and outer states live; None: with the parameters."""
    seed: int = 0
    """64-bit seed from which each round's randomness derives."""
    quorum: float = 0.5
    """Fraction of the islands that must be usable for a round to be committed."""
    norm_bound: float | None = NORM_BOUND
    """Multiple of the usual norm above which an island's pseudo-gradient is left out, above 1; None: any counts."""
    on_late: OnLate = "wait"
    """What follows an exchange that came after its deadline: "wait" goes on, "stop" ends the run at the next one."""
    late_tolerance_s: float = LATE_TOLERANCE_S
    """Seconds that training may wait for one late exchange before "stop" applies."""

    @property
    def noises_deltas(self) -> bool:
        """Whether Deltas are clipped and noised before they leave an island (client-level privacy)."""
        return self.privacy is not None and self.privacy.level == "client"

    @property
    def judged_norms(self) -> float | None:
        """`norm_bound`, or None where the others do not hear what an island's norm is."""
        return None if self.noises_deltas or self.clients.secure is not None else self.norm_bound

    def round_seed(self, round_index: int) -> int:
        """64-bit seed of a round."""
        return (self.seed * 0x9E3779B97F4A7C15 + (round_index + 1) * 0xBF58476D1CE4E5B9) % 2**64

    def sampled(self, islands: int, round_index: int) -> frozenset[int] | None:
        """The islands that train in a round; None: all, as nothing is sampled."""
        sampling = self.clients.sampling
        return None if sampling is None else _drawn(sampling, islands, self.seed, round_index)

    def expected(self, islands: int, round_index: int) -> frozenset[int] | None:
        """The islands that contribute to a round: those sampled, but all where unsampled ones send noise; None: all."""
        sampling = self.clients.sampling
        if sampling is None or (self.noises_deltas and sampling.independent):
            return None
        return self.sampled(islands, round_index)

    def rests(self, island: int, islands: int, step: int, round_index: int) -> bool:
        """Whether an island sits out the inner step after `step` of them: not sampled, or done with the round's."""
        steps, drawn = self.clients.local_steps, self.sampled(islands, round_index)
        done = steps is not None and step % self.every >= steps[island]
        return done or (drawn is not None and island not in drawn)
