"""Islands whose loops end at different steps: all end with the same weights, or all hear at which steps they ended."""

from __future__ import annotations

import math

import pytest
import torch

from lowcomm.local import Baffle, Estimate, OneByte
from lowcomm.schedule import EveryH, EveryStep, LateMerge, PostLocal, Schedule
from lowcomm.state.digest import sha256_weights
from lowcomm.sync import LocalSGD
from lowcomm.types import SyncError
from lowcomm.zeroth_order import ZerothOrder, ZerothOrderOptimizer
from tests.methods import SCHEDULES, name
from tests.support import toy
from tests.support.threads import Hub, Threaded, run_threads

JOINABLE = tuple(s for s in SCHEDULES if not s(toy.STEPS - 4, toy.EVERY).average_gradients)


def _one_step(sync: LocalSGD, local: int, island: int, step: int) -> None:
    x, y = toy.batch(island, step)
    replica = sync.replicas[local]
    (replica.model(x) - y).square().mean().backward()
    sync.count_tokens(len(x), local)
    replica.inner.step()
    replica.inner.zero_grad()


def _together(ends: list[int], schedule: Schedule) -> str:
    """The same in one process: an island that has no step left rests until the last one is done."""
    sync = toy.build(len(ends), schedule=schedule)
    for step in range(max(ends)):
        if sync.next_action.average_gradients:
            toy.train_step(sync, step)
            continue
        for island, end in enumerate(ends):
            if step < end:
                _one_step(sync, island, island, step)
            else:
                sync.rest(island)
    sync.finish()
    return sha256_weights(sync.weights())


@pytest.mark.parametrize("ends", [[10, 13, 14], [14, 6, 6], [4, 14, 9]], ids=str)
@pytest.mark.parametrize("schedule", JOINABLE, ids=name)
def test_whoever_is_done_joins_the_remaining_rounds(schedule: Schedule, ends: list[int]) -> None:
    hub, digests, held = Hub(len(ends)), ["" for _ in ends], ["" for _ in ends]

    def body(me: int) -> None:
        sync = toy.build(1, schedule=schedule, transport=Threaded(hub, me))
        for step in range(ends[me]):
            _one_step(sync, 0, me, step)
        sync.finish()
        digests[me] = sha256_weights(sync.weights())
        held[me] = sha256_weights({n: p.detach() for n, p in sync.replicas[0].params.items()})

    run_threads(len(ends), body)
    assert digests == held == [_together(ends, schedule)] * len(ends)


def test_a_schedule_without_an_exchange_to_join_is_told_to_all() -> None:
    """Island 0 is past the last merge that its schedule has; island 1 exchanges by hand."""
    hub, said = Hub(2), ["", ""]

    def body(me: int) -> None:
        schedule = LateMerge(steps=4, merges=1)
        sync = toy.build(1, schedule=schedule, transport=Threaded(hub, me))
        for step in range(5 + me):
            _one_step(sync, 0, me, step)
        before = toy.flat(list(sync.weights().values()))
        with pytest.raises(SyncError) as raised:
            if me == 0:
                sync.finish()
            sync.sync((0,))
        said[me] = str(raised.value)
        assert torch.equal(before, toy.flat(list(sync.weights().values())))

    run_threads(2, body)
    assert all("island 0 finished after step 5" in text and "Fix: " in text for text in said)
    assert "this one exchanges round 1 after step 6" in said[1] and "islands [1] exchange round 1" in said[0]


@pytest.mark.parametrize(("ends", "warmup"), [([5, 7, 7], 20), ([7, 4, 5], 20), ([3, 7, 7], 6)], ids=str)
def test_an_averaged_step_without_an_island_that_is_done_is_refused_by_all(ends: list[int], warmup: int) -> None:
    """Also where the first gradient itself is not finite: that alone is nobody's end."""
    hub, said = Hub(3), ["", "", ""]

    def body(me: int) -> None:
        sync = toy.build(1, schedule=PostLocal(warmup_steps=warmup), transport=Threaded(hub, me))
        with pytest.raises(SyncError) as raised:
            for step in range(ends[me]):
                _one_step(sync, 0, me, step)
            sync.finish()
        said[me] = str(raised.value)

    run_threads(3, body)
    first = min(ends)
    assert all(f"island {ends.index(first)} finished after step {first}" in text for text in said), said


def test_a_first_gradient_that_is_not_finite_is_nobodys_end() -> None:
    hub, steps = Hub(2), [0, 0]

    def body(me: int) -> None:
        sync = toy.build(1, schedule=PostLocal(warmup_steps=9), transport=Threaded(hub, me))
        _one_step(sync, 0, me, 0)
        next(iter(sync.replicas[0].params.values())).register_hook(lambda g: g.fill_(torch.nan) if me else None)
        _one_step(sync, 0, me, 1)
        steps[me] = sync.step

    run_threads(2, body)
    assert steps == [2, 2]


@pytest.mark.parametrize("estimate", [OneByte(), OneByte(bits=32), Baffle(probes=3)], ids=name)
@pytest.mark.parametrize(("ends", "diverges"), [([5, 7, 7], 9), ([7, 4, 5], 9), ([6, 6, 6], 3)], ids=str)
def test_a_step_of_scalars_without_an_island_that_is_done_is_refused_by_all(
    estimate: Estimate, ends: list[int], diverges: int
) -> None:
    """Also where a loss is not finite: that alone is nobody's end."""
    hub, said = Hub(3), ["", "", ""]

    def body(me: int) -> None:
        sync = toy.build(1, schedule=EveryStep(), transport=Threaded(hub, me), inner=ZerothOrder(estimate=estimate))
        inner = sync.replicas[0].inner
        assert isinstance(inner, ZerothOrderOptimizer)
        try:
            for step in range(ends[me]):
                value = -math.nan if step == diverges and me == 1 else 0.1 * me
                inner.row = estimate.write([value] * estimate.probes)
                if math.isnan(value):
                    inner.row.fill_(0xFF)
                sync.count_tokens(1)
                sync.average_gradients()
                inner.step()
            sync.finish()
        except SyncError as error:
            said[me] = str(error)
        assert inner.steps == min(ends)

    run_threads(3, body)
    first = min(ends)
    if ends == [first] * 3:
        assert said == ["", "", ""]
    else:
        assert all(f"island {ends.index(first)} finished after step {first}" in text for text in said), said


def test_islands_that_end_together_ask_once() -> None:
    """Bytes of an end with nothing left to merge: a row of a roll call, and what was trained since the last sync."""
    sync = toy.build(3)
    for step in range(8):
        toy.train_step(sync, step)
    before = sync.transport.sent_bytes[0]
    sync.finish()
    assert sync.transport.sent_bytes[0] - before == 2 * (4 * 8 + 4)
    assert sync.round == 2


def test_the_end_of_a_warmup_is_met_in_step() -> None:
    """Island 0 ends with the last averaged step, the others go on to local rounds."""
    ends, schedule = [5, 12, 9], PostLocal(warmup_steps=5)
    hub, digests = Hub(3), ["", "", ""]

    def body(me: int) -> None:
        sync = toy.build(1, schedule=schedule, transport=Threaded(hub, me))
        for step in range(ends[me]):
            _one_step(sync, 0, me, step)
        sync.finish()
        digests[me] = sha256_weights(sync.weights())

    run_threads(3, body)
    assert digests == [_together(ends, schedule)] * 3


def test_every_h_without_uneven_ends_is_what_it_was() -> None:
    assert _together([14, 14], EveryH()) == toy.trajectory(toy.build(2))[-2].removeprefix("end:")
