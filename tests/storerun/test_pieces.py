"""Whole vectors and what the ranks of an island hold of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.store.layout import Layout
from lowcomm.storerun.pieces import Pieces

TENSORS = {"a": (4, 3), "b": (5,), "c": (2, 2)}
LAYOUT = Layout(names=tuple(TENSORS), shapes=tuple(TENSORS.values()))


@given(st.lists(st.integers(0, 12), min_size=3, max_size=3), st.booleans())
def test_cuts_of_all_ranks_are_the_whole(ends: list[int], filled: bool) -> None:
    """Wherever a parameter is cut between two ranks, and whether or not one has a filler beside it."""
    runs: list[list[list[tuple[int, int]]]] = [[[(-1, 1)] if filled else []], [[]]]
    start = 0
    for shape, end in zip(LAYOUT.shapes, ends, strict=True):
        numel = int(torch.Size(shape).numel())
        first = min(end, numel)
        runs[0][0].append((start, first))
        runs[1][0].append((start + first, numel - first))
        start += numel
    whole = torch.arange(float(LAYOUT.numel))
    found = torch.full_like(whole, torch.nan)
    for rank in range(2):
        mesh = cast("Any", SimpleNamespace(rank=rank, size=2))
        mine = Pieces(mesh=mesh, layouts=[LAYOUT], runs=runs).cut(0, whole)
        at = 0
        for begin, n in runs[rank][0]:
            if begin >= 0:
                found[begin : begin + n] = mine[at : at + n]
            at += n
        assert at == mine.numel()
    assert torch.equal(found, whole)
