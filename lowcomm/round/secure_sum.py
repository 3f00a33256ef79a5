"""A round whose contributions are masked: the exchange of `lowcomm.secure` over a transport.

Keys go to all, shares from each to each, masked vectors by all-to-all: island k adds up the k-th part of them. The sums
of the parts are gathered, still masked, and the islands agree (`round.flood`) on who is unusable or gone and whether
all have the whole sum; only then do they give the shares that unmask it. Until then no secret of anybody is known, so
that an island whose process dies can be taken out of the sum, or, if its keys had not reached all, the sum be begun
again with new keys. After it the sum is fixed, and the shares of the threshold are enough.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lowcomm.round.compressed import Crossing, Exchanged
from lowcomm.round.flood import flood
from lowcomm.secure import SHARE_BYTES, SecureSum, dtype_of, from_fixed, to_fixed
from lowcomm.types import PayloadError, SyncError

if TYPE_CHECKING:
    from lowcomm.secure.party import Party

UNUSABLE, LATE, EARLY = 1, 2, 3
"""What an island says of another: its messages can't be used, its process is gone, so before its keys had come."""
GONE = "its process is gone"

CHECK_BYTES = 4
"""CRC-32 of a part of a masked vector and of whose it is: against accidents only."""


def sum_masked(crossing: Crossing, secure: SecureSum, deltas: Sequence[Tensor]) -> Exchanged:
    """Fill the fragment's mean. Raises SyncError, on every island alike, if fewer than the threshold are left."""
    masked = _MaskedSum(crossing=crossing, secure=secure, gone=crossing.roll.gone)
    while (collected := masked.exchange(deltas)) is None:
        masked = _MaskedSum(crossing=crossing, secure=secure, without=masked.struck, gone=masked.gone)
    whole = masked.unmask(collected)
    # weights were on before it was known who stays
    factor = 1 / sum(crossing.roll.weights[k] for k in masked.survivors)
    mean = from_fixed(whole, factor, secure.limit, secure.bits)
    crossing.fragment.mean.copy_(torch.from_numpy(mean))
    roll = crossing.roll
    if masked.struck:
        roll = roll.without(masked.struck, crossing.aggregator, crossing.round, crossing.quorum)
    return crossing.commit(list(crossing.states), roll)


