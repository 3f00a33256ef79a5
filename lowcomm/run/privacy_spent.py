"""What a run has given away so far, for its log, its summary and its budget: None where nothing promises privacy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from lowcomm.codec import Codec, Rqm
from lowcomm.data import Data, Shard
from lowcomm.data.windows import WindowShard
from lowcomm.hooks.privacy import EXAMPLES
from lowcomm.island import PrivateIsland
from lowcomm.privacy import Mechanism, Released, RqmAccountant, add_noise, clip_to, epsilon, load_dp_accounting
from lowcomm.privacy.noise import generator_of
from lowcomm.sampling import Sampling
from lowcomm.state.state import SyncState
from lowcomm.transport.base import Transport
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from lowcomm.config import RunConfig

__all__ = [
    "DELTA", "EXAMPLES", "Ledger", "Spent", "ledger_of", "of_all_sites", "privacy_spent", "secure", "training_shards",
]  # fmt: skip

DELTA = 1e-5
"""Delta at which epsilon is reported for codecs."""
Spent = dict[str, float | str | None]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How often a mechanism ran."""

    releases: int
    """Noised Deltas that islands have handed out."""
    steps: int
    """Inner steps."""
    repeats: int = 0
    """Releases with the sample of one before them."""
    most: int | None = None
    """Releases that had the Delta of one island in them, for the island with the most; None: all."""

    @staticmethod
    def of(state: SyncState, releases: int = 0, steps: int = 0) -> Counts:
        """Of a run so far, and so many more."""
        hook = state.privacy
        if hook is None:
            return Counts(releases=releases, steps=state.step + steps)
        return Counts(
            releases=hook.releases + releases,
            steps=state.step + steps,
            repeats=hook.repeats,
            most=max(hook.took_part) + releases,
        )


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Turns what ran into Gaussian mechanisms for the accountant."""

    mechanism: Mechanism
    sampling: Sampling | None = None
    per_step: int
    """Sequences in an inner step of an island."""
    windows: tuple[int, ...]
    """Sequences in an epoch of each island; empty where islands are protected as a whole."""

    def released(self, counts: Counts) -> list[Released]:
        """The mechanisms of the one who is protected least.

        A sample of fixed size is credited with nothing: an island met the mechanisms of the rounds that it was in.
        Under Poisson sampling a round is amplified; a second release with the same sample counts as if not sampled.
        """
        z = self.mechanism.noise_multiplier
        if self.mechanism.by_chance:
            return [Released(noise_multiplier=z, count=counts.steps, probability=self.per_step / min(self.windows))]
        if self.mechanism.level == "example":
            return max((participations(w, self.per_step, counts.steps, z) for w in self.windows), key=_square)
        if self.sampling is not None and self.sampling.independent:
            first = counts.releases - counts.repeats
            return [
                Released(noise_multiplier=z, count=first, probability=self.sampling.chance),
                Released(noise_multiplier=z, count=counts.repeats),
            ]
        return self.known_sample(counts)

    def known_sample(self, counts: Counts) -> list[Released]:
        """Client level, for those who know who was in each round."""
        most = counts.releases if counts.most is None else counts.most
        return [Released(noise_multiplier=self.mechanism.noise_multiplier, count=most)]

    def epsilon(self, counts: Counts) -> float:
        """Epsilon of all of it."""
        return epsilon(self.released(counts), self.mechanism.delta)

    def exceeds(self, counts: Counts) -> bool:
        """Whether that would be more than the budget."""
        budget = self.mechanism.budget
        return budget is not None and self.epsilon(counts) > budget

    def report(self, state: SyncState) -> Spent:
        """Epsilon of one round and of all; infinite ones are None, as JSON has no number for them."""
        z, rounds = self.mechanism.noise_multiplier, state.round
        hook, per_client = state.privacy, state.spec.noises_deltas
        once = Counts(releases=min(rounds, 1), steps=min(state.step, state.spec.every))
        found: Spent = {
            "mechanism": type(self.mechanism).__name__,
            "level": self.mechanism.level,
            "rounds": rounds,
            "releases": hook.releases if hook is not None and per_client else state.step,
            "noise_multiplier": z,
            "delta": self.mechanism.delta,
            "budget": self.mechanism.budget,
            "epsilon_per_round": _finite(self.epsilon(once)),
            "epsilon_total": _finite(self.epsilon(Counts.of(state))),
        }
        if per_client and self.sampling is not None and self.sampling.independent:
            known = epsilon(self.known_sample(Counts.of(state)), self.mechanism.delta)
            found["epsilon_known_sample"] = _finite(known)
        if hook is not None and per_client and state.spec.clients.secure is None:
            # of those who see single payloads: each carries a share of the noise only
            own = z / math.sqrt(hook.shares)
            seen = epsilon([Released(noise_multiplier=own, count=hook.releases)], self.mechanism.delta)
            found["epsilon_payload"] = _finite(seen)
        return found


def participations(windows: int, per_step: int, steps: int, noise_multiplier: float) -> list[Released]:
    """Mechanisms that one sequence has met after `steps` steps: once per epoch begun, batches do not overlap.

    A step across the end of an epoch may have it twice, a sum of twice the sensitivity.
    """
    epochs = -(-steps * per_step // windows)
    torn = any(j * windows % per_step for j in range(1, min(epochs, per_step + 1)))
    twice = epochs // 2 if torn else 0
    return [
        Released(noise_multiplier=noise_multiplier, count=epochs - 2 * twice),
        Released(noise_multiplier=noise_multiplier / 2, count=twice),
    ]


def ledger_of(config: RunConfig, data: Data, islands: int) -> Ledger | None:
    """The ledger of a run. Raises ConfigError for data whose sampler it does not know, and a budget of no round."""
    mechanism = config.sync.privacy
    if mechanism is None:
        return None
    load_dp_accounting()
    once_only = config.inner.accumulation == 1 or not mechanism.by_chance
    legal, fix = "1 with Poisson batches, or a sequence could be in a step twice", "raise data.batch_size instead"
    require(once_only, "inner.accumulation", config.inner.accumulation, legal, fix)
    per_step = config.data.batch_size * config.inner.accumulation
    windows: list[int] = []
    for island in range(islands if mechanism.level == "example" else 0):
        shard = data.shard(island)
        if not isinstance(shard, WindowShard):
            raise ConfigError(
                "data.source is not allowed with sync.privacy = ExampleGaussian: how often a streamed sequence comes "
                "again is not known. Fix: use a source that fits in memory, or a client-level mechanism"
            )
        windows.append(shard.windows_per_epoch)
        if per_step > windows[-1]:
            raise ConfigError(
                f"data.batch_size = {config.data.batch_size} is not allowed: 1 to {windows[-1]} sequences per step, "
                f"those of island {island}, or one would be in a step many times. Fix: make batches smaller or add text"
            )
    ledger = Ledger(mechanism=mechanism, sampling=config.sync.sampling, per_step=per_step, windows=tuple(windows))
    once = Counts(releases=1, steps=min(config.sync.every, config.steps))
    if ledger.exceeds(once):
        least = ledger.epsilon(once)
        raise ConfigError(
            f"sync.privacy.budget = {mechanism.budget} is not allowed: {least:.4g} or more, what one round costs at "
            f"noise_multiplier {mechanism.noise_multiplier}. Fix: raise either of them"
        )
    return ledger


def of_all_sites(ledger: Ledger | None, own: bool, transport: Transport) -> Ledger | None:
    """With the sizes of all islands, which tell each other how many sequences they have where text is their own.

    So all report the epsilon of the island that is protected least, and stop together where a budget is spent.
    """
    if ledger is None or not own or not ledger.windows:
        return ledger
    rows = [torch.tensor([ledger.windows[k]], dtype=torch.int64).view(torch.uint8) for k in transport.local]
    sizes = transport.gather(rows).view(torch.int64).flatten().tolist()
    return replace(ledger, windows=tuple(int(size) for size in sizes))


def training_shards(data: Data, state: SyncState) -> list[Shard]:
    """New readers of the local islands' training text, with the batches that their mechanism accounts for."""
    hook = state.privacy
    shards: list[Shard] = []
    for i, island in enumerate(state.transport.local):
        shard = data.shard(island)
        if hook is not None and hook.mechanism.by_chance:
            assert isinstance(shard, WindowShard)  # ledger_of has seen to it
            shard = shard.by_chance(lambda number, k=i, h=hook: generator_of(h.batch_seed(k, number)))
        shards.append(shard)
    return shards


