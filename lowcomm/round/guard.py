"""The privacy arrow of a LocalSGD: keys, releases and the mechanism's state; and what does not go with a mechanism.

Noise of a release comes from a keyed hash of the island's key, the number of the release and the Delta itself. A round
that is done again after a resume, with the same Delta, sends the same bits and gives away nothing new; with another
Delta it gets other noise, so that two of them never differ by the Delta alone. Releases after the checkpoint of a run
that was killed, done again with other contributions, are not counted; a run that was stopped in order has none.

The key is part of the island's own checkpoint, which must stay where the island's text is.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregator
from lowcomm.codec.base import Codec
from lowcomm.codec.error_feedback import ErrorFeedback
from lowcomm.codec.rqm import Rqm
from lowcomm.privacy import Draw, Mechanism, State
from lowcomm.sampling import Sampling
from lowcomm.schedule import EveryH, Growing, Schedule
from lowcomm.transport.base import Transport
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from lowcomm.round.fragment import Fragment
    from lowcomm.sync import LocalSGD

EXAMPLES = 1 << 32
"""Numbers of draws inside an island begin here, those of releases between islands below."""
BATCHES = 1 << 48
"""Numbers of draws of batches begin here."""


class Guard:
    """What one process's islands need to keep; without a mechanism it does nothing."""

    def __init__(
        self, mechanism: Mechanism | None, transport: Transport, quorum: float, sampling: Sampling | None = None
    ) -> None:
        self.mechanism = mechanism
        together = transport.islands if sampling is None else sampling.senders(transport.islands)
        self.shares = max(1, math.ceil(quorum * together))
        self.releases = 0
        """Noised Deltas that each island has handed out, whether they were committed or not."""
        self.repeats = 0
        """Of them, those that were a second one or more of their round, with the same islands."""
        self.took_part = [0] * transport.islands
        """Of them, by island, those that had its Delta in them."""
        self._last_round: int | None = None
        self.learnt: State = {} if mechanism is None else mechanism.init()
        self.keys = [_key(mechanism, k) for k in transport.local] if mechanism is not None else []

    @property
    def per_client(self) -> bool:
        """Whether Deltas are clipped and noised here."""
        return self.mechanism is not None and self.mechanism.level == "client"

    def seed(self, local: int, number: int, tensors: Sequence[Tensor]) -> int:
        """128 bits for the noise on these tensors in draw `number` of a local island."""
        hashed = hashlib.blake2b(number.to_bytes(8, "little"), key=self.keys[local], digest_size=16)
        for t in tensors:
            hashed.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return int.from_bytes(hashed.digest(), "little")

    def protect(
        self, fragment: Fragment, deltas: Sequence[Tensor], drawn: Collection[int] | None, round_index: int
    ) -> list[float]:
        """Clip and noise each local island's Delta in place: one more release. What each is to tell for `learn`.

        drawn: the islands that were sampled for the round (None: all).
        """
        if self.mechanism is None or not self.per_client:
            return []
        told: list[float | None] = []
        for i, flat in enumerate(deltas):
            draw = Draw(seed=self.seed(i, self.releases, [flat[: fragment.numel]]), shares=self.shares)
            told.append(self.mechanism.clip_and_noise(fragment.views(flat), draw, self.learnt))
        self.releases += 1
        self.repeats += round_index == self._last_round
        self._last_round = round_index
        for k in range(len(self.took_part)):
            self.took_part[k] += drawn is None or k in drawn
        return [t for t in told if t is not None]

    def seen_norm(self, norm: float) -> float:
        """What the others are told of a Delta's norm: only whether it is finite."""
        return self.learnt["clip"] if self.per_client and math.isfinite(norm) else norm

    def learn(self, told: Sequence[float], dropped: Mapping[int, str]) -> None:
        """The next state, once a round is committed. told: by island."""
        if self.mechanism is not None and told:
            self.learnt = self.mechanism.learn(self.learnt, {k: t for k, t in enumerate(told) if k not in dropped})

    def state(self, local: int) -> dict[str, Any] | None:
        """For the checkpoint of a local island."""
        if self.mechanism is None:
            return None
        sampled = {"repeats": self.repeats, "took_part": self.took_part, "last_round": self._last_round}
        return {"key": self.keys[local].hex(), "releases": self.releases, "learnt": self.learnt, **sampled}

    def load(self, local: int, state: Mapping[str, Any] | None) -> None:
        """Put back what `state` gave."""
        if self.mechanism is None or state is None:
            return
        self.keys[local] = bytes.fromhex(state["key"])
        self.releases, self.learnt = state["releases"], dict(state["learnt"])
        self.repeats, self._last_round = state.get("repeats", 0), state.get("last_round")
        self.took_part = list(state.get("took_part", [self.releases] * len(self.took_part)))