@dataclass(kw_only=True)
class _MaskedSum:
    """One sum on its way, for the local islands."""

    crossing: Crossing
    secure: SecureSum
    without: Mapping[int, str] = field(default_factory=dict)
    """Islands of the roll that are left out from the start, with the reason."""
    gone: frozenset[int] = frozenset()
    """Islands that add nothing up any more, as all know."""

    def __post_init__(self) -> None:
        self.parties = [k for k, w in enumerate(self.crossing.roll.weights) if w != 0 and k not in self.without]
        self.all = sum(w != 0 for w in self.crossing.roll.weights)
        self.threshold = self.secure.fewest(self.all)
        now = self.crossing.round
        self.context = f"{now.run:016x} {now.index} {now.fragments}".encode()
        self.dtype = dtype_of(self.secure.bits)
        self.part = self.crossing.fragment.size // self.crossing.transport.islands
        """Entries that each island adds up."""
        self.own: dict[int, Party] = {}
        """Local islands that take part, by island."""
        self.adverts: dict[int, bytes] = {}
        self.rows: dict[int, bytes] = {}
        """Masked vectors of local islands."""
        self.parts: list[dict[int, np.ndarray]] = []
        """By local island: what came of the part that it adds up, by sender."""
        self.bad: list[dict[int, str]] = [{} for _ in self.crossing.transport.local]
        """By local island: whose messages it could not use."""
        self.early: set[int] = set()
        """Islands that are gone and whose keys may not have reached all."""
        self.survivors = list(self.parties)
        """Whose vectors are summed."""
        self.struck: dict[int, str] = dict(self.without)
        """Islands of the roll whose vectors are not, with the reason."""

    def need(self, left: Sequence[int]) -> None:
        """Raise SyncError if fewer than the threshold are left."""
        if len(left) < self.threshold:
            why = "; ".join(f"island {k}: {v}" for k, v in self.struck.items()) or "nobody else trained"
            raise SyncError(
                f"round {self.crossing.round.index} can't be unmasked: {len(left)} of {self.all} parties are "
                f"left, sync.secure needs {self.threshold} ({why}). Nothing was committed."
            )

    def exchange(self, deltas: Sequence[Tensor]) -> np.ndarray | None:
        """Messages 1 to 3 and the masked sum; None if it must be done again with new keys and without `struck`."""
        self.need(self.parties)
        self.exchange_keys()
        self.early = {k for k in self.parties if k in self.crossing.transport.lost}
        self.exchange_masked(deltas)
        return self.collect()

    def exchange_keys(self) -> None:
        """Messages 1 and 2: public keys to all, shares of the secret ones from each to each."""
        from lowcomm.secure.party import ADVERT_BYTES, SEALED_BYTES, Party

        local = self.crossing.transport.local
        self.own = {k: Party(k, self.context) for k in local if k in self.parties}
        said = self._gather({k: p.advert() for k, p in self.own.items()}, ADVERT_BYTES)
        self.adverts = {k: said[k] for k in self.parties if k in said}
        dealt = {k: p.deal(self.adverts, self.threshold) for k, p in self.own.items()}
        expected = {(j, k): SEALED_BYTES for j in self.parties for k in self.parties if j != k}
        arrived = self._swap(lambda j, k: dealt[j].get(k, bytes(SEALED_BYTES)), expected)
        for i, k in enumerate(local):
            if k in self.own:
                broken = self.own[k].receive({j: arrived[i][j] for j in self.own[k].others if j in arrived[i]})
                self.bad[i] |= dict.fromkeys(broken, "its shares can't be opened")

    def exchange_masked(self, deltas: Sequence[Tensor]) -> None:
        """Message 3: to each island the part that it adds up."""
        crossing = self.crossing
        for i, (island, flat) in enumerate(zip(crossing.transport.local, deltas, strict=True)):
            if island in self.own:
                try:
                    values = self._fixed(flat, crossing.roll.weights[island])
                except PayloadError as error:
                    self.bad[i][island] = str(error)
                    values = np.zeros(flat.numel(), dtype=self.dtype)
                self.rows[island] = self.own[island].masked(values).tobytes()
        islands = range(crossing.transport.islands)
        self.parts = self._swap_parts(self.parties, {k: k for k in islands})

    def collect(self) -> np.ndarray | None:
        """The masked sum over the survivors, once every island that is left has all of it; None as in `exchange`.

        Who could not be used or died with a part of it is taken out of the sum, for which no share was given yet.
        """
        islands = range(self.crossing.transport.islands)
        while True:
            whole = self._gather_sums()
            local = [bytes([whole is None, *self._said(found)]) for found in self.bad]
            missing, *codes = flood(self.crossing.transport, [_tensor(row) for row in local]).tolist()
            if whole is not None and not missing and not any(codes[k] == UNUSABLE for k in self.survivors):
                return whole
            self.gone |= {k for k in islands if codes[k] >= LATE}
            self._strike({k: codes[k] for k in self.survivors if codes[k]})
            self.need(self.survivors)
            if any(codes[k] == EARLY for k in self.parties):
                return None

    def _said(self, found: Mapping[int, str]) -> list[int]:
        """By island, what a local one that `found` some unusable says of it."""
        said = dict.fromkeys(found, UNUSABLE) | dict.fromkeys(self.crossing.transport.lost, LATE)
        said |= dict.fromkeys(self.early, EARLY)
        return [said.get(k, 0) for k in range(self.crossing.transport.islands)]

    def _strike(self, codes: Mapping[int, int]) -> None:
        """Take islands out of the sum."""
        own = {k: why for found in self.bad for k, why in found.items()}
        own |= {k: f[k] for k, f in zip(self.crossing.transport.local, self.bad, strict=True) if k in f}
        for k, code in codes.items():
            self.struck[k] = GONE if code >= LATE else own.get(k, "other islands could not use its payload")
        self.survivors = [k for k in self.survivors if k not in codes]

    def _gather_sums(self) -> np.ndarray | None:
        """The survivors' masked sum; None if a part of it did not come."""
        transport, islands = self.crossing.transport, range(self.crossing.transport.islands)
        totals = {k: self._total(part) for k, part in zip(transport.local, self.parts, strict=True)}
        came = self._gather(totals, 1 + self.part * self.dtype.itemsize)
        sums = {k: row[1:] for k, row in came.items() if row[0]}
        for gone in sorted(self.gone):  # it added up a part: the survivors send that again, to all
            (parts, *_) = self._swap_parts(self.survivors, {k: gone for k in islands if k not in self.gone})
            total = self._total(parts)
            sums |= {gone: total[1:]} if total[0] else {}
        if len(sums) < len(islands):
            return None
        return np.frombuffer(b"".join(sums[k] for k in islands), dtype=self.dtype)

    def _total(self, part: Mapping[int, np.ndarray]) -> bytes:
        """Whether the part of every survivor came, a byte, and their sum."""
        total = np.zeros(self.part, dtype=self.dtype)
        for k in self.survivors:
            total = total + part.get(k, 0)
        return bytes([all(k in part for k in self.survivors)]) + total.tobytes()

    def unmask(self, whole: np.ndarray) -> np.ndarray:
        """Message 4: the survivors' sum, modulo 2^bits."""
        from lowcomm.secure.unmask import masks_left

        shares = self._shares()
        return whole - masks_left(self.adverts, self.survivors, shares, self.threshold, self.context, 0, whole)

    def _shares(self) -> dict[int, dict[int, bytes]]:
        """What every survivor gives of every party: a byte that says whether it has it, and the share."""
        width = 1 + SHARE_BYTES
        rows: dict[int, bytes] = {}
        for holder, party in self.own.items():
            if holder in self.survivors:
                given = party.shares(self.survivors)
                rows[holder] = b"".join(b"\1" + given[k] if k in given else bytes(width) for k in self.parties)
        table = self._gather(rows, width * len(self.parties))
        shares: dict[int, dict[int, bytes]] = {}
        for holder in (k for k in self.survivors if k in table):
            cut = {k: table[holder][i * width : (i + 1) * width] for i, k in enumerate(self.parties)}
            shares[holder] = {k: row[1:] for k, row in cut.items() if row[0]}
        return shares

    def _fixed(self, flat: Tensor, weight: float) -> np.ndarray:
        return to_fixed(flat, weight, self.secure.limit, self.secure.bits)

    def _swap_parts(self, senders: Sequence[int], wanted: Mapping[int, int]) -> list[dict[int, np.ndarray]]:
        """Parts of the senders' masked vectors, `wanted` by receiver; by local island: what came whole, by sender."""
        size = self.part * self.dtype.itemsize
        expected = {(j, k): size + CHECK_BYTES for j in senders for k in wanted}
        arrived = self._swap(
            lambda j, k: self._checked(self.rows[j][wanted[k] * size :][:size], j, wanted[k]), expected
        )
        parts: list[dict[int, np.ndarray]] = [{} for _ in arrived]
        for me, part, bad, came in zip(self.crossing.transport.local, parts, self.bad, arrived, strict=True):
            for j in (k for k in senders if k in came):
                data = came[j][:size]
                if self._checked(data, j, wanted.get(me, me)) != came[j]:
                    bad.setdefault(j, "its masked vector is damaged, or of another island, round or run")
                else:
                    part[j] = np.frombuffer(data, dtype=self.dtype)
        return parts

    def _checked(self, data: bytes, sender: int, part: int) -> bytes:
        """A part of a masked vector, and a checksum over it, its sum (run, round, fragment), its sender and place."""
        whose = zlib.crc32(self.context + b" part %d of %d" % (part, sender))
        return data + zlib.crc32(data, whose).to_bytes(CHECK_BYTES, "little")

    def _gather(self, rows: Mapping[int, bytes], size: int) -> dict[int, bytes]:
        """`size` bytes of every island that is left, zeros from those that have none."""
        transport = self.crossing.transport
        table = transport.gather_present([_tensor(rows.get(k, bytes(size))) for k in transport.local])
        return {k: row.numpy().tobytes() for k, row in enumerate(table) if row is not None}

    def _swap(
        self, row: Callable[[int, int], bytes], expected: Mapping[tuple[int, int], int]
    ) -> list[dict[int, bytes]]:
        """All-to-all of `row(sender, receiver)`, of `expected` bytes (0 where there is none); by local island."""
        transport = self.crossing.transport
        islands = range(transport.islands)
        sends = [[_tensor(row(j, k) if (j, k) in expected else b"") for k in islands] for j in transport.local]
        sizes = [[expected.get((j, k), 0) for j in islands] for k in transport.local]
        came = transport.swap_present(sends, sizes)
        return [{k: t.numpy().tobytes() for k, t in enumerate(rows) if t is not None} for rows in came]


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
