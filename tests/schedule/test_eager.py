"""Eager updates: an island goes on from its own share, the others' arrives one round later, and nothing is lost."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lowcomm.outer import SGD, Nesterov
from lowcomm.schedule import Eager, LateMerge, OneStepDelay
from lowcomm.sync import LocalSGD
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, SyncError
from tests.support import toy


def local(sync: LocalSGD, island: int) -> Tensor:
    return toy.flat(list(sync.replicas[island].params.values()))


def merged(sync: LocalSGD) -> Tensor:
    return toy.flat(list(sync.weights().values()))


def test_all_of_its_own_is_one_step_delay_bit_for_bit() -> None:
    assert (
        toy.trajectory(toy.build(4, schedule=Eager(gain=4.0)))[:-1]
        == (
            toy.trajectory(toy.build(4, schedule=OneStepDelay()))[
                :-1
            ]  # the handshake, longer by a word, counts as bytes
        )
    )


@pytest.mark.parametrize("gain", [0.0, 1.0, 1.26])
def test_an_island_goes_on_from_the_global_weights_and_its_share(gain: float) -> None:
    """The equations of the docstring over two rounds, the islands' ends taken from twins that do not sync."""
    sync = toy.build(3, schedule=Eager(gain=gain))
    starts = [merged(sync).clone()] * 3
    for last in (3, 7):
        for step in range(last - 3, last):
            toy.train_step(sync, step)
        ends = ends_of_round(sync, last)
        toy.train_step(sync, last)
        for island in range(3):
            expected = merged(sync) - gain / 3 * (starts[island] - ends[island])
            torch.testing.assert_close(local(sync, island), expected, atol=2e-6, rtol=1e-5)
        starts = [local(sync, island) for island in range(3)]
    assert sync.round == 1


def ends_of_round(sync: LocalSGD, step: int) -> list[Tensor]:
    """Local weights after inner step `step`, before anything is exchanged."""
    twin = toy.build(3, schedule=LateMerge(steps=1000, merges=1))
    for mine, theirs in zip(sync.replicas, twin.replicas, strict=True):
        theirs.model.load_state_dict(mine.model.state_dict())
        theirs.inner.load_state_dict(copy.deepcopy(mine.inner.state_dict()))
    toy.train_step(twin, step)
    return [local(twin, i) for i in range(3)]


def test_one_island_averaging_trains_as_if_alone() -> None:
    sync, alone = (toy.build(1, outer=SGD(lr=1.0), schedule=s) for s in (Eager(), LateMerge(steps=1000, merges=1)))
    for step in range(13):
        toy.train_step(sync, step)
        toy.train_step(alone, step)
    assert sync.round == 2 and list(sync.state.in_flight) == [0]
    torch.testing.assert_close(local(sync, 0), local(alone, 0), atol=2e-6, rtol=1e-5)


class Failing(Simulated):
    """Gathers fail while `fails` is set."""

    fails = False

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        if self.fails:
            raise SyncError("the gather failed")
        return super().gather(rows)


def test_a_failed_exchange_gives_back_what_an_island_went_on_without() -> None:
    """All that an island has trained is in its next pseudo-gradient, also what the failed exchange had carried."""
    transport = Failing(2)
    sync = toy.build(2, outer=Nesterov(lr=0.7, momentum=0.6), schedule=Eager(), transport=transport)
    for step in range(3):
        toy.train_step(sync, step)
    transport.fails = True
    toy.train_step(sync, 3)
    carried = [d.clone() for d in sync.state.in_flight[0].out.deltas]
    for step in range(4, 7):
        toy.train_step(sync, step)
    with pytest.raises(SyncError, match="the gather failed"):
        sync.commit((0,))
    assert sync.pending == (0,) and sync.round == 0
    lost = [merged(sync) - local(sync, i) - carried[i][: merged(sync).numel()] for i in range(2)]
    again = toy.build(2, schedule=Eager())
    for step in range(7):
        toy.train_step(again, step)
    for i in range(2):  # what is left beyond the first round is the second one's progress from the eager start
        begun = merged(again) - carried[i][: merged(again).numel()] / 2
        torch.testing.assert_close(lost[i], begun - local(again, i), atol=1e-6, rtol=1e-5)


def test_the_lag_costs_less_than_that_of_a_delayed_outer_step() -> None:
    """Its own share at once: after the same steps the islands' mean loss is no worse than without it."""
    losses = {}
    for gain in (0.0, 1.0):
        sync = toy.build(2, outer=SGD(lr=1.0), schedule=Eager(gain=gain))
        seen = [toy.train_step(sync, step) for step in range(40)]
        losses[gain] = sum(sum(row) for row in seen[-8:])
    assert losses[1.0] < losses[0.0]


@pytest.mark.parametrize("gain", [-0.1, float("inf"), float("nan")])
def test_gain_out_of_range(gain: float) -> None:
    with pytest.raises(ConfigError, match=r"sync\.schedule\.gain = .*Fix: "):
        Eager(gain=gain).check(4, 100)
