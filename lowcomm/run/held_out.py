"""What a run measures by text that nobody trains on: candidates by the proxy set, influence by each island's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lowcomm.config import RunConfig
from lowcomm.data import Data
from lowcomm.hooks.influence import Influence
from lowcomm.island import PlainIsland
from lowcomm.run.proxy_loss import loss_on, proxy_batches
from lowcomm.state.state import SyncState
from lowcomm.sync.candidates import losses_at
from lowcomm.types import counted, require


def check_influence(config: RunConfig) -> None:
    """Raise ConfigError where islands have no round in common, no text of their own, or hide what they send."""
    sync, every = config.sync, config.eval.influence
    schedule, size = sync.schedule, config.island.size or 1
    plain = schedule.fragments == 1 and not schedule.overlaps and not schedule(1, sync.every).average_gradients
    lockstep = sync.exchange is None and config.store is None
    own = config.data.sharding in ("by_folder", "own") or config.data.partition is not None
    for ok, legal, fix in (
        (own, "None, unless data.sharding is by_folder or own, or data.partition is set", "pass one of them"),
        (plain and lockstep, "None with exchanges of parts, beside training or without rounds", "use EveryH"),
        (size == 1, "None with islands of several ranks", "pass --island.size 1"),
        (sync.secure is None, "None with sync.secure, as it is told whom a Delta helps", "leave one of them out"),
    ):
        require(ok or every is None, "eval.influence", every, legal, fix)


def measures(config: RunConfig, data: Data, islands: Sequence[PlainIsland], state: SyncState) -> Influence | None:
    """Give the state losses on the proxy set, if there is one; the hook of influence, behind the others, or None."""
    if batches := proxy_batches(config, data):
        state.losses = losses_at(state, loss_on(batches, islands[0]))
    if config.eval.influence is None:
        return None
    losses = [_loss(island, data, k) for island, k in zip(islands, state.transport.local, strict=True)]
    hook = Influence(config.eval.influence, losses, state.replicas, state.transport)
    state.hooks.append(hook)
    return hook


def _loss(island: PlainIsland, data: Data, number: int) -> Callable[[], Tensor]:
    batches = data.own_validation_batches(number) or data.validation_batches()
    tokens = max(1, sum(counted(targets) for _, targets in batches))

    def loss() -> Tensor:
        parts = [island.losses(island.model, x.to(island.device), y.to(island.device)).sum() for x, y in batches]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total / tokens

    return loss
