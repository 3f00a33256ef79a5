"""How clients take part in a federation's rounds: who is sampled, how long each trains, with which objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowcomm.codec.base import Codec
from lowcomm.local import Objective
from lowcomm.privacy import Mechanism
from lowcomm.sampling import Sampling
from lowcomm.schedule import EveryH, Growing, Schedule
from lowcomm.secure import SecureSum
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from lowcomm.sync import LocalSGD


@dataclass(frozen=True, kw_only=True)
class Clients:
    """Settings of a LocalSGD beside its arrows; each None: all islands train alike, and their sums are plain."""

    sampling: Sampling | None = None
    """Which islands train in a round."""
    local_steps: tuple[int, ...] | None = None
    """Inner steps of each island per round, 1 to `every`; it rests for the remaining ones."""
    objective: Objective | None = None
    """What is added to the gradients of inner steps (FedProx, SCAFFOLD)."""
    secure: SecureSum | None = None
    """Masks on every contribution."""

    def rests_somewhen(self) -> bool:
        """Whether an island may have inner steps in which it does nothing."""
        return self.sampling is not None or self.local_steps is not None


def sampled(sync: LocalSGD) -> frozenset[int] | None:
    """The islands of the round that comes or goes on; None: all, as nothing is sampled."""
    sampling = sync.clients.sampling
    return None if sampling is None else sampling.draw(sync.transport.islands, sync.seed, sync.round)


def expected(sync: LocalSGD) -> frozenset[int] | None:
    """The islands that contribute to the round: those sampled, but all where unsampled ones send noise; None: all."""
    sampling = sync.clients.sampling
    if sampling is None or (sync.guard.per_client and sampling.independent):
        return None
    return sampled(sync)


def rests(sync: LocalSGD, local: int) -> bool:
    """Whether a local island sits the next inner step out."""
    island, steps = sync.transport.local[local], sync.clients.local_steps
    drawn = sampled(sync)
    done = steps is not None and sync.step % sync.every >= steps[island]
    return done or (drawn is not None and island not in drawn)


def check_clients(
    clients: Clients, islands: int, every: int, codec: Codec, schedule: Schedule, privacy: Mechanism | None
) -> None:
    """Raise ConfigError for settings out of range, and for parts that do not fit."""
    if clients.sampling is not None:
        clients.sampling.check(islands)
        if codec.sums_on_the_way:
            raise ConfigError(
                "sync.codec.exchange = 'reduce' is not allowed with sync.sampling: islands that were not sampled would "
                "send as much as the others. Fix: sync.codec.exchange = 'gather', or Fp32"
            )
        if codec.holds_back:
            raise ConfigError(
                f"sync.codec = {type(codec).__name__} is not allowed with sync.sampling: what an island keeps back "
                "would be overwritten in rounds without it. Fix: use ErrorFeedback"
            )
    steps = clients.local_steps
    if steps is not None:
        require(len(steps) == islands, "sync.local_steps", steps, f"{islands} numbers, one per island", "give as many")
        ok = all(1 <= n <= every for n in steps)
        require(ok, "sync.local_steps", steps, f"1 to sync.every ({every}) each", "lower them, or raise sync.every")
    if clients.rests_somewhen() and not isinstance(schedule, EveryH):
        name = "sync.sampling" if clients.sampling is not None else "sync.local_steps"
        raise ConfigError(
            f"sync.schedule = {type(schedule).__name__} is not allowed with {name}: rounds of islands that rest have a "
            "fixed length. Fix: use EveryH"
        )
    if clients.objective is not None:
        clients.objective.check()
        name = type(clients.objective).__name__
        if not isinstance(schedule, EveryH | Growing):
            raise ConfigError(
                f"sync.schedule = {type(schedule).__name__} is not allowed with sync.objective = {name}, which pulls "
                "towards the global weights of one round. Fix: use EveryH"
            )
        bare = clients.objective.sends and (privacy is not None or clients.secure is not None)
        if bare:
            raise ConfigError(
                f"sync.objective = {name} is not allowed with sync.privacy or sync.secure: its control variates would "
                "leave the island without noise or masks. Fix: use FedProx"
            )
