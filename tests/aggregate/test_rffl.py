"""Reputation: its formula over rounds, who is removed and stays so, what it reduces to, and its state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lowcomm.aggregate import RFFL, Aggregate, Context, Mean
from lowcomm.aggregate.base import State
from lowcomm.types import ConfigError, Contribution, Round, UnusableError


def heard(rows: Tensor, islands: Sequence[int] | None = None) -> list[Contribution]:
    numbers = islands or range(len(rows))
    return [
        Contribution(island=k, delta={"w": r.float()}, weight=1 / len(rows), round=0)
        for k, r in zip(numbers, rows, strict=True)
    ]


def combined(rule: RFFL, rows: Tensor, state: State, islands: Sequence[int] | None = None) -> Aggregate:
    now = Round(index=0, step=4, fragments=(0,), seed=1)
    return rule.combine(heard(rows, islands), Context(start={"w": rows[0].float()}, round=now, state=state))


def rounds_of(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(60, generator=generator).double() + torch.randn(count, 60, generator=generator) for _ in range(9)
    ]


def test_it_is_the_formula() -> None:
    rule, state = RFFL(keep=0.8, least=0.0, radius=6.0), State()
    reputation = torch.full((5,), 0.2, dtype=torch.float64)
    for rows in rounds_of(5):
        made = combined(rule, rows, state)
        cut = rows * (6 / rows.norm(dim=1)).clamp(max=1)[:, None]
        wanted = (reputation[:, None] * cut).sum(dim=0)
        torch.testing.assert_close(made.delta["w"].double(), wanted, rtol=1e-4, atol=1e-5)
        reputation = (0.8 * reputation + 0.2 * torch.cosine_similarity(rows, wanted[None])).clamp(min=0)
        reputation /= reputation.sum()
        torch.testing.assert_close(made.state["reputation"], reputation, rtol=1e-4, atol=1e-6)
        state = made.state


def test_whoever_pulls_the_other_way_is_removed_and_never_comes_back() -> None:
    rule, state, told = RFFL(keep=0.9), State(), list[str]()
    for number, rows in enumerate(rounds_of(5)):
        if number < 6:
            rows[3] = -rows[3]
        made = combined(rule, rows, state)
        told += [n for n in made.notes if "removed" in n]
        state = made.state
        assert math.isclose(float(state["reputation"].sum()), 1)
    assert told == ["RFFL: island 3 is removed for good"]
    assert state["reputation"][3] == 0
    assert bool((state["reputation"][[0, 1, 2, 4]] > 0.1).all())


def test_switched_off_it_is_the_mean() -> None:
    rule, state = RFFL(keep=1.0, least=0.0, radius=math.inf), State()
    for rows in rounds_of(5):
        made = combined(rule, rows, state)
        assert torch.equal(made.delta["w"], Mean()(heard(rows))["w"])
        state = made.state


def test_islands_that_come_and_go_keep_their_reputation() -> None:
    rule = RFFL(keep=0.5)
    first, second, third = rounds_of(5)[:3]
    one = combined(rule, first[:3], {}, (0, 2, 4))
    two = combined(rule, second[:3], one.state, (0, 1, 4))
    assert two.state["reputation"].shape == (5,)
    ratio = float(one.state["reputation"][2] / two.state["reputation"][2])
    assert 0 < ratio < math.inf
    three = combined(rule, third, two.state)
    assert bool((three.state["reputation"] > 0).all())


def test_a_round_of_removed_islands_commits_nothing() -> None:
    rows = rounds_of(3)[0]
    state = {
        "reputation": torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64),
        "removed": torch.tensor([True] * 3 + [False]),
    }
    with pytest.raises(
        UnusableError, match=r"islands \[0, 1, 2\] have all been removed .* Fix: lower sync\.aggregator\.least"
    ):
        combined(RFFL(), rows, state)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (RFFL(keep=1.1), r"sync\.aggregator\.keep = 1\.1"),
        (RFFL(least=1.0), r"sync\.aggregator\.least = 1\.0"),
        (RFFL(radius=0.0), r"sync\.aggregator\.radius = 0\.0"),
    ],
)
def test_settings_out_of_range_are_refused(rule: RFFL, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule.check()
