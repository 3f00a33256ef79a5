"""Ranks of an island, of which one alone loses its stream: threads as ranks, in the gather that real ones have."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from lowcomm.data.shard import Shard
from lowcomm.island.mesh import Mesh
from lowcomm.run.reading import read_ahead
from lowcomm.types import DataError
from tests.support.threads import Hub, Threaded, run_threads


class Reader:
    """Of a shard what is read ahead."""

    def __init__(self, bad_step: int | None) -> None:
        self.step, self.bad_step = 0, bad_step

    def prepare(self, batches: int) -> None:
        if self.step == self.bad_step:
            raise DataError("the connection is lost")
        self.step += batches


class Inside:
    """Of a mesh what ranks tell each other by."""

    def __init__(self, transport: Threaded) -> None:
        self.transport = transport

    def rows(self, row: torch.Tensor) -> torch.Tensor:
        return self.transport.gather([row])


@pytest.mark.parametrize("bad", [[4, None, None], [None, 2, 6], [2, 2, None], [None, None, None]], ids=str)
def test_all_ranks_leave_at_the_step_that_one_can_not_read(bad: list[int | None]) -> None:
    hub, left, said = Hub(3), [-1] * 3, [""] * 3

    def body(me: int) -> None:
        reader, mesh = cast(Shard, Reader(bad[me])), cast(Mesh, Inside(Threaded(hub, me)))
        for step in range(0, 10, 2):
            try:
                read_ahead([reader], 2, mesh)
            except DataError as error:
                left[me], said[me] = step, str(error)
                return

    run_threads(3, body)
    first = min((b for b in bad if b is not None), default=-1)
    assert left == [first] * 3
    for rank, text in enumerate(said):
        lost = [str(r) for r in range(3) if bad[r] == first]
        expected = f"rank {', '.join(lost)} of this island can't read its text, and says why" if first >= 0 else ""
        assert text == ("the connection is lost" if bad[rank] == first and first >= 0 else expected)