def _key(mechanism: Mechanism, island: int) -> bytes:
    if mechanism.seed is None:
        return os.urandom(32)
    return hashlib.blake2b(f"{mechanism.seed} {island}".encode(), digest_size=32).digest()


def tell_all(sync: LocalSGD, told: Sequence[float]) -> list[float]:
    """What every island tells, in island order: 8 B of each, for mechanisms that learn."""
    if not told:
        return []
    return sync.transport.gather([torch.tensor([t], dtype=torch.float64) for t in told])[:, 0].tolist()


def check_privacy(
    mechanism: Mechanism | None,
    aggregator: Aggregator,
    codec: Codec,
    schedule: Schedule,
    sampling: Sampling | None = None,
) -> None:
    """Raise ConfigError for settings out of range, and for parts that would break a mechanism's guarantee."""
    if mechanism is None:
        return
    mechanism.check()
    inner = codec.codec if isinstance(codec, ErrorFeedback) else codec
    name = type(mechanism).__name__
    if isinstance(inner, Rqm):
        raise ConfigError(f"sync.codec = Rqm is not allowed with sync.privacy = {name}: one is enough. Fix: use Fp32")
    if mechanism.level == "example":
        return
    rule = type(aggregator).__name__
    if aggregator.needs != "sum":
        raise ConfigError(
            f"sync.aggregator = {rule} is not allowed with sync.privacy = {name}: it looks at single contributions, "
            "which carry a share of the noise only. Fix: use Mean or FFA with by='uniform'"
        )
    by = getattr(aggregator, "by", rule)
    fix = "'uniform', as an island of large weight would add more than the noise hides"
    require(aggregator.bounded, "sync.aggregator.by", by, fix, "pass --sync.aggregator.by uniform")
    if codec.holds_back:
        raise ConfigError(
            f"sync.codec = {type(codec).__name__} is not allowed with sync.privacy = {name}: its last merge sends what "
            "was kept back, clipped as if it were one round's. Fix: use ErrorFeedback, which keeps only noised values"
        )
    if sampling is not None and mechanism.learns:
        raise ConfigError(
            f"sync.sampling = {type(sampling).__name__} is not allowed with sync.privacy = {name}, whose clip is "
            "learnt from all islands. Fix: use ClientGaussian"
        )
    if not isinstance(schedule, EveryH | Growing):
        raise ConfigError(
            f"sync.schedule = {type(schedule).__name__} is not allowed with sync.privacy = {name}: averaged gradients "
            "carry no noise, and exchanges on their way are releases that a budget can't stop. Fix: use EveryH"
        )


def check_protectable(sync: LocalSGD, averaged: Sequence[str]) -> None:
    """Raise ConfigError for islands, or buffers that they average, which a client-level mechanism can't protect."""
    if not sync.guard.per_client:
        return
    mesh = sync.replicas[0].part.mesh
    if mesh is not None and mesh.size > 1:
        raise ConfigError(
            f"island.size = {mesh.size} is not allowed with sync.privacy: each rank would clip its part by itself. "
            "Fix: islands of one rank"
        )
    if averaged:
        raise ConfigError(
            f"buffers {', '.join(averaged)} are averaged between islands without noise, which sync.privacy "
            "does not allow. Fix: keep them local, buffers={'*': 'local'}"
        )


def example_seed(sync: LocalSGD, local: int, tensors: Sequence[Tensor]) -> int:
    """Seed of the noise on what a local island's inner step adds up."""
    return sync.guard.seed(local, EXAMPLES + sync.replicas[local].steps, tensors)


def batch_seed(sync: LocalSGD, local: int, number: int) -> int:
    """Seed of which sequences are in a local island's batch `number`."""
    return sync.guard.seed(local, BATCHES + number, [])
