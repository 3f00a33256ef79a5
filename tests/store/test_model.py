"""Histories of the protocol over a faulty store; each rule left out is noticed (`benchmarks.store_model`)."""

from __future__ import annotations

import pytest

from tests.support.store_checker import World
from tests.support.store_mutants import MUTANTS, hunt

SHORT, LONG = 16, 1000
FIRST_SEEDS = {"keep_work": 61}
"""Where the first history that breaks is far from 0; another change of the code may move it."""


def test_no_invariant_breaks(long: bool) -> None:
    held: dict[str, int] = {}
    for seed in range(LONG if long else SHORT):
        held = {name: held.get(name, 0) + n for name, n in World(seed).run().items()}
    assert all(held[name] > 0 for name in ("commits", "crashes", "lost", "garbage", "left")), (
        "the histories held it all"
    )


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_rule_that_is_left_out_is_noticed(name: str, long: bool) -> None:
    first = 0 if long else FIRST_SEEDS.get(name, 0)
    assert hunt(name, 400, first).violation is not None, MUTANTS[name].meaning