def secure(islands: Sequence[object], state: SyncState, per_step: int) -> None:
    """Give islands that train privately their clip, their noise and what sums are divided by."""
    hook = state.privacy
    for i, island in enumerate(islands):
        if isinstance(island, PrivateIsland) and hook is not None:
            mechanism, replica = hook.mechanism, state.replicas[i]
            clip = mechanism.sensitivity
            island.expected = per_step if mechanism.by_chance else None
            island.clip_each = partial(clip_to, clip=clip)
            std = clip * mechanism.noise_multiplier
            island.add_noise = lambda sums, k=i, s=std, h=hook, r=replica: add_noise(
                sums, s, h.example_seed(k, r.steps, sums)
            )


def privacy_spent(state: SyncState, ledger: Ledger | None) -> Spent | None:
    """Epsilon of one round and of the run so far, of its mechanism or of its codec."""
    if ledger is not None:
        return ledger.report(state)
    return _of_codec(state.spec.codec, state.replicas[0].elements, state.round)


def _of_codec(codec: Codec, parameters: int, rounds: int) -> Spent | None:
    """Error feedback changes what goes into a round, not what its randomness hides of it."""
    inner = codec.bare
    if not isinstance(inner, Rqm):
        return None
    accountant = RqmAccountant(
        clip=inner.clip, margin=inner.margin, levels=inner.levels, keep=inner.keep, elements=max(1, parameters)
    )
    return {**accountant.report(rounds, DELTA)}


def _square(released: Sequence[Released]) -> float:
    return sum(r.count / r.noise_multiplier**2 if r.noise_multiplier > 0 else r.count for r in released)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
