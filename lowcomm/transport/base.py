"""The transport arrow: how bytes get from island to island, counted."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lowcomm.types import FencedError, TransportError

BLOCK = 1 << 17
"""Elements summed at a time: accumulator and scratch stay in the L2 cache (2 x 512 KB)."""


CHECKSUM_BYTES = 8
"""Beside each part of a vector that is sent to be summed: xxh3-64."""
KEPT = "Nothing was committed: local weights are kept and the pseudo-gradient stays pending."
"""What an exchange that failed leaves."""
MOST_BYTES = 1 << 26
"""Of a row whose size its sender announces, where the caller gives no other bound."""
Altered = list[dict[int, str]]
"""By local island: the islands whose contributions it did not get as they were sent, and what was seen."""
Arrival = Callable[[], list[list[Tensor]]]
"""Waits for a swap that was started and gives what it brought. Raises SyncError."""


class Transport(ABC):
    """Collectives among `islands` islands, of which this process holds `local`, in ascending order.

    Lists of tensors have one entry per local island. All islands call the same methods in the same order.
    `sent_bytes[i]` and `received_bytes[i]` count, for local island i, the buffers that cross its link; a part that an
    island keeps for itself is not counted. Raises SyncError if an exchange fails; inputs are then unchanged.
    """

    islands: int
    local: tuple[int, ...]
    sent_bytes: list[int]
    received_bytes: list[int]
    ranks: int = 1
    """Ranks of each island that sync a part of it; this transport joins those that hold the same part."""
    goes_on: bool = False
    """Whether `gather` leaves out the islands that are lost, with zeros for them. Set it alike on all islands."""
    lost: Mapping[int, str] = MappingProxyType({})
    """Islands that `gather_present` or `swap_present` found gone, with the cause."""
    fenced: FencedError | None = None
    """Set where the others have gone on without this process."""
    link_bytes_per_s: float | None = None
    """Bytes that this process sends per second, from its latest large exchanges; None: not measured."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Exchanges that succeed on every island or on none, where islands may be lost in them; all enter it alike.

        Where they may not, a failure ends the run, and this does nothing.
        """
        yield

    @abstractmethod
    def weighted_sum(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        """`out = sum_k weights[k] * vector_k` over all islands in island order, the same bits everywhere.

        vectors: fp32, 1-D, of equal length (a multiple of `islands`); one with weight 0 is skipped, not multiplied.
        out: fp32, 1-D, of that length, or the first of the vectors. Torn on a failure.
        Returns, by local island, whose part of the sum did not come as it was sent, and what was seen.
        """

    def sum_present(self, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered | None:
        """`weighted_sum` in which islands of weight 0 do not send their vectors; None: made of other exchanges."""
        return None

    @abstractmethod
    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        """All islands' rows: 1-D tensors of one size and dtype -> [islands, size]."""

    @abstractmethod
    def gather_sized(self, rows: Sequence[Tensor], most_bytes: int = MOST_BYTES) -> list[Tensor]:
        """All islands' rows, uint8, 1-D, of any sizes (which are exchanged first), in island order.

        Raises TransportError, before anything is allocated, if an island announces more than `most_bytes`.
        """

    @abstractmethod
    def start_swap(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        """Start an all-to-all of uint8 rows; several may be on their way, and are waited for in the order of starting.

        Local island i sends `rows[i][k]` to island k. `sizes[i][k]`: bytes that come to local island i from k, which
        all know beforehand. Rows are contiguous and must not change before the result is called, which waits and gives
        `[i][k]`: what came to local island i from k, the row for oneself as it is.
        """

    def swap_rows(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        """`start_swap` and wait."""
        return self.start_swap(rows, sizes)()

    def gather_present(self, rows: Sequence[Tensor]) -> list[Tensor | None]:
        """`gather`, CPU only, that goes on if processes die in it: they are then `lost`, and None stands for a row."""
        return list(self.gather(rows))

    def swap_present(
        self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]
    ) -> list[list[Tensor | None]]:
        """`swap_rows`, CPU only, that goes on if processes die in it: they are then `lost`, None stands for a row."""
        return [list(came) for came in self.swap_rows(rows, sizes)]

    @property
    def present(self) -> list[int]:
        """The islands that are not lost."""
        return [k for k in range(self.islands) if k not in self.lost]

    @property
    def uniform(self) -> list[float]:
        """Equal weights of the islands that are not lost, which sum to 1."""
        return [0.0 if k in self.lost else 1 / len(self.present) for k in range(self.islands)]

    def _lose(self, gone: Mapping[int, str]) -> None:
        """These are lost, too. Raises TransportError, and takes none for lost, if nobody else is left of several."""
        others = [k for k in self.present if k not in self.local]
        if others and all(k in gone for k in others):
            raise TransportError(f"island {self.local[0]} has lost all others: {next(iter(gone.values()))}. {KEPT}")
        self.lost = {**self.lost, **gone}

    def _check_lost(self, before: int) -> None:
        """Raise TransportError if more islands are lost than before an exchange that needs all who were there."""
        if len(self.lost) > before:
            raise TransportError(f"islands {sorted(self.lost)} are gone: {list(self.lost.values())[-1]}. {KEPT}")

    def _need_all(self, what: str) -> None:
        if self.lost:
            raise TransportError(
                f"the {what} needs all {self.islands} islands, and {sorted(self.lost)} are gone. Nothing was committed."
            )

    def _gather_among_present(self, row: Tensor) -> Tensor:
        before = len(self.lost)
        came = self.gather_present([row.cpu()])
        self._check_lost(before)
        return torch.stack([torch.zeros_like(row) if r is None else r.to(row.device) for r in came])

    @abstractmethod
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each local island's tensor with that of island 0."""

    def inside(self, row: Tensor) -> Tensor:
        """1-D CPU rows of all ranks of this process's island, in rank order: [ranks, size].

        All ranks call it alike. Bytes inside an island are not counted. Raises AbandonedError if another rank called
        `abandon` instead.
        """
        return row[None]

    def abandon(self) -> None:  # noqa: B027 - an island of one rank has nobody to tell
        """Take part in the island's next `inside` as a rank whose transport has failed."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group; safe to call twice."""

    def count(self, sent_bytes: int, received_bytes: int) -> None:
        """Count the same traffic for each local island."""
        for i in range(len(self.local)):
            self.sent_bytes[i] += sent_bytes
            self.received_bytes[i] += received_bytes


def check_sizes(sizes: Sequence[int], most_bytes: int) -> None:
    """Raise TransportError for an island whose row has, or is announced with, a size that none can have."""
    for island, size in enumerate(sizes):
        if not 0 <= size <= most_bytes:
            raise TransportError(
                f"island {island} announces a row of {size} bytes, 0 to {most_bytes} are possible. {KEPT}"
            )


def texts_of(rows: Sequence[Tensor]) -> list[Any]:
    """The JSON values that islands sent as rows of bytes. Raises TransportError naming one that sent something else."""
    found: list[Any] = []
    for island, row in enumerate(rows):
        if island and row is rows[0]:  # islands of one process say the same
            found.append(found[0])
            continue
        try:
            found.append(json.loads(bytes(row.numpy())))
        except (ValueError, RecursionError) as error:
            raise TransportError(
                f"island {island} sent text that is no JSON ({type(error).__name__}). {KEPT}"
            ) from error
    return found


def sum_bytes(out: Tensor, islands: int) -> int:
    """Bytes that an island sends, and receives, in a sum of vectors like `out`: on the CPU with a checksum for each."""
    checksum_bytes = CHECKSUM_BYTES if out.device.type == "cpu" else 0
    return (islands - 1) * (2 * (out.numel() // islands) * 4 + checksum_bytes)


def may_take_place(index: int, weights: Sequence[float]) -> bool:
    """Whether `ordered_sum` may write its result where vector `index` lies: nothing of it is read after that."""
    used = [k for k, w in enumerate(weights) if w != 0]
    equal = len({weights[k] for k in used}) == 1
    return index in used[: 2 if equal else 1]


def ordered_sum(vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor, scratch: Tensor) -> None:
    """`out = sum_k weights[k] * vectors[k]` in order; product and sum rounded apart, so cuts do not change bits.

    Equal weights are multiplied once, after the sum: one pass less. All fp32, 1-D; scratch holds BLOCK elements; a
    vector with weight 0 is skipped. `out` may be a vector if `may_take_place` says so. Raises ValueError if all weights
    are 0.
    """
    used = [(v, w) for v, w in zip(vectors, weights, strict=True) if w != 0]
    if not used:
        raise ValueError("every weight is 0: nothing to sum")
    equal = all(w == used[0][1] for _, w in used)
    for start in range(0, out.numel(), BLOCK):
        part = out[start : start + BLOCK]
        stop = start + part.numel()
        if equal and len(used) > 1:
            torch.add(used[0][0][start:stop], used[1][0][start:stop], out=part)
            for vector, _ in used[2:]:
                part.add_(vector[start:stop])
            part.mul_(used[0][1])
            continue
        torch.mul(used[0][0][start:stop], used[0][1], out=part)
        for vector, weight in used[1:]:
            part.add_(torch.mul(vector[start:stop], weight, out=scratch[: stop - start]))
