"""A round whose contributions are masked: the exchange of `lowcomm.secure` over a transport, and what it refuses.

Keys go to all, shares from each to each, masked vectors by all-to-all: island k adds up the k-th part of them. Then the
islands agree on whose vectors came, give the shares that unmask those, and gather the sums of the parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lowcomm.aggregate.base import Aggregator
from lowcomm.codec.base import Codec
from lowcomm.codec.fp32 import Fp32
from lowcomm.compressed import Crossing, Exchanged
from lowcomm.schedule import EveryH, Growing, Schedule
from lowcomm.secure import SHARE_BYTES, SecureSum, dtype_of, from_fixed, to_fixed
from lowcomm.types import ConfigError, PayloadError, SyncError

if TYPE_CHECKING:
    from lowcomm.secure.party import Party

CHECK_BYTES = 4
"""CRC-32 of a part of a masked vector: against accidents only."""


def sum_masked(crossing: Crossing, secure: SecureSum, deltas: Sequence[Tensor]) -> Exchanged:
    """Fill the fragment's mean. Raises SyncError, on every island alike, if fewer than the threshold are left."""
    masked = _MaskedSum(crossing=crossing, secure=secure)
    masked.need(masked.parties)
    masked.exchange_keys()
    parts = masked.exchange_masked(deltas)
    roll, _ = crossing.strike(masked.bad)
    survivors = [k for k in masked.parties if roll.weights[k] != 0]
    masked.need(survivors)
    whole = masked.unmask(parts, survivors)
    factor = 1 / sum(crossing.roll.weights[k] for k in survivors)  # weights were on before it was known who is left
    mean = from_fixed(whole, factor, secure.limit, secure.bits)
    crossing.fragment.mean.copy_(torch.from_numpy(mean))
    return crossing.commit(list(crossing.states), roll)


@dataclass(kw_only=True)
class _MaskedSum:
    """One sum on its way, for the local islands."""

    crossing: Crossing
    secure: SecureSum
    own: dict[int, Party] = field(default_factory=dict)
    """Local islands that take part, by island."""
    adverts: dict[int, bytes] = field(default_factory=dict)
    bad: list[dict[int, str]] = field(default_factory=list)
    """By local island: whose messages it could not use."""

    def __post_init__(self) -> None:
        self.parties = [k for k, w in enumerate(self.crossing.roll.weights) if w != 0]
        self.threshold = self.secure.fewest(len(self.parties))
        self.context = f"{self.crossing.round.index} {self.crossing.round.fragments}".encode()
        self.dtype = dtype_of(self.secure.bits)
        self.bad = [{} for _ in self.crossing.transport.local]
        self.part = self.crossing.fragment.size // self.crossing.transport.islands
        """Entries that each island adds up."""

    def need(self, left: Sequence[int]) -> None:
        """Raise SyncError if fewer than the threshold are left."""
        if len(left) < self.threshold:
            why = "; ".join(f"island {k}: {v}" for found in self.bad for k, v in found.items()) or "nobody else trained"
            raise SyncError(
                f"round {self.crossing.round.index} can't be unmasked: {len(left)} of {len(self.parties)} parties are "
                f"left, sync.secure needs {self.threshold} ({why}). Nothing was committed."
            )

    def exchange_keys(self) -> None:
        """Messages 1 and 2: public keys to all, shares of the secret ones from each to each."""
        from lowcomm.secure.party import ADVERT_BYTES, SEALED_BYTES, Party

        local = self.crossing.transport.local
        self.own = {k: Party(k, self.context) for k in local if k in self.parties}
        said = self._gather({k: p.advert() for k, p in self.own.items()}, ADVERT_BYTES)
        self.adverts = {k: said[k] for k in self.parties}
        dealt = {k: p.deal(self.adverts, self.threshold) for k, p in self.own.items()}
        expected = {(j, k): SEALED_BYTES for j in self.parties for k in self.parties if j != k}
        arrived = self._swap(lambda j, k: dealt.get(j, {}).get(k, b""), expected)
        for i, k in enumerate(local):
            if k in self.own:
                broken = self.own[k].receive({j: arrived[i][j] for j in self.own[k].others})
                self.bad[i] |= dict.fromkeys(broken, "its shares can't be opened")

    def exchange_masked(self, deltas: Sequence[Tensor]) -> list[dict[int, np.ndarray]]:
        """Message 3. By local island: what came of the part that it adds up, by sender."""
        crossing, size = self.crossing, self.part * self.dtype.itemsize
        rows: dict[int, bytes] = {}
        for i, (island, flat) in enumerate(zip(crossing.transport.local, deltas, strict=True)):
            if island in self.own:
                try:
                    values = self._fixed(flat, crossing.roll.weights[island])
                except PayloadError as error:
                    self.bad[i][island] = str(error)
                    values = np.zeros(flat.numel(), dtype=self.dtype)
                rows[island] = self.own[island].masked(values).tobytes()
        islands = range(crossing.transport.islands)
        expected = {(j, k): size + CHECK_BYTES for j in self.parties for k in islands}
        arrived = self._swap(lambda j, k: _checked(rows[j][k * size : (k + 1) * size]) if j in rows else b"", expected)
        parts: list[dict[int, np.ndarray]] = []
        for i, came in enumerate(arrived):
            parts.append({})
            for j in self.parties:
                data, check = came[j][:size], came[j][size:]
                if zlib.crc32(data).to_bytes(CHECK_BYTES, "little") != check:
                    self.bad[i].setdefault(j, "the checksum of its masked vector is wrong")
                parts[i][j] = np.frombuffer(data, dtype=self.dtype)
        return parts

    def unmask(self, parts: Sequence[Mapping[int, np.ndarray]], survivors: Sequence[int]) -> np.ndarray:
        """Message 4, and the sums of all parts: the survivors' sum, modulo 2^bits."""
        from lowcomm.secure.unmask import masks_left

        shares = self._shares(survivors)
        sums: dict[int, bytes] = {}
        for island, part in zip(self.crossing.transport.local, parts, strict=True):
            total = np.zeros(self.part, dtype=self.dtype)
            for k in survivors:
                total = total + part[k]
            masks = masks_left(self.adverts, survivors, shares, self.threshold, self.context, island * self.part, total)
            sums[island] = (total - masks).tobytes()
        return np.frombuffer(b"".join(self._gather(sums, self.part * self.dtype.itemsize)), dtype=self.dtype)

    def _shares(self, survivors: Sequence[int]) -> dict[int, dict[int, bytes]]:
        """What every survivor gives of every party: a byte that says whether it has it, and the share."""
        width = 1 + SHARE_BYTES
        rows: dict[int, bytes] = {}
        for holder, party in self.own.items():
            if holder in survivors:
                given = party.shares(survivors)
                rows[holder] = b"".join(b"\1" + given[k] if k in given else bytes(width) for k in self.parties)
        table = self._gather(rows, width * len(self.parties))
        shares: dict[int, dict[int, bytes]] = {}
        for holder in survivors:
            cut = {k: table[holder][i * width : (i + 1) * width] for i, k in enumerate(self.parties)}
            shares[holder] = {k: row[1:] for k, row in cut.items() if row[0]}
        return shares

    def _fixed(self, flat: Tensor, weight: float) -> np.ndarray:
        return to_fixed(flat, weight, self.secure.limit, self.secure.bits)

    def _gather(self, rows: Mapping[int, bytes], size: int) -> list[bytes]:
        """`size` bytes of every island, zeros from those that have none."""
        transport = self.crossing.transport
        table = transport.gather([_tensor(rows.get(k, bytes(size))) for k in transport.local])
        return [row.numpy().tobytes() for row in table]

    def _swap(self, row: Callable[[int, int], bytes], expected: Mapping[tuple[int, int], int]) -> list[list[bytes]]:
        """All-to-all of `row(sender, receiver)`, of `expected` bytes (0 where there is none)."""
        transport = self.crossing.transport
        islands = range(transport.islands)
        sends = [[_tensor(row(j, k)) for k in islands] for j in transport.local]
        sizes = [[expected.get((j, k), 0) for j in islands] for k in transport.local]
        return [[t.numpy().tobytes() for t in came] for came in transport.swap_rows(sends, sizes)]


