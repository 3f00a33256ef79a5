"""Vectors that fragments borrow for an exchange."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowcomm.outer import Nesterov
from lowcomm.schedule import Streaming
from lowcomm.state.buffer_pool import BufferPool
from lowcomm.sync import LocalSGD
from lowcomm.transport.pipelined import SEGMENT, SMALLEST, segmentation, window


def test_what_is_lent_is_never_lent_twice_and_comes_back() -> None:
    scratch = BufferPool(torch.device("cpu"))
    a, b = scratch.take(100), scratch.take(60)
    a.fill_(1)
    b.fill_(2)
    assert float(a.sum()) == 100 and float(b.sum()) == 120
    scratch.give(a)
    c = scratch.take(40)  # the one of 100 is long enough
    assert c.data_ptr() == a.data_ptr() and c.numel() == 40
    assert scratch.total_bytes == 4 * 160
    with pytest.raises(KeyError):
        scratch.give(torch.zeros(3))


def test_a_longer_one_replaces_the_longest_that_is_free() -> None:
    scratch = BufferPool(torch.device("cpu"))
    for size in (10, 20, 30, 1000):
        scratch.give(scratch.take(size))
    assert scratch.total_bytes == 4 * 1000


def islands(schedule: Streaming | None) -> LocalSGD:
    torch.manual_seed(0)
    models = [nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    inners = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    sync = LocalSGD(models, inners, every=8, outer=Nesterov(), schedule=schedule)
    for _ in range(32):
        for m, inner in zip(models, inners, strict=True):
            (m(torch.randn(4, 64)) ** 2).mean().backward()
            inner.step()
            inner.zero_grad()
    return sync


@pytest.mark.parametrize("fragments", [None, 4])
def test_a_sync_keeps_one_vector_per_local_island_and_fragment_on_its_way(fragments: int | None) -> None:
    """Not one per fragment, and the mean has none of its own where nobody needs the pseudo-gradient any more."""
    sync = islands(None if fragments is None else Streaming(fragments=fragments, delay=1, by="size"))
    largest = 4 * max(f.size for f in sync.state.fragments)
    scratch = sync.state.fragments[0].pool
    assert all(f.pool is scratch for f in sync.state.fragments)
    assert scratch.total_bytes <= (2 if fragments is None else 3) * largest
    assert all(p.grad is None for (a,) in sync.state.anchors for p in a.params)


@pytest.mark.parametrize("islands", [1, 2, 3, 8])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("rows", [1, 1000, 100_000, 30_000_000])
def test_the_window_is_a_quarter_of_the_vector(islands: int, groups: int, rows: int) -> None:
    numel = rows * islands
    size, slots = segmentation(numel, islands, groups)
    assert 1 <= size <= min(SEGMENT, rows) and slots >= 1
    assert window(numel, islands, groups) == size * slots * islands
    if size > SMALLEST:
        assert 4 * window(numel, islands, groups) <= numel + 4 * slots * islands
