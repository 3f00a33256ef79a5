"""The privacy hook: keys, releases and the mechanism's state of one process's islands.

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
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowcomm.hooks.base import Hook
from lowcomm.privacy import Draw, Mechanism, State
from lowcomm.state.cohort import Section
from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.state.spec import SyncSpec
from lowcomm.transport import Transport
from lowcomm.types import Part

EXAMPLES = 1 << 32
"""Numbers of draws inside an island begin here, those of releases between islands below."""
BATCHES = 1 << 48
"""Numbers of draws of batches begin here."""
SECTION = "privacy"


class Privacy(Hook):
    """Clips and noises Deltas where the mechanism is of clients; keeps the keys where it is of examples."""

    def __init__(self, mechanism: Mechanism, spec: SyncSpec, transport: Transport) -> None:
        self.mechanism, self.spec, self.transport = mechanism, spec, transport
        sampling = spec.clients.sampling
        senders = transport.islands if sampling is None else sampling.senders(transport.islands)
        self.shares = max(1, math.ceil(spec.quorum * senders))
        self.releases = 0
        """Noised Deltas that each island has handed out, whether they were committed or not."""
        self.repeats = 0
        """Of them, those that were a second one or more of their round, with the same islands."""
        self.took_part = [0] * transport.islands
        """Of them, by island, those that had its Delta in them."""
        self._last_round: int | None = None
        self.learnt: State = mechanism.init()
        self.keys = [_key(mechanism, k) for k in transport.local]

    @property
    def numbers(self) -> int:
        return int(self.spec.noises_deltas and self.mechanism.learns)

    def seed(self, local: int, number: int, tensors: Sequence[Tensor]) -> int:
        """128 bits for the noise on these tensors in draw `number` of a local island."""
        hashed = hashlib.blake2b(number.to_bytes(8, "little"), key=self.keys[local], digest_size=16)
        for t in tensors:
            hashed.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return int.from_bytes(hashed.digest(), "little")

    def example_seed(self, local: int, step: int, tensors: Sequence[Tensor]) -> int:
        """Seed of the noise on what a local island's inner step adds up."""
        return self.seed(local, EXAMPLES + step, tensors)

    def batch_seed(self, local: int, number: int) -> int:
        """Seed of which sequences are in a local island's batch `number`."""
        return self.seed(local, BATCHES + number, [])

    def release(self, out: Outgoing) -> None:
        """Clip and noise each local island's Delta in place: one more release.

        Under Poisson sampling with the weights 1 / (q n) that it asks for. Of a protected island the others learn
        neither the norm (only whether it is finite), nor how much it trained, nor whether it did.
        """
        if not self.spec.noises_deltas:
            return
        sampling, drawn = self.spec.clients.sampling, self.spec.sampled(self.transport.islands, out.round.index)
        alike = sampling is not None and sampling.independent
        for island, flat in zip(self.transport.local, out.deltas, strict=True):
            if alike and drawn is not None and island not in drawn:
                flat.zero_()  # it did not train; in bf16 its weights are not the global ones exactly
        numbers = [self._noise(out, i, flat) for i, flat in enumerate(out.deltas)]
        if alike and sampling is not None:
            for flat in out.deltas:
                flat.mul_(1 / sampling.chance)
        self._count(drawn, out.round.index)
        if all(n is not None for n in numbers):
            out.sections[SECTION] = Section(own=[[n] for n in numbers if n is not None])
        out.noised = True
        out.norms = [self.learnt["clip"] if math.isfinite(norm) else norm for norm in out.norms]
        out.unsynced = [1.0] * len(out.deltas)

    def _noise(self, out: Outgoing, local: int, flat: Tensor) -> float | None:
        """Clip and noise one Delta; what it says for `learn`."""
        draw = Draw(seed=self.seed(local, self.releases, [flat[: out.fragment.numel]]), shares=self.shares)
        return self.mechanism.clip_and_noise(out.fragment.views(flat), draw, self.learnt)

    def _count(self, drawn: frozenset[int] | None, round_index: int) -> None:
        self.releases += 1
        self.repeats += round_index == self._last_round
        self._last_round = round_index
        for k in range(len(self.took_part)):
            self.took_part[k] += drawn is None or k in drawn

    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> None:
        """Learn from what the islands said."""
        if said := arrived.cohort.sections.get(SECTION):
            heard = {k: row[0] for k, row in enumerate(said) if k not in arrived.cohort.dropped}
            self.learnt = self.mechanism.learn(self.learnt, heard)

    def island_part(self, local: int) -> Part:
        sampled = {"repeats": self.repeats, "took_part": self.took_part, "last_round": self._last_round}
        values = {"key": self.keys[local].hex(), "releases": self.releases, "learnt": self.learnt, **sampled}
        return {}, {"privacy": values}

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        state = values["privacy"]
        self.keys[local] = bytes.fromhex(state["key"])
        self.releases, self.learnt = state["releases"], dict(state["learnt"])
        self.repeats, self._last_round = state.get("repeats", 0), state.get("last_round")
        self.took_part = list(state.get("took_part", [self.releases] * len(self.took_part)))


def _key(mechanism: Mechanism, island: int) -> bytes:
    if mechanism.seed is None:
        return os.urandom(32)
    return hashlib.blake2b(f"{mechanism.seed} {island}".encode(), digest_size=32).digest()
