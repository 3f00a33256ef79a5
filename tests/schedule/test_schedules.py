"""Late merges, growing periods and one-step delay: when they sync, and what they reduce to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.outer import SGD
from lowcomm.schedule import EveryH, Growing, LateMerge, OneStepDelay, Schedule
from lowcomm.types import ConfigError
from tests.support import toy


def syncs(schedule: Schedule, every: int, steps: int) -> list[int]:
    """The steps after which an exchange starts."""
    return [step for step in range(1, steps + 1) if schedule(step, every).sync]


@given(every=st.integers(1, 12), rounds=st.integers(1, 12), merges=st.integers(1, 12))
def test_merges_are_the_last_rounds(every: int, rounds: int, merges: int) -> None:
    steps = every * rounds + 3 % every
    schedule = LateMerge(steps=steps, merges=merges)
    if merges > steps // every:
        with pytest.raises(ConfigError, match=r"sync\.schedule\.merges = "):
            schedule.check(every, steps)
        return
    schedule.check(every, steps)
    assert syncs(schedule, every, steps + 2 * every) == [steps - k * every for k in reversed(range(merges))]


def test_a_merge_after_every_round_is_every_h() -> None:
    assert syncs(LateMerge(steps=48, merges=12), 4, 48) == syncs(EveryH(), 4, 48)


def test_one_late_merge_is_the_average_of_independent_runs() -> None:
    merged = toy.build(3, outer=SGD(lr=1.0), schedule=LateMerge(steps=8, merges=1))
    alone = toy.build(3, schedule=LateMerge(steps=1000, merges=1))
    for step in range(8):
        toy.train_step(merged, step)
        toy.train_step(alone, step)
    assert merged.round == 1 and alone.round == 0
    tokens = [r.tokens for r in alone.replicas]
    for name, weights in merged.weights().items():
        own = [r.params[name].detach() * t / sum(tokens) for r, t in zip(alone.replicas, tokens, strict=True)]
        torch.testing.assert_close(weights, torch.stack(own).sum(0), atol=1e-6, rtol=1e-5)


def test_another_number_of_steps_than_the_runs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sync\.schedule\.steps = 100 .*the run's own steps \(90\)"):
        LateMerge(steps=100).check(10, 90)


def test_no_growth_is_every_h() -> None:
    assert syncs(Growing(growth=1.0), 7, 9000) == syncs(EveryH(), 7, 9000)


@given(every=st.integers(1, 50), growth=st.floats(1.0, 2.0), longest=st.integers(50, 300))
def test_periods_grow_up_to_the_longest(every: int, growth: float, longest: int) -> None:
    ends = syncs(Growing(growth=growth, longest=longest), every, 6000)
    periods = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    assert periods[0] == every and periods == sorted(periods) and max(periods) <= longest
    expected = [min(longest, int(every * growth**k + 1e-9)) for k in range(min(8, len(periods)))]
    assert all(abs(a - b) <= 1 for a, b in zip(periods, expected, strict=False))  # a floor may fall either way


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (Growing(growth=0.9), r"growth = 0\.9 "),
        (Growing(growth=2.5), r"growth = 2\.5 "),
        (Growing(longest=3), "longest"),
    ],
)
def test_growth_out_of_range(schedule: Growing, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"sync\.schedule\.{says}.*Fix: "):
        schedule.check(4, 100)


def test_one_island_with_a_delayed_average_trains_as_if_alone() -> None:
    """Reduction: its own update comes back one round late and changes nothing, within rounding."""
    sync, alone = (
        toy.build(1, outer=SGD(lr=1.0), schedule=s) for s in (OneStepDelay(), LateMerge(steps=1000, merges=1))
    )
    for step in range(13):
        toy.train_step(sync, step)
        toy.train_step(alone, step)
    assert sync.round == 2 and list(sync.state.in_flight) == [0]
    for name, p in sync.replicas[0].params.items():
        torch.testing.assert_close(p.detach(), alone.replicas[0].params[name].detach(), atol=2e-6, rtol=1e-5)


def test_an_update_lands_one_round_late_and_before_the_next_starts() -> None:
    actions = {step: OneStepDelay()(step, 4) for step in range(1, 13)}
    assert {step: (a.sync, a.commit) for step, a in actions.items() if a.sync} == {
        4: ((0,), ()),
        8: ((0,), (0,)),
        12: ((0,), (0,)),
    }