def _checked(data: bytes) -> bytes:
    return data + zlib.crc32(data).to_bytes(CHECK_BYTES, "little")


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def check_secure(secure: SecureSum | None, codec: Codec, aggregator: Aggregator, schedule: Schedule) -> None:
    """Raise ConfigError for settings out of range, and for parts that need more than a sum of whole contributions."""
    if secure is None:
        return
    secure.check()
    rule = type(aggregator).__name__
    if aggregator.needs != "sum":
        raise ConfigError(
            f"sync.aggregator = {rule} is not allowed with sync.secure: it must see each contribution, and nobody can "
            "read one. Fix: use Mean, FFA or RoLoRA with a codec that sends all, or leave sync.secure out"
        )
    if not isinstance(codec, Fp32):
        raise ConfigError(
            f"sync.codec = {type(codec).__name__} is not allowed with sync.secure: masked payloads are added as "
            "integers before anybody decodes them. Fix: use Fp32; sync.secure sends sync.secure.bits each"
        )
    if not isinstance(schedule, EveryH | Growing):
        raise ConfigError(
            f"sync.schedule = {type(schedule).__name__} is not allowed with sync.secure: averaged gradients are not "
            "masked, and keys are exchanged while training waits. Fix: use EveryH"
        )


def check_maskable(secure: SecureSum | None, ranks: int, averaged: Sequence[str]) -> None:
    """Raise ConfigError for islands of several ranks, and buffers that would be averaged without masks."""
    if secure is None:
        return
    if ranks > 1:
        raise ConfigError(
            f"island.size = {ranks} is not allowed with sync.secure: who drops is decided per island. "
            "Fix: islands of one rank"
        )
    if averaged:
        raise ConfigError(
            f"buffers {', '.join(averaged)} are averaged between islands without masks, which sync.secure does not "
            "allow. Fix: keep them local, buffers={'*': 'local'}"
        )
