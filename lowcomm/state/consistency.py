"""Consistency: the islands that share an anchor compare its bits after every commit.

One digest of 16 bytes per island crosses. After an overlapped exchange the comparison rides on the next exchange, so
that no step waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowcomm.state.anchor import Anchor
from lowcomm.state.digest import digest
from lowcomm.transport import Transport
from lowcomm.types import DivergenceError, Round, SyncError


class Consistency:
    """Compares shared anchors, and remembers those that are still to be compared."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.later: dict[int, tuple[bytes, Round]] = {}
        """Digest and round of fragments that were committed and are compared in the next exchange."""

    def postpone(self, index: int, value: bytes, round: Round) -> None:
        """Compare this digest of fragment `index` in the next exchange."""
        self.later[index] = (value, round)

    def take_later(self) -> dict[int, tuple[bytes, Round]]:
        """What was postponed; it is the caller's to compare."""
        taken, self.later = self.later, {}
        return taken

    def compare_all(self, anchors: Sequence[Sequence[Anchor]], taken: dict[int, tuple[bytes, Round]]) -> None:
        """`compare` for what was postponed."""
        for index, (value, then) in taken.items():
            self.compare(anchors[index][0], value, then)

    def compare(self, anchor: Anchor, value: bytes, round: Round) -> None:
        """Compare the islands' digests; raise DivergenceError that names the first tensor that differs.

        Raises SyncError, which says that the round was committed here, where they can't be compared.
        """
        rows = [torch.frombuffer(bytearray(value), dtype=torch.uint8)] * len(self.transport.local)
        self._compare(anchor, rows, round)

    def compare_each(self, anchor: Anchor, values: Sequence[bytes], round: Round) -> None:
        """`compare` for digests that local islands made of their own weights."""
        self._compare(anchor, [torch.frombuffer(bytearray(v), dtype=torch.uint8) for v in values], round)

    def _compare(self, anchor: Anchor, rows: Sequence[Tensor], round: Round) -> None:
        transport = self.transport
        try:
            came = transport.gather_present(rows) if transport.goes_on else list(transport.gather(rows))
        except SyncError as error:
            cause = str(error).partition(". Nothing was committed")[0]
            raise SyncError(
                f"round {round.index} was committed here, but its weights could not be compared with the other "
                "islands': they may have discarded it. Resume from the last checkpoint unless the next sync succeeds. "
                f"({cause})"
            ) from error
        there = set(transport.present)
        heard = [(k, row) for k, row in enumerate(came) if row is not None and (k in there or row.any())]
        for _, row in heard:
            if not torch.equal(row, heard[0][1]):
                self._name_difference(anchor, [k for k, _ in heard], round)

    def _name_difference(self, anchor: Anchor, there: Sequence[int], round: Round) -> None:
        parts = [digest(view) for view in anchor.named.values()]
        own = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)
        table = self.transport.gather([own] * len(self.transport.local)).view(self.transport.islands, -1, 16)
        for index, name in enumerate(anchor.fragment.names):
            differing = [i for i in there if bool((table[i, index] != table[there[0], index]).any())]
            if differing:
                raise DivergenceError(
                    f"after round {round.index} (step {round.step}) the global weights differ: {name} on islands "
                    f"{differing} is not what island {there[0]} has. The run stops; resume from the last checkpoint."
                )
        raise DivergenceError(f"after round {round.index} the digests of the global weights differ but no tensor does")
